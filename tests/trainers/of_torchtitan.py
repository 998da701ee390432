"""torchtitan: the document mask and the offsets that it makes of positions."""

from typing import Any

import torch

# They ask whether there is a triton, and keep the answer.
import torch._inductor.compile_fx
import torch.utils.flop_counter

from collators.example import IGNORE_INDEX
from tests.packing.collated import Features
from tests.trainers.path import TrainerPath, without


def document_mask(features: Features) -> Any:
    """One row; torchtitan's causal and document masks as a 4-D mask, and its offsets."""
    with without("triton", "tyro", "spmd_types"):
        from torchtitan.models.common import attention

    tokens = torch.tensor([[token for each in features for token in each["input_ids"]]])
    positions = torch.tensor([[at for each in features for at in range(len(each["input_ids"]))]])
    labels = torch.tensor([[label for each in features for label in [IGNORE_INDEX, *each["labels"][1:]]]])
    causal, document = attention.get_causal_mask_mod(), attention.get_document_mask_mod(positions)
    at = torch.arange(tokens.shape[1])
    row = torch.tensor(0)
    seen = causal(row, row, at[:, None], at) & document(row, row, at[:, None], at)
    offsets = attention.create_varlen_metadata_for_document(positions)
    least = torch.finfo(torch.float32).min
    return {
        "input_ids": tokens,
        "labels": labels,
        "position_ids": positions,
        "attention_mask": torch.where(seen, 0.0, least)[None, None],
        "cu_seq_lens_q": offsets.cu_seq_q,
        "cu_seq_lens_k": offsets.cu_seq_k,
    }


PATHS = (
    TrainerPath(
        "torchtitan document mask",
        "torchtitan",
        "get_document_mask_mod(positions), create_varlen_metadata_for_document(positions)",
        document_mask,
    ),
)
