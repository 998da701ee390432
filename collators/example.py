"""One sequence, and the checks every collator makes before it builds a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Targets with this value are not supervised (the `ignore_index` of cross-entropy).
IGNORE_INDEX = -100


@dataclass(frozen=True)
class Example:
    """One sequence and its next-token targets.

    `input_ids` and `targets` are 1-D LongTensors of equal length. A target of -100 is not supervised.
    """

    input_ids: Tensor
    targets: Tensor


def checked_lengths(
    examples: Sequence[Example], max_length: int, *, collator: str, pad_id: int | None = None
) -> tuple[int, ...]:
    """Return the lengths of `examples`, or raise a ValueError that names the first bad one.

    `max_length` is the longest sequence allowed, in tokens. With `pad_id`, an example that holds this id is
    refused: once padded, its token and the padding could not be told apart.
    """
    if not examples:
        raise ValueError(f"{collator} needs at least one example; got an empty list. Check the sampler.")
    lengths = []
    for index, example in enumerate(examples):
        where = f"{collator}: example {index}"
        ids, targets = example.input_ids, example.targets
        for field, value in (("input_ids", ids), ("targets", targets)):
            if value.ndim != 1:
                raise ValueError(
                    f"{where}: {field} must be 1-D; got shape {tuple(value.shape)}. Pass one sequence an example."
                )
            if value.dtype != torch.int64:
                raise ValueError(f"{where}: {field} must be int64; got {value.dtype}. Convert it with .long().")
        length = ids.numel()
        if length == 0:
            raise ValueError(f"{where} is empty; a sequence has at least 1 token. Filter empty documents out.")
        if targets.numel() != length:
            raise ValueError(
                f"{where}: input_ids has {length} tokens but targets has {targets.numel()}; make them equal."
            )
        if length > max_length:
            raise ValueError(
                f"{where} has {length} tokens, over the maximum of {max_length}; split it or raise max_length."
            )
        if pad_id is not None and bool((ids == pad_id).any()):
            raise ValueError(
                f"{where} contains the pad id {pad_id}, so nothing tells its tokens from padding; choose a pad id "
                "outside the vocabulary in use."
            )
        lengths.append(length)
    return tuple(lengths)


def restarting_positions(lengths: Sequence[int]) -> Tensor:
    """Return positions that restart at 0 in every sequence, int64 [T]; lengths 2, 3 -> 0, 1, 0, 1, 2."""
    return torch.cat([torch.arange(length) for length in lengths])
