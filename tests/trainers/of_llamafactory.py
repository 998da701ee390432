"""LLaMA-Factory: neat packing, its processor and its 4-D mask."""

from types import SimpleNamespace
from typing import Any

from tests.packing.collated import Features
from tests.trainers.path import ROW, TrainerPath, without


def neat(features: Features) -> Any:
    """Rows with a mask that numbers the sequences, which becomes a 4-D mask of floats."""
    import torch

    with without("torchaudio"):
        from llamafactory.data.collator import prepare_4d_attention_mask
        from llamafactory.data.processor.supervised import PackedSupervisedDatasetProcessor

    class Processor(PackedSupervisedDatasetProcessor):  # type: ignore[misc]
        """Its examples are encoded already."""

        def _encode_data_example(self, prompt: Any, **_: Any) -> Any:
            return [*prompt[0]["input_ids"]], [*prompt[0]["labels"]]

    none: list[Any] = [None] * len(features)
    examples = {"_prompt": [[each] for each in features], "_response": [[each] for each in features]}
    examples |= {key: none for key in ("_system", "_tools", "_images", "_videos", "_audios")}
    processor = Processor(
        template=None,
        tokenizer=SimpleNamespace(pad_token_id=0),
        processor=None,
        data_args=SimpleNamespace(cutoff_len=ROW, neat_packing=True),
    )
    made = processor.preprocess_dataset(examples)
    batch = {key: torch.tensor(made[key]) for key in ("input_ids", "labels", "attention_mask", "position_ids")}
    return batch | {"attention_mask": prepare_4d_attention_mask(batch["attention_mask"], torch.float32)}


PATHS = (
    TrainerPath(
        "LLaMA-Factory neat packing",
        "llamafactory",
        "PackedSupervisedDatasetProcessor, prepare_4d_attention_mask",
        neat,
    ),
)
