"""Faults of backends in what they compute: numbers, heads, scale, gradients, memory, and which kernel runs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.attention.sdpa import attend as attend_with_any_kernel
from model.attention.sdpa_loop import LoopContext
from tests.meta.faults.fault import Fault, Faults, Selection, attends, prepares

KERNELS = Faults("attention")
inject = KERNELS.inject

ALONE = "test_attention.py::test_a_batch_attends_as_each_sequence_alone"
GROUPED = "test_heads.py::test_a_batch_with_grouped_heads_equals_repeated_heads"
REPEATED = "test_determinism.py::test_a_batch_repeats_bit_by_bit"
COPIES = "test_edges.py::test_a_batch_of_copies_gives_the_same_everywhere"

LOOP = "sdpa_loop-packed-train-full-float32-eager-drawn"
LOOP_CAUSAL = "sdpa_loop-packed-train-causal-float32-eager-drawn"
MASKED = "sdpa_document_mask-packed-train-full-float32-eager-drawn"
FILLED = "sdpa_loop-packed_multiple-train-full-float32-eager-drawn"
NESTED = "sdpa_nested-nested-train-full-float32-eager-drawn"
COMPILED = "sdpa_document_mask-packed-train-causal-float32-compiled-drawn"

Scale = float | None


class _GradientChanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradients[0]), None


def with_gradient(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `tensor`, to which `change` of its gradient goes back."""
    changed: Tensor = _GradientChanged.apply(tensor, change)  # type: ignore[no-untyped-call]
    return changed


def on_loop(patch: pytest.MonkeyPatch, output: Callable[[Tensor, LoopContext], Tensor]) -> None:
    """Let `sdpa_loop` return what `output` makes of its right output (1, T, H, D)."""
    attends(
        patch,
        "sdpa_loop",
        lambda right, q, k, v, context, scale: output(right(q, k, v, context, scale=scale), context),
    )


def lost(tensor: Tensor) -> Tensor:
    """Return `tensor` with a gradient of 0."""
    return tensor.detach() + 0 * tensor


def marked(out: Tensor, token: int, head: int, value: float) -> Tensor:
    """Return a tensor like `out` that is `value` in one row of one head, and 0 elsewhere."""
    mark = torch.zeros_like(out)
    mark[0, token, head] = value
    return mark


def row_off_by_2_percent(patch: pytest.MonkeyPatch) -> None:
    """Inject an error of 2% in the last token's first head."""
    on_loop(patch, lambda out, context: out + (out * marked(out, -1, 0, 0.02)).detach())


def gradient_off_by_2_percent(patch: pytest.MonkeyPatch) -> None:
    """Inject an error of 2% in the gradient of the last key of the first head."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        return right(q, with_gradient(k, lambda dk: dk + dk * marked(dk, -1, 0, 0.02)), v, context, scale=scale)

    attends(patch, "sdpa_loop", attend)


for _dtype in ("float64", "float32", "bfloat16", "float16"):
    for _apply, _what in ((row_off_by_2_percent, "output"), (gradient_off_by_2_percent, "keys' gradient")):
        _summary = f"One row of one head of the {_dtype} {_what} is 2% too large."
        _selection = Selection(ALONE, LOOP.replace("float32", _dtype))
        KERNELS.injected.append(Fault(f"{_apply.__name__}_in_{_dtype}", "attention", _summary, _apply, _selection))


@inject(ALONE, LOOP)
def token_zeroed(patch: pytest.MonkeyPatch) -> None:
    """The output of the last token is zero."""
    on_loop(patch, lambda out, context: torch.cat([out[:, :-1], 0 * out[:, -1:]], dim=1))


@inject(ALONE, LOOP)
def output_rounded_to_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """A float32 output went through bfloat16."""
    on_loop(patch, lambda out, context: out.to(torch.bfloat16).to(out.dtype))


@inject(ALONE, LOOP)
def inputs_rounded_to_float16(patch: pytest.MonkeyPatch) -> None:
    """float32 keys went through float16."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        return right(q, k.to(torch.float16).to(k.dtype), v, context, scale=scale)

    attends(patch, "sdpa_loop", attend)


