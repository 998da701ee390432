"""A batch gives the same however it is split into micro-batches: what is added up is sums over targets."""

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from collators import IGNORE_INDEX, Batch, Example
from model.attention import default_device
from model.reference import Outcome
from tests.correctness.drawn import CONFIG, ONE_OF_EACH_LAYOUT
from tests.correctness.report import assert_same
from tests.correctness.slots import unsupervised
from tests.correctness.workbench import Workbench
from tests.strategies import examples

pytestmark = pytest.mark.correctness

drawn = examples(CONFIG[default_device()])
several = drawn.filter(lambda batch: len(batch) > 1)


def accumulated(workbench: Workbench, batches: list[Batch]) -> Outcome:
    """Return logits in order, and loss and gradients summed over `batches`, as gradient accumulation does."""
    num_targets = sum(batch.num_targets for batch in batches)
    parts = [workbench.outcome_of(batch, num_targets) for batch in batches]
    gradients = {
        name: sum(part.gradients[name] for part in parts[1:]) + parts[0].gradients[name] for name in parts[0].gradients
    }
    return Outcome([piece for part in parts for piece in part.logits], sum(part.loss for part in parts), gradients)


@pytest.mark.cells(distinct=True, collator=ONE_OF_EACH_LAYOUT)
@settings(max_examples=settings.default.max_examples // 5)
@given(
    batch=several,
    cuts=st.sets(st.integers(1, 5)),
    silent=st.sets(st.integers(0, 5), max_size=2),
)
def test_micro_batches_give_the_logits_and_summed_gradients_of_the_whole(
    workbench: Workbench, batch: list[Example], cuts: set[int], silent: set[int]
) -> None:
    """Some sequences have no supervised target, so that whole micro-batches may have none."""
    batch = [unsupervised(example) if index in silent else example for index, example in enumerate(batch)]
    bounds = [0, *sorted(cut for cut in cuts if cut < len(batch)), len(batch)]
    parts = [workbench.batch(batch[start:stop]) for start, stop in pairwise(bounds)]
    assume(not any(map(workbench.refuses, parts)))
    workbench.assert_right(accumulated(workbench, parts), batch)


@pytest.mark.cells(distinct=True, collator=ONE_OF_EACH_LAYOUT)
@settings(max_examples=settings.default.max_examples // 10)
@given(batch=several)
def test_sequences_alone_give_the_logits_and_summed_gradients_of_the_whole(
    workbench: Workbench, batch: list[Example]
) -> None:
    parts = [workbench.batch([example]) for example in batch]
    assume(not any(map(workbench.refuses, parts)))
    workbench.assert_right(accumulated(workbench, parts), batch)


@pytest.mark.cells(distinct=True, collator=ONE_OF_EACH_LAYOUT)
@settings(max_examples=settings.default.max_examples // 10)
@given(batch=drawn)
def test_no_supervised_target_gives_no_loss_and_no_gradient(workbench: Workbench, batch: list[Example]) -> None:
    batch = [unsupervised(example) for example in batch]
    collated = workbench.batch(batch)
    assume(not workbench.refuses(collated))
    actual = workbench.outcome_of(collated)
    assert all((example.targets == IGNORE_INDEX).all() for example in batch)
    assert all(piece.isfinite().all() for piece in actual.logits)
    assert_same("loss", torch.zeros_like(actual.loss), actual.loss)
    for name, gradient in actual.gradients.items():
        assert_same(f"gradient of {name}", torch.zeros_like(gradient), gradient)
