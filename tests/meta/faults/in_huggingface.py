"""Faults of what feeds and checks models of transformers."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from collators.batch import PackedBatch
from model.huggingface import attention, segments
from model.huggingface.attention import Attention
from model.huggingface.gpt2 import GPT2_REFERENCE
from model.huggingface.segments import segments_between, told_segments
from tests.meta.faults.fault import Faults, everywhere
from tests.packing import checks
from tests.packing.checks import Errors, Outcome, errors_of

HUGGINGFACE = Faults("huggingface")
inject = HUGGINGFACE.inject

TOLD = "test_segments.py::test_a_row_is_the_same_however_it_is_told"
TOLD_WRONGLY = "test_segments.py::test_a_row_that_is_told_wrongly_is_refused_in_a_line"
OTHER_KEYS = "test_segments.py::test_a_row_with_other_offsets_for_its_keys_is_refused"
MASK_OF_OTHER_KEYS = "test_handed_on.py::test_a_mask_for_other_keys_than_queries_is_refused"
MASK_OF_OTHER_SHAPE = "test_handed_on.py::test_an_attention_mask_of_another_shape_is_refused"
LAYER_OF_OTHER_SHAPE = "test_handed_on.py::test_a_layer_of_another_shape_than_its_row_is_refused"
SCALE = "test_handed_on.py::test_a_layer_attends_with_the_scale_that_it_asks_for"
HEADS = "test_handed_on.py::test_a_layer_hands_on_its_heads_and_the_context"
ASKS_FOR_MORE = "test_handed_on.py::test_a_layer_that_asks_for_more_is_refused"
DROPOUT = "test_handed_on.py::test_a_layer_with_dropout_is_refused"
WINDOW = "test_handed_on.py::test_a_window_is_refused_where_it_is_shorter_than_a_sequence"
PADDED_MASK = "test_handed_on.py::test_a_padded_batch_of_gpt2_is_told_its_own_padding"
KEPT_WINDOW = "test_windows.py::test_a_family_keeps_to_its_window"
GRADIENT = "test_checks.py::test_one_wrong_gradient_is_found"
NO_GRADIENT = "test_checks.py::test_a_gradient_that_is_missing_or_too_many_counts_in_full"
MIXED = "test_checks.py::test_sequences_that_see_each_other_are_found"


def between(patch: pytest.MonkeyPatch, change: Callable[[PackedBatch], PackedBatch]) -> None:
    """Let what is made of told offsets be what `change` makes of it."""
    right = segments_between
    everywhere(patch, right, lambda offsets, length: change(right(offsets, length)))


def told(patch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let segments be told by what `change` makes of the arguments."""
    right = told_segments
    everywhere(patch, right, lambda arguments, row, device: right(change(dict(arguments)), row, device))


