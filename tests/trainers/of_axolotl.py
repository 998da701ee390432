"""axolotl: its multipack collator, as `sample_packing: true` runs it."""

from typing import Any

from tests.packing.collated import Features
from tests.trainers.path import TrainerPath, tokenizer, without


def multipack(features: Features) -> Any:
    """One row; a sample brings its positions, as axolotl's datasets do."""
    with without("torchaudio"):
        from axolotl.utils.collators.batching import V2BatchSamplerDataCollatorForSeq2Seq

    row = [each | {"position_ids": [*range(len(each["input_ids"]))]} for each in features]
    return dict(V2BatchSamplerDataCollatorForSeq2Seq(tokenizer())([row]))


PATHS = (TrainerPath("axolotl multipack", "axolotl", "V2BatchSamplerDataCollatorForSeq2Seq", multipack),)
