"""trl: padding-free collation, and its three ways to pack."""

from functools import partial
from typing import Any

from tests.packing.collated import Features
from tests.trainers.path import ROW, TrainerPath


def collated(features: Features) -> Any:
    """Collate without padding, as SFTTrainer does where padding_free or packing is on."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(features)


def packed(features: Features, *, strategy: str, row: int = ROW) -> Any:
    """Pack into rows, and collate all of them."""
    from datasets import Dataset
    from trl import pack_dataset

    data = Dataset.from_list([{key: each[key] for key in ("input_ids", "labels")} for each in features])
    return collated(list(pack_dataset(data, row, strategy)))


PATHS = (
    TrainerPath("trl padding-free", "trl", "SFTConfig(padding_free=True)", collated),
    TrainerPath("trl packing bfd", "trl", f"pack_dataset(rows of {ROW}, 'bfd')", partial(packed, strategy="bfd")),
    TrainerPath(
        "trl packing bfd, rows of 8",
        "trl",
        "pack_dataset(rows of 8, 'bfd'), with a sequence of 9",
        partial(packed, strategy="bfd", row=8),
    ),
    TrainerPath(
        "trl packing bfd_split, rows of 8",
        "trl",
        "pack_dataset(rows of 8, 'bfd_split'), with a sequence of 9",
        partial(packed, strategy="bfd_split", row=8),
    ),
    TrainerPath(
        "trl packing wrapped", "trl", f"pack_dataset(rows of {ROW}, 'wrapped')", partial(packed, strategy="wrapped")
    ),
)
