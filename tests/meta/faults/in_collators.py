"""Faults of the collators and of the batches they make."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from collators import IGNORE_INDEX, Batch, CollatorOptions, Example, NestedBatch, PackedBatch, PaddedBatch, example
from collators.batch import NestedRows
from collators.nested import Nested
from collators.packed import Packed
from collators.packed_multiple import PackedMultiple
from collators.pad_left import PadLeft
from collators.pad_longest import PadLongest
from collators.pad_multiple import PadMultiple
from tests.meta.faults.fault import Faults, everywhere, makes, unchecked

COLLATORS = Faults("collators")
inject = COLLATORS.inject

SEGMENTS = "test_collators.py::test_a_packed_batch_says_where_its_segments_lie"
POSITIONS = "test_collators.py::test_a_batch_restarts_positions_in_every_sequence"
TARGETS = "test_collators.py::test_a_batch_supervises_each_token_with_its_own_target"
ROUND_TRIP = "test_collators.py::test_a_batch_splits_into_its_sequences_in_order"
TOKENS = "test_collators.py::test_a_batch_keeps_every_token_and_counts_its_slots"
MASK = "test_collators.py::test_a_padded_batch_masks_what_is_not_a_token"
MOVED = "test_collators.py::test_a_batch_moves_to_a_device_whole"
PINNED = "test_collators.py::test_a_batch_is_whole_when_every_tensor_of_it_is_pinned"
UNEQUAL = "test_bad_batches.py::test_a_batch_with_a_field_unlike_the_others_is_refused_where_it_is_made"
BAD_EXAMPLE = "test_bad_batches.py::test_a_batch_with_a_bad_example_is_refused_by_its_index"
EQUAL = "test_equivalence.py::test_a_batch_equals_the_padded_reference"
ISOLATED = "test_isolation.py::test_tokens_of_one_sequence_do_not_change_the_outputs_of_others"

#: Of a batch whose fields do not fit each other, where it is made.
REFUSED = (ValueError,)

PACKED_CELL = "sdpa_document_mask-packed-train-full-float32-eager-drawn"
LEFT_CELL = "sdpa_padded-pad_left-train-full-float32-eager-drawn"


def with_offsets(patch: pytest.MonkeyPatch, change: Any) -> None:
    """Let `packed` make other `cu_seqlens` out of the right ones."""
    makes(patch, Packed, lambda options, examples, batch: replace(batch, cu_seqlens=change(batch.cu_seqlens)))


@inject(SEGMENTS)
def cu_seqlens_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """Every inner offset of `packed` is one token late."""
    with_offsets(patch, lambda offsets: torch.cat([offsets[:1], offsets[1:-1] + 1, offsets[-1:]]))


@inject(ISOLATED, PACKED_CELL)
def cu_seqlens_one_token_early(patch: pytest.MonkeyPatch) -> None:
    """Every inner offset is one token early: a sequence attends to the last token of the one before."""
    with_offsets(patch, lambda offsets: torch.cat([offsets[:1], offsets[1:-1] - 1, offsets[-1:]]))


@inject(SEGMENTS, errors=REFUSED)
def cu_seqlens_do_not_start_at_0(patch: pytest.MonkeyPatch) -> None:
    """`cu_seqlens` is the running sum of the lengths alone."""
    with_offsets(patch, lambda offsets: offsets[1:])


@inject(SEGMENTS, errors=REFUSED)
def cu_seqlens_do_not_end_at_the_tokens(patch: pytest.MonkeyPatch) -> None:
    """`cu_seqlens` is where the sequences start, without the end."""
    with_offsets(patch, lambda offsets: offsets[:-1])


@inject(SEGMENTS, errors=REFUSED)
def cu_seqlens_of_int64(patch: pytest.MonkeyPatch) -> None:
    """`cu_seqlens` is int64, which kernels read as pairs of int32."""
    with_offsets(patch, Tensor.long)


@inject(SEGMENTS, errors=REFUSED)
def max_seqlen_too_small(patch: pytest.MonkeyPatch) -> None:
    """`max_seqlen` is that of the mean length, rounded up: tiles past it are not computed."""
    makes(
        patch,
        Packed,
        lambda options, examples, batch: replace(batch, max_seqlen=-(-batch.num_tokens // len(batch.lengths))),
    )


@inject(SEGMENTS, errors=REFUSED)
def max_seqlen_without_the_filler(patch: pytest.MonkeyPatch) -> None:
    """`max_seqlen` is that of the sequences, where the filler is longer."""
    makes(patch, PackedMultiple, lambda options, examples, batch: replace(batch, max_seqlen=max(batch.lengths)))


@inject(SEGMENTS, links=("transformers#35588",), errors=REFUSED)
def max_seqlen_is_a_tensor(patch: pytest.MonkeyPatch) -> None:
    """`max_seqlen` is a 0-d tensor, which torch.compile cannot guard on."""
    makes(patch, Packed, lambda options, examples, batch: replace(batch, max_seqlen=batch.cu_seqlens.diff().max()))


@inject(POSITIONS)
def packed_positions_run_on(patch: pytest.MonkeyPatch) -> None:
    """Positions of `packed` count on over the whole row."""
    patch.setattr("collators.packed.restarting_positions", lambda lengths: torch.arange(sum(lengths)))


@inject(POSITIONS, links=("LLaMA-Factory#7754",))
def positions_of_the_second_document_are_wrong(patch: pytest.MonkeyPatch) -> None:
    """The positions of the second sequence of a row start at 1."""

    def positions(lengths: Sequence[int]) -> Tensor:
        return torch.cat([torch.arange(length) + (index == 1) for index, length in enumerate(lengths)])

    patch.setattr("collators.packed.restarting_positions", positions)


@inject(POSITIONS)
def nested_positions_run_on(patch: pytest.MonkeyPatch) -> None:
    """Positions of `nested` count on over all rows."""
    patch.setattr("collators.nested.restarting_positions", lambda lengths: torch.arange(sum(lengths)))


@inject(EQUAL, LEFT_CELL, links=("unsloth-zoo#840",))
def left_positions_counted_from_the_padding(patch: pytest.MonkeyPatch) -> None:
    """Positions of `pad_left` start at the first column, not at the first token."""

    def columns(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        return replace(batch, position_ids=torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids))

    makes(patch, PadLeft, columns)


@inject(
    "test_reference.py::test_a_batch_padded_for_the_reference_equals_each_sequence_alone",
    links=("unsloth-zoo#840",),
)
def reference_positions_depend_on_the_padding(patch: pytest.MonkeyPatch) -> None:
    """Positions of `pad_longest`, the reference's, are as many later as the row has padding."""

    def shifted(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        late = (~batch.attention_mask).sum(1, keepdim=True)
        return replace(batch, position_ids=(batch.position_ids + late).clamp(max=options.max_length - 1))

    makes(patch, PadLongest, shifted)


@inject(TARGETS, links=("torchtune#2613",))
def last_token_predicts_the_next_document(patch: pytest.MonkeyPatch) -> None:
    """The last token of each sequence is supervised with the first of the next."""

    def crossing(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        targets, starts = batch.targets.clone(), batch.cu_seqlens[1:-1].long()
        targets[0, starts - 1] = batch.input_ids[0, starts]
        return replace(batch, targets=targets, num_targets=int((targets != IGNORE_INDEX).sum()))

    makes(patch, Packed, crossing)


@inject(TARGETS, links=("torchtune#2613",))
def targets_shifted_after_packing(patch: pytest.MonkeyPatch) -> None:
    """Targets of the whole row are moved by one slot, over boundaries."""
    makes(patch, Packed, lambda options, examples, batch: replace(batch, targets=batch.targets.roll(-1, dims=1)))


@inject(TARGETS)
def num_targets_counts_every_token(patch: pytest.MonkeyPatch) -> None:
    """`num_targets` of `packed` counts targets that are not supervised."""
    makes(patch, Packed, lambda options, examples, batch: replace(batch, num_targets=batch.num_tokens))


@inject(TARGETS)
def padding_is_supervised(patch: pytest.MonkeyPatch) -> None:
    """Targets of padding are the pad id."""

    def supervised(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        return replace(batch, targets=torch.where(batch.attention_mask, batch.targets, options.pad_id))

    makes(patch, PadLongest, supervised)


@inject(TARGETS)
def flat_targets_column_by_column(patch: pytest.MonkeyPatch) -> None:
    """Targets of a padded batch are flattened along the sequences, logits along the slots."""
    patch.setattr(PaddedBatch, "flat_targets", property(lambda batch: batch.targets.T.flatten()))


@inject("test_collators.py::test_a_filled_batch_supervises_no_filler")
def filler_is_supervised(patch: pytest.MonkeyPatch) -> None:
    """The filler's last target is the pad id."""

    def supervised(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        if not batch.filler_length:
            return batch
        return replace(batch, targets=pad(batch.targets[:, :-1], (0, 1), value=options.pad_id))

    makes(patch, PackedMultiple, supervised)


@inject(SEGMENTS, errors=REFUSED)
def filler_belongs_to_the_last_sequence(patch: pytest.MonkeyPatch) -> None:
    """The filler's tokens lengthen the last segment."""

    def merged(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        offsets = batch.cu_seqlens
        return replace(batch, cu_seqlens=torch.cat([offsets[:-2], offsets[-1:]])) if batch.filler_length else batch

    makes(patch, PackedMultiple, merged)


@inject("test_collators.py::test_a_filled_batch_reaches_the_next_multiple_of_tokens")
def filler_where_none_is_needed(patch: pytest.MonkeyPatch) -> None:
    """A batch that fits the multiple already is filled by a whole one."""

    def filled(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        if batch.filler_length:
            return batch
        extra = options.multiple
        return replace(
            batch,
            input_ids=pad(batch.input_ids, (0, extra), value=options.pad_id),
            targets=pad(batch.targets, (0, extra), value=IGNORE_INDEX),
            position_ids=torch.cat([batch.position_ids, torch.arange(extra)[None]], dim=1),
            cu_seqlens=pad(batch.cu_seqlens, (0, 1), value=batch.num_tokens + extra),
            max_seqlen=max(batch.max_seqlen, extra),
            filler_length=extra,
        )

    makes(patch, PackedMultiple, filled)


@inject(ROUND_TRIP)
def outputs_in_reverse_order(patch: pytest.MonkeyPatch) -> None:
    """`split` of a packed batch returns the sequences from the last to the first."""
    right = PackedBatch.split
    patch.setattr(PackedBatch, "split", lambda batch, outputs: right(batch, outputs)[::-1])


@inject(ROUND_TRIP)
def left_outputs_split_as_right_ones(patch: pytest.MonkeyPatch) -> None:
    """`split` of a batch padded on the left returns the first slots of every row."""

    def split(batch: PaddedBatch, outputs: Tensor) -> list[Tensor]:
        return [row[:length] for row, length in zip(outputs, batch.lengths, strict=True)]

    patch.setattr(PaddedBatch, "split", split)


@inject(ROUND_TRIP)
def sequences_sorted_by_length(patch: pytest.MonkeyPatch) -> None:
    """`packed` sorts its sequences, the longest first, and tells nobody."""
    right = Packed.__call__

    def call(self: Packed, examples: Sequence[Example]) -> Batch:
        return right(self, sorted(examples, key=lambda each: -len(each.input_ids)))

    patch.setattr(Packed, "__call__", call)


@inject(
    "test_permutation.py::test_permuted_sequences_give_permuted_logits_and_the_same_loss_and_gradients", PACKED_CELL
)
def lengths_in_another_order_than_tokens(patch: pytest.MonkeyPatch) -> None:
    """`packed` concatenates sequences sorted by length, with offsets and positions of the order given."""

    def by_length(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        ordered = sorted(examples, key=lambda each: -len(each.input_ids))
        return replace(
            batch,
            input_ids=torch.cat([each.input_ids for each in ordered])[None],
            targets=torch.cat([each.targets for each in ordered])[None],
        )

    makes(patch, Packed, by_length)


@inject(TOKENS)
def last_sequence_dropped(patch: pytest.MonkeyPatch) -> None:
    """`packed` drops the last of several sequences, as where they do not fill a block."""
    right = Packed.__call__

    def call(self: Packed, examples: Sequence[Example]) -> Batch:
        return right(self, examples[:-1] if len(examples) > 1 else examples)

    patch.setattr(Packed, "__call__", call)


@inject(BAD_EXAMPLE)
def long_sequences_truncated(patch: pytest.MonkeyPatch) -> None:
    """A sequence longer than the maximum loses its end in silence."""
    right = Packed.__call__

    def call(self: Packed, examples: Sequence[Example]) -> Batch:
        end = self.options.max_length
        cut = [
            Example(each.input_ids[:end], each.targets[:end]) if each.input_ids.ndim and each.targets.ndim else each
            for each in examples
        ]
        return right(self, cut)

    patch.setattr(Packed, "__call__", call)


@inject(BAD_EXAMPLE)
def empty_sequences_left_out(patch: pytest.MonkeyPatch) -> None:
    """`nested` leaves empty sequences out in silence."""
    right = Nested.__call__

    def call(self: Nested, examples: Sequence[Example]) -> Batch:
        kept = [each for each in examples if each.input_ids.ndim != 1 or each.input_ids.numel()]
        return right(self, kept or examples)

    patch.setattr(Nested, "__call__", call)


@inject(
    "test_edges.py::test_a_batch_with_an_empty_sequence_is_refused",
    PACKED_CELL,
    links=("flash-attention#1537", "flash-attention#2562", "flash-attention#1254"),
)
def empty_sequences_packed(patch: pytest.MonkeyPatch) -> None:
    """`packed` takes an empty sequence, and kernels that crash on one are given it."""
    right = example.checked_lengths

    def checked(examples: Sequence[Example], *args: Any, **options: Any) -> tuple[int, ...]:
        right([each for each in examples if each.input_ids.numel()], *args, **options)
        return tuple(each.input_ids.numel() for each in examples)

    patch.setattr("collators.packed.checked_lengths", checked)


@inject("test_bad_batches.py::test_a_batch_with_the_pad_id_is_refused_where_padding_makes_it_ambiguous")
def pad_id_inside_a_sequence(patch: pytest.MonkeyPatch) -> None:
    """`pad_longest` takes sequences that hold the pad id."""
    right = example.checked_lengths

    def checked(examples: Sequence[Example], max_length: int, *, collator: str, pad_id: int) -> tuple[int, ...]:
        return right(examples, max_length, collator=collator)

    patch.setattr("collators.pad_longest.checked_lengths", checked)


@inject(MASK)
def padding_mask_inverted(patch: pytest.MonkeyPatch) -> None:
    """`attention_mask` of `pad_longest` is True at padding."""
    makes(patch, PadLongest, lambda options, examples, batch: replace(batch, attention_mask=~batch.attention_mask))


@inject(MASK)
def padding_mask_made_from_ids(patch: pytest.MonkeyPatch) -> None:
    """The mask is True where the id is positive, whatever the pad id is."""
    makes(patch, PadLongest, lambda options, examples, batch: replace(batch, attention_mask=batch.input_ids > 0))


@inject(EQUAL, LEFT_CELL)
def left_mask_on_the_right(patch: pytest.MonkeyPatch) -> None:
    """`attention_mask` of `pad_left` is that of padding on the right."""
    makes(patch, PadLeft, lambda options, examples, batch: replace(batch, attention_mask=batch.attention_mask.flip(1)))


@inject("test_collators.py::test_a_batch_of_examples_is_the_same_when_collated_again")
def examples_written_to(patch: pytest.MonkeyPatch) -> None:
    """`packed` marks the last target of each sequence as not supervised, in the caller's tensors."""
    right = Packed.__call__

    def call(self: Packed, examples: Sequence[Example]) -> Batch:
        for each in examples:
            each.targets[-1:] = IGNORE_INDEX
        return right(self, examples)

    patch.setattr(Packed, "__call__", call)


@inject("test_collators.py::test_a_batch_is_no_view_of_its_examples")
def batch_shares_storage_with_its_example(patch: pytest.MonkeyPatch) -> None:
    """A packed batch of one sequence is a view of it."""

    def viewed(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        return replace(batch, input_ids=examples[0].input_ids[None]) if len(examples) == 1 else batch

    makes(patch, Packed, viewed)


@inject("test_collators.py::test_a_batch_from_a_worker_equals_the_one_collated_here")
def buffer_reused_between_batches(patch: pytest.MonkeyPatch) -> None:
    """`packed` writes its ids into one buffer, over those of the batch before."""
    buffer = torch.zeros(1, 1024, dtype=torch.int64)

    def buffered(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        part = buffer[:, : batch.num_slots]
        return replace(batch, input_ids=part.copy_(batch.input_ids))

    makes(patch, Packed, buffered)


@inject(MOVED)
def moving_leaves_offsets_behind(patch: pytest.MonkeyPatch) -> None:
    """`to` leaves `cu_seqlens` where it was."""
    right = PackedBatch._map

    def mapped(batch: PackedBatch, function: Any) -> Batch:
        return replace(right(batch, function), cu_seqlens=batch.cu_seqlens)

    patch.setattr(PackedBatch, "_map", mapped)


@inject(MOVED, errors=REFUSED)
def moving_drops_the_filler(patch: pytest.MonkeyPatch) -> None:
    """`to` forgets how long the filler is."""
    right = PackedBatch._map
    patch.setattr(PackedBatch, "_map", lambda batch, function: replace(right(batch, function), filler_length=0))


@inject(MOVED)
def moving_changes_the_side_of_padding(patch: pytest.MonkeyPatch) -> None:
    """A batch padded on the left is one padded on the right once it is moved."""
    right = PaddedBatch._map
    patch.setattr(PaddedBatch, "_map", lambda batch, function: replace(right(batch, function), padding_side="right"))


@inject("test_collators.py::test_a_batch_is_whole_when_every_tensor_of_it_is_moved")
def moving_waits_for_the_device(patch: pytest.MonkeyPatch) -> None:
    """`to` takes `non_blocking` and moves one tensor after the other all the same."""
    patch.setattr(Batch, "to", lambda batch, device, non_blocking=False: batch._map(lambda tensor: tensor.to(device)))


@inject(PINNED, errors=REFUSED)
def pinning_drops_the_filler(patch: pytest.MonkeyPatch) -> None:
    """`pin_memory` of a packed batch forgets how long the filler is."""
    right = PackedBatch.pin_memory
    patch.setattr(PackedBatch, "pin_memory", lambda batch: replace(right(batch), filler_length=0))


@inject(PINNED)
def pinning_leaves_offsets_behind(patch: pytest.MonkeyPatch) -> None:
    """`pin_memory` pins what has the shape of the ids."""
    right = NestedBatch.pin_memory
    patch.setattr(NestedBatch, "pin_memory", lambda batch: replace(right(batch), offsets=batch.offsets))


@inject(UNEQUAL)
def fields_of_unequal_shapes_accepted(patch: pytest.MonkeyPatch) -> None:
    """A batch is made of whatever its fields hold."""
    unchecked(patch, PaddedBatch, PackedBatch, NestedBatch)


@inject(UNEQUAL)
def fields_of_other_dtypes_accepted(patch: pytest.MonkeyPatch) -> None:
    """The fields of a packed batch have the shapes that they must have, and any dtype."""
    right = PackedBatch._check_fields

    def shapes_alone(batch: PackedBatch, slots: str, wanted: dict[str, Any]) -> None:
        right(batch, slots, {name: (getattr(batch, name).dtype, shape) for name, (_, shape) in wanted.items()})

    patch.setattr(PackedBatch, "_check_fields", shapes_alone)


@inject(TOKENS, links=("LLaMA-Factory#10736",), errors=REFUSED)
def ids_padded_to_a_multiple_alone(patch: pytest.MonkeyPatch) -> None:
    """`pad_multiple` pads ids, targets and the mask; positions end at the longest sequence."""

    def positions_left(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        return replace(batch, position_ids=batch.position_ids[:, : max(batch.lengths)])

    makes(patch, PadMultiple, positions_left)


@inject(
    "test_collators.py::test_a_batch_of_one_token_keeps_every_dimension",
    links=("pytorch#130196",),
)
def nested_batch_dimension_dropped(patch: pytest.MonkeyPatch) -> None:
    """A nested batch of one sequence of one token loses its batch dimension."""
    right = NestedRows.nested
    patch.setattr(NestedRows, "nested", lambda rows, values: values if values.numel() == 1 else right(rows, values))


@inject("test_collators.py::test_a_nested_batch_has_a_row_of_its_own_length_for_each_sequence")
def nested_offsets_not_summed(patch: pytest.MonkeyPatch) -> None:
    """Offsets of `nested` are cut at the right number of rows, of equal lengths."""

    def equal(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        count, tokens = len(batch.lengths), batch.num_tokens
        steps = [tokens // count + (index < tokens % count) for index in range(count)]
        return replace(batch, offsets=torch.tensor([0, *accumulate(steps)]))

    makes(patch, Nested, equal)


@inject(
    "test_isolation.py::test_the_loss_of_one_sequence_has_no_gradient_in_others",
    PACKED_CELL,
    links=("flash-linear-attention#838",),
)
def offsets_overwritten_by_an_all_ones_mask(patch: pytest.MonkeyPatch) -> None:
    """A redundant mask of ones says anew where sequences end: one row of ones is one sequence."""
    unchecked(patch, PackedBatch)

    def overwritten(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        ones = torch.ones_like(batch.input_ids)
        return replace(batch, cu_seqlens=pad(ones.sum(1, dtype=torch.int32), (1, 0)))

    makes(patch, Packed, overwritten)


@inject(EQUAL, PACKED_CELL, links=("nanoVLM#201",))
def neither_positions_nor_documents(patch: pytest.MonkeyPatch) -> None:
    """Sequences are concatenated, and nothing says where one ends: positions run on, one document."""
    unchecked(patch, PackedBatch)

    def one_document(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        last = options.max_length - 1
        return replace(
            batch,
            position_ids=torch.arange(batch.num_slots)[None].clamp(max=last),
            cu_seqlens=batch.cu_seqlens[[0, -1]],
        )

    makes(patch, Packed, one_document)


@inject(EQUAL, PACKED_CELL)
def documents_found_in_neighbouring_positions(patch: pytest.MonkeyPatch) -> None:
    """`cu_seqlens` are rebuilt from where positions fall, so that sequences of one token join the one before."""
    unchecked(patch, PackedBatch)

    def rebuilt(options: CollatorOptions, examples: list[Example], batch: Any) -> Batch:
        positions = batch.position_ids[0].tolist()
        starts = [at for at, (was, now) in enumerate(pairwise(positions), start=1) if now < was]
        return replace(batch, cu_seqlens=torch.tensor([0, *starts, batch.num_slots], dtype=torch.int32))

    makes(patch, Packed, rebuilt)


@inject("test_bad_batches.py::test_a_batch_with_the_pad_id_is_refused_where_padding_makes_it_ambiguous")
def pad_id_0_taken_for_none(patch: pytest.MonkeyPatch) -> None:
    """A pad id of 0 counts as none: an example that holds it is collated."""
    right = example.checked_lengths

    def checked(examples: Sequence[Example], most: int, *, collator: str, pad_id: int | None = None) -> tuple[int, ...]:
        return right(examples, most, collator=collator, pad_id=pad_id or None)

    everywhere(patch, right, checked)


@inject("test_bad_batches.py::test_a_batch_of_empty_sequences_may_be_made_by_hand")
def empty_row_padded_on_the_left_is_the_whole_row(patch: pytest.MonkeyPatch) -> None:
    """The last 0 tokens of a row padded on the left are all of it: row[-0:]."""
    right = PaddedBatch.split

    def split(batch: PaddedBatch, outputs: Tensor) -> list[Tensor]:
        if batch.padding_side == "right":
            return right(batch, outputs)
        return [row[-length:] for row, length in zip(outputs, batch.lengths, strict=True)]

    patch.setattr(PaddedBatch, "split", split)
