"""cuDNN's ragged graph reads tensors of any layout, and few graphs serve many batches; no GPU is needed to see it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.attention import cudnn_ragged
from model.attention.cudnn_ragged import RaggedContext, attend, rounded
from tests.unit.stand_ins import Calls, in_cudnn

pytestmark = pytest.mark.unit

TOKENS, HEADS, HEAD_DIM = 7, 4, 16


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    in_cudnn(monkeypatch, Calls().counted)


@pytest.fixture
def context() -> RaggedContext:
    starts = torch.tensor([0, 3, 7], dtype=torch.int64)
    return RaggedContext(starts, starts.diff().int(), row=128, causal=True)


def drawn() -> Tensor:
    return torch.randn(1, TOKENS, HEADS, HEAD_DIM, dtype=torch.bfloat16)


def results(inputs: list[Tensor], gradient: Tensor, context: RaggedContext) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = attend(*leaves, context)
    return [out, *torch.autograd.grad(out, leaves, gradient)]


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:, :, :1].expand_as(tensor)


def heads_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def every_other_token(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=1)[:, ::2]


def every_other_number(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=3)[..., ::2]


def after_one_number(tensor: Tensor) -> Tensor:
    """Where no 16 bytes begin."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view_as(tensor)


LAYOUTS = (expanded, heads_first, every_other_token, every_other_number, after_one_number)
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


@every_layout
def test_a_batch_takes_an_upstream_gradient_of_any_layout(
    layout: Callable[[Tensor], Tensor], context: RaggedContext
) -> None:
    inputs, gradient = [drawn() for _ in range(3)], layout(drawn())
    copied = gradient.clone(memory_format=torch.contiguous_format)
    torch.testing.assert_close(results(inputs, gradient, context), results(inputs, copied, context), rtol=0, atol=0)


@every_layout
@pytest.mark.parametrize("at", range(3), ids="qkv")
def test_a_batch_takes_tensors_of_any_layout(
    layout: Callable[[Tensor], Tensor], at: int, context: RaggedContext
) -> None:
    inputs, gradient = [drawn() for _ in range(3)], drawn()
    laid_out = [layout(tensor) if index == at else tensor for index, tensor in enumerate(inputs)]
    copied = [tensor.clone(memory_format=torch.contiguous_format) for tensor in laid_out]
    torch.testing.assert_close(results(laid_out, gradient, context), results(copied, gradient, context), rtol=0, atol=0)


def test_slices_of_one_tensor_are_read_where_they_lie(context: RaggedContext) -> None:
    fused = torch.cat([drawn() for _ in range(3)], dim=2)
    for piece in fused.chunk(3, dim=2):
        assert cudnn_ragged.by_tokens(piece[0]).data_ptr() == piece.data_ptr()


@pytest.mark.parametrize(
    ("count", "least", "parts", "wanted"),
    [(1, 1, 1, 1), (1, 2, 1, 2), (5, 1, 1, 8), (8, 1, 1, 8), (5, 1, 2, 6), (16_341, 1024, 4, 16_384), (9, 128, 1, 128)],
)
def test_sizes_are_rounded_up_to_few(count: int, least: int, parts: int, wanted: int) -> None:
    assert rounded(count, least, parts) == wanted
