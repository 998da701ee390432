"""Steps are timed after a warm-up that has met what is done once."""

from dataclasses import replace

import pytest
import torch

from collators import CollatorOptions, Example, collator_named
from collators.batch import Batch
from gate.measure.bench import WARM_UP, warm_up
from model.cells import Cell, all_cells
from tests.correctness.drawn import DRAWN

pytestmark = pytest.mark.meta

CELL = next(cell for cell in all_cells(DRAWN, DRAWN) if cell.execution == "eager")


def cell(*, plans: bool, execution: str = "eager") -> Cell:
    backend = replace(CELL.backend, plans_by_shape=plans)
    return next(each for each in all_cells(DRAWN, DRAWN, backends=[backend]) if each.execution == execution)


def batches(count: int) -> list[Batch]:
    """The third is the heaviest."""
    collate = collator_named("packed").build(CollatorOptions(20, 0))
    lengths = [19 if number == 2 else 3 + number % 5 for number in range(count)]
    return [collate([Example(torch.ones(each).long(), torch.ones(each).long())]) for each in lengths]


@pytest.mark.parametrize(("plans", "execution"), [(True, "eager"), (False, "compiled"), (True, "compiled")])
def test_a_warm_up_meets_every_batch_where_one_may_be_the_first_of_its_kind(plans: bool, execution: str) -> None:
    every = batches(24)
    assert list(warm_up(every, cell(plans=plans, execution=execution))) == every


def test_a_warm_up_is_short_elsewhere_with_the_heaviest_batch_first() -> None:
    every = batches(24)
    few = warm_up(every, cell(plans=False))
    assert len(few) == WARM_UP == 8
    assert few[0] is every[2]


@pytest.mark.parametrize("execution", ["eager", "compiled"])
def test_a_warm_up_on_the_only_batch_is_two_steps(execution: str) -> None:
    every = batches(1)
    assert list(warm_up(every, cell(plans=False, execution=execution))) == every * 2
