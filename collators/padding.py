"""Fills the rectangle that every padding collator returns."""

from collections.abc import Sequence

import torch

from collators.batch import PaddedBatch, PaddingSide
from collators.example import IGNORE_INDEX, Example


def pad_to(
    examples: Sequence[Example], lengths: tuple[int, ...], width: int, *, pad_id: int, side: PaddingSide
) -> PaddedBatch:
    """Return a batch of `width` columns; padding on `side` holds `pad_id`, target -100 and position 0."""
    shape = (len(examples), width)
    input_ids = torch.full(shape, pad_id)
    targets = torch.full(shape, IGNORE_INDEX)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        columns = slice(0, length) if side == "right" else slice(width - length, width)
        input_ids[row, columns] = example.input_ids
        targets[row, columns] = example.targets
        position_ids[row, columns] = torch.arange(length)
        attention_mask[row, columns] = True
    return PaddedBatch(
        lengths=lengths,
        num_targets=int((targets != IGNORE_INDEX).sum()),
        input_ids=input_ids,
        targets=targets,
        position_ids=position_ids,
        attention_mask=attention_mask,
        padding_side=side,
    )
