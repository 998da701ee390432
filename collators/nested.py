"""Makes jagged NestedTensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from collators.batch import NestedBatch, offsets_of
from collators.collator import Collator, CollatorOptions
from collators.example import IGNORE_INDEX, Example, checked_lengths, restarting_positions


@dataclass(frozen=True)
class Nested:
    """Keeps every sequence as a row of its own length."""

    options: CollatorOptions

    def __call__(self, examples: Sequence[Example]) -> NestedBatch:
        lengths = checked_lengths(examples, self.options.max_length, collator="nested")
        targets = torch.cat([example.targets for example in examples])
        return NestedBatch(
            lengths=lengths,
            num_targets=int((targets != IGNORE_INDEX).sum()),
            values=torch.cat([example.input_ids for example in examples]),
            target_values=targets,
            position_values=restarting_positions(lengths),
            offsets=offsets_of(lengths, torch.int64),
        )


COLLATOR = Collator("nested", "nested", Nested, "jagged NestedTensors")
