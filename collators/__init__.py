"""Examples to batches: one file per collator, and the registry of them all."""

from collators import nested, packed, packed_multiple, pad_fixed, pad_left, pad_longest, pad_multiple
from collators.batch import Batch, NestedBatch, PackedBatch, PaddedBatch
from collators.collator import Collator, CollatorOptions
from collators.example import IGNORE_INDEX, Example

__all__ = [
    "COLLATORS",
    "IGNORE_INDEX",
    "Batch",
    "Collator",
    "CollatorOptions",
    "Example",
    "NestedBatch",
    "PackedBatch",
    "PaddedBatch",
    "collator_named",
]

#: Every collator, in the order of the matrix. A new one is a new file and a line here.
COLLATORS: tuple[Collator, ...] = (
    pad_fixed.COLLATOR,
    pad_longest.COLLATOR,
    pad_left.COLLATOR,
    pad_multiple.COLLATOR,
    packed.COLLATOR,
    packed_multiple.COLLATOR,
    nested.COLLATOR,
)


def collator_named(name: str) -> Collator:
    """Return the collator called `name`; ValueError lists the names."""
    for collator in COLLATORS:
        if collator.name == name:
            return collator
    raise ValueError(f"unknown collator {name!r}; choose one of: {', '.join(c.name for c in COLLATORS)}.")
