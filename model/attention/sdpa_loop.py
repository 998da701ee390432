"""SDPA on each sequence of a packed batch in turn: slow, obviously right, and works everywhere."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from collators.batch import PackedBatch
from model.attention.backend import ANY, Backend
from model.attention.case import Case
from model.attention.sdpa import CPU_FLASH, CPU_FLASH_ROUNDS, EFFICIENT, FLASH, MATH

#: Left to torch, an evaluation step took 1,360 ms on an H100 instead of 43: cuDNN's plan for every new length, likely.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class LoopContext:
    """`lengths` of all segments, on the host."""

    lengths: tuple[int, ...]
    causal: bool


def prepare(batch: PackedBatch, case: Case) -> LoopContext:
    """Take the segment lengths, which the batch knows on the host."""
    return LoopContext(batch.segment_lengths, case.causal)


def attend(q: Tensor, k: Tensor, v: Tensor, context: LoopContext, *, scale: float | None = None) -> Tensor:
    """Attend within each segment, without a mask but causality, and concatenate."""
    grouped = q.shape[2] != k.shape[2]
    pieces = (torch.split(tensor.transpose(1, 2), list(context.lengths), dim=2) for tensor in (q, k, v))
    with sdpa_kernel(KERNELS):
        out = [
            scaled_dot_product_attention(
                q_piece, k_piece, v_piece, is_causal=context.causal, scale=scale, enable_gqa=grouped
            )
            for q_piece, k_piece, v_piece in zip(*pieces, strict=True)
        ]
    return torch.cat(out, dim=2).transpose(1, 2)


BACKEND = Backend(
    name="sdpa_loop",
    layout="packed",
    summary="SDPA on each sequence in turn",
    prepare=prepare,
    attend=attend,
    dtypes={"cpu": ANY, "cuda": ANY},
    # Compiled, it would unroll the lengths of every batch and compile again for each.
    executions=("eager",),
    grouped_query=True,
    rounds=CPU_FLASH_ROUNDS,
    kernels={"cpu": (*CPU_FLASH, *MATH), "cuda": (*FLASH, *EFFICIENT, *MATH)},
)
