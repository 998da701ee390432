"""A batch padded for the reference gives what each sequence gives alone: the reference itself is right."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collators import Example, collator_named
from model.attention import EXECUTIONS, MODES, REFERENCE, default_device
from model.cells import Cell
from model.equivalence import differences
from model.reference import Outcome
from tests.correctness.drawn import CONFIG, DRAWN
from tests.correctness.workbench import Workbench, workbench_of
from tests.strategies import examples

pytestmark = pytest.mark.correctness


@pytest.fixture(scope="module", params=[False, True], ids=["full", "causal"])
def reference_bench(request: pytest.FixtureRequest) -> Workbench:
    collator = collator_named("pad_longest")
    cell = Cell(REFERENCE, collator, MODES[1], request.param, torch.float32, EXECUTIONS[0], DRAWN, DRAWN)
    return workbench_of(cell)


def assert_close_in_float64(bench: Workbench, actual: Outcome, truth: Outcome) -> None:
    """Both are float64: they must agree to the rounding of float32, which is far above their own."""
    found = differences(actual, truth, truth, dtype=torch.float32, error_factor=0, config=bench.model.config)
    assert not found, "\n".join(map(str, found))


@given(batch=examples(CONFIG[default_device()]))
def test_a_batch_padded_for_the_reference_equals_each_sequence_alone(
    reference_bench: Workbench, batch: list[Example]
) -> None:
    bench = reference_bench
    assert_close_in_float64(bench, bench.truth_of(batch), bench.oracle_of(batch))


@given(batch=examples(CONFIG[default_device()]), row=st.integers(0, 100))
def test_a_batch_with_one_wrong_token_differs_from_the_reference(
    reference_bench: Workbench, batch: list[Example], row: int
) -> None:
    """The comparison can fail: one logits row moved by 2% of its norm is seen."""
    bench = reference_bench
    right = bench.outcome(batch)
    wrong = [logits.clone() for logits in right.logits]
    chosen = wrong[row % len(wrong)]
    chosen[row % len(chosen)] *= 1.02
    found = differences(
        replace(right, logits=wrong),
        bench.truth_of(batch),
        right,
        dtype=bench.cell.dtype,
        error_factor=REFERENCE.error_factor,
        config=bench.model.config,
    )
    assert [mismatch.name.split()[0] for mismatch in found] == ["logits"]