@inject(ALONE, LOOP)
def outputs_of_sequences_in_another_order(patch: pytest.MonkeyPatch) -> None:
    """Outputs of the sequences are concatenated from the last to the first."""
    on_loop(patch, lambda out, context: torch.cat(out.split(list(context.lengths), dim=1)[::-1], dim=1))


@inject(ALONE, MASKED)
def heads_and_tokens_not_transposed_back(patch: pytest.MonkeyPatch) -> None:
    """The output is viewed as (tokens, heads) where its storage is (heads, tokens)."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        return right(q, k, v, context, scale=scale).transpose(1, 2).reshape(q.shape)

    attends(patch, "sdpa_document_mask", attend)


@inject("test_heads.py::test_a_batch_may_have_an_odd_number_of_heads", MASKED)
def last_odd_head_left_out(patch: pytest.MonkeyPatch) -> None:
    """Heads are computed in pairs, and the last of an odd number has the output of the first."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        out, heads = right(q, k, v, context, scale=scale), q.shape[2]
        return torch.cat([out[:, :, :-1], out[:, :, :1]], dim=2) if heads % 2 and heads > 1 else out

    attends(patch, "sdpa_document_mask", attend)


@inject("test_heads.py::test_a_batch_may_have_heads_of_64_and_128", MASKED)
def heads_of_128_cut_to_64(patch: pytest.MonkeyPatch) -> None:
    """Scores of heads of 128 are those of their first 64 numbers."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        kept = torch.arange(q.shape[-1]) < 64
        return right(q * kept, k, v, context, scale=scale)

    attends(patch, "sdpa_document_mask", attend)


@inject("test_heads.py::test_a_batch_may_have_heads_of_each_declared_size", MASKED)
def gradients_of_heads_of_80_of_another_token(patch: pytest.MonkeyPatch) -> None:
    """Queries have the gradients of the token before, where heads are no multiple of 32, as none that is drawn is."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        q = q.clone()
        if q.requires_grad and q.shape[-1] > 64 and q.shape[-1] % 32:
            q.register_hook(lambda gradient: gradient.roll(1, dims=1))
        return right(q, k, v, context, scale=scale)

    attends(patch, "sdpa_document_mask", attend)


def repeated_wrongly(patch: pytest.MonkeyPatch, repeat: Callable[[Tensor, int], Tensor]) -> None:
    """Let `sdpa_loop` give every query head what `repeat` makes of keys and values."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        groups = q.shape[2] // k.shape[2]
        return right(q, repeat(k, groups), repeat(v, groups), context, scale=scale)

    attends(patch, "sdpa_loop", attend)


@inject(GROUPED, LOOP, links=("xformers#952",))
def key_heads_interleaved(patch: pytest.MonkeyPatch) -> None:
    """Query head h uses key head h mod H_kv, where heads of a group are neighbours."""
    repeated_wrongly(patch, lambda tensor, groups: tensor.repeat(1, 1, groups, 1))


@inject(GROUPED, LOOP, links=("pytorch#116301",))
def gradient_of_one_head_of_a_group(patch: pytest.MonkeyPatch) -> None:
    """Gradients of shared keys and values are those of one query head, not the sum over its group."""

    def repeat(tensor: Tensor, groups: int) -> Tensor:
        first, *others = [tensor] + [tensor.detach()] * (groups - 1)
        return torch.stack([first, *others], dim=3).flatten(2, 3)

    repeated_wrongly(patch, repeat)


@inject("test_heads.py::test_a_batch_honours_a_scale_of_its_own", LOOP)
def scale_lost(patch: pytest.MonkeyPatch) -> None:
    """A scale of the caller's own is not passed on."""
    attends(patch, "sdpa_loop", lambda right, q, k, v, context, scale: right(q, k, v, context))


