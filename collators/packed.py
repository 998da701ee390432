"""Concatenates the sequences, with `cu_seqlens`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from collators.batch import PackedBatch, offsets_of
from collators.collator import Collator, CollatorOptions
from collators.example import IGNORE_INDEX, Example, checked_lengths, restarting_positions


@dataclass(frozen=True)
class Packed:
    """Concatenates the sequences without padding; positions restart at 0 in each."""

    options: CollatorOptions
    name: str = "packed"

    def __call__(self, examples: Sequence[Example]) -> PackedBatch:
        lengths = checked_lengths(examples, self.options.max_length, collator=self.name)
        targets = torch.cat([example.targets for example in examples])
        return PackedBatch(
            lengths=lengths,
            num_targets=int((targets != IGNORE_INDEX).sum()),
            input_ids=torch.cat([example.input_ids for example in examples])[None],
            targets=targets[None],
            position_ids=restarting_positions(lengths)[None],
            cu_seqlens=offsets_of(lengths, torch.int32),
            max_seqlen=max(lengths),
        )


COLLATOR = Collator("packed", "packed", Packed, "concatenated, with cu_seqlens")
