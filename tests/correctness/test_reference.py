"""A batch padded for the reference gives what each sequence gives alone: the reference itself is right."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collators import IGNORE_INDEX, Example, collator_named
from model.attention import EXECUTIONS, MODES, REFERENCE, default_device
from model.cells import Cell
from model.equivalence import differences
from model.reference import Outcome
from model.tolerance import DECODER_REFERENCE_LIMIT
from tests.correctness.drawn import CONFIG, DRAWN
from tests.correctness.references import References
from tests.correctness.workbench import Workbench, open_workbench
from tests.strategies import examples

pytestmark = pytest.mark.correctness


@pytest.fixture(scope="module", params=[False, True], ids=["full", "causal"])
def reference_bench(request: pytest.FixtureRequest, references: References) -> Iterator[Workbench]:
    collator = collator_named("pad_longest")
    cell = Cell(REFERENCE, collator, MODES[1], request.param, torch.float32, EXECUTIONS[0], DRAWN, DRAWN)
    with open_workbench(cell, references=references) as bench:
        yield bench


def assert_close_in_float64(bench: Workbench, actual: Outcome, truth: Outcome) -> None:
    """Both are float64: they must agree to the rounding of float32, which is far above their own."""
    found = differences(actual, truth, [truth], dtype=torch.float32, error_factor=0, config=bench.model.config)
    assert not found, "\n".join(map(str, found))


@given(batch=examples(CONFIG[default_device()]))
def test_a_batch_padded_for_the_reference_equals_each_sequence_alone(
    reference_bench: Workbench, batch: list[Example]
) -> None:
    bench = reference_bench
    truth, alone = bench.truth_of(batch), bench.oracle_of(batch)
    assert_close_in_float64(bench, truth, alone)
    # Nothing to compare would be no difference.
    assert truth.gradients.keys() == alone.gradients.keys() == dict(bench.model.named_parameters()).keys()


@given(batch=examples(CONFIG[default_device()]))
def test_a_batch_has_the_mean_cross_entropy_of_its_targets_as_loss(
    reference_bench: Workbench, batch: list[Example]
) -> None:
    """Cells, reference and oracle share one loss: here it is computed from the logits of the truth without it."""
    truth = reference_bench.truth_of(batch)
    logits = torch.cat(truth.logits)
    targets = torch.cat([each.targets for each in batch]).to(logits.device)
    supervised = targets != IGNORE_INDEX
    if supervised.any():
        picked = logits.log_softmax(-1)[supervised, targets[supervised]]
        assert_close_in_float64(reference_bench, replace(truth, loss=-picked.mean()), truth)
    else:
        assert truth.loss == 0


@given(batch=examples(CONFIG[default_device()]))
def test_a_batch_in_float32_is_rounded_no_more_than_float32_must(
    reference_bench: Workbench, batch: list[Example]
) -> None:
    """The reference sizes every bound: were it computed in fewer bits, it would excuse cells that are as well."""
    bench = reference_bench
    truth, own = bench.truth_of(batch), bench.reference_of(batch, "own")
    off = differences(own, truth, [truth], dtype=torch.float32, error_factor=0, config=bench.model.config)
    found = [mismatch for mismatch in off if not mismatch.error <= DECODER_REFERENCE_LIMIT * mismatch.allowed]
    assert not found, "\n".join(map(str, found))


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
    truth = bench.truth_of(batch)
    found = bench.differences(
        replace(right, logits=wrong), lambda precision, number: truth if precision == "truth" else right
    )
    assert [mismatch.name.split()[0] for mismatch in found] == ["logits"]
