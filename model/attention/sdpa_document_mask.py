"""SDPA on a packed batch with a dense document mask of T x T: the article's O(N^2) way."""

import torch
from torch import Tensor

from collators.batch import PackedBatch
from model.attention.backend import ANY, Backend
from model.attention.case import Case
from model.attention.sdpa import CHOSEN_KERNELS, CPU_FLASH_ROUNDS, SdpaContext, additive, attend, within_reach


def document_ids(batch: PackedBatch) -> Tensor:
    """Return the segment of every token, int32 [T]; cu_seqlens [0, 2, 5] -> 0, 0, 1, 1, 1."""
    tokens = torch.arange(batch.num_slots, dtype=torch.int32, device=batch.cu_seqlens.device)
    return torch.searchsorted(batch.cu_seqlens[1:], tokens, right=True, out_int32=True)


def prepare(batch: PackedBatch, case: Case) -> SdpaContext:
    """Build the additive mask (1, 1, T, T) that keeps a query inside its segment and its window."""
    documents = document_ids(batch)
    reach = within_reach(documents.numel(), documents.device, causal=case.causal, window=case.window)
    allowed = (documents[:, None] == documents[None, :]) & reach
    return SdpaContext(additive(allowed[None, None], case.dtype), is_causal=False)


BACKEND = Backend(
    name="sdpa_document_mask",
    layout="packed",
    summary="SDPA on the packed row with a dense mask of T x T",
    prepare=prepare,
    attend=attend,
    dtypes={"cpu": ANY, "cuda": ANY},
    grouped_query=True,
    windows=True,
    rounds=CPU_FLASH_ROUNDS,
    kernels=CHOSEN_KERNELS,
    plans_by_shape=True,
)
