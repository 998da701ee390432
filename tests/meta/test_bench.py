"""A timed cell is built where nothing is left of the one before, and collections walk its own objects alone."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from gate.measure.bench import Shared, cell_bench
from model.cells import Cell, all_cells
from model.compilation import fresh_compiler
from model.workloads import workload_named

pytestmark = pytest.mark.meta


@pytest.fixture
def cell() -> Cell:
    workload = workload_named("smoke", "cpu", None)
    every = all_cells(workload.name, workload.lengths.name, dtypes=[workload.dtype])
    return next(each for each in every if each.execution == "eager" and each.mode == "eval" and workload.has(each))


@pytest.fixture(autouse=True)
def _unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_a_cell_is_built_where_nothing_is_left_of_the_one_before(cell: Cell) -> None:
    shared = Shared(workload_named("smoke", "cpu", None), "cpu", steps=1)
    with fresh_compiler() as compiler:
        before = cell_bench(shared, cell, compiler)
        # Only a collection frees it: what is frozen first would stay for good.
        before.model.register_forward_pre_hook(before.model.forward)
        model = weakref.ref(before.model)
        del before
        assert model() is not None
        cell_bench(shared, cell, compiler)
    assert model() is None


def test_what_cells_have_in_common_is_no_longer_collected(cell: Cell) -> None:
    shared = Shared(workload_named("smoke", "cpu", None), "cpu", steps=1)
    left_behind = [[number] for number in range(1_000)]
    with fresh_compiler() as compiler:
        bench = cell_bench(shared, cell, compiler)
        tracked = {id(each) for each in gc.get_objects()}
    assert gc.get_freeze_count() > len(left_behind)
    assert not tracked & {id(each) for each in left_behind}
    assert id(bench.model) in tracked
