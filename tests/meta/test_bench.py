"""A cell is built where nothing is left of the one before, and timed after a warm-up that met what is done once."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from gate.measure.bench import WARM_UP, Shared, cell_bench, timed_cells, warm_up
from model.compilation import fresh_compiler
from tests.meta.test_timed_selection import SMOKE

pytestmark = pytest.mark.meta

CELL = next(cell for cell in timed_cells(SMOKE) if (cell.execution, cell.mode) == ("eager", "eval"))


@pytest.fixture
def shared() -> Iterator[Shared]:
    yield Shared(SMOKE, "cpu")
    gc.unfreeze()


def test_a_cell_is_built_where_nothing_is_left_of_the_one_before(shared: Shared) -> None:
    with fresh_compiler() as compiler:
        before = cell_bench(shared, CELL, compiler)
        # Only a collection frees it: what is frozen first would stay for good.
        before.model.register_forward_pre_hook(before.model.forward)
        model = weakref.ref(before.model)
        del before
        assert model() is not None
        cell_bench(shared, CELL, compiler)
    assert model() is None


def test_what_cells_have_in_common_is_no_longer_collected(shared: Shared) -> None:
    left_behind = [[number] for number in range(1_000)]
    with fresh_compiler() as compiler:
        bench = cell_bench(shared, CELL, compiler)
        tracked = {id(each) for each in gc.get_objects()}
    assert gc.get_freeze_count() > len(left_behind)
    assert not tracked & {id(each) for each in left_behind}
    assert id(bench.model) in tracked


def test_a_part_of_the_batches_is_the_first_of_them(shared: Shared) -> None:
    few, every = Shared(SMOKE, "cpu", 3).batches(CELL.collator), shared.batches(CELL.collator)
    assert (len(few), len(every)) == (3, SMOKE.num_batches)
    assert all(torch.equal(one.input_ids, other.input_ids) for one, other in zip(few, every, strict=False))


@pytest.mark.parametrize(
    ("plans", "execution", "short"),
    [(True, "eager", False), (False, "compiled", False), (True, "compiled", False), (False, "eager", True)],
)
def test_a_warm_up_meets_every_batch_where_one_may_be_the_first_of_its_kind_and_else_the_heaviest_first(
    shared: Shared, plans: bool, execution: str, short: bool
) -> None:
    cell = replace(CELL, backend=replace(CELL.backend, plans_by_shape=plans), execution=execution)
    every = shared.batches(CELL.collator)
    steps = warm_up(every, cell)
    assert len(steps) == (WARM_UP if short else SMOKE.num_batches)
    assert steps[0] is (max(every, key=lambda batch: batch.num_slots) if short else every[0])
    # A warm-up on the only batch is two steps.
    assert len(warm_up(every[:1], replace(cell, backend=CELL.backend))) == 2
