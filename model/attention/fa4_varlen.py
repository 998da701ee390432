"""FlashAttention-4's CuTe kernels (`flash_attn.cute`) on a packed batch, as custom operators that torch.compile takes.

The library's own autograd function breaks the graph of a compiled block (4.0.0b36). So its forward and its backward are
operators here, each with the shapes of what it returns.
"""

from typing import Any

import torch
from torch import Tensor

from model.attention.backend import HALF, Backend, Requirement, first_line
from model.attention.torch_varlen import VarlenContext, prepare


@torch.library.custom_op("varlen_gate::fa4_forward", mutates_args=(), device_types="cuda")
def fa4_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Return the output (T, H, D) and its logsumexp (H, T); `left` and `right` of -1 are no window."""
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse = _flash_attn_fwd(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        softmax_scale=scale,
        return_lse=True,
        **_masked(causal, left, right, softcap),
    )[:2]
    return out, lse


@fa4_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("varlen_gate::fa4_backward", mutates_args=(), device_types="cuda")
def fa4_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `q`, `k` and `v`, contiguous and in their shapes."""
    from flash_attn.cute.interface import _flash_attn_bwd

    dq, dk, dv = (each.new_empty(each.shape) for each in (q, k, v))
    _flash_attn_bwd(
        q,
        k,
        v,
        out,
        gradient,
        lse,
        softmax_scale=scale,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        dq=dq,
        dk=dk,
        dv=dv,
        **_masked(causal, left, right, softcap),
    )
    return dq, dk, dv


@fa4_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _masked(causal: bool, left: int, right: int, softcap: float) -> dict[str, Any]:
    # It takes None for a side without a limit.
    sides = {"window_size_left": left, "window_size_right": right}
    return {"causal": causal, "softcap": softcap} | {name: None if side < 0 else side for name, side in sides.items()}


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, *ctx.given = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, cu_seqlens = ctx.saved_tensors
    return (*fa4_backward(gradient, q, k, v, out, lse, cu_seqlens, *ctx.given), *[None] * 7)


fa4_forward.register_autograd(_gradients, setup_context=_keep)


def attend(q: Tensor, k: Tensor, v: Tensor, context: VarlenContext, *, scale: float | None = None) -> Tensor:
    """Run FlashAttention-4 on the packed row."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    given = (context.cu_seqlens, context.max_seqlen, scale, context.causal, *context.window_size)
    out: Tensor = fa4_forward(q[0], k[0], v[0], *given, context.softcap or 0.0)[0]
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
    requires=(Requirement("flash-attn-4", "4.0.0b36", "pip install --pre 'flash-attn-4[cu13]'"),),
    probe=probe,
)
