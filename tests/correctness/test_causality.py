"""A batch is causal where the cell says so, and looks both ways where it does not."""

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

drawn = examples(CONFIG[default_device()]).filter(lambda batch: max(map(length, batch)) > 1)


def length(example: Example) -> int:
    return example.input_ids.numel()


def place(batch: list[Example], at: int, cut: int) -> tuple[int, int]:
    """Return a sequence of two tokens or more, and where it is cut into an earlier and a later part."""
    long = [index for index, example in enumerate(batch) if length(example) > 1]
    chosen = long[at % len(long)]
    return chosen, 1 + cut % (length(batch[chosen]) - 1)


def logits_with(workbench: Workbench, batch: list[Example], at: int, start: int, stop: int | None) -> torch.Tensor:
    """Return the logits of sequence `at` once its tokens from `start` to `stop` are others."""
    changed = other_tokens(batch[at], workbench.config, start, stop)
    return workbench.logits_of(workbench.batch([*batch[:at], changed, *batch[at + 1 :]]))[at]


@pytest.mark.cells(distinct=True, collator=ONE_OF_EACH_LAYOUT)
@settings(max_examples=settings.default.max_examples // 5)
@given(batch=drawn, at=st.integers(0, 5), cut=st.integers(0, 128))
def test_later_tokens_change_earlier_outputs_only_where_attention_is_not_causal(
    workbench: Workbench, batch: list[Example], at: int, cut: int
) -> None:
    at, cut = place(batch, at, cut)
    collated = workbench.batch(batch)
    assume(not workbench.refuses(collated))
    before = workbench.logits_of(collated)[at]
    after = logits_with(workbench, batch, at, cut, None)
    earlier = f"logits of sequence {at} before position {cut}, after other tokens from there on,"
    (assert_same if workbench.cell.causal else assert_changed)(earlier, before[:cut], after[:cut])
    later = f"logits of sequence {at} from position {cut} on"
    assert_changed(f"{later}, after other tokens there,", before[cut:], after[cut:])
    after = logits_with(workbench, batch, at, 0, cut)
    assert_changed(f"{later}, after other tokens before it,", before[cut:], after[cut:])


@pytest.mark.cells(distinct=True, collator=ONE_OF_EACH_LAYOUT, mode=("train",))
@settings(max_examples=settings.default.max_examples // 10)
@given(batch=drawn, at=st.integers(0, 5), cut=st.integers(0, 128))
def test_the_loss_of_earlier_tokens_has_a_gradient_in_later_ones_only_where_attention_is_not_causal(
    workbench: Workbench, batch: list[Example], at: int, cut: int
) -> None:
    at, cut = place(batch, at, cut)
    supervised = unsupervised(Example(batch[at].input_ids, batch[at].input_ids), cut)
    only = workbench.batch([supervised if index == at else unsupervised(each) for index, each in enumerate(batch)])
    assume(not workbench.refuses(only))
    with full_precision(), embedded(workbench.model) as seen:
        result = forward(workbench.model, workbench.cell.backend, only, workbench.case)
        (gradient,) = torch.autograd.grad(result.loss, seen)
    earlier, later = only.split(gradient)[at].tensor_split([cut])
    loss = f"gradient of sequence {at}, from the loss at positions before {cut}, in those"
    assert_changed(f"{loss} positions", torch.zeros_like(earlier), earlier)
    check = assert_same if workbench.cell.causal else assert_changed
    check(f"{loss} from {cut} on", torch.zeros_like(later), later)
