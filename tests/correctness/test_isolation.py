"""A batch keeps its sequences apart: none sees another, in the forward or in the backward."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from collators import Example
from model.attention import default_device
from model.reference import full_precision
from model.steps import forward
from tests.correctness.drawn import CONFIG, ONE_OF_EACH_LAYOUT
from tests.correctness.report import assert_changed, assert_same
from tests.correctness.slots import embedded, other_tokens, unsupervised
from tests.correctness.workbench import Workbench
from tests.strategies import examples

pytestmark = pytest.mark.correctness

several = examples(CONFIG[default_device()]).filter(lambda batch: len(batch) > 1)


@pytest.mark.cells(distinct=True, collator=ONE_OF_EACH_LAYOUT)
@settings(max_examples=settings.default.max_examples // 5)
@given(batch=several, at=st.integers(0, 5))
def test_tokens_of_one_sequence_do_not_change_the_outputs_of_others(
    workbench: Workbench, batch: list[Example], at: int
) -> None:
    at %= len(batch)
    changed = [*batch[:at], other_tokens(batch[at], workbench.config), *batch[at + 1 :]]
    before, after = workbench.batch(batch), workbench.batch(changed)
    assume(not workbench.refuses(before))
    logits = zip(workbench.logits_of(before), workbench.logits_of(after), strict=True)
    for index, (was, now) in enumerate(logits):
        # Shapes are the same, so that kernels add in the same order: equality is exact.
        check = assert_changed if index == at else assert_same
        check(f"logits of sequence {index} after other tokens in sequence {at}", was, now)


@pytest.mark.cells(distinct=True, collator=ONE_OF_EACH_LAYOUT, mode=("train",))
@settings(max_examples=settings.default.max_examples // 5)
@given(batch=several, at=st.integers(0, 5))
def test_the_loss_of_one_sequence_has_no_gradient_in_others(
    workbench: Workbench, batch: list[Example], at: int
) -> None:
    at %= len(batch)
    supervised = Example(batch[at].input_ids, batch[at].input_ids)
    only = workbench.batch([supervised if index == at else unsupervised(each) for index, each in enumerate(batch)])
    assume(not workbench.refuses(only))
    with full_precision(), embedded(workbench.model) as seen:
        result = forward(workbench.model, workbench.cell.backend, only, workbench.case)
        (gradient,) = torch.autograd.grad(result.loss, seen)
    for index, piece in enumerate(only.split(gradient)):
        check = assert_changed if index == at else assert_same
        check(f"gradient of sequence {index}, from the loss of sequence {at},", torch.zeros_like(piece), piece)
        assert bool(piece.isfinite().all())
