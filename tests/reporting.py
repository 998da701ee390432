"""Pytest plugin: what the suite adds to the page of `--report`: undeclared cells, lengths, and packing verdicts."""

from collections.abc import Sequence
from typing import Any

import pytest

from collators.length_buckets import LengthBucketBatchSampler
from gate.report.outcomes import FACTS
from model.attention import default_device
from model.workloads import Workload
from tests.matrix import as_json, chosen, overall
from tests.packing.plugin import FOUND
from tests.selection import TRAINERS, chosen_workload


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FACTS] = lambda: facts(config)


def facts(config: pytest.Config) -> dict[str, Any]:
    """Return parts of a page by name."""
    workload, mark = chosen_workload(config), config.getoption("markexpr")
    found: dict[str, Any] = {}
    if mark == "performance":
        lengths = [len(example.input_ids) for batch in workload.examples() for example in batch]
        found |= {"lengths": lengths, "padding": padding_shares(lengths, workload)}
    if mark == "correctness" and config.getoption("report"):
        device = default_device()
        entries = [(cell, overall(cell, workload.config, device)) for cell in chosen(config, workload)]
        found["states"] = as_json(entries, {})["cells"]
    if entries_ := config.stash[FOUND].entries:
        found["packing"] = packing(entries_)
    if mark == TRAINERS:
        found["trainers"] = trainers()
    return found


def trainers() -> list[dict[str, str]]:
    """Return the recorded verdict of each path of a trainer, which the tests have just compared."""
    from tests.trainers.test_trainers import PATHS, recorded

    return [
        {
            "path": path.name,
            "how": path.how,
            "verdict": "; ".join(dict.fromkeys(recorded()[path.name]["verdicts"].values())),
            "breaks": "; ".join(recorded()[path.name]["contracts"].values()) or "-",
        }
        for path in PATHS
        if path.version is not None
    ]


def padding_shares(lengths: Sequence[int], workload: Workload) -> dict[str, float]:
    """Return the share of slots that are padding, by how batches are made; every batch is padded to its longest."""
    size = workload.batch_size
    samplers = {
        "in batches as they come": [range(at, min(at + size, len(lengths))) for at in range(0, len(lengths), size)],
        "with LengthBucketBatchSampler": LengthBucketBatchSampler(lengths, size),
    }
    shares = {}
    for how, batches in samplers.items():
        slots = sum(len(batch) * max(lengths[index] for index in batch) for batch in map(list, batches))
        shares[how] = 1 - sum(lengths) / slots
    return shares


def packing(entries: dict[str, Any]) -> list[dict[str, str]]:
    """Return the verdict on flattened rows of each family, in words."""
    # Not at the top: transformers takes seconds to import.
    from tests.packing.report import cell

    return [
        {
            "family": name,
            "verdict": f"not built: {why}" if (why := entry.get("cannot_build")) else cell(entry, "flattened"),
        }
        for name, entry in sorted(entries.items())
    ]
