"""A batch's attention is that of each sequence alone: the output, and the gradients of queries, keys and values."""

import pytest
from hypothesis import example, given, settings

from model.attention.backend import ANY
from tests.correctness.attention_bench import AttentionBench, AttentionInput
from tests.strategies import FORMS, attention_inputs

pytestmark = pytest.mark.correctness


@pytest.mark.cells(dtype=ANY, mode=("train",))
@settings(max_examples=settings.default.max_examples // 4)
@given(given=attention_inputs())
# NaN in dQ, as keys past the end were not masked: https://github.com/Dao-AILab/flash-attention/issues/443
@example(given=AttentionInput((1, 2, 1)))
# A dimension lost with one sequence of one token: https://github.com/pytorch/pytorch/issues/130196
@example(given=AttentionInput((1,)))
# NaN where the length is no multiple of 128: https://github.com/pytorch/pytorch/issues/153799
@example(given=AttentionInput((129,), num_heads=1, num_kv_heads=1))
# dK and dV wrong in short sequences beside padding: https://github.com/NVIDIA/TransformerEngine/issues/2186
@example(given=AttentionInput((3, 65)))
# The gradient of one input lost: https://github.com/pytorch/pytorch/issues/128349
@example(given=AttentionInput((2, 3), form="fused"))
def test_a_batch_attends_as_each_sequence_alone(attention: AttentionBench, given: AttentionInput) -> None:
    attention.check(given)


@pytest.mark.cells(mode=("eval",), one_of_each="layout", causal=(True,))
@settings(max_examples=settings.default.max_examples // 10)
@given(given=attention_inputs(forms=FORMS))
@example(given=AttentionInput((2, 3), num_heads=4, form="sliced"))
def test_a_batch_attends_without_gradients_as_each_sequence_alone(
    attention: AttentionBench, given: AttentionInput
) -> None:
    attention.check(given)
