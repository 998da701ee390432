"""Faults of windows, soft caps and sinks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from collators.batch import PackedBatch
from model.attention import Case, flex_document_mask, sdpa
from model.attention.sdpa import SdpaContext, additive
from model.attention.sdpa_document_mask import document_ids
from model.attention.torch_varlen import VarlenContext
from tests.meta.faults.fault import Faults, attends, everywhere, prepares

WINDOWS = Faults("attention")
inject = WINDOWS.inject

WINDOWED = "test_windows.py::test_a_batch_attends_within_the_window_as_each_sequence_alone"
CAPPED = "test_windows.py::test_a_batch_attends_with_capped_scores_as_each_sequence_alone"
SINKS = "test_windows.py::test_a_batch_attends_with_sinks_as_each_sequence_alone"
TOLD_APART = "test_windows.py::test_a_batch_differs_with_another_window_cap_or_no_sinks"
PAST = "test_windows.py::test_a_token_past_the_window_changes_nothing"
HANDED = "test_adapters.py::test_a_backend_hands_its_kernel_what_gives_each_sequence_alone"
TILES = "test_block_mask.py::test_a_packed_batch_visits_the_tiles_that_hold_a_pair_and_masks_those_that_are_not_full"

CAUSAL = "sdpa_document_mask-packed-train-causal-float32-eager-drawn"
FULL = "sdpa_document_mask-packed-train-full-float32-eager-drawn"
RIGHT = "sdpa_padded-pad_longest-eval-causal-float32-eager-drawn"
MATH = "sdpa_padded_math-pad_longest-train-full-bfloat16-eager-drawn"
FLEX = "flex_document_mask-packed-eval-causal-float32-eager-drawn"


@inject(WINDOWED, CAUSAL, links=("transformers#39408",))
def window_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """The window does not count the token itself: a query sees one token too many."""

    def prepare(right: Any, batch: Any, case: Case) -> Any:
        return right(batch, replace(case, window=case.window and case.window + 1))

    prepares(patch, "sdpa_document_mask", prepare)


@inject(PAST, RIGHT, links=("semantic-router#3406",))
def window_lost_on_one_path(patch: pytest.MonkeyPatch) -> None:
    """Where no mask was needed before, causal over padding on the right, the window is lost."""
    prepares(patch, "sdpa_padded", lambda right, batch, case: right(batch, replace(case, window=None)))


@inject(WINDOWED, FULL)
def window_on_one_side_only(patch: pytest.MonkeyPatch) -> None:
    """Without causality the window cuts what comes before, and nothing of what comes after."""

    def prepare(right: Any, batch: PackedBatch, case: Case) -> SdpaContext:
        documents = document_ids(batch)
        seen = documents[:, None] == documents[None, :]
        if case.window is not None:
            seen = seen.triu(1 - case.window)
        return SdpaContext(additive((seen.tril() if case.causal else seen)[None, None], case.dtype), is_causal=False)

    prepares(patch, "sdpa_document_mask", prepare)


@inject(HANDED)
def window_counts_itself_twice(patch: pytest.MonkeyPatch) -> None:
    """A varlen kernel, which counts the tokens before the query, is handed the window, which holds the query too."""
    patch.setattr(
        VarlenContext,
        "window_size",
        property(lambda self: (self.window or -1, 0 if self.causal else self.window or -1)),
    )


@inject(TILES)
def tiles_at_the_edge_of_the_window_left_out(patch: pytest.MonkeyPatch) -> None:
    """A tile is visited only where its furthest pair is within the window, not where its nearest is."""
    right = flex_document_mask.document_block_mask

    def mask(batch: PackedBatch, *, causal: bool, window: int | None = None) -> BlockMask:
        found = right(batch, causal=causal, window=window)
        if window is not None:
            found.kv_num_blocks = torch.zeros_like(found.kv_num_blocks)
        return found

    everywhere(patch, right, mask)


@inject(CAPPED, FLEX)
def soft_cap_ignored(patch: pytest.MonkeyPatch) -> None:
    """Scores are not capped."""
    prepares(patch, "flex_document_mask", lambda right, batch, case: replace(right(batch, case), score_mod=None))


@inject(TOLD_APART, FLEX.replace("float32", "bfloat16"))
def soft_cap_clamps(patch: pytest.MonkeyPatch) -> None:
    """Scores are clamped at the cap, without the tanh."""

    def clamped(softcap: float) -> Any:
        return lambda score, *indices: score.clamp(-softcap, softcap)

    patch.setattr(flex_document_mask, "capped", clamped)


@inject(HANDED)
def soft_cap_not_handed_on(patch: pytest.MonkeyPatch) -> None:
    """The kernel that has a soft cap is not told of it."""
    prepares(patch, "fa2_varlen", lambda right, batch, case: replace(right(batch, case), softcap=None))


@inject(SINKS, MATH)
def sinks_ignored(patch: pytest.MonkeyPatch) -> None:
    """Sinks take no part in the softmax."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: float | None) -> Tensor:
        sinks = right.keywords["sinks"]
        return sdpa.attend(q, k, v, context, scale=scale) + 0 * sinks[:, None]

    attends(patch, "sdpa_padded_math", attend)


@inject(SINKS, MATH)
def sinks_of_heads_in_another_order(patch: pytest.MonkeyPatch) -> None:
    """The sinks of the heads are taken from the last to the first."""
    right = sdpa.with_sinks
    patch.setattr(sdpa, "with_sinks", lambda k, v, mask, sinks: right(k, v, mask, sinks.flip(0)))


@inject(SINKS, MATH)
def gradient_of_the_sinks_lost(patch: pytest.MonkeyPatch) -> None:
    """No gradient goes back to the sinks."""
    right = sdpa.with_sinks
    patch.setattr(sdpa, "with_sinks", lambda k, v, mask, sinks: right(k, v, mask, sinks.detach() + 0 * sinks))


@inject(SINKS, FLEX)
def sinks_in_base_2(patch: pytest.MonkeyPatch) -> None:
    """The logsumexp of FlexAttention is taken for one in base 2, as its kernels have it inside."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: float | None) -> Tensor:
        return right.func(q, k, v, context, scale=scale, sinks=right.keywords["sinks"] / 0.6931)

    attends(patch, "flex_document_mask", attend)
