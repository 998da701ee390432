"""Several sequences as the inputs of one forward of a transformers model: flattened into a row, or padded.

Every way to do it has a name, which says what a model is given besides `input_ids` and `labels`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from collators.example import IGNORE_INDEX

Layout = Literal["flattened", "right", "left"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

#: Lengths around a window of 4 tokens, and one of more than two windows; no two are alike.
LENGTHS = (4, 3, 9, 5)


@dataclass(frozen=True)
class Way:
    """One way to hand sequences to a model; a flattened one by transformers' DataCollatorWithFlattening.

    `offsets` adds `cu_seq_lens_q` and its like, `seq_idx` the number of each token's sequence. `mask` is the 2-D
    attention mask: of a flattened row all ones, so that it says nothing. `cache` leaves `use_cache` at its default
    instead of False.
    """

    layout: Layout
    positions: bool = True
    offsets: bool = False
    seq_idx: bool = False
    mask: bool = False
    cache: bool = False

    @property
    def given(self) -> tuple[str, ...]:
        """The names of what the model is given besides its tokens."""
        named = {
            "position_ids": self.positions,
            "cu_seq_lens": self.offsets,
            "seq_idx": self.seq_idx,
            "attention_mask": self.mask,
            "cache": self.cache,
        }
        return tuple(name for name, present in named.items() if present)

    @property
    def name(self) -> str:
        """Such as `flattened: position_ids, cache`."""
        return f"{self.layout}: {', '.join(self.given) or 'nothing'}"


FLATTENED: tuple[Way, ...] = (
    # What the collator gives by default to a model whose use_cache nobody touched, and then with it off.
    Way("flattened", cache=True),
    Way("flattened"),
    Way("flattened", offsets=True, cache=True),
    Way("flattened", offsets=True),
    Way("flattened", seq_idx=True, cache=True),
    Way("flattened", seq_idx=True),
    Way("flattened", offsets=True, seq_idx=True, cache=True),
    Way("flattened", offsets=True, seq_idx=True),
    Way("flattened", mask=True, cache=True),
    Way("flattened", mask=True),
    Way("flattened", offsets=True, seq_idx=True, mask=True),
    Way("flattened", positions=False, offsets=True, seq_idx=True),
)

PADDED: tuple[Way, ...] = (
    Way("right", positions=False, mask=True, cache=True),
    Way("right", positions=False, mask=True),
    Way("right", mask=True, cache=True),
    Way("right", mask=True),
    Way("left", positions=False, mask=True, cache=True),
    Way("left", mask=True, cache=True),
    Way("left", positions=False, mask=True),
    Way("left", mask=True),
)

WAYS: tuple[Way, ...] = (*FLATTENED, *PADDED)

#: A sequence alone, as the truth is computed.
ALONE = Way("flattened", positions=False)


def way_named(name: str) -> Way:
    """Return the way of that name; ValueError lists all."""
    for way in WAYS:
        if way.name == name:
            return way
    raise ValueError(f"unknown way {name!r} to give sequences; choose one of: {'; '.join(way.name for way in WAYS)}.")


@dataclass(frozen=True)
class Inputs:
    """Keyword arguments of a forward, and where in its (rows, tokens) outputs each sequence lies."""

    arguments: Mapping[str, Any]
    places: tuple[tuple[int, slice], ...]

    def split(self, outputs: Tensor) -> list[Tensor]:
        """Return one (length, ...) tensor for each sequence."""
        return [outputs[row, where] for row, where in self.places]

    def to(self, device: torch.device | str) -> "Inputs":
        """Return them with their tensors on `device`."""
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.arguments.items()
        }
        return Inputs(moved, self.places)


def inputs(way: Way, sequences: Sequence[Tensor], *, start: int = 0, pad_id: int = 0) -> Inputs:
    """Return `sequences`, int64 [length] each, as `way` hands them over, with labels of every next token.

    Positions, where given, begin at `start` in each sequence. Lengths 2, 3 flattened: positions 0 1 0 1 2.
    """
    arguments, places = (
        flattened(way, sequences, start) if way.layout == "flattened" else padded(way, sequences, start, pad_id)
    )
    if not way.cache:
        arguments["use_cache"] = False
    return Inputs(arguments, places)


def flattened(
    way: Way, sequences: Sequence[Tensor], start: int
) -> tuple[dict[str, Any], tuple[tuple[int, slice], ...]]:
    """Return the arguments that the collator makes of the sequences, and each one's place in the row."""
    from transformers import DataCollatorWithFlattening

    collate = DataCollatorWithFlattening(
        return_position_ids=way.positions, return_flash_attn_kwargs=way.offsets, return_seq_idx=way.seq_idx
    )
    arguments = dict(collate([{"input_ids": sequence.tolist()} for sequence in sequences], return_tensors="pt"))
    if way.positions:
        arguments["position_ids"] = arguments["position_ids"] + start
    if way.mask:
        arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])
    places, end = [], 0
    for sequence in sequences:
        places.append((0, slice(end, end + len(sequence))))
        end += len(sequence)
    return arguments, tuple(places)


def padded(
    way: Way, sequences: Sequence[Tensor], start: int, pad_id: int
) -> tuple[dict[str, Any], tuple[tuple[int, slice], ...]]:
    """Return the arguments of a rectangle padded on the way's side, and each sequence's place in it."""
    shape = (len(sequences), max(map(len, sequences)))
    tokens, labels = torch.full(shape, pad_id), torch.full(shape, IGNORE_INDEX)
    mask, positions = torch.zeros(shape, dtype=torch.int64), torch.full(shape, start)
    places = []
    for row, sequence in enumerate(sequences):
        length = len(sequence)
        where = slice(0, length) if way.layout == "right" else slice(shape[1] - length, shape[1])
        tokens[row, where], mask[row, where] = sequence, 1
        labels[row, where.start + 1 : where.stop] = sequence[1:]
        positions[row, where] = torch.arange(start, start + length)
        places.append((row, where))
    arguments = {"input_ids": tokens, "labels": labels, "attention_mask": mask}
    return arguments | ({"position_ids": positions} if way.positions else {}), tuple(places)