def masks(patch: pytest.MonkeyPatch, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
    """Let the mask function be called with what `change` makes of the number of keys and of its options."""
    right = Attention.mask

    def mask(self: Attention, batch_size: int, kv_length: int, mask_function: Any, **options: Any) -> Any:
        return right(self, batch_size, kv_length, mask_function, **change(kv_length, options))

    patch.setattr(Attention, "mask", mask)


def asks(patch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let layers ask for what `change` makes of what they ask for."""
    right = Attention.attend

    def attend(self: Attention, module: Any, *tensors: Any, **asked: Any) -> Any:
        named = dict(zip(("query", "key", "value", "attention_mask"), tensors, strict=True))
        return right(self, module, **change(named | asked))

    patch.setattr(Attention, "attend", attend)


def overlays(patch: pytest.MonkeyPatch, change: Callable[[int], int]) -> None:
    """Let every mask of transformers be of another window than that of the config."""
    from transformers import masking_utils

    right = masking_utils.sliding_window_overlay
    patch.setattr(masking_utils, "sliding_window_overlay", lambda window: right(change(window)))


def compares(patch: pytest.MonkeyPatch, left_out: Callable[[str, Outcome, Outcome], bool]) -> None:
    """Let gradients of which `left_out` holds, by name, found and true ones, take no part in the comparison."""
    right = errors_of

    def faulty(actual: Outcome, truth: Outcome) -> Errors:
        kept = [
            replace(each, gradients={k: v for k, v in each.gradients.items() if not left_out(k, actual, truth)})
            for each in (actual, truth)
        ]
        return right(*kept)

    everywhere(patch, right, faulty)


@inject(TOLD, errors=(ValueError,))
def told_offsets_of_int64(patch: pytest.MonkeyPatch) -> None:
    """Offsets that a model is told become int64, which kernels read as pairs of int32."""
    between(patch, lambda batch: replace(batch, cu_seqlens=batch.cu_seqlens.long()))


@inject(TOLD)
def told_offsets_of_other_strides(patch: pytest.MonkeyPatch) -> None:
    """Offsets that a model is told keep the strides of what they were cut from."""
    between(patch, lambda batch: replace(batch, cu_seqlens=torch.stack([batch.cu_seqlens] * 2, dim=-1)[..., 0]))


@inject(TOLD, errors=(ValueError,))
def told_longest_is_a_tensor(patch: pytest.MonkeyPatch) -> None:
    """The longest length that a model is told is a 0-d tensor, which every layer waits for."""
    between(patch, lambda batch: replace(batch, max_seqlen=batch.cu_seqlens.diff().max()))  # type: ignore[arg-type]


@inject(TOLD)
def told_lengths_are_a_list(patch: pytest.MonkeyPatch) -> None:
    """The lengths that a model is told are a list, by which no plan can be looked up."""
    between(patch, lambda batch: replace(batch, lengths=list(batch.lengths)))  # type: ignore[arg-type]


@inject(TOLD)
def numbers_read_as_positions(patch: pytest.MonkeyPatch) -> None:
    """`seq_idx` is read as positions: every token of a sequence begins one."""
    told(patch, lambda arguments: {"position_ids": arguments.pop("seq_idx", None)} | arguments)


@inject(TOLD_WRONGLY)
def positions_of_three_planes_read_by_the_first(patch: pytest.MonkeyPatch) -> None:
    """Of positions of time, height and width the first plane is read as those of a packed row."""

    def first(arguments: dict[str, Any]) -> dict[str, Any]:
        positions = arguments.get("position_ids")
        planes = isinstance(positions, torch.Tensor) and positions.ndim == 3
        return arguments | ({"position_ids": positions[0]} if planes else {})  # type: ignore[index]

    told(patch, first)


@inject(TOLD_WRONGLY)
def told_numbers_of_any_dtype(patch: pytest.MonkeyPatch) -> None:
    """What tells the segments may be of any dtype and on any device: floats are rounded, 8 bits run over."""
    patch.setattr(segments, "_refuse_unless_integers", lambda name, values, device: None)


@inject(OTHER_KEYS)
def other_offsets_of_keys_ignored(patch: pytest.MonkeyPatch) -> None:
    """`cu_seq_lens_k` that differ from those of queries are ignored."""
    patch.setattr(segments, "_refuse_other_keys", lambda queries, keys, device: None)


@inject(MASK_OF_OTHER_KEYS)
def more_keys_than_queries_masked(patch: pytest.MonkeyPatch) -> None:
    """A mask for more keys than queries is made as one of the keys alone."""
    masks(patch, lambda keys, options: options | {"q_length": keys, "cache_position": None, "q_offset": 0})


@inject(MASK_OF_OTHER_SHAPE)
def wide_attention_mask_cut(patch: pytest.MonkeyPatch) -> None:
    """An attention mask that is wider than the ids is cut in silence."""

    def cut(keys: int, options: dict[str, Any]) -> dict[str, Any]:
        mask = options.get("attention_mask")
        return options if mask is None else options | {"attention_mask": mask[..., :keys]}

    masks(patch, cut)


@inject(PADDED_MASK)
def padding_of_gpt2_seen(patch: pytest.MonkeyPatch) -> None:
    """GPT-2 is told that a padded batch has no padding."""

    def prepare(batch: Any, case: Any) -> dict[str, Any]:
        return {"attention_mask": torch.ones_like(batch.attention_mask)}

    patch.setitem(vars(GPT2_REFERENCE), "prepare", prepare)


@inject(LAYER_OF_OTHER_SHAPE)
def more_keys_than_queries_cut(patch: pytest.MonkeyPatch) -> None:
    """A layer with more keys than queries attends to the last of them."""

    def cut(asked: dict[str, Any]) -> dict[str, Any]:
        tokens = asked["query"].shape[2]
        return asked | {name: asked[name][:, :, -tokens:] for name in ("key", "value")}

    asks(patch, cut)


@inject(SCALE)
def scale_of_a_layer_dropped(patch: pytest.MonkeyPatch) -> None:
    """The adapter never passes the scale that a layer asks for."""
    asks(patch, lambda asked: asked | {"scaling": None})


@inject(HEADS)
def layers_attend_in_another_dtype(patch: pytest.MonkeyPatch) -> None:
    """The adapter hands queries on in the dtype that they come in, not in that of autocast."""
    right = Attention.mask

    def mask(self: Attention, *arguments: Any, **options: Any) -> Any:
        return replace(right(self, *arguments, **options), dtype=torch.float32)

    patch.setattr(Attention, "mask", mask)


@inject(ASKS_FOR_MORE)
def soft_cap_dropped(patch: pytest.MonkeyPatch) -> None:
    """The adapter takes a soft cap of scores for something without effect."""
    patch.setattr(attention, "WITHOUT_EFFECT", attention.WITHOUT_EFFECT | {"softcap"})


@inject(ASKS_FOR_MORE)
def unknown_arguments_dropped(patch: pytest.MonkeyPatch) -> None:
    """The adapter drops what it does not know of what a layer asks for."""
    known = {*attention.NEEDS, *attention.WITHOUT_EFFECT}
    given = {"query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "sliding_window"}
    asks(patch, lambda asked: {name: value for name, value in asked.items() if name in known | given})


@inject(DROPOUT)
def dropout_dropped(patch: pytest.MonkeyPatch) -> None:
    """The adapter drops a layer's dropout."""
    asks(patch, lambda asked: asked | {"dropout": 0.0})


@inject(WINDOW)
def window_of_a_layer_dropped(patch: pytest.MonkeyPatch) -> None:
    """The adapter drops a layer's sliding window."""
    asks(patch, lambda asked: asked | {"sliding_window": None})


@inject(WINDOW)
def window_of_a_mask_dropped(patch: pytest.MonkeyPatch) -> None:
    """The adapter drops the sliding window that a mask is asked for with."""
    masks(patch, lambda keys, options: options | {"local_size": None})


@inject(KEPT_WINDOW)
def window_of_every_implementation_ignored(patch: pytest.MonkeyPatch) -> None:
    """transformers leaves the window out of every mask: each implementation agrees with each other one."""
    overlays(patch, lambda window: 10**6)


@inject(KEPT_WINDOW, links=("transformers#39408",))
def window_of_every_implementation_one_too_long(patch: pytest.MonkeyPatch) -> None:
    """transformers makes every window one token longer than its config has it."""
    overlays(patch, lambda window: window + 1)


@inject(GRADIENT)
def gradients_of_biases_not_compared(patch: pytest.MonkeyPatch) -> None:
    """The check of a family compares no gradients of biases."""
    compares(patch, lambda name, actual, truth: name.endswith("bias"))


@inject(NO_GRADIENT)
def gradients_that_are_missing_not_compared(patch: pytest.MonkeyPatch) -> None:
    """The check of a family skips a parameter that has no gradient in one of the two."""
    compares(patch, lambda name, actual, truth: not (name in actual.gradients and name in truth.gradients))


@inject(MIXED)
def other_sequences_not_exchanged(patch: pytest.MonkeyPatch) -> None:
    """The check of a family exchanges other sequences for themselves, which moves nothing."""
    right = checks.token_ids
    patch.setattr(checks, "token_ids", lambda lengths, seed: right(lengths, 1))


@inject(
    "test_attention_interface.py::test_what_is_made_of_a_row_lies_where_the_row_does", errors=(NotImplementedError,)
)
def offsets_of_no_device(patch: pytest.MonkeyPatch) -> None:
    """Offsets of a row are made on the CPU, wherever the row lies."""
    right = segments_between
    everywhere(patch, right, lambda offsets, length: right(torch.tensor(offsets.tolist(), dtype=torch.int32), length))


@inject("test_attention_interface.py::test_positions_that_are_given_by_place_tell_the_segments")
def positions_given_by_place_not_read(patch: pytest.MonkeyPatch) -> None:
    """Positions that a model is called with by place, without their name, tell nothing: the row is one segment."""
    right = attention._told_by

    def told_by(made: Attention, signature: inspect.Signature) -> Callable[..., None]:
        before = right(made, signature)

        def by_name(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens = dict(zip(signature.parameters, args, strict=False)).get("input_ids")
            before(module, (), kwargs if tokens is None else {"input_ids": tokens} | kwargs)

        return by_name

    patch.setattr(attention, "_told_by", told_by)
