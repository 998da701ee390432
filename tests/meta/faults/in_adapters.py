"""Faults of what backends hand to kernels that a CPU never calls."""

import ctypes
import inspect
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from collators.batch import NestedBatch, PackedBatch
from model.attention import (
    backend_named,
    cudnn_ragged,
    fa4_varlen,
    flashinfer_ragged,
    flex_document_mask,
    sdpa,
    sdpa_document_mask,
    torch_varlen,
    xformers,
    xformers_loading,
)
from model.attention.backend import Backend, Requirement
from model.attention.case import Case, Machine
from model.attention.cudnn_ragged import Shape
from model.attention.fa4_varlen import Given
from model.attention.flashinfer_ragged import RaggedPlans
from model.attention.flex_document_mask import FlexContext
from model.attention.sdpa import SdpaContext
from model.attention.torch_varlen import VarlenContext
from model.attention.xformers import XformersContext
from model.huggingface.gpt2 import GPT2_BACKENDS
from tests.meta.faults.fault import Faults, attends, everywhere, prepares

ADAPTERS = Faults("adapters")
inject = ADAPTERS.inject

HANDED = "test_adapters.py::test_a_backend_hands_its_kernel_what_gives_each_sequence_alone"


@inject(HANDED)
def scale_not_handed_on(patch: pytest.MonkeyPatch) -> None:
    """The adapter of torch's varlen attention takes a scale, and calls the kernel without it."""
    right = inspect.unwrap(torch_varlen.varlen_attn)

    def varlen_attn() -> Any:
        function, asked = right()
        return lambda *tensors, scale=None, **options: function(*tensors, **options), asked

    patch.setattr(torch_varlen, "varlen_attn", varlen_attn)


@inject(HANDED)
def grouped_heads_not_asked_for(patch: pytest.MonkeyPatch) -> None:
    """The kernel is told of grouped heads by their shape alone, where torch 2.12 wants to be asked."""
    right = inspect.unwrap(torch_varlen.varlen_attn)
    patch.setattr(torch_varlen, "varlen_attn", lambda: (right()[0], {}))


@inject(HANDED)
def offsets_of_64_bits(patch: pytest.MonkeyPatch) -> None:
    """Offsets are int64, which the kernel reads as int32."""
    prepares(
        patch,
        "fa2_varlen",
        lambda right, batch, case: VarlenContext(batch.cu_seqlens.long(), batch.max_seqlen, case.causal),
    )


@inject(HANDED, links=("transformers#35588", "ms-swift#9798"))
def longest_is_a_tensor(patch: pytest.MonkeyPatch) -> None:
    """The longest length is a tensor, which every layer waits for."""
    prepares(
        patch,
        "fa2_varlen",
        lambda right, batch, case: replace(right(batch, case), max_seqlen=batch.cu_seqlens.diff().max()),
    )


@inject(HANDED)
def longest_is_that_of_the_first_sequence(patch: pytest.MonkeyPatch) -> None:
    """The longest length is that of the first sequence: later tokens of longer ones are never computed."""
    prepares(patch, "torch_varlen", lambda right, batch, case: replace(right(batch, case), max_seqlen=batch.lengths[0]))


@inject(HANDED)
def longest_is_the_whole_row(patch: pytest.MonkeyPatch) -> None:
    """The longest length is that of the row, which is right, and walks over empty tiles for every sequence."""
    prepares(patch, "fa2_varlen", lambda right, batch, case: replace(right(batch, case), max_seqlen=batch.num_slots))


@inject(HANDED)
def causality_inverted(patch: pytest.MonkeyPatch) -> None:
    """The kernel is causal where the case is not, and the other way round."""
    prepares(
        patch,
        "fa2_varlen",
        lambda right, batch, case: VarlenContext(batch.cu_seqlens, batch.max_seqlen, not case.causal),
    )


@inject(HANDED)
def empty_rows_hold_a_token(patch: pytest.MonkeyPatch) -> None:
    """The rows that fill up cuDNN's graph have a token each, past the end of the batch's."""
    prepares(
        patch,
        "cudnn_ragged",
        lambda right, batch, case: replace(context := right(batch, case), lengths=context.lengths.clamp(min=1)),
    )