@inject("test_heads.py::test_a_batch_honours_a_scale_of_its_own", MASKED)
def scale_applied_twice(patch: pytest.MonkeyPatch) -> None:
    """Queries are scaled, and so are the scores."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        return right(q if scale is None else q * scale, k, v, context, scale=scale)

    attends(patch, "sdpa_document_mask", attend)


@inject(ALONE, LOOP)
def scale_of_another_dimension(patch: pytest.MonkeyPatch) -> None:
    """The default scale is that of the hidden size, not of a head."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        default = (q.shape[2] * q.shape[3]) ** -0.5
        return right(q, k, v, context, scale=default if scale is None else scale)

    attends(patch, "sdpa_loop", attend)


@inject(ALONE, LOOP)
def gradient_of_queries_lost(patch: pytest.MonkeyPatch) -> None:
    """dq is zero."""
    attends(patch, "sdpa_loop", lambda right, q, k, v, context, scale: right(lost(q), k, v, context, scale=scale))


@inject(ALONE, NESTED, links=("pytorch#128349",))
def gradient_of_nested_keys_lost(patch: pytest.MonkeyPatch) -> None:
    """dk of NestedTensors is zero."""
    attends(patch, "sdpa_nested", lambda right, q, k, v, context, scale: right(q, lost(k), v, context, scale=scale))


@inject("test_equivalence.py::test_a_batch_equals_the_padded_reference", MASKED)
def gradient_of_values_detached(patch: pytest.MonkeyPatch) -> None:
    """Values are detached: the projection learns from queries and keys alone."""
    attends(
        patch,
        "sdpa_document_mask",
        lambda right, q, k, v, context, scale: right(q, k, v.detach(), context, scale=scale),
    )


@inject(ALONE, LOOP)
def gradient_of_the_last_sequence_lost(patch: pytest.MonkeyPatch) -> None:
    """No gradient goes back from the last sequence of a batch."""
    on_loop(
        patch,
        lambda out, context: torch.cat([out[:, : -context.lengths[-1]], lost(out[:, -context.lengths[-1] :])], dim=1),
    )


@dataclass(frozen=True)
class _Filled(LoopContext):
    """A context that knows the filler apart from the sequences."""

    filler: int


@inject(ALONE, FILLED, links=("TransformerEngine#2186",))
def gradient_wrong_beside_padding(patch: pytest.MonkeyPatch) -> None:
    """dk and dv of the last sequence's first token are zero where padding follows in its tile."""

    def prepare(right: Any, batch: Any, case: Any) -> _Filled:
        return _Filled(batch.segment_lengths, case.causal, batch.filler_length)

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: _Filled, scale: Scale) -> Tensor:
        if not context.filler:
            return right(q, k, v, context, scale=scale)
        kept = torch.ones(k.shape[1])
        kept[-context.filler - context.lengths[-2]] = 0
        k, v = (with_gradient(tensor, lambda gradient: gradient * kept[None, :, None, None]) for tensor in (k, v))
        return right(q, k, v, context, scale=scale)

    prepares(patch, "sdpa_loop", prepare)
    attends(patch, "sdpa_loop", attend)


