"""FlashAttention-4's CuTe kernels (`flash_attn.cute`) on a packed batch, as custom operators that torch.compile takes.

The library's own autograd function breaks the graph of a compiled block (4.0.0b36). So its forward and its backward are
operators here. One pair takes queries, keys and values. The other takes them as the heads of one tensor, and so returns
one gradient, which else is put together from three. Shapes: T tokens, H heads, H_kv key-value heads, D head dim.
"""

from typing import Any

import torch
from torch import Tensor

from model.attention.backend import HALF, Backend, Refusal, Requirement, first_line
from model.attention.torch_varlen import VarlenContext, prepare

#: The longest length, scale, causal, how many tokens before and after a query it sees (-1: all), and the soft cap.
Given = tuple[int, float, bool, int, int, float]


def _given(context: VarlenContext, head_dim: int, scale: float | None) -> Given:
    left, right = context.window_size
    scale = head_dim**-0.5 if scale is None else scale
    return context.max_seqlen, scale, context.causal, left, right, context.softcap or 0.0


def _options(cu_seqlens: Tensor, given: Given) -> dict[str, Any]:
    longest, scale, causal, left, right, softcap = given
    return {
        "cu_seqlens_q": cu_seqlens,
        "cu_seqlens_k": cu_seqlens,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
        "softmax_scale": scale,
        "causal": causal,
        # It takes None for a side without a limit.
        "window_size_left": None if left < 0 else left,
        "window_size_right": None if right < 0 else right,
        "softcap": softcap,
    }


def _forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, given: Given) -> tuple[Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse = _flash_attn_fwd(q, k, v, return_lse=True, **_options(cu_seqlens, given))[:2]
    return out, lse


def _backward(
    gradient: Tensor, inputs: tuple[Tensor, ...], out: Tensor, lse: Tensor, into: tuple[Tensor, ...], *rest: Any
) -> None:
    from flash_attn.cute.interface import _flash_attn_bwd

    dq, dk, dv = into
    _flash_attn_bwd(*inputs, out, gradient, lse, dq=dq, dk=dk, dv=dv, **_options(*rest))


@torch.library.custom_op("varlen_gate::fa4_forward", mutates_args=())
def fa4_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    scale: float,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Return the output (T, H, D) and its logsumexp (H, T)."""
    return _forward(q, k, v, cu_seqlens, (longest, scale, causal, left, right, softcap))


@fa4_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("varlen_gate::fa4_backward", mutates_args=())
def fa4_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    scale: float,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `q`, `k` and `v` in their shapes."""
    dq, dk, dv = (each.new_empty(each.shape) for each in (q, k, v))
    given = (longest, scale, causal, left, right, softcap)
    _backward(gradient, (q, k, v), out, lse, (dq, dk, dv), cu_seqlens, given)
    return dq, dk, dv


@fa4_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, *ctx.given = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*fa4_backward(gradient, *ctx.saved_tensors, *ctx.given), *[None] * 7)


fa4_forward.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("varlen_gate::fa4_heads_forward", mutates_args=())
def fa4_heads_forward(
    heads: Tensor,
    num_heads: int,
    cu_seqlens: Tensor,
    longest: int,
    scale: float,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Return the output (T, H, D) and its logsumexp (H, T) of `heads` (T, H + 2 H_kv, D), of which H are queries."""
    q, k, v = _split(heads, num_heads)
    return _forward(q, k, v, cu_seqlens, (longest, scale, causal, left, right, softcap))


@fa4_heads_forward.register_fake
def _(heads: Tensor, num_heads: int, *rest: Any) -> tuple[Tensor, Tensor]:
    tokens, _, head_dim = heads.shape
    return heads.new_empty((tokens, num_heads, head_dim)), heads.new_empty((num_heads, tokens), dtype=torch.float32)


@torch.library.custom_op("varlen_gate::fa4_heads_backward", mutates_args=())
def fa4_heads_backward(
    gradient: Tensor,
    heads: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    longest: int,
    scale: float,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
) -> Tensor:
    """Return the gradient of `heads` in its shape."""
    found, given = heads.new_empty(heads.shape), (longest, scale, causal, left, right, softcap)
    _backward(gradient, _split(heads, num_heads), out, lse, _split(found, num_heads), cu_seqlens, given)
    return found


@fa4_heads_backward.register_fake
def _(gradient: Tensor, heads: Tensor, *rest: Any) -> Tensor:
    return heads.new_empty(heads.shape)


def _split(heads: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    kv_heads = (heads.shape[1] - num_heads) // 2
    return heads.split([num_heads, kv_heads, kv_heads], dim=1)


def _keep_heads(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    heads, ctx.num_heads, cu_seqlens, *ctx.given = inputs
    ctx.save_for_backward(heads, *output, cu_seqlens)


def _gradient_of_heads(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (fa4_heads_backward(gradient, *ctx.saved_tensors, ctx.num_heads, *ctx.given), *[None] * 8)


fa4_heads_forward.register_autograd(_gradient_of_heads, setup_context=_keep_heads)


def attend(q: Tensor, k: Tensor, v: Tensor, context: VarlenContext, *, scale: float | None = None) -> Tensor:
    """Run FlashAttention-4 on the packed row."""
    given = _given(context, q.shape[-1], scale)
    out: Tensor = fa4_forward(q[0], k[0], v[0], context.cu_seqlens, *given)[0]
    return out[None]


def attend_heads(heads: Tensor, num_heads: int, context: VarlenContext) -> Tensor:
    """Run FlashAttention-4 on a packed row (1, T, H + 2 H_kv, D) of queries, keys and values; returns (1, T, H, D)."""
    given = _given(context, heads.shape[-1], None)
    # Not `heads[0]`, whose gradient is a copy.
    out: Tensor = fa4_heads_forward(heads.squeeze(0), num_heads, context.cu_seqlens, *given)[0]
    return out[None]


def probe() -> list[str]:
    """Return why `flash_attn.cute` cannot be imported, or is not FlashAttention-4, or an empty list."""
    try:
        from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return [
            f"flash_attn.cute does not load ({first_line(error)}); install flash-attn-4 after flash-attn, which brings "
            "an older flash_attn/cute of its own"
        ]
    return []


#: All that round up to 16, 48, 80 or 112.
WRONG_GRADIENTS = (8, 16, 40, 48, 72, 80, 104, 112)

BACKEND = Backend(
    name="fa4_varlen",
    layout="packed",
    summary="FlashAttention-4 (CuTe DSL) as custom operators",
    prepare=prepare,
    attend=attend,
    dtypes={"cuda": HALF},
    max_head_dim=256,
    head_dim_multiple=8,
    grouped_query=True,
    windows=True,
    softcaps=True,
    rounds={"cuda": ("tanh",)},
    min_capability=(9, 0),
    kernels={"cuda": ("varlen_gate::fa4_forward",)},
    unavailable=(
        Refusal(
            f"has wrong gradients for heads of {', '.join(map(str, WRONG_GRADIENTS))} "
            "(findings/fa4_head_dim_gradients.sh); train with fa2_varlen",
            device="cuda",
            mode="train",
            head_dims=WRONG_GRADIENTS,
        ),
    ),
    requires=(Requirement("flash-attn-4", "4.0.0b36", "pip install --pre 'flash-attn-4[cu13]'"),),
    probe=probe,
)
