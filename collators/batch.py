"""The three layouts in which a batch holds several sequences.

Shapes: B sequences, S padded length, T tokens in all, N segments of a packed batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

Layout = Literal["padded", "packed", "nested"]
PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Batch:
    """What every layout has: the real sequences' `lengths`, and how many targets are supervised.

    ValueError where fields do not fit each other. Only shapes, dtypes and Python ints are looked at: moving makes a
    batch too, and must not wait for a device. What `cu_seqlens` and `offsets` hold, a collator's tests prove.
    """

    lengths: tuple[int, ...]
    num_targets: int

    layout: ClassVar[Layout]

    def __post_init__(self) -> None:
        if not all(type(length) is int and length >= 0 for length in self.lengths):
            raise ValueError(
                f"a {self.layout} batch needs lengths that are Python ints of 0 or more; got {self.lengths}. "
                "Convert them with .tolist()."
            )
        if type(self.num_targets) is not int or not 0 <= self.num_targets <= self.num_tokens:
            raise ValueError(
                f"a {self.layout} batch needs num_targets, a Python int of 0 to its {self.num_tokens} tokens; "
                f"got {self.num_targets!r}. Count the targets that are not -100."
            )

    def _check_fields(self, slots: str, wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        """Raise a ValueError that names each field of another dtype or shape than `wanted`."""
        found = {name: (getattr(self, name).dtype, tuple(getattr(self, name).shape)) for name in wanted}
        wrong = [name for name in wanted if found[name] != wanted[name]]
        if wrong:
            needed, got = (
                ", ".join(f"{name} {str(of[name][0]).removeprefix('torch.')} {of[name][1]}" for name in wrong)
                for of in (wanted, found)
            )
            raise ValueError(
                f"a {self.layout} batch of {len(self.lengths)} sequences in {slots} needs {needed}; got {got}. "
                "Correct these fields, or the lengths."
            )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch with its tensors in page-locked memory, as a DataLoader's `pin_memory` does."""
        return self._map(lambda tensor: tensor.pin_memory())

    @property
    def num_tokens(self) -> int:
        """Tokens of real sequences."""
        return sum(self.lengths)

    @property
    def num_slots(self) -> int:
        """Token slots that the model computes, padding and fillers included."""
        raise NotImplementedError

    @property
    def padded_token_share(self) -> float:
        """Share of computed slots that hold no real token, 0 to 1."""
        return 1 - self.num_tokens / self.num_slots

    def flat(self, outputs: Tensor) -> Tensor:
        """Return `outputs` (..., C) of the model as one (slots, C) tensor that lines up with `flat_targets`."""
        return outputs.flatten(0, 1)

    @property
    def flat_targets(self) -> Tensor:
        """Targets of every slot, int64 [slots]."""
        raise NotImplementedError

    def split(self, outputs: Tensor) -> list[Tensor]:
        """Return one (length, ...) tensor for each real sequence, in order."""
        raise NotImplementedError