def nan_in_query_gradients(patch: pytest.MonkeyPatch, strikes: Callable[[int], bool]) -> None:
    """Let dq be NaN in the sequences whose length `strikes`."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: LoopContext, scale: Scale) -> Tensor:
        struck = torch.cat([torch.full((length,), strikes(length)) for length in context.lengths])

        def spoilt(gradient: Tensor) -> Tensor:
            return gradient.masked_fill(struck[None, :, None, None], torch.nan)

        return right(with_gradient(q, spoilt), k, v, context, scale=scale)

    attends(patch, "sdpa_loop", attend)


@inject(ALONE, LOOP, links=("flash-attention#443",))
def nan_gradient_of_very_short_sequences(patch: pytest.MonkeyPatch) -> None:
    """dq is NaN in sequences of one token."""
    nan_in_query_gradients(patch, lambda length: length == 1)


@inject(
    "test_edges.py::test_a_batch_may_end_at_either_side_of_a_tile",
    LOOP,
    links=("pytorch#153799",),
)
def nan_gradient_past_a_tile(patch: pytest.MonkeyPatch) -> None:
    """dq is NaN in sequences of more than 128 tokens whose number is no multiple of 128."""
    nan_in_query_gradients(patch, lambda length: length > 128 and length % 128 != 0)


@inject(
    "test_reference.py::test_a_batch_padded_for_the_reference_equals_each_sequence_alone", links=("pytorch#196678",)
)
def nan_gradient_of_the_reference(patch: pytest.MonkeyPatch) -> None:
    """dq of the padded reference is NaN where its mask hides keys and their number is 32 n + 1."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        if context.mask is not None and context.mask.isinf().any() and k.shape[1] % 32 == 1:
            q = with_gradient(q, lambda gradient: gradient * torch.nan)
        return right(q, k, v, context, scale=scale)

    attends(patch, "sdpa_padded_math", attend)


@inject("test_edges.py::test_a_batch_may_be_one_token", LOOP)
def row_of_one_token_left_out(patch: pytest.MonkeyPatch) -> None:
    """Where a row has but one token nothing is computed."""
    on_loop(patch, lambda out, context: 0 * out if out.shape[1] == 1 else out)


@inject("test_edges.py::test_a_batch_may_hold_thousands_of_sequences", LOOP_CAUSAL)
def sequences_past_the_1024th_left_out(patch: pytest.MonkeyPatch) -> None:
    """A grid of 1,024 blocks, one a sequence: outputs of later ones are zero."""

    def cut(out: Tensor, context: LoopContext) -> Tensor:
        computed = sum(context.lengths[:1024])
        return torch.cat([out[:, :computed], 0 * out[:, computed:]], dim=1)

    on_loop(patch, cut)


@inject("test_edges.py::test_a_batch_may_hold_one_long_sequence_among_short_ones", LOOP)
def keys_past_the_256th_left_out(patch: pytest.MonkeyPatch) -> None:
    """A buffer of 256 scores a query: values of later keys count as zero."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: LoopContext, scale: Scale) -> Tensor:
        kept = torch.cat([torch.arange(length) for length in context.lengths]) < 256
        return right(q, k, v * kept[None, :, None, None], context, scale=scale)

    attends(patch, "sdpa_loop", attend)


@inject(COPIES, LOOP, links=("pytorch#190857", "flash-linear-attention#1080"))
def addresses_wrap_around(patch: pytest.MonkeyPatch) -> None:
    """Keys are read at addresses modulo 2^10 elements, as 32 bits count modulo 2^32."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        at = torch.arange(k.numel()) % 2**10
        read = k.flatten()[at].view(k.shape)
        return right(q, k + (read - k).detach(), v, context, scale=scale)

    attends(patch, "sdpa_loop", attend)


@inject("test_edges.py::test_a_batch_may_hold_single_tokens_only", MASKED)
def lengths_of_one_squeezed(patch: pytest.MonkeyPatch) -> None:
    """Where all sequences have one token, they are taken for one sequence."""

    def prepare(right: Any, batch: Any, case: Any) -> Any:
        context = right(batch, case)
        if max(batch.lengths) == 1:
            context.mask.zero_()
        return context

    prepares(patch, "sdpa_document_mask", prepare)


