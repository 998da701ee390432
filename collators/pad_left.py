"""Pads on the left, as generation does."""

from collections.abc import Sequence
from dataclasses import dataclass

from collators.batch import PaddedBatch
from collators.collator import Collator, CollatorOptions
from collators.example import Example, checked_lengths
from collators.padding import pad_to


@dataclass(frozen=True)
class PadLeft:
    """Pads on the left to the longest sequence of the batch; positions start at 0 at the first real token."""

    options: CollatorOptions

    def __call__(self, examples: Sequence[Example]) -> PaddedBatch:
        pad_id = self.options.pad_id
        lengths = checked_lengths(examples, self.options.max_length, collator="pad_left", pad_id=pad_id)
        return pad_to(examples, lengths, max(lengths), pad_id=pad_id, side="left")


COLLATOR = Collator("pad_left", "padded", PadLeft, "padded on the left to the longest", "left")
