"""llm-foundry: BinPackCollator."""

from typing import Any

from tests.packing.collated import Features
from tests.trainers.path import ROW, TrainerPath, module_alone, stacked, without


def bins(features: Features) -> Any:
    """Three rows at most, with `sequence_id`."""
    # The file alone: the package above it imports all of llm-foundry.
    with without(hidden=("composer", "llmfoundry")):
        module = module_alone("llm-foundry", "llmfoundry/data/packing.py")
    module.CROSS_ENTROPY_IGNORE_INDEX = -100  # type: ignore[attr-defined]
    padding = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    collator = module.BinPackCollator(lambda rows: stacked(rows, padding), 2, ROW, 0, "right")
    return collator(features)


PATHS = (TrainerPath("llm-foundry bin packing", "llm-foundry", f"BinPackCollator(2, {ROW})", bins),)
