"""What the xFormers backends share: the BlockDiagonalMask and the call."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collators.batch import PackedBatch
from model.attention.backend import Attend, Requirement
from model.attention.case import Case
from model.attention.xformers_loading import loading_problems

REQUIRES = (Requirement("xformers", "0.0.33", "pip install xformers nvidia-cuda-runtime-cu12"),)

#: The operators of xFormers' kernels. Built without its own FlashAttention it calls torch's, from inside its own.
FLASH = ("xformers_flash::flash_fwd", "aten::_flash_attention_forward")
FLASH_3 = ("xformers_flash3::flash_fwd",)
CUTLASS = ("aten::_efficient_attention_forward",)

#: Measured on an H100: the first batches were not through after 197 s. Why is not known.
COMPILED_CUTLASS_TRAINING = "does not finish compiling a training step of its cutlass operator (0.0.35, torch 2.11)"


@dataclass(frozen=True)
class XformersContext:
    """`bias` is xFormers' BlockDiagonalMask, causal or not."""

    bias: Any


def prepare(batch: PackedBatch, case: Case) -> XformersContext:
    """Build the BlockDiagonalMask from the segment lengths, which the batch knows on the host."""
    loading_problems()
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    # A string "cpu" is no torch.device to xFormers, and pins memory: https://github.com/facebookresearch/xformers
    device = torch.device(batch.cu_seqlens.device)
    bias = BlockDiagonalMask.from_seqlens(list(batch.segment_lengths), device=device)
    # Queries are as many as keys, so both corners give the same mask. For the other one the flash operators walk over a
    # Python list of all sequences in every call (0.0.35), which compiled is another graph for each number of them.
    return XformersContext(bias.make_causal_from_bottomright() if case.causal else bias)


def operator(name: str | None) -> Attend:
    """Return `attend` with one of xFormers' operator pairs ("flash", "cutlass"), or its own choice for None."""
    return functools.partial(_attend_with, name)


@functools.cache
def _operator_pair(name: str | None) -> Any:
    from xformers.ops import fmha

    pairs = {
        None: None,
        "flash": fmha.MemoryEfficientAttentionFlashAttentionOp,
        "cutlass": fmha.MemoryEfficientAttentionCutlassOp,
    }
    return pairs[name]


def _attend_with(
    name: str | None, q: Tensor, k: Tensor, v: Tensor, context: XformersContext, *, scale: float | None = None
) -> Tensor:
    from xformers.ops import memory_efficient_attention

    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        # xFormers' backward takes no grouped heads, so keys and values are repeated.
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    return memory_efficient_attention(q, k, v, attn_bias=context.bias, scale=scale, op=_operator_pair(name))