@inject(HANDED)
def graph_shorter_than_the_longest(patch: pytest.MonkeyPatch) -> None:
    """The rows of cuDNN's graph are as long as the first sequence, rounded up."""

    def prepare(right: Any, batch: PackedBatch, case: Case) -> Any:
        return replace(right(batch, case), row=cudnn_ragged.rounded(batch.lengths[0], 128))

    prepares(patch, "cudnn_ragged", prepare)


@inject(HANDED)
def offsets_of_packed_queries(patch: pytest.MonkeyPatch) -> None:
    """cuDNN reads slices of one tensor as if nothing lay between their tokens."""
    right = vars(Shape)["steps"].fget

    def steps(shape: Shape) -> tuple[int, ...]:
        *_, of_queries, of_keys, of_stats = right(shape)
        return of_queries, of_keys, of_keys, of_queries, of_keys, of_stats

    patch.setattr(Shape, "steps", property(steps))


@inject(HANDED)
def logsumexp_not_handed_on(patch: pytest.MonkeyPatch) -> None:
    """cuDNN's backward is handed zeros for the logsumexp of the forward."""
    right = cudnn_ragged.backward

    def backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, stats: Tensor, *rest: Any) -> Any:
        return right(gradient, q, k, v, out, torch.zeros_like(stats), *rest)

    patch.setattr(cudnn_ragged, "backward", backward)


def planning(patch: pytest.MonkeyPatch, change: Callable[[Case], Case]) -> None:
    """Let FlashInfer plan for what `change` makes of the case."""
    right = flashinfer_ragged.planned

    def planned(ends: Tensor, device: torch.device, case: Case, scale: float | None) -> Any:
        return right(ends, device, change(case), scale)

    patch.setattr(flashinfer_ragged, "planned", planned)


@inject(HANDED)
def plan_of_as_many_heads_of_keys(patch: pytest.MonkeyPatch) -> None:
    """FlashInfer plans for a head of keys for every query head, where the case has fewer."""
    planning(patch, lambda case: replace(case, num_kv_heads=case.num_heads))


@inject(HANDED)
def plan_without_the_soft_cap(patch: pytest.MonkeyPatch) -> None:
    """FlashInfer plans for scores without a soft cap."""
    planning(patch, lambda case: replace(case, softcap=None))


@inject(HANDED)
def plan_that_is_always_causal(patch: pytest.MonkeyPatch) -> None:
    """FlashInfer plans a causal mask for every case."""
    planning(patch, lambda case: replace(case, causal=True))


@inject(HANDED)
def plan_of_the_default_scale_for_all(patch: pytest.MonkeyPatch) -> None:
    """FlashInfer runs the plan of the default scale, whatever scale a layer has."""
    right = RaggedPlans.wrapper
    patch.setattr(RaggedPlans, "wrapper", lambda plans, scale: right(plans, None))


@inject(HANDED)
def plan_without_the_filler(patch: pytest.MonkeyPatch) -> None:
    """FlashInfer plans for the sequences alone, and the filler after them is never computed."""

    def prepare(right: Any, batch: PackedBatch, case: Case) -> RaggedPlans:
        context = right(batch, case)
        return replace(context, ends=context.ends[: len(batch.lengths) + 1], wrappers={})

    prepares(patch, "flashinfer_ragged", prepare)


@inject("test_flashinfer_ragged.py::test_a_batch_takes_tensors_of_any_layout")
def unaligned_tensors_handed_to_tma(patch: pytest.MonkeyPatch) -> None:
    """FlashInfer is handed tensors as they lie, where its kernel misreads some without an error."""
    patch.setattr(flashinfer_ragged, "readable", lambda tensor: tensor)


