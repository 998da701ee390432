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
    """What every layout has: the real sequences' `lengths`, and how many targets are supervised."""

    lengths: tuple[int, ...]
    num_targets: int

    layout: ClassVar[Layout]

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
