"""llm-foundry: BinPackCollator."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from collators.example import IGNORE_INDEX
from tests.packing.collated import Features
from tests.trainers.path import ROW, TrainerPath, module_alone, without


def bins(features: Features) -> Any:
    """Three rows at most, with `sequence_id`."""
    # The file alone: the package above it imports all of llm-foundry.
    with without(hidden=("composer", "llmfoundry")):
        module = module_alone("llm-foundry", "llmfoundry/data/packing.py")
    module.CROSS_ENTROPY_IGNORE_INDEX = IGNORE_INDEX  # type: ignore[attr-defined]
    padding = {"input_ids": 0, "labels": IGNORE_INDEX, "attention_mask": 0}

    def padded(rows: Features) -> dict[str, Tensor]:
        return {
            key: pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=fill)
            for key, fill in padding.items()
        }

    collator = module.BinPackCollator(padded, 2, ROW, 0, "right")
    return collator(features)


PATHS = (TrainerPath("llm-foundry bin packing", "llm-foundry", f"BinPackCollator(2, {ROW})", bins),)