@dataclass(frozen=True)
class PaddedBatch(Batch):
    """Sequences as the rows of a rectangle.

    `input_ids`, `targets`, `position_ids` are int64 [B, S]; `attention_mask` is bool [B, S], True at real
    tokens. Padding holds the pad id, target -100 and position 0.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    padding_side: PaddingSide

    layout: ClassVar[Layout] = "padded"

    def __post_init__(self) -> None:
        super().__post_init__()
        width = self.input_ids.shape[-1] if self.input_ids.ndim else 0
        shape = (len(self.lengths), width)
        ids = dict.fromkeys(("input_ids", "targets", "position_ids"), (torch.int64, shape))
        self._check_fields(f"rows of {width}", {**ids, "attention_mask": (torch.bool, shape)})
        if max(self.lengths, default=0) > width:
            raise ValueError(
                f"a padded batch with a sequence of {max(self.lengths)} tokens needs rows as long; got input_ids "
                f"{tuple(self.input_ids.shape)}. Pad to the longest or more."
            )
        if self.padding_side not in ("left", "right"):
            raise ValueError(
                f"a padded batch needs padding_side 'left' or 'right'; got {self.padding_side!r}. Pass one."
            )

    @property
    def num_slots(self) -> int:
        return self.input_ids.numel()

    @property
    def flat_targets(self) -> Tensor:
        return self.targets.flatten()

    def split(self, outputs: Tensor) -> list[Tensor]:
        if outputs.shape[:2] != self.input_ids.shape:
            raise ValueError(
                f"a padded batch of {tuple(self.input_ids.shape)} splits outputs of that shape; "
                f"got {tuple(outputs.shape)}."
            )
        right = self.padding_side == "right"
        return [
            row[:length] if right else row[row.shape[0] - length :]
            for row, length in zip(outputs, self.lengths, strict=True)
        ]


@dataclass(frozen=True)
class PackedBatch(Batch):
    """Sequences one after the other in one row.

    `input_ids`, `targets`, `position_ids` are int64 [1, T]; `cu_seqlens` is int32 [N+1], from 0 to T;
    `max_seqlen` is the longest segment. Lengths 2, 4, 3 -> cu_seqlens [0, 2, 6, 9], max_seqlen 4. Segments
    are the sequences and, where `filler_length` > 0, a last one that belongs to no sequence and has no targets.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    filler_length: int = 0

    layout: ClassVar[Layout] = "packed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.filler_length) is not int or self.filler_length < 0:
            raise ValueError(
                f"a packed batch needs filler_length, a Python int of 0 or more; got {self.filler_length!r}. "
                "Pass the tokens after the last sequence."
            )
        segments = self.segment_lengths
        tokens = sum(segments)
        row = dict.fromkeys(("input_ids", "targets", "position_ids"), (torch.int64, (1, tokens)))
        self._check_fields(
            f"a row of {tokens} tokens ({self.filler_length} of them filler)",
            {**row, "cu_seqlens": (torch.int32, (len(segments) + 1,))},
        )
        longest = max(segments, default=0)
        if type(self.max_seqlen) is not int or self.max_seqlen != longest:
            raise ValueError(
                f"a packed batch needs max_seqlen, a Python int, of its longest segment's {longest} tokens; "
                f"got {self.max_seqlen!r}. Pass max(segment_lengths)."
            )

    @property
    def num_slots(self) -> int:
        return self.input_ids.numel()

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        """Lengths of all segments, the filler included, known without asking the device."""
        return (*self.lengths, self.filler_length) if self.filler_length else self.lengths

    @property
    def flat_targets(self) -> Tensor:
        return self.targets.flatten()

    def split(self, outputs: Tensor) -> list[Tensor]:
        if outputs.shape[:2] != self.input_ids.shape:
            raise ValueError(
                f"a packed batch of {tuple(self.input_ids.shape)} splits outputs of that shape; "
                f"got {tuple(outputs.shape)}."
            )
        return list(torch.split(outputs[0], list(self.segment_lengths)))[: len(self.lengths)]


@dataclass(frozen=True)
class NestedRows:
    """Where the rows of a NestedTensor lie in its values: `offsets`, int64 [B+1], and the extreme lengths."""

    offsets: Tensor
    shortest: int
    longest: int

    def nested(self, values: Tensor) -> Tensor:
        """Return `values` (T, ...) as a NestedTensor (B, jagged, ...); those of one batch share a dimension."""
        # Given the extreme lengths, the NestedTensor need not ask the device for them.
        return torch.nested.nested_tensor_from_jagged(
            values, self.offsets, min_seqlen=self.shortest, max_seqlen=self.longest
        )


@dataclass(frozen=True)
class NestedBatch(Batch):
    """Sequences as the rows of jagged NestedTensors, without padding.

    `values`, `target_values`, `position_values` are int64 [T]; `offsets` is int64 [B+1]. Kept as plain tensors
    so that workers can send and pin them; `input_ids` and `position_ids` are NestedTensors (B, jagged) that
    share one ragged dimension.
    """

    values: Tensor
    target_values: Tensor
    position_values: Tensor
    offsets: Tensor

    layout: ClassVar[Layout] = "nested"

    def __post_init__(self) -> None:
        super().__post_init__()
        tokens = self.num_tokens
        row = dict.fromkeys(("values", "target_values", "position_values"), (torch.int64, (tokens,)))
        self._check_fields(f"{tokens} tokens", {**row, "offsets": (torch.int64, (len(self.lengths) + 1,))})

    @property
    def rows(self) -> NestedRows:
        """Where the sequences lie."""
        return NestedRows(self.offsets, min(self.lengths), max(self.lengths))

    @property
    def input_ids(self) -> Tensor:
        """Token ids, int64 NestedTensor (B, jagged)."""
        return self.rows.nested(self.values)

    @property
    def position_ids(self) -> Tensor:
        """Positions, int64 NestedTensor (B, jagged)."""
        return self.rows.nested(self.position_values)

    @property
    def num_slots(self) -> int:
        return self.values.numel()

    @property
    def flat_targets(self) -> Tensor:
        return self.target_values

    def flat(self, outputs: Tensor) -> Tensor:
        return outputs.values()

    def split(self, outputs: Tensor) -> list[Tensor]:
        jagged = outputs.is_nested and outputs.layout == torch.jagged
        if not jagged or not torch.equal(outputs.offsets(), self.offsets):  # type: ignore[attr-defined]
            raise ValueError(
                f"a nested batch splits jagged NestedTensors of lengths {self.lengths}; "
                f"got {'a NestedTensor of others' if outputs.is_nested else tuple(outputs.shape)}."
            )
        return list(torch.split(outputs.values(), list(self.lengths)))


def offsets_of(lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return where each sequence starts, and the end; lengths 2, 4, 3 -> [0, 2, 6, 9]."""
    return torch.tensor([0, *accumulate(lengths)], dtype=dtype)
