"""Pads to the longest sequence rounded up to a multiple."""

from collections.abc import Sequence
from dataclasses import dataclass

from collators.batch import PaddedBatch
from collators.collator import Collator, CollatorOptions
from collators.example import Example, checked_lengths
from collators.padding import pad_to


@dataclass(frozen=True)
class PadMultiple:
    """Pads on the right to the longest sequence, rounded up to a multiple of `options.multiple`.

    Rounded to 8, lengths 2, 11 make 16 columns. The width may pass the maximum length by less than the multiple.
    """

    options: CollatorOptions

    def __call__(self, examples: Sequence[Example]) -> PaddedBatch:
        pad_id, multiple = self.options.pad_id, self.options.multiple
        lengths = checked_lengths(examples, self.options.max_length, collator="pad_multiple", pad_id=pad_id)
        width = -(-max(lengths) // multiple) * multiple
        return pad_to(examples, lengths, width, pad_id=pad_id, side="right")


COLLATOR = Collator(
    "pad_multiple", "padded", PadMultiple, "padded on the right to the longest, rounded up to a multiple", "right"
)