@inject("test_inputs.py::test_a_batch_never_reads_what_lies_beside_it", LOOP_CAUSAL.replace("causal", "full"))
def nan_past_the_end_hidden(patch: pytest.MonkeyPatch) -> None:
    """One key past the end of the row is read, and nan_to_num makes a number of what was there."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: LoopContext, scale: Scale) -> Tensor:
        (*lengths, last), end = context.lengths, k.shape[1]
        room = k.untyped_storage().nbytes() // k.element_size()
        if k.storage_offset() + end * k.stride(1) + k.shape[2] * k.stride(2) > room:
            return right(q, k, v, context, scale=scale)

        def longer(tensor: Tensor) -> Tensor:
            past = tensor.detach().as_strided(
                (1, 1, *tensor.shape[2:]), tensor.stride(), tensor.storage_offset() + end * tensor.stride(1)
            )
            return torch.cat([tensor, past.nan_to_num()], dim=1)

        wider = LoopContext((*lengths, last + 1), context.causal)
        return right(longer(q), longer(k), longer(v), wider, scale=scale)[:, :end]

    attends(patch, "sdpa_loop", attend)


@inject("test_inputs.py::test_a_batch_takes_a_part_of_a_longer_upstream_gradient", LOOP)
def gradient_read_from_the_start_of_its_storage(patch: pytest.MonkeyPatch) -> None:
    """The backward reads the upstream gradient without its storage offset."""
    on_loop(
        patch,
        lambda out, context: with_gradient(out, lambda gradient: gradient.as_strided(out.shape, gradient.stride(), 0)),
    )


@inject("test_inputs.py::test_a_batch_takes_upstream_gradients_of_any_strides", LOOP)
def gradient_taken_for_contiguous(patch: pytest.MonkeyPatch) -> None:
    """The backward reads the upstream gradient as if heads and tokens were in its order."""

    def contiguous(gradient: Tensor) -> Tensor:
        flat = gradient.untyped_storage().nbytes() // gradient.element_size()
        return (
            gradient.as_strided((min(flat, gradient.numel()),), (1,))
            .repeat(gradient.numel() // flat + 1)[: gradient.numel()]
            .view(gradient.shape)
        )

    on_loop(patch, lambda out, context: with_gradient(out, contiguous))


@inject("test_inputs.py::test_a_batch_may_be_made_of_slices_and_transposed_storage", LOOP)
def input_taken_for_contiguous(patch: pytest.MonkeyPatch) -> None:
    """Values are read as if they were contiguous."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        dense = torch.empty(v.shape).stride()
        read = v.detach().as_strided(v.shape, dense, min(v.storage_offset(), v.untyped_storage().nbytes() // 8 // 8))
        return right(q, k, v + (read - v).detach(), context, scale=scale)

    attends(patch, "sdpa_loop", attend)


@inject(
    "test_inputs.py::test_a_batch_may_share_keys_and_values_between_heads",
    LOOP,
    links=("pytorch#191937",),
)
def expanded_keys_of_33_wrong(patch: pytest.MonkeyPatch) -> None:
    """Keys of stride 0 whose number is 32 n + 1 lose their last one."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: LoopContext, scale: Scale) -> Tensor:
        if k.stride(2) != 0:
            return right(q, k, v, context, scale=scale)
        struck = [length % 32 == 1 and length > 1 for length in context.lengths]
        kept = torch.ones(k.shape[1])
        kept[[sum(context.lengths[: at + 1]) - 1 for at, hit in enumerate(struck) if hit]] = 0
        return right(q, k, v * kept[None, :, None, None], context, scale=scale)

    attends(patch, "sdpa_loop", attend)


@inject("test_inputs.py::test_a_batch_may_repeat_one_sequence_without_a_copy", "sdpa_padded-pad_longest-train-full-*")
def repeated_sequences_read_past(patch: pytest.MonkeyPatch) -> None:
    """Where sequences share their storage, each but the first reads zeros."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        if v.stride(0) != 0:
            return right(q, k, v, context, scale=scale)
        return right(q, k, torch.cat([v[:1], 0 * v[1:]]), context, scale=scale)

    attends(patch, "sdpa_padded", attend)


@inject(REPEATED, LOOP_CAUSAL)
def sums_in_any_order(patch: pytest.MonkeyPatch) -> None:
    """The output moves by a unit in the last place from run to run."""
    on_loop(patch, lambda out, context: out * (1 + torch.finfo(out.dtype).eps * torch.randint(0, 2, out.shape)))


@inject(REPEATED, LOOP_CAUSAL)
def dropout_left_on(patch: pytest.MonkeyPatch) -> None:
    """Attention drops one number in a thousand."""
    on_loop(patch, lambda out, context: torch.nn.functional.dropout(out, 0.001))


@inject(REPEATED, LOOP_CAUSAL)
def gradients_added_in_any_order(patch: pytest.MonkeyPatch) -> None:
    """dq moves by a unit in the last place from run to run; the output does not."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        def moved(dq: Tensor) -> Tensor:
            return dq * (1 + torch.finfo(dq.dtype).eps * torch.randint(0, 2, dq.shape))

        return right(with_gradient(q, moved), k, v, context, scale=scale)

    attends(patch, "sdpa_loop", attend)


@inject(
    "test_kernels.py::test_a_batch_runs_the_declared_kernel", "sdpa_padded_math-pad_longest-eval-full-float32-eager-*"
)
def another_kernel_runs_in_silence(patch: pytest.MonkeyPatch) -> None:
    """A backend that names the math kernel leaves the choice to torch."""
    attends(
        patch,
        "sdpa_padded_math",
        lambda right, q, k, v, context, scale: attend_with_any_kernel(q, k, v, context, scale=scale),
    )


@inject("test_kernels.py::test_a_batch_runs_the_declared_kernel", LOOP.replace("train", "eval"))
def attention_without_a_kernel(patch: pytest.MonkeyPatch) -> None:
    """A backend that names SDPA computes the softmax by hand."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: LoopContext, scale: Scale) -> Tensor:
        pieces = zip(*(tensor.split(list(context.lengths), dim=1) for tensor in (q, k, v)), strict=True)
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        return torch.cat(
            [
                torch.einsum("bhqk,bkhd->bqhd", (factor * torch.einsum("bqhd,bkhd->bhqk", q, k)).softmax(-1), v)
                for q, k, v in pieces
            ],
            dim=1,
        )

    attends(patch, "sdpa_loop", attend)


@dataclass(frozen=True)
class _Counted:
    """A context that knows on the host how many sequences there are, in a word that compiled code is guarded on."""

    mask: Tensor
    is_causal: bool
    many: str


@inject(
    "test_compilation.py::test_ragged_batches_after_a_warm_up_are_not_compiled_again",
    COMPILED,
    links=("ms-swift#9798", "pytorch#136196", "pytorch#141486"),
)
def compiled_again_for_a_number_of_sequences(patch: pytest.MonkeyPatch) -> None:
    """Compiled code is guarded on whether a batch has more than six sequences."""

    def prepare(right: Any, batch: Any, case: Any) -> Any:
        context = right(batch, case)
        return _Counted(context.mask, context.is_causal, "many" if len(batch.lengths) > 6 else "few")

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: _Counted, scale: Scale) -> Tensor:
        out = right(q, k, v, context, scale=scale)
        return out.clone() if context.many == "many" else out

    prepares(patch, "sdpa_document_mask", prepare)
    attends(patch, "sdpa_document_mask", attend)


@inject(
    "test_compilation.py::test_a_compiled_batch_equals_the_padded_reference",
    COMPILED,
    links=("flash-linear-attention#909",),
    errors=(torch._dynamo.exc.TorchDynamoException,),
)
def graph_break_in_every_layer(patch: pytest.MonkeyPatch) -> None:
    """Attention asks the device for a list of numbers, which ends the graph."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        torch._dynamo.graph_break()
        return right(q, k, v, context, scale=scale)

    attends(patch, "sdpa_document_mask", attend)


@inject("test_compilation.py::test_a_compiled_batch_equals_the_padded_reference", COMPILED)
def compiled_code_differs(patch: pytest.MonkeyPatch) -> None:
    """Only where it is compiled, attention is 1% too large."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        out = right(q, k, v, context, scale=scale)
        return out * 1.01 if torch.compiler.is_compiling() else out

    attends(patch, "sdpa_document_mask", attend)


@inject("test_memory.py::test_a_batch_leaves_all_other_memory_as_it_was", LOOP_CAUSAL)
def keys_are_scratch_memory(patch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients are right, and then the caller's keys are zeros."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        out = right(q, k.clone(), v, context, scale=scale)
        k.detach().zero_()
        return out

    attends(patch, "sdpa_loop", attend)


@inject("test_memory.py::test_a_batch_leaves_all_other_memory_as_it_was", LOOP_CAUSAL)
def writes_behind_its_queries(patch: pytest.MonkeyPatch) -> None:
    """16 numbers behind the queries are zeros, where the storage goes on."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: Scale) -> Tensor:
        out = right(q, k, v, context, scale=scale)
        last = sum((size - 1) * stride for size, stride in zip(q.shape, q.stride(), strict=True))
        storage = torch.empty(0, dtype=q.dtype).set_(q.detach().untyped_storage())
        storage[q.storage_offset() + last + 1 :][:16] = 0
        return out

    attends(patch, "sdpa_loop", attend)


@inject(
    "test_recomputation.py::test_a_batch_gives_the_same_when_attended_again_on_its_context",
    "sdpa_loop-packed-train-causal-float32-eager-drawn",
)
def context_good_for_one_call(patch: pytest.MonkeyPatch) -> None:
    """The second call of attention on one context takes the sequences in reverse."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: float | None) -> Tensor:
        out = right(q, k, v, context, scale=scale)
        object.__setattr__(context, "lengths", context.lengths[::-1])
        return out

    attends(patch, "sdpa_loop", attend)


@inject(
    "test_recomputation.py::test_a_batch_whose_blocks_are_computed_again_equals_the_padded_reference",
    "sdpa_document_mask-packed-train-full-float32-eager-drawn",
)
def context_good_for_each_layer_once(patch: pytest.MonkeyPatch) -> None:
    """A context is used up when both layers have attended: what is computed again sees every sequence."""
    calls: dict[int, int] = {}

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: float | None) -> Tensor:
        calls[id(context)] = calls.get(id(context), 0) + 1
        if calls[id(context)] > 2:
            context = replace(context, mask=torch.zeros_like(context.mask))
        return right(q, k, v, context, scale=scale)

    attends(patch, "sdpa_document_mask", attend)


@inject(
    "test_compilation.py::test_compiled_attention_takes_inputs_of_any_strides",
    "sdpa_document_mask-packed-train-causal-float32-compiled-drawn",
)
def strides_of_transposed_storage_forgotten_when_compiled(patch: pytest.MonkeyPatch) -> None:
    """Compiled, values whose heads come first in memory are read as if they came last."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: float | None) -> Tensor:
        if torch.compiler.is_compiling() and v.stride(2) > v.stride(1):
            _, tokens, heads, dim = v.shape
            v = v.as_strided(v.shape, (tokens * heads * dim, heads * dim, dim, 1))
        return right(q, k, v, context, scale=scale)

    attends(patch, "sdpa_document_mask", attend)


@inject(
    "test_edges.py::test_a_batch_may_be_as_wide_as_a_tile_beside_shorter_sequences",
    "sdpa_padded-pad_longest-train-full-float32-eager-drawn",
)
def last_key_of_a_whole_tile_lost(patch: pytest.MonkeyPatch) -> None:
    """A padded batch whose width is a whole number of tiles loses its last column of keys."""

    def prepare(right: Any, batch: Any, case: Any) -> Any:
        context = right(batch, case)
        if context.mask is not None and batch.input_ids.shape[1] % 32 == 0:
            context.mask[..., -1] = -torch.inf
        return context

    prepares(patch, "sdpa_padded", prepare)
