"""The record that describes a collator to the matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collators.batch import Batch, Layout, PaddingSide
from collators.example import Example

Collate = Callable[[Sequence[Example]], Batch]


@dataclass(frozen=True)
class CollatorOptions:
    """What a workload tells every collator: the longest sequence, the pad id, and the multiple to round up to."""

    max_length: int
    pad_id: int = 0
    multiple: int = 8

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1; got {self.max_length}.")
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1; got {self.multiple}.")


@dataclass(frozen=True)
class Collator:
    """One collator: its name, the layout it makes, and `build`, which returns a picklable `collate_fn`."""

    name: str
    layout: Layout
    build: Callable[[CollatorOptions], Collate]
    summary: str
    padding_side: PaddingSide | None = None
