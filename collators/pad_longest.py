"""Pads every sequence to the longest of the batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from collators.batch import PaddedBatch
from collators.collator import Collator, CollatorOptions
from collators.example import Example, checked_lengths
from collators.padding import pad_to


@dataclass(frozen=True)
class PadLongest:
    """Pads on the right to the longest sequence of the batch."""

    options: CollatorOptions

    def __call__(self, examples: Sequence[Example]) -> PaddedBatch:
        pad_id = self.options.pad_id
        lengths = checked_lengths(examples, self.options.max_length, collator="pad_longest", pad_id=pad_id)
        return pad_to(examples, lengths, max(lengths), pad_id=pad_id, side="right")


COLLATOR = Collator("pad_longest", "padded", PadLongest, "padded on the right to the longest", "right")
