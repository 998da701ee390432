"""torchtune: PackedDataset and padded_collate_packed, whose keys become those of transformers."""

from functools import partial
from typing import Any

from tests.packing.collated import Features
from tests.trainers.path import ROW, TrainerPath, without


def packed(features: Features, *, row: int, split: bool) -> Any:
    """Rows with positions and a mask of blocks."""
    with without("triton"):
        from torchtune.data import padded_collate_packed
        from torchtune.datasets import PackedDataset

    samples: Any = [{"tokens": each["input_ids"], "labels": each["labels"]} for each in features]
    rows = PackedDataset(samples, max_seq_len=row, split_across_pack=split)
    batch = padded_collate_packed([rows[number] for number in range(len(rows))])
    return {
        "input_ids": batch["tokens"],
        "labels": batch["labels"],
        "position_ids": batch["input_pos"],
        "attention_mask": batch["mask"][:, None],
    }


PATHS = (
    TrainerPath(
        "torchtune packing", "torchtune", f"PackedDataset(max_seq_len={ROW})", partial(packed, row=ROW, split=False)
    ),
    TrainerPath(
        "torchtune packing, split",
        "torchtune",
        "PackedDataset(max_seq_len=8, split_across_pack=True)",
        partial(packed, row=8, split=True),
    ),
)
