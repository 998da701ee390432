"""Which cells and batches a timed run covers, in which order, and what is timed beside them."""

from types import SimpleNamespace

import pytest
import torch

from collators import collator_named
from gate.baseline import doubts
from model.workloads import workload_named
from tests.performance.bench import Shared
from tests.performance.control import control
from tests.selection import matches, pytest_collection_modifyitems

pytestmark = pytest.mark.meta


def ordered(seed: int | None, names: str) -> str:
    """The order that items called by these letters get."""
    options = {"order_seed": seed, "cells": None, "backend": None, "collator": None}
    items = [SimpleNamespace(name=name) for name in names]
    pytest_collection_modifyitems(SimpleNamespace(getoption=options.get), items)
    return "".join(item.name for item in items)


def test_one_of_several_patterns_is_enough():
    assert matches("a-train-b", None)
    assert matches("a-train-b", "*eval*,*train*")
    assert matches("a-train-b", "a-train-b")
    assert not matches("a-train-b", "a,*eval*")


def test_cells_keep_their_order_without_a_seed():
    assert ordered(None, "cbad") == "cbad"


def test_the_order_follows_from_the_seed_and_the_cells_alone():
    letters = "abcdefghij"
    orders = {ordered(seed, letters) for seed in range(20)}
    assert len(orders) == 20
    assert all(sorted(order) == list(letters) for order in orders)
    assert ordered(3, letters) == ordered(3, letters[::-1])
    firsts = {order[0] for order in orders}
    assert len(firsts) > 5, "no cell has its place"


def test_two_cells_keep_their_order_whatever_else_is_run():
    whole = ordered(3, "abcdefghij")
    assert ordered(3, "jfb") == "".join(letter for letter in whole if letter in "jfb")


def test_a_part_of_the_batches_is_the_first_of_them():
    workload, packed = workload_named("smoke", "cpu"), collator_named("packed")
    few, all_of_them = Shared(workload, "cpu", 3).batches(packed), Shared(workload, "cpu").batches(packed)
    assert (len(few), len(all_of_them)) == (3, workload.num_batches)
    for one, other in zip(few, all_of_them, strict=False):
        assert torch.equal(one.input_ids, other.input_ids)


def test_the_control_times_a_product_and_a_copy():
    times = control("cpu", torch.float32).queue()()
    assert {name: len(each) for name, each in times.items()} == dict.fromkeys(doubts.CONTROL, doubts.CONTROL_REPEATS)
    assert all(ms > 0 for each in times.values() for ms in each)
    # After each cell: cheap, also on a busy machine.
    assert sum(map(sum, times.values())) < 500
