"""Concatenates the sequences and fills up to a multiple of tokens, so that compiled steps see few shapes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from collators.batch import PackedBatch, offsets_of
from collators.collator import Collator, CollatorOptions
from collators.example import IGNORE_INDEX, Example
from collators.packed import Packed


@dataclass(frozen=True)
class PackedMultiple:
    """As `Packed`, then one filler sequence up to a multiple of `options.multiple` tokens.

    The filler is a segment of its own: no sequence attends to it, its targets are -100, its ids the pad id.
    Multiple 8, lengths 2, 4, 3 -> cu_seqlens [0, 2, 6, 9, 16]. Where the tokens fit already there is none.
    """

    options: CollatorOptions

    def __post_init__(self) -> None:
        if self.options.multiple > self.options.max_length + 1:
            raise ValueError(
                f"packed_multiple needs a multiple of at most max_length + 1 = {self.options.max_length + 1}, since "
                f"the filler is a sequence too; got {self.options.multiple}."
            )

    def __call__(self, examples: Sequence[Example]) -> PackedBatch:
        batch = Packed(self.options, name="packed_multiple")(examples)
        filler = -batch.num_tokens % self.options.multiple
        if not filler:
            return batch
        fill = torch.nn.functional.pad
        return replace(
            batch,
            input_ids=fill(batch.input_ids, (0, filler), value=self.options.pad_id),
            targets=fill(batch.targets, (0, filler), value=IGNORE_INDEX),
            position_ids=torch.cat([batch.position_ids, torch.arange(filler)[None]], dim=1),
            cu_seqlens=offsets_of((*batch.lengths, filler), torch.int32),
            max_seqlen=max(batch.max_seqlen, filler),
            filler_length=filler,
        )


COLLATOR = Collator("packed_multiple", "packed", PackedMultiple, "concatenated, filled up to a multiple of tokens")
