"""Faults of backends in who sees whom: documents, causality, padding, and contexts that outlive their batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from collators.batch import PackedBatch
from model.attention import Case
from model.attention.sdpa import SdpaContext, additive, allowed_keys, prepare_unmasked_where_possible
from model.attention.sdpa_document_mask import document_ids
from tests.meta.faults.fault import Faults, attends, prepares, unchecked

MASKS = Faults("attention")
inject = MASKS.inject

ISOLATED = "test_isolation.py::test_tokens_of_one_sequence_do_not_change_the_outputs_of_others"
ISOLATED_GRADIENTS = "test_isolation.py::test_the_loss_of_one_sequence_has_no_gradient_in_others"
CAUSAL = "test_causality.py::test_later_tokens_change_earlier_outputs_only_where_attention_is_not_causal"
CAUSAL_GRADIENTS = (
    "test_causality.py::test_the_loss_of_earlier_tokens_has_a_gradient_in_later_ones_only_where_attention_is_not_causal"
)
ANY_AMOUNT = "test_padding.py::test_any_amount_of_padding_changes_nothing"
ANY_CONTENT = "test_padding.py::test_ids_and_embeddings_of_padding_change_nothing"
EMPTY_ROWS = "test_padding.py::test_rows_of_nothing_but_padding_are_finite_and_without_gradient"
PERMUTED = "test_permutation.py::test_permuted_sequences_give_permuted_logits_and_the_same_loss_and_gradients"
EQUAL = "test_equivalence.py::test_a_batch_equals_the_padded_reference"
ALONE = "test_attention.py::test_a_batch_attends_as_each_sequence_alone"

FULL = "sdpa_document_mask-packed-train-full-float32-eager-drawn"
CAUSAL_CELL = "sdpa_document_mask-packed-train-causal-float32-eager-drawn"
FILLED = "sdpa_document_mask-packed_multiple-train-full-float32-eager-drawn"
RIGHT = "sdpa_padded-pad_longest-train-full-float32-eager-drawn"
LEFT = "sdpa_padded-pad_left-train-full-float32-eager-drawn"
LEFT_CAUSAL = "sdpa_padded-pad_left-train-causal-float32-eager-drawn"

Pairs = Callable[[Tensor, bool], Tensor]


def with_pairs(patch: pytest.MonkeyPatch, pairs: Pairs) -> None:
    """Let `sdpa_document_mask` allow the pairs (T, T) that `pairs` returns for segment ids and causality."""

    def prepare(right: Any, batch: PackedBatch, case: Case) -> SdpaContext:
        return SdpaContext(additive(pairs(document_ids(batch), case.causal)[None, None], case.dtype), is_causal=False)

    prepares(patch, "sdpa_document_mask", prepare)


def same(documents: Tensor) -> Tensor:
    """Return the pairs of one segment, (T, T)."""
    return documents[:, None] == documents[None, :]


def everything(documents: Tensor) -> Tensor:
    """Return all pairs, (T, T)."""
    return torch.ones_like(same(documents))


def self_too(pairs: Tensor) -> Tensor:
    """Return `pairs` and every token with itself, so that no row is empty."""
    return pairs | torch.eye(len(pairs), dtype=torch.bool)


@inject(ISOLATED, FULL, links=("axolotl#3796",))
def document_mask_dropped(patch: pytest.MonkeyPatch) -> None:
    """Every token of a packed row sees every other."""
    with_pairs(patch, lambda documents, causal: everything(documents))


@inject(ISOLATED, CAUSAL_CELL, links=("transformers#46634",))
def document_mask_dropped_for_a_causal_one(patch: pytest.MonkeyPatch) -> None:
    """Packed rows are not detected: a causal mask over the whole row stands in for the document mask."""
    with_pairs(patch, lambda documents, causal: everything(documents).tril())


@inject(ISOLATED_GRADIENTS, "sdpa_loop-packed-train-causal-float32-eager-drawn")
def row_taken_for_one_sequence(patch: pytest.MonkeyPatch) -> None:
    """A backend that loops over sequences is told of one that is as long as the row."""
    prepares(
        patch,
        "sdpa_loop",
        lambda right, batch, case: replace(right(batch, case), lengths=(batch.num_slots,)),
    )


@inject(ISOLATED, FULL)
def document_mask_inverted(patch: pytest.MonkeyPatch) -> None:
    """A token sees all sequences but its own."""
    with_pairs(patch, lambda documents, causal: self_too(~same(documents)))


@inject(CAUSAL, CAUSAL_CELL)
def document_mask_transposed(patch: pytest.MonkeyPatch) -> None:
    """Keys and queries of the mask are exchanged: a token sees later ones only."""
    with_pairs(patch, lambda documents, causal: same(documents).triu())


@inject(ISOLATED, FULL)
def mask_added_as_zeros_and_ones(patch: pytest.MonkeyPatch) -> None:
    """The boolean mask is cast to the dtype of the scores and added: what is hidden loses 1, not infinity."""
    patch.setattr("model.attention.sdpa_document_mask.additive", lambda allowed, dtype: allowed.to(dtype))


@inject(ALONE, LEFT)
def mask_of_minus_10000(patch: pytest.MonkeyPatch) -> None:
    """What is hidden loses 10,000, which large scores outweigh."""

    def weak(allowed: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -1e4)

    patch.setattr("model.attention.sdpa.additive", weak)


@inject(ISOLATED, FULL)
def documents_of_equal_length_joined(patch: pytest.MonkeyPatch) -> None:
    """Segments are told apart by their length."""

    def by_length(documents: Tensor, causal: bool) -> Tensor:
        return same(documents.bincount()[documents])

    with_pairs(patch, by_length)


@inject(CAUSAL, CAUSAL_CELL)
def causal_mask_one_token_late(patch: pytest.MonkeyPatch) -> None:
    """A token sees the next one of its sequence."""
    with_pairs(patch, lambda documents, causal: same(documents) & everything(documents).tril(1))


@inject(ALONE, CAUSAL_CELL)
def causal_mask_one_token_early(patch: pytest.MonkeyPatch) -> None:
    """A token does not see itself, the first of a sequence excepted."""

    def earlier(documents: Tensor, causal: bool) -> Tensor:
        first = documents != documents.roll(1)
        first[0] = True
        return (same(documents) & everything(documents).tril(-1)) | torch.diag(first)

    with_pairs(patch, earlier)


@inject(CAUSAL_GRADIENTS, "sdpa_loop-packed-train-causal-float32-eager-drawn")
def causality_dropped(patch: pytest.MonkeyPatch) -> None:
    """A causal cell looks both ways."""
    prepares(patch, "sdpa_loop", lambda right, batch, case: right(batch, replace(case, causal=False)))


@inject(CAUSAL, "sdpa_loop-packed-train-full-float32-eager-drawn")
def causal_where_it_is_not_asked_for(patch: pytest.MonkeyPatch) -> None:
    """A cell that looks both ways is causal."""
    prepares(patch, "sdpa_loop", lambda right, batch, case: right(batch, replace(case, causal=True)))


@inject(EQUAL, LEFT_CAUSAL)
def left_padding_seen_under_causality(patch: pytest.MonkeyPatch) -> None:
    """No mask is built where attention is causal, on whichever side the padding is."""

    def unmasked(right: Any, batch: Any, case: Case) -> SdpaContext:
        return SdpaContext(None, is_causal=True) if case.causal else right(batch, case)

    prepares(patch, "sdpa_padded", unmasked)


@inject(ALONE, LEFT)
def padding_mask_inverted_in_the_backend(patch: pytest.MonkeyPatch) -> None:
    """Queries see padding, and no real token but themselves."""

    def inverted(right: Any, batch: Any, case: Case) -> SdpaContext:
        padding = ~allowed_keys(batch, causal=False)
        return SdpaContext(additive(self_too_padded(padding), case.dtype), is_causal=False)

    prepares(patch, "sdpa_padded", inverted)


def self_too_padded(keys: Tensor) -> Tensor:
    """Return which keys each query sees, bool (B, 1, S, S): `keys` (B, 1, 1, S) and itself."""
    return keys | torch.eye(keys.shape[-1], dtype=torch.bool)


@inject(ANY_CONTENT, RIGHT)
def padding_mask_on_queries_only(patch: pytest.MonkeyPatch) -> None:
    """The padding mask is laid over the queries: every real token sees all padding."""

    def of_queries(right: Any, batch: Any, case: Case) -> SdpaContext:
        real = allowed_keys(batch, causal=False).mT.expand(-1, -1, -1, batch.attention_mask.shape[1])
        return SdpaContext(additive(self_too_padded(real), case.dtype), is_causal=False)

    prepares(patch, "sdpa_padded", of_queries)


@inject(ANY_AMOUNT, RIGHT)
def one_padded_key_seen(patch: pytest.MonkeyPatch) -> None:
    """Lengths are one too large where there is padding: its first key is seen."""

    def one_more(right: Any, batch: Any, case: Case) -> SdpaContext:
        mask = batch.attention_mask
        wider = mask | torch.cat([mask[:, :1], mask[:, :-1]], dim=1)
        return right(replace(batch, attention_mask=wider), case)

    prepares(patch, "sdpa_padded", one_more)


@inject(EMPTY_ROWS, LEFT_CAUSAL, links=("pytorch#103749",))
def nan_in_rows_that_see_nothing(patch: pytest.MonkeyPatch) -> None:
    """A query of padding sees no key, and its softmax over nothing is NaN."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: SdpaContext, scale: float | None) -> Tensor:
        assert context.mask is not None
        alone = context.mask.isfinite().sum(-1) <= 1
        first = torch.arange(q.shape[1]) == 0
        fully_masked = alone & ~first & context.mask[..., 0].isinf()
        return right(q, k, v, context, scale=scale).masked_fill(fully_masked[:, 0, :, None, None], torch.nan)

    attends(patch, "sdpa_padded", attend)


