"""A batch is computed at the positions it holds: learned ones are absolute, rotary ones relative."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from collators import CollatorOptions, Example
from model.attention import REFERENCE, default_device
from model.equivalence import differences
from model.reference import REFERENCE_COLLATOR, Outcome, outcome
from tests.correctness.drawn import CONFIG, in_first_dtype
from tests.correctness.references import Precision
from tests.correctness.slots import with_positions
from tests.correctness.workbench import Workbench
from tests.strategies import examples

pytestmark = pytest.mark.correctness

MAX_LENGTH = CONFIG[default_device()].max_length

drawn = examples(CONFIG[default_device()])
seeds = st.integers(0, 2**32 - 1)


def lengths_of(batch: list[Example]) -> list[int]:
    return [example.input_ids.numel() for example in batch]


def shifted(batch: list[Example], max_length: int, seed: int) -> list[Tensor]:
    """Return the positions of each sequence, from a first one of its own on instead of from 0."""
    generator = torch.Generator().manual_seed(seed)
    starts = [int(torch.randint(max_length - length + 1, (), generator=generator)) for length in lengths_of(batch)]
    return [torch.arange(start, start + length) for start, length in zip(starts, lengths_of(batch), strict=True)]


def reference_at(
    workbench: Workbench, batch: list[Example], positions: list[Tensor], precision: Precision, number: int = 0
) -> Outcome:
    """Return what the reference computes of `batch` at `positions`."""
    collate = REFERENCE_COLLATOR.build(CollatorOptions(workbench.config.max_length, workbench.config.pad_id))
    placed = with_positions(collate(batch), positions).to(workbench.case.device)
    return workbench.once(
        "at positions",
        lambda model, case: outcome(model, REFERENCE, placed, case),
        batch,
        precision,
        *(tensor.numpy().tobytes() for tensor in positions),
        number=number,
    )


@pytest.mark.cells(distinct=True, variants=("plain", "rotary"), one_of_each="layout", where=in_first_dtype)
@settings(max_examples=settings.default.max_examples // 5)
@given(batch=drawn, seed=seeds)
def test_shifted_positions_are_those_that_the_reference_takes(
    workbench: Workbench, batch: list[Example], seed: int
) -> None:
    positions = shifted(batch, workbench.config.max_length, seed)
    placed = with_positions(workbench.batch(batch), positions)
    assume(not workbench.refuses(placed))
    found = workbench.differences(
        workbench.outcome_of(placed),
        lambda precision, number: reference_at(workbench, batch, positions, precision, number),
    )
    workbench.assert_none(found)


@pytest.mark.cells(
    distinct=True,
    variants=("rotary",),
    backend=(REFERENCE,),
    collator=(REFERENCE_COLLATOR,),
    dtype=(torch.float32,),
)
@settings(max_examples=settings.default.max_examples // 2)
@given(batch=drawn, seed=seeds)
def test_shifted_rotary_positions_change_nothing(workbench: Workbench, batch: list[Example], seed: int) -> None:
    """Shown for the reference, which every cell equals at shifted positions too.

    Both are float64, as rounding to fewer bits differs from angle to angle.
    """
    moved = reference_at(workbench, batch, shifted(batch, workbench.config.max_length, seed), "truth")
    truth = workbench.truth_of(batch)
    workbench.assert_none(
        differences(moved, truth, [truth], dtype=torch.float32, error_factor=0, config=workbench.config)
    )


def assert_seen(workbench: Workbench, batch: list[Example], positions: Sequence[Tensor]) -> None:
    """Fail where `batch` at these wrong positions passes for right."""
    placed = with_positions(workbench.batch(batch), positions)
    assume(not workbench.refuses(placed))
    actual = workbench.outcome_of(placed)
    # So far off that no other rounding of the reference could excuse it, or else beside all of them.
    found = workbench.far_off(actual, batch) or workbench.wrong(actual, batch)
    assert any(mismatch.name.startswith("logits") for mismatch in found), "logits at wrong positions pass for right"


@pytest.mark.cells(distinct=True, variants=("plain", "rotary"), backend=(REFERENCE,), collator=(REFERENCE_COLLATOR,))
@settings(max_examples=settings.default.max_examples // 5)
@given(batch=drawn.filter(lambda batch: max(lengths_of(batch)) > 8))
def test_positions_in_reverse_change_the_outputs(workbench: Workbench, batch: list[Example]) -> None:
    """The comparison can fail."""
    assert_seen(workbench, batch, [torch.arange(length).flip(0) for length in lengths_of(batch)])


@pytest.mark.cells(distinct=True, backend=(REFERENCE,), collator=(REFERENCE_COLLATOR,))
@settings(max_examples=settings.default.max_examples // 5)
@given(batch=drawn.filter(lambda batch: len(batch) > 1 and sum(lengths_of(batch)) <= MAX_LENGTH))
def test_learned_positions_that_run_on_change_the_outputs(workbench: Workbench, batch: list[Example]) -> None:
    """The comparison can fail: positions have to restart in every sequence."""
    assert_seen(workbench, batch, torch.arange(sum(lengths_of(batch))).split(lengths_of(batch)))
