"""A batch's inputs may lie in memory as users have them: slices, transposed storage, stride 0, NaN beside them."""

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.correctness.attention_bench import AttentionBench, AttentionInput, Form
from tests.strategies import attention_inputs

pytestmark = pytest.mark.correctness

fewer = settings(max_examples=settings.default.max_examples // 10)
equal_lengths = st.builds(lambda length, count: [length] * count, st.integers(1, 65), st.integers(1, 4))


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@pytest.mark.parametrize("form", ["fused", "heads_first"])
@fewer
@given(given=attention_inputs())
def test_a_batch_may_be_made_of_slices_and_transposed_storage(
    attention: AttentionBench, form: Form, given: AttentionInput
) -> None:
    attention.check(replace(given, form=form))


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@fewer
@given(given=attention_inputs(forms=("expanded",)))
# Wrong where keys have stride 0 and their number is 32 n + 1: https://github.com/pytorch/pytorch/issues/191937
@example(given=AttentionInput((33, 33), form="expanded"))
@example(given=AttentionInput((65,), form="expanded"))
def test_a_batch_may_share_keys_and_values_between_heads(attention: AttentionBench, given: AttentionInput) -> None:
    attention.check(given)


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@fewer
@given(given=attention_inputs(forms=("repeated",), lengths_of=equal_lengths))
@example(given=AttentionInput((33, 33), form="repeated"))
def test_a_batch_may_repeat_one_sequence_without_a_copy(attention: AttentionBench, given: AttentionInput) -> None:
    attention.check(given)


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@fewer
@given(given=attention_inputs(forms=("sliced",)))
@example(given=AttentionInput((1,), form="sliced"))
@example(given=AttentionInput((3, 65), form="sliced"))
def test_a_batch_never_reads_what_lies_beside_it(attention: AttentionBench, given: AttentionInput) -> None:
    """The buffer is NaN before the first and past the last sequence (rows past cu_seqlens[-1]) and beside all heads."""
    attention.check(given)


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@fewer
@given(given=attention_inputs(gradient_forms=("heads_first", "expanded")))
@example(given=AttentionInput((3, 65), gradient_form="expanded"))
def test_a_batch_takes_upstream_gradients_of_any_strides(attention: AttentionBench, given: AttentionInput) -> None:
    check_after_a_contiguous_one(attention, given)


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@fewer
@given(given=attention_inputs(gradient_forms=("sliced", "shifted")))
@example(given=AttentionInput((3, 2), gradient_form="shifted"))
# A row alone has the strides of its stretch: a known failure must strike whatever is drawn.
@example(given=AttentionInput((3, 65), gradient_form="sliced"))
def test_a_batch_takes_a_part_of_a_longer_upstream_gradient(attention: AttentionBench, given: AttentionInput) -> None:
    check_after_a_contiguous_one(attention, given)


def check_after_a_contiguous_one(attention: AttentionBench, given: AttentionInput) -> None:
    """What was planned for a contiguous gradient must not serve the one that is given after it."""
    attention.check(replace(given, gradient_form="contiguous"))
    attention.check(given)