@inject(ANY_CONTENT, FILLED)
def filler_seen_by_the_last_sequence(patch: pytest.MonkeyPatch) -> None:
    """The filler has the segment id of the last sequence."""
    unchecked(patch, PackedBatch)

    def joined(right: Any, batch: PackedBatch, case: Case) -> SdpaContext:
        if not batch.filler_length:
            return right(batch, case)
        offsets = batch.cu_seqlens
        return right(replace(batch, cu_seqlens=torch.cat([offsets[:-2], offsets[-1:]])), case)

    prepares(patch, "sdpa_document_mask", joined)


@inject(EQUAL, FULL)
def stale_cu_seqlens(patch: pytest.MonkeyPatch) -> None:
    """Offsets are those of the batch before, cut to the tokens of this one."""
    unchecked(patch, PackedBatch)
    last: list[Tensor] = []

    def stale(right: Any, batch: PackedBatch, case: Case) -> SdpaContext:
        offsets = last[-1].clamp(max=batch.num_slots) if last else batch.cu_seqlens
        last.append(batch.cu_seqlens)
        return right(replace(batch, cu_seqlens=offsets), case)

    prepares(patch, "sdpa_document_mask", stale)


@inject(PERMUTED, FULL)
def mask_kept_for_batches_of_as_many_tokens(patch: pytest.MonkeyPatch) -> None:
    """Contexts are cached by the number of tokens, whatever sequences they belong to."""
    kept: dict[int, SdpaContext] = {}

    def cached(right: Any, batch: PackedBatch, case: Case) -> SdpaContext:
        return kept.setdefault(batch.num_slots, right(batch, case))

    prepares(patch, "sdpa_document_mask", cached)


