"""FlexAttention with a document mask on a packed batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from collators.batch import PackedBatch
from model.attention.backend import FLOAT, Backend, Refusal
from model.attention.case import Case
from model.attention.sdpa_document_mask import document_ids

BLOCK = 128


@dataclass(frozen=True)
class FlexContext:
    """`block_mask` says which tiles of 128 x 128 are empty, partly masked and full; `score_mod` caps scores."""

    block_mask: BlockMask
    score_mod: Callable[..., Tensor] | None = None


def _ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    # The columns that are set come first, in order: the format of BlockMask.
    indices = torch.argsort(tiles.to(torch.int8), dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[None, None], indices.to(torch.int32)[None, None]


def document_block_mask(batch: PackedBatch, *, causal: bool, window: int | None = None) -> BlockMask:
    """Return the BlockMask of segments, built from their ids tile by tile.

    `create_block_mask` looks at all T x T pairs; the first and last segment of each tile tell the same, since
    segment ids rise along the row. So do the nearest and the furthest pair of two tiles for the window.
    """
    documents = document_ids(batch)
    length = documents.numel()
    tiles = -(-length // BLOCK)
    edges = torch.arange(tiles, device=documents.device) * BLOCK
    first, last = documents[edges], documents[(edges + BLOCK - 1).clamp(max=length - 1)]
    visited = (first[:, None] <= last[None, :]) & (last[:, None] >= first[None, :])
    # Past the end of the row no pair may pass, so a last tile that is not whole is never full.
    whole = edges + BLOCK <= length
    one_segment = (first == last) & whole
    full = visited & one_segment[:, None] & one_segment[None, :]
    if causal:
        visited, full = visited.tril(), full.tril(-1)
    if window is not None:
        apart = (edges[:, None] - edges[None, :]).abs()
        visited, full = visited & (apart - (BLOCK - 1) < window), full & (apart + (BLOCK - 1) < window)

    def document(batch_index: Tensor, head: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
        seen = documents[q_index] == documents[kv_index]
        if causal:
            seen = seen & (q_index >= kv_index)
        if window is not None:
            seen = seen & ((q_index - kv_index).abs() < window)
        return seen

    return BlockMask.from_kv_blocks(
        *_ordered(visited & ~full),
        *_ordered(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=document,
        seq_lengths=(length, length),
    )


def capped(softcap: float | Tensor) -> Callable[..., Tensor]:
    """Return the function that FlexAttention calls for every score."""

    def cap(score: Tensor, batch_index: Tensor, head: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def prepare(batch: PackedBatch, case: Case) -> FlexContext:
    """Build the BlockMask of the batch."""
    tiles = document_block_mask(batch, causal=case.causal, window=case.window)
    if case.softcap is None:
        return FlexContext(tiles)
    # In eager mode torch 2.15 takes no second float (findings/flex_second_float.sh).
    return FlexContext(tiles, capped(torch.tensor(case.softcap) if case.execution == "eager" else case.softcap))


def attend(
    q: Tensor, k: Tensor, v: Tensor, context: FlexContext, *, scale: float | None = None, sinks: Tensor | None = None
) -> Tensor:
    """Run `flex_attention` on the packed row."""
    found: Any = flex_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        score_mod=context.score_mod,
        block_mask=context.block_mask,
        scale=scale,
        # It looks at the heads itself; without, grouped ones are an error.
        enable_gqa=True,
        return_aux=None if sinks is None else AuxRequest(lse=True),
    )
    if sinks is None:
        return found.transpose(1, 2)
    out, aux = found
    # exp(lse) / (exp(lse) + exp(sink)): what the sink leaves of the softmax to the keys.
    left = torch.sigmoid(aux.lse - sinks[:, None])
    return (out * left[..., None]).to(q.dtype).transpose(1, 2)


BACKEND = Backend(
    name="flex_document_mask",
    layout="packed",
    summary="FlexAttention with a document BlockMask",
    prepare=prepare,
    attend=attend,
    dtypes={"cpu": FLOAT, "cuda": FLOAT},
    grouped_query=True,
    windows=True,
    softcaps=True,
    sinks=True,
    # On CUDA it has compiled kernels only, which have the names of their source.
    kernels={"cpu": ("FlexAttentionAutogradOp",)},
    undeclared=(
        Refusal(
            "has no kernel in eager mode on CUDA, where it materialises every score; compile it",
            device="cuda",
            execution="eager",
        ),
    ),
    unavailable=(
        Refusal("needs a CUDA GPU: FlexAttention has no backward on the CPU", device="cpu", mode="train"),
        Refusal(
            "needs a CUDA GPU: FlexAttention compiled for the CPU returns no logsumexp, which sinks need",
            device="cpu",
            execution="compiled",
            sinks=True,
        ),
    ),
)
