"""transformers: DataCollatorWithFlattening, alone, through accelerate's loaders, and in Trainer's loop."""

import tempfile
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


class Caught(Exception):
    """Ends a training loop at its first step."""


def trained(features: Features, *, streaming: bool) -> Any:
    """What Trainer's loop hands its model in the first step, from two workers (one if the dataset streams)."""
    from datasets import Dataset
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    class Catching(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            raise Caught(inputs)

    data: Any = Dataset.from_list([dict(each) for each in features])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(features),
            dataloader_num_workers=1 if streaming else 2,
            train_sampling_strategy="sequential",
            max_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=8, n_positions=8))
        data = data.to_iterable_dataset() if streaming else data
        try:
            Catching(model, arguments, data_collator=with_offsets, train_dataset=data).train()
        except Caught as caught:
            return caught.args[0]
    raise AssertionError("Trainer ended without a step")


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
    TrainerPath(
        "Trainer map-style",
        "transformers",
        "Trainer(train_dataset=Dataset, dataloader_num_workers=2, data_collator=as above).train()",
        partial(trained, streaming=False),
    ),
    TrainerPath(
        "Trainer streaming",
        "transformers",
        "Trainer(train_dataset=IterableDataset, dataloader_num_workers=1, data_collator=as above).train()",
        partial(trained, streaming=True),
    ),
)
