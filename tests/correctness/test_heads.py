"""A batch's heads are honoured: grouped ones, odd counts of them, their size, and the scale of their scores."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from model.attention import BACKENDS, Backend, default_device
from model.attention.oracle import oracle
from model.tolerance import mismatch
from tests.correctness.attention_bench import AttentionBench, AttentionInput, AttentionRun, normal, reduction_length
from tests.correctness.drawn import ONE_OF_EACH_LAYOUT, in_first_dtype
from tests.strategies import attention_inputs

pytestmark = pytest.mark.correctness

GROUPED = [backend for backend in BACKENDS if backend.grouped_query]
ON_SDPA = [
    backend
    for backend in GROUPED
    if any("scaled_dot_product" in kernel for kernel in backend.kernels.get(default_device(), ()))
]

more_than_one_token = st.lists(st.integers(2, 70), min_size=1, max_size=4)
fewer = settings(max_examples=settings.default.max_examples // 5)


@pytest.mark.cells(where=lambda cell: cell.backend.grouped_query, one_of_each="layout", mode=("train",))
@fewer
@given(given=attention_inputs(heads=((4, 2), (3, 1), (6, 2), (8, 1))))
# Wrong with a mask and heads that share keys: https://github.com/pytorch/pytorch/issues/116301
@example(given=AttentionInput((5, 2), num_heads=4, num_kv_heads=2))
# The same in xFormers: https://github.com/facebookresearch/xformers/issues/952
@example(given=AttentionInput((65, 3), num_heads=3, num_kv_heads=1))
def test_a_batch_with_grouped_heads_equals_repeated_heads(attention: AttentionBench, given: AttentionInput) -> None:
    attention.check(given)


@given(given=attention_inputs(heads=((4, 2), (3, 1), (6, 2)), max_length=65), causal=st.booleans())
def test_a_batch_of_the_oracle_has_repeated_heads_whose_gradients_add_up(given: AttentionInput, causal: bool) -> None:
    """The oracle itself, against a gradient that autograd takes through the repetition."""
    generator = torch.Generator().manual_seed(given.seed)
    heads = (given.num_heads, given.num_kv_heads, given.num_kv_heads, given.num_heads)
    q, k, v, gradient = (
        normal((max(given.lengths), count, given.head_dim), generator, torch.float64) for count in heads
    )
    found = oracle(q, k, v, gradient, causal=causal, scale=given.scale)
    leaves = [tensor.transpose(0, 1).clone().requires_grad_() for tensor in (q, k, v)]
    groups = given.num_heads // given.num_kv_heads
    keys, values = (tensor.repeat_interleave(groups, dim=0) for tensor in leaves[1:])
    scores = leaves[0] @ keys.mT * (given.head_dim**-0.5 if given.scale is None else given.scale)
    seen = torch.ones_like(scores, dtype=torch.bool).tril() if causal else torch.ones_like(scores, dtype=torch.bool)
    out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values
    gradients = torch.autograd.grad(out, leaves, gradient.transpose(0, 1))
    for (name, value), wanted in zip(found.values.items(), (out, *gradients), strict=True):
        wanted = wanted.detach().transpose(0, 1)
        length = reduction_length(given)
        noise = found.noise[name]
        assert not mismatch(
            name, value, wanted, [wanted], dtype=torch.float64, error_factor=2, reduction_length=length, scale=noise
        )


class Asked(TorchFunctionMode):
    """Notes of every call of SDPA whether it asks for grouped heads."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped: list[bool] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.grouped.append(kwargs["enable_gqa"])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("backend", ON_SDPA, ids=lambda backend: backend.name)
def test_a_batch_asks_for_grouped_heads_only_where_it_has_some(backend: Backend, kv_heads: int) -> None:
    """Some of SDPA's kernels refuse to be asked, also where there are as many heads of keys as of queries."""
    collator = next(collator for collator in ONE_OF_EACH_LAYOUT if collator.layout == backend.layout)
    given = AttentionInput((5, 2), num_heads=4, num_kv_heads=kv_heads)
    run = AttentionRun.of(backend, collator, given, backend.dtypes[default_device()][0], causal=True, mode="eval")
    with Asked() as asked:
        run.results()
    assert set(asked.grouped) == {kv_heads < 4}


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@fewer
@given(given=attention_inputs(heads=((1, 1), (3, 3), (5, 5), (7, 7))))
def test_a_batch_may_have_an_odd_number_of_heads(attention: AttentionBench, given: AttentionInput) -> None:
    attention.check(given)


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@pytest.mark.parametrize("head_dim", [64, 128])
@settings(max_examples=settings.default.max_examples // 10)
@given(given=attention_inputs(max_length=80))
def test_a_batch_may_have_heads_of_64_and_128(attention: AttentionBench, given: AttentionInput, head_dim: int) -> None:
    attention.check(replace(given, head_dim=head_dim))


@pytest.mark.cells(one_of_each="layout", mode=("train",), where=in_first_dtype, causal=(False,))
@pytest.mark.parametrize("head_dim", [8, 24, 32, 40, 72, 80, 96, 112, 160, 192, 256])
def test_a_batch_may_have_heads_of_each_declared_size(attention: AttentionBench, head_dim: int) -> None:
    """FlashAttention-4 had wrong gradients for heads of 80, and right ones for heads of 64, 96 and 128."""
    backend = attention.cell.backend
    given = AttentionInput((5, 130, 33), num_heads=4, num_kv_heads=2, head_dim=head_dim).fitted(backend)
    run = attention.run(given)
    if reasons := backend.unsupported_reasons(run.case):
        with pytest.raises(ValueError, match=re.escape(reasons[0])):
            run.results()
        return
    attention.check(given)


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@fewer
@given(given=attention_inputs(sharpness=(0.25, 0.5, 2.0), lengths_of=more_than_one_token))
def test_a_batch_honours_a_scale_of_its_own(attention: AttentionBench, given: AttentionInput) -> None:
    attention.check(given)
    given = given.fitted(attention.cell.backend)
    if not attention.refuses(given):
        # With the default scale it is another result, far beyond rounding: a lost scale is seen.
        assert attention.differences(given, attention.run(replace(given, sharpness=None)).results())