@inject("test_flashinfer_ragged.py::test_two_batches_that_are_prepared_run_in_either_order")
def one_wrapper_for_all_batches(patch: pytest.MonkeyPatch) -> None:
    """Every batch is planned in the same wrapper of FlashInfer, which then has the plan of the last one."""
    wrappers: dict[torch.device, Any] = {}
    right = flashinfer_ragged.planned

    def planned(ends: Tensor, device: torch.device, case: Case, scale: float | None) -> Any:
        wrapper = right(ends, device, case, scale)
        kept = wrappers.setdefault(device, wrapper)
        vars(kept).update(vars(wrapper))
        return kept

    patch.setattr(flashinfer_ragged, "planned", planned)


@inject("test_flashinfer_ragged.py::test_a_plan_is_kept_until_the_gpu_has_read_it")
def plan_freed_before_it_is_read(patch: pytest.MonkeyPatch) -> None:
    """The pinned memory of a plan of FlashInfer is free as soon as its batch is, though the GPU is yet to copy it."""
    patch.setattr(flashinfer_ragged, "keep_until_read", lambda wrapper, read: None)


def going_back(patch: pytest.MonkeyPatch, change: Callable[[Given], Given]) -> None:
    """Let FlashAttention-4's backward be given what `change` makes of the arguments of its forward."""
    right = fa4_varlen._backward

    def backward(
        gradient: Tensor,
        inputs: tuple[Tensor, ...],
        out: Tensor,
        lse: Tensor,
        into: tuple[Tensor, ...],
        cu_seqlens: Tensor,
        given: Given,
    ) -> None:
        right(gradient, inputs, out, lse, into, cu_seqlens, change(given))

    patch.setattr(fa4_varlen, "_backward", backward)


@inject(HANDED)
def softcap_not_handed_to_the_backward(patch: pytest.MonkeyPatch) -> None:
    """FlashAttention-4's backward is that of scores without a soft cap."""
    going_back(patch, lambda given: (*given[:5], 0.0))


@inject(HANDED)
def scale_not_handed_to_the_backward(patch: pytest.MonkeyPatch) -> None:
    """FlashAttention-4's backward is that of another scale than its forward had."""
    going_back(patch, lambda given: (given[0], 1.0, *given[2:]))


@inject(HANDED)
def backward_not_told_that_it_is_causal(patch: pytest.MonkeyPatch) -> None:
    """FlashAttention-4's backward takes keys after a query for ones that it saw, where the case is causal."""

    def open_to_the_right(given: Given) -> Given:
        longest, scale, causal, left, right, softcap = given
        return longest, scale, False, left, -1 if causal else right, softcap

    going_back(patch, open_to_the_right)


@inject(HANDED)
def gradients_of_keys_and_values_swapped(patch: pytest.MonkeyPatch) -> None:
    """FlashAttention-4 writes the gradient of the keys where that of the values belongs, and the other way round."""
    right = fa4_varlen._backward

    def backward(
        gradient: Tensor,
        inputs: tuple[Tensor, ...],
        out: Tensor,
        lse: Tensor,
        into: tuple[Tensor, ...],
        *rest: Any,
    ) -> None:
        dq, dk, dv = into
        right(gradient, inputs, out, lse, (dq, dv, dk), *rest)

    patch.setattr(fa4_varlen, "_backward", backward)


