"""Pads every sequence to one fixed length."""

from collections.abc import Sequence
from dataclasses import dataclass

from collators.batch import PaddedBatch
from collators.collator import Collator, CollatorOptions
from collators.example import Example, checked_lengths
from collators.padding import pad_to


@dataclass(frozen=True)
class PadFixed:
    """Pads on the right to `options.max_length`: every batch has one shape."""

    options: CollatorOptions

    def __call__(self, examples: Sequence[Example]) -> PaddedBatch:
        max_length, pad_id = self.options.max_length, self.options.pad_id
        lengths = checked_lengths(examples, max_length, collator="pad_fixed", pad_id=pad_id)
        return pad_to(examples, lengths, max_length, pad_id=pad_id, side="right")


COLLATOR = Collator("pad_fixed", "padded", PadFixed, "padded on the right to the maximum length", "right")
