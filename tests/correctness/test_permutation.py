"""A batch does not care for the order of its sequences."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from collators import Example
from model.attention import default_device
from tests.correctness.drawn import CONFIG
from tests.correctness.workbench import Workbench
from tests.strategies import examples

pytestmark = pytest.mark.correctness


@pytest.mark.cells(distinct=True, one_of_each="layout")
@settings(max_examples=settings.default.max_examples // 5)
@given(
    batch=examples(CONFIG[default_device()]).filter(lambda batch: len(batch) > 1),
    order=st.permutations(range(7)),
)
def test_permuted_sequences_give_permuted_logits_and_the_same_loss_and_gradients(
    workbench: Workbench, batch: list[Example], order: list[int]
) -> None:
    order = [index for index in order if index < len(batch)]
    permuted = workbench.batch([batch[index] for index in order])
    assume(not workbench.refuses(permuted))
    # First in their own order: as many tokens, other sequences. What is kept of a batch must not serve the next.
    workbench.assert_right(workbench.outcome(batch), batch)
    actual = workbench.outcome_of(permuted)
    back = [actual.logits[order.index(index)] for index in range(len(batch))]
    workbench.assert_right(replace(actual, logits=back), batch)
