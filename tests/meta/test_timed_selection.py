"""Which cells and batches a timed run covers, and in which order: pytest's and `gate ab`'s options mean the same."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from collators import collator_named
from gate.measure.bench import Selection, Shared, timed_cells
from model.workloads import workload_named
from tests.selection import matches, pytest_collection_modifyitems

pytestmark = pytest.mark.meta

SMOKE = workload_named("smoke", "cpu", None)


def ids(**chosen) -> set[str]:
    return {cell.id for cell in timed_cells(SMOKE, Selection(**chosen))}


def test_globs_name_any_cell_of_the_workloads_dtype_and_names_narrow_its_own():
    own, every = ids(), ids(cells="*")
    assert own < every
    assert all("-float32-" in cell for cell in every)
    assert ids(cells="*-train-*,sdpa_loop-packed-*") == {
        cell for cell in every if "-train-" in cell or cell.startswith("sdpa_loop-packed-")
    }
    assert ids(backends=["sdpa_loop"], collators=["packed"]) == {
        cell for cell in own if cell.startswith("sdpa_loop-packed-")
    }
    assert ids(compiled="none") == {cell for cell in own if "-eager-" in cell} < own < ids(compiled="all")


def test_pytest_times_the_cells_that_a_live_comparison_would(pytestconfig: pytest.Config):
    options = ["--workload=smoke", "--backend=sdpa_loop", "--compiled=all"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", "-m", "performance", *options]
    ran = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True)
    collected = set(re.findall(r"test_a_batch_is_timed\[(\S+)\]", ran.stdout))
    chosen = timed_cells(SMOKE, Selection(backends=["sdpa_loop"], compiled="all"))
    declared = {cell.id for cell in chosen if not cell.backend.undeclared_reasons(cell.case("cpu", SMOKE.config))}
    assert collected == declared != set()


def ordered(seed: int | None, names: str) -> str:
    """The order that items called by these letters get."""
    options = {"order_seed": seed, "cells": None, "backend": None, "collator": None}
    items = [SimpleNamespace(name=name) for name in names]
    pytest_collection_modifyitems(SimpleNamespace(getoption=options.get), items)
    return "".join(item.name for item in items)


def test_one_of_several_patterns_is_enough():
    assert matches("a-train-b", None)
    assert matches("a-train-b", "*eval*,*train*")
    assert not matches("a-train-b", "a,*eval*")


def test_the_order_follows_from_the_seed_and_the_cells_alone():
    letters = "abcdefghij"
    assert ordered(None, "cbad") == "cbad"
    orders = {ordered(seed, letters) for seed in range(20)}
    assert len(orders) == 20
    assert all(sorted(order) == list(letters) for order in orders)
    assert ordered(3, letters) == ordered(3, letters[::-1])
    assert len({order[0] for order in orders}) > 5, "no cell has its place"


def test_two_cells_keep_their_order_whatever_else_is_run():
    whole = ordered(3, "abcdefghij")
    assert ordered(3, "jfb") == "".join(letter for letter in whole if letter in "jfb")


def test_a_part_of_the_batches_is_the_first_of_them():
    packed = collator_named("packed")
    few, all_of_them = Shared(SMOKE, "cpu", 3).batches(packed), Shared(SMOKE, "cpu").batches(packed)
    assert (len(few), len(all_of_them)) == (3, SMOKE.num_batches)
    for one, other in zip(few, all_of_them, strict=False):
        assert torch.equal(one.input_ids, other.input_ids)
