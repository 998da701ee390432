"""What the SDPA backends on padded batches share: the mask, the call, and the forcing of one kernel."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from collators.batch import PaddedBatch
from model.attention.backend import Attend
from model.attention.case import Case, Device
from model.attention.oracle import Rounding

#: The operators of SDPA's kernels, each with the one inside it.
MATH = ("aten::_scaled_dot_product_attention_math",)
CPU_FLASH = ("aten::_scaled_dot_product_flash_attention_for_cpu",)
FLASH = ("aten::_scaled_dot_product_flash_attention", "aten::_flash_attention_forward")
EFFICIENT = ("aten::_scaled_dot_product_efficient_attention", "aten::_efficient_attention_forward")
CUDNN = ("aten::_scaled_dot_product_cudnn_attention", "aten::_cudnn_attention_forward")

#: What torch may choose.
CHOSEN_KERNELS: Mapping[Device, tuple[str, ...]] = {
    "cpu": (*CPU_FLASH, *MATH),
    "cuda": (*FLASH, *EFFICIENT, *CUDNN, *MATH),
}

#: The CPU's flash kernel adds up dk and dv in the dtype of its inputs (FlashAttentionKernel.cpp in torch 2.13).
CPU_FLASH_ROUNDS: Mapping[Device, tuple[Rounding, ...]] = {"cpu": ("sums",)}


@dataclass(frozen=True)
class SdpaContext:
    """`mask` is an additive bias (B or 1, 1, S or 1, S) in the attention dtype, or None with `is_causal`."""

    mask: Tensor | None
    is_causal: bool


def within_reach(width: int, device: torch.device, *, causal: bool, window: int | None) -> Tensor:
    """Return which keys of a row of `width` tokens causality and the window leave to each query, bool (S, S)."""
    reach = torch.ones(width, width, dtype=torch.bool, device=device)
    if causal:
        reach = reach.tril()
    return reach if window is None else reach.tril(window - 1).triu(1 - window)


def allowed_keys(batch: PaddedBatch, *, causal: bool, window: int | None = None) -> Tensor:
    """Return which keys a query may see, bool (B, 1, S or 1, S).

    Every query sees itself, so that padding rows, which would see nothing under a causal mask with padding on
    the left or a window, stay finite (pytorch/pytorch#103749).
    """
    real = batch.attention_mask[:, None, None, :]
    if not causal and window is None:
        return real
    width = batch.attention_mask.shape[1]
    reach = within_reach(width, real.device, causal=causal, window=window)
    return (real & reach) | torch.eye(width, dtype=torch.bool, device=real.device)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bias 0 where `allowed` and -inf elsewhere.

    SDPA makes one from a bool mask in every layer; made here, it is made once a batch.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def prepare_masked(batch: PaddedBatch, case: Case) -> SdpaContext:
    """Build the mask of padding, of causality and of the window: SDPA kernels differ on a mask and `is_causal`."""
    allowed = allowed_keys(batch, causal=case.causal, window=case.window)
    return SdpaContext(additive(allowed, case.dtype), is_causal=False)


def prepare_unmasked_where_possible(batch: PaddedBatch, case: Case) -> SdpaContext:
    """Build no mask where none is needed: causal over padding on the right, a real token sees real ones only."""
    if case.causal and case.window is None and batch.padding_side == "right":
        return SdpaContext(mask=None, is_causal=True)
    return prepare_masked(batch, case)


def with_sinks(k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys and values (B, S + 1, H_kv, D) and a mask (B or 1, H, S or 1, S + 1) with the sinks (H,) as a key.

    That key and its value are 0, so that its score is what the mask adds, and it gives nothing to the output.
    """
    k, v = (torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, 1)) for tensor in (k, v))
    mask = mask.expand(-1, sinks.numel(), -1, -1)
    return k, v, torch.cat([mask, sinks.to(mask.dtype)[:, None, None].expand(*mask.shape[:-1], 1)], dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, context: SdpaContext, *, scale: float | None = None, sinks: Tensor | None = None
) -> Tensor:
    """Run SDPA and leave the kernel to torch; ValueError for sinks where the context has no mask to add them to."""
    mask = context.mask
    if sinks is not None:
        if mask is None:
            raise ValueError("sinks are a column of the mask; got none. Prepare the context with a mask.")
        k, v, mask = with_sinks(k, v, mask, sinks)
    out = scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=context.is_causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def forced(kernel: SDPBackend) -> Attend:
    """Return `attend` with one SDPA kernel: where it cannot run torch raises, and nothing stands in for it."""
    return functools.partial(_attend_with, kernel)


def _attend_with(
    kernel: SDPBackend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: SdpaContext,
    *,
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    with sdpa_kernel(kernel):
        return attend(q, k, v, context, scale=scale, sinks=sinks)