@inject(EQUAL, LEFT)
def mask_kept_for_batches_of_one_shape(patch: pytest.MonkeyPatch) -> None:
    """Padding masks are cached by the shape of the batch."""
    kept: dict[Any, SdpaContext] = {}

    def cached(right: Any, batch: Any, case: Case) -> SdpaContext:
        return kept.setdefault((batch.input_ids.shape, case.dtype), right(batch, case))

    prepares(patch, "sdpa_padded", cached)


@inject(
    "test_positions.py::test_shifted_positions_are_those_that_the_reference_takes",
    FULL,
    links=("transformers#39814",),
)
def documents_start_where_positions_are_0(patch: pytest.MonkeyPatch) -> None:
    """Segments are found by positions of 0: where no position is 0, there is but one."""

    def prepare(right: Any, batch: PackedBatch, case: Case) -> SdpaContext:
        documents = (batch.position_ids[0] == 0).cumsum(0)
        return SdpaContext(additive(same(documents)[None, None], case.dtype), is_causal=False)

    prepares(patch, "sdpa_document_mask", prepare)


@inject("test_reference.py::test_a_batch_padded_for_the_reference_equals_each_sequence_alone")
def reference_without_a_mask(patch: pytest.MonkeyPatch) -> None:
    """The padded reference, with which everything is compared, sees padding."""
    prepares(patch, "sdpa_padded_math", lambda right, batch, case: SdpaContext(None, is_causal=case.causal))


@inject(ANY_AMOUNT, LEFT_CAUSAL)
def real_tokens_counted_from_the_left(patch: pytest.MonkeyPatch) -> None:
    """The mask is built from lengths as if padding were on the right."""

    def from_lengths(right: Any, batch: Any, case: Case) -> SdpaContext:
        width = batch.attention_mask.shape[1]
        real = torch.arange(width)[None] < torch.tensor(batch.lengths)[:, None]
        return prepare_unmasked_where_possible(replace(batch, attention_mask=real), case)

    prepares(patch, "sdpa_padded", from_lengths)