def optioned(patch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let FlashAttention-4 be called, both ways, with what `change` makes of its options."""
    right = fa4_varlen._options
    patch.setattr(fa4_varlen, "_options", lambda offsets, given: change(right(offsets, given)))


@inject(HANDED, links=("semantic-router#3406",))
def window_of_a_causal_case_open_to_the_left(patch: pytest.MonkeyPatch) -> None:
    """FlashAttention-4 is told of a window only where the case is not causal."""
    optioned(patch, lambda options: options | ({"window_size_left": None} if options["causal"] else {}))


@inject(HANDED)
def window_of_one_token_taken_for_none(patch: pytest.MonkeyPatch) -> None:
    """FlashAttention-4 is told of no window where a query sees no key but its own: 0 tokens before it."""
    optioned(patch, lambda options: options | {"window_size_left": options["window_size_left"] or None})


@inject(HANDED)
def nested_causality_lost(patch: pytest.MonkeyPatch) -> None:
    """NestedTensors are never causal; on a CPU, which has no kernel for it, nobody asks."""
    prepares(patch, "sdpa_nested", lambda right, batch, case: right(batch, replace(case, causal=False)))


@inject(HANDED)
def operator_left_to_xformers(patch: pytest.MonkeyPatch) -> None:
    """A backend that says which operator it forces leaves the choice to xFormers."""
    patch.setattr(xformers, "_operator_pair", lambda name: None)


@inject(HANDED)
def grouped_heads_not_repeated(patch: pytest.MonkeyPatch) -> None:
    """xFormers, whose backward takes no grouped heads, is handed some."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: float | None) -> Tensor:
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(q, k, v, attn_bias=context.bias, scale=scale)

    attends(patch, "xformers_auto", attend)


@inject(HANDED)
def kernel_not_forced(patch: pytest.MonkeyPatch) -> None:
    """The backend that says which of SDPA's kernels it forces leaves the choice to torch."""
    attends(
        patch,
        "sdpa_padded_efficient",
        lambda right, q, k, v, context, scale: sdpa.attend(q, k, v, context, scale=scale),
    )


@inject(HANDED)
def grouped_heads_hidden_from_sdpa(patch: pytest.MonkeyPatch) -> None:
    """SDPA is handed fewer heads of keys and not asked for grouped ones."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: SdpaContext, scale: float | None) -> Tensor:
        heads = [tensor.transpose(1, 2) for tensor in (q, k, v)]
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(*heads, attn_mask=context.mask, scale=scale).transpose(1, 2)

    attends(patch, "sdpa_padded_cudnn", attend)


@inject(HANDED)
def padding_mask_dropped_on_the_gpu(patch: pytest.MonkeyPatch) -> None:
    """A kernel of the GPU is handed no mask: queries see the padding."""
    prepares(patch, "sdpa_padded_cudnn", lambda right, batch, case: SdpaContext(None, is_causal=case.causal))


@inject(HANDED)
def mask_in_single_precision(patch: pytest.MonkeyPatch) -> None:
    """The mask is float32 whatever the queries are."""

    def prepare(right: Any, batch: Any, case: Case) -> SdpaContext:
        context = right(batch, case)
        return replace(context, mask=context.mask.float())

    prepares(patch, "sdpa_padded_efficient", prepare)


@inject(HANDED)
def cut_tiles_taken_for_full(patch: pytest.MonkeyPatch) -> None:
    """Tiles that two sequences share are handed over as full, where compiled FlexAttention masks nothing."""

    def prepare(right: Any, batch: PackedBatch, case: Case) -> FlexContext:
        tiles = right(batch, case).block_mask
        mask = BlockMask.from_kv_blocks(
            tiles.full_kv_num_blocks,
            tiles.full_kv_indices,
            tiles.kv_num_blocks,
            tiles.kv_indices,
            BLOCK_SIZE=tiles.BLOCK_SIZE,
            mask_mod=tiles.mask_mod,
            seq_lengths=tiles.seq_lengths,
        )
        return FlexContext(mask)

    prepares(patch, "flex_document_mask", prepare)


@inject(HANDED)
def document_mask_of_no_device(patch: pytest.MonkeyPatch) -> None:
    """xFormers is not told where the document mask belongs, and makes it on a device of its own choice."""

    def prepare(right: Any, batch: PackedBatch, case: Case) -> XformersContext:
        xformers.loading_problems()
        from xformers.ops.fmha.attn_bias import BlockDiagonalMask

        bias = BlockDiagonalMask.from_seqlens(list(batch.segment_lengths))
        return XformersContext(bias.make_causal_from_bottomright() if case.causal else bias)

    prepares(patch, "xformers_auto", prepare)


@inject(HANDED, errors=(NotImplementedError, RuntimeError))
def document_ids_of_no_device(patch: pytest.MonkeyPatch) -> None:
    """What the mask of FlexAttention looks up lies on the CPU, wherever the batch is."""
    everywhere(
        patch,
        sdpa_document_mask.document_ids,
        lambda batch: torch.repeat_interleave(torch.tensor(batch.segment_lengths)).int(),
    )


@inject(HANDED)
def nested_longest_is_that_of_the_last_sequence(patch: pytest.MonkeyPatch) -> None:
    """A NestedTensor tells kernels of a GPU that its last row is its longest."""
    right = NestedBatch.rows
    patch.setattr(NestedBatch, "rows", property(lambda batch: replace(right.__get__(batch), longest=batch.lengths[-1])))


@inject(HANDED)
def key_alone_in_its_row_claimed(patch: pytest.MonkeyPatch) -> None:
    """The backend of cuDNN takes batches of one column, for which it has no kernel."""
    patch.setitem(vars(backend_named("sdpa_padded_cudnn")), "min_keys", 1)


@inject("test_declarations.py::test_a_backend_takes_versions_for_numbers_and_not_for_words")
def versions_compared_as_words(patch: pytest.MonkeyPatch) -> None:
    """Release 2.10 of a package is older than the 2.7.4 that a backend needs, as words are sorted."""
    right = Requirement.reasons

    def reasons(self: Requirement, machine: Machine) -> list[str]:
        found = machine.version_of(self.package)
        older = found is not None and str(found) < self.minimum
        return [f"needs {self.package}>={self.minimum}"] if older else [] if found else right(self, machine)

    patch.setattr(Requirement, "reasons", reasons)


@inject("test_declarations.py::test_a_backend_says_which_compute_capability_it_needs")
def capabilities_compared_as_words(patch: pytest.MonkeyPatch) -> None:
    """A GPU of compute capability 10.0 is older than the 8.0 that a backend needs, as words are sorted."""
    right = Backend.unavailable_reasons

    def reasons(self: Backend, case: Case, machine: Machine | None = None) -> list[str]:
        found = machine.capability if machine else None
        older = found is not None and self.min_capability is not None and str(found[0]) < str(self.min_capability[0])
        return ["needs a newer GPU"] if older and found >= self.min_capability else right(self, case, machine)

    patch.setattr(Backend, "unavailable_reasons", reasons)


@inject(HANDED)
def larger_heads_claimed(patch: pytest.MonkeyPatch) -> None:
    """The backend of cuDNN takes heads of 256, for which it has no kernel."""
    patch.setitem(vars(backend_named("sdpa_padded_cudnn")), "max_head_dim", 256)


@inject(HANDED)
def tiles_of_64_bits(patch: pytest.MonkeyPatch) -> None:
    """The tiles of FlexAttention's mask are numbered in int64, and its kernels read int32."""

    def ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
        indices = torch.argsort(tiles.to(torch.int8), dim=-1, descending=True, stable=True)
        return tiles.sum(-1, dtype=torch.int32)[None, None], indices[None, None]

    patch.setattr(flex_document_mask, "_ordered", ordered)


@inject("test_adapters.py::test_xformers_finds_the_runtime_that_it_links_before_it_is_imported")
def runtime_of_xformers_loaded_for_itself_alone(patch: pytest.MonkeyPatch) -> None:
    """The runtime that xFormers links is loaded without RTLD_GLOBAL, and its extension does not find it."""
    plain = types.SimpleNamespace(CDLL=lambda path, mode: ctypes.CDLL(path), RTLD_GLOBAL=ctypes.RTLD_GLOBAL)
    patch.setattr(xformers_loading, "ctypes", plain)


@inject("test_handed_on.py::test_a_flattened_batch_of_gpt2_is_told_its_own_offsets")
def longest_told_to_gpt2_without_the_filler(patch: pytest.MonkeyPatch) -> None:
    """GPT-2's FlashAttention is told the longest sequence, though the filler is longer."""
    record = next(backend for backend in GPT2_BACKENDS if backend.name == "gpt2_hf_fa2")
    right = record.prepare

    def prepare(batch: Any, case: Case) -> Any:
        longest = max(batch.lengths)
        return right(batch, case) | {"max_length_q": longest, "max_length_k": longest}

    patch.setitem(vars(record), "prepare", prepare)
