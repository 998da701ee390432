"""Pytest plugin: all correctness or packing tests share the cores of a CPU; everything else runs in one process."""

import os

import pytest
import torch

from model.attention import default_device

#: Each worker imports torch, and takes up to 1 GB.
MOST_WORKERS = 8

#: Marks whose tests have a machine's cores to themselves when all of them run.
SHARED = ("correctness", "packing", "unit", "correctness or unit")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Answer `-n auto`, which pyproject.toml asks for: 0 is this process.

    Step times need the machine to themselves, and a GPU is one device (`-n 14` there is up to you). A few cells are
    done before workers have started.
    """
    selected = any(config.getoption(option) for option in ("cells", "backend", "collator", "keyword", "deselect"))
    whole = config.getoption("markexpr") in SHARED and not selected and config.args == config.getini("testpaths")
    return min(os.cpu_count() or 1, MOST_WORKERS) if whole and default_device() == "cpu" else 0


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker one thread: tensors here are small, and cores are shared among workers."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
