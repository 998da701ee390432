"""Which cells and batches a timed run covers, and in which order: pytest's and `gate ab`'s options mean the same."""

from types import SimpleNamespace

import pytest

from gate.measure.bench import timed_cells
from gate.record.cell import chosen_by
from model.workloads import workload_named
from tests.selection import pytest_collection_modifyitems

pytestmark = pytest.mark.meta

SMOKE = workload_named("smoke", "cpu", None)


def ids(**chosen) -> set[str]:
    return {cell.id for cell in timed_cells(SMOKE, **chosen)}


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


def ordered(seed: int | None, names: str) -> str:
    """The order that items called by these letters get."""
    options = {"order_seed": seed, "cells": None, "backend": None, "collator": None}
    items = [SimpleNamespace(name=name) for name in names]
    pytest_collection_modifyitems(SimpleNamespace(getoption=options.get), items)
    return "".join(item.name for item in items)


def test_one_of_several_patterns_is_enough():
    assert chosen_by("a-train-b", None)
    assert chosen_by("a-train-b", "*eval*,*train*")
    assert not chosen_by("a-train-b", "a,*eval*")


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
