"""transformers: DataCollatorWithFlattening, and Trainer's way of running it on a streaming dataset by accelerate."""

from functools import partial
from typing import Any

from tests.packing.collated import Features
from tests.trainers.path import TrainerPath


def flattening(features: Features) -> Any:
    """Positions only, as by default."""
    from transformers import DataCollatorWithFlattening

    return DataCollatorWithFlattening()(features)


def with_offsets(features: Features) -> Any:
    """With all that says where sequences begin."""
    from transformers import DataCollatorWithFlattening

    return DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(features)


def prepared(features: Features, *, streaming: bool) -> Any:
    """The same through a loader that accelerate prepared, of a dataset that streams or has indices."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, IterableDataset

    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(features)

    data: Any = Stream() if streaming else features
    (batch,) = Accelerator(cpu=True).prepare(DataLoader(data, batch_size=len(features), collate_fn=with_offsets))
    return batch


PATHS = (
    TrainerPath("transformers flattening", "transformers", "DataCollatorWithFlattening()", flattening),
    TrainerPath(
        "transformers flattening with offsets",
        "transformers",
        "DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)",
        with_offsets,
    ),
    TrainerPath(
        "accelerate map-style",
        "accelerate",
        "Accelerator().prepare(DataLoader(list, collate_fn=flattening with offsets))",
        partial(prepared, streaming=False),
    ),
    TrainerPath(
        "accelerate streaming",
        "accelerate",
        "Accelerator().prepare(DataLoader(IterableDataset, collate_fn=flattening with offsets))",
        partial(prepared, streaming=True),
    ),
)
