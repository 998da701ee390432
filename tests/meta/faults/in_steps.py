"""Faults of the decoder and of the steps, which the reference shares with every cell."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from collators import IGNORE_INDEX, Batch
from model import decoder, steps
from model.attention import Backend, Case
from model.decoder import Block, Decoder
from model.steps import Result
from tests.meta.faults.fault import Faults, everywhere

MODEL, STEPS = Faults("model"), Faults("steps")

PACKED = "sdpa_document_mask-packed-train-causal-float32-eager-drawn"
PADDED = "sdpa_padded-pad_longest-train-causal-float32-eager-drawn"
REFERENCE = "sdpa_padded_math-pad_longest-train-causal-float32-eager-drawn"
ROTARY = "test_positions.py::test_shifted_rotary_positions_change_nothing"
SPLIT = "test_splitting.py::test_micro_batches_give_the_logits_and_summed_gradients_of_the_whole"
ALONE = "test_splitting.py::test_sequences_alone_give_the_logits_and_summed_gradients_of_the_whole"
LOSS = "test_reference.py::test_a_batch_has_the_mean_cross_entropy_of_its_targets_as_loss"
FLOAT32 = "test_reference.py::test_a_batch_in_float32_is_rounded_no_more_than_float32_must"
EQUAL = "test_equivalence.py::test_a_batch_equals_the_padded_reference"
MOVED = "test_optimizer_step.py::test_three_steps_move_every_parameter_as_the_reference_does"


@MODEL.inject("test_positions.py::test_positions_in_reverse_change_the_outputs", REFERENCE)
def positions_ignored(patch: pytest.MonkeyPatch) -> None:
    """Every slot has the learned position of its column, whatever the batch says."""
    right = Decoder.forward

    def forward(self: Decoder, batch: Any, context: Any) -> Tensor:
        columns = torch.arange(batch.position_ids.shape[1]).clamp(max=self.config.max_length - 1)
        return right(self, at_positions(batch, columns.expand_as(batch.position_ids)), context)

    patch.setattr(Decoder, "forward", forward)


def at_positions(batch: Any, positions: Tensor) -> Any:
    """Return `batch` at other positions."""
    return type(batch)(**{**vars(batch), "position_ids": positions})


@MODEL.inject(ROTARY, REFERENCE)
def rotary_positions_of_queries_only(patch: pytest.MonkeyPatch) -> None:
    """Keys are not rotated."""
    right = decoder.rotated
    calls: list[int] = []

    def rotated(x: Tensor, rotation: Tensor) -> Tensor:
        calls.append(1)
        return right(x, rotation) if len(calls) % 2 else x

    patch.setattr(decoder, "rotated", rotated)


@MODEL.inject("test_isolation.py::test_tokens_of_one_sequence_do_not_change_the_outputs_of_others", PACKED)
def logits_centred_over_the_row(patch: pytest.MonkeyPatch) -> None:
    """A statistic over all slots of the batch moves every logit a little."""
    right = Decoder.forward

    def forward(self: Decoder, batch: Any, context: Any) -> Tensor:
        logits = right(self, batch, context)
        return logits - 1e-3 * logits.mean(dim=(0, 1))

    patch.setattr(Decoder, "forward", forward)


@MODEL.inject("test_causality.py::test_later_tokens_change_earlier_outputs_only_where_attention_is_not_causal", PADDED)
def next_token_mixed_in(patch: pytest.MonkeyPatch) -> None:
    """A token shift before the blocks' norms runs the wrong way."""
    right = Block.forward

    def forward(self: Block, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return right(self, x + 1e-2 * x.roll(-1, dims=1), *args)

    patch.setattr(Block, "forward", forward)


@MODEL.inject("test_padding.py::test_ids_and_embeddings_of_padding_change_nothing", PADDED.replace("causal", "full"))
def mean_over_padding_too(patch: pytest.MonkeyPatch) -> None:
    """The mean of a sequence's embeddings, padding included, is added to each."""
    right = Block.forward

    def forward(self: Block, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return right(self, x + 1e-2 * x.mean(dim=1, keepdim=True), *args)

    patch.setattr(Block, "forward", forward)


def with_loss(patch: pytest.MonkeyPatch, loss: Any) -> None:
    """Let the steps take their loss from `loss(batch, flat, num_targets)`, with `flat` the logits of every slot."""

    def loss_of(batch: Batch, logits: Tensor, num_targets: int | None = None) -> Tensor:
        flat = batch.flat(logits)
        return loss(batch, flat.to(torch.promote_types(flat.dtype, torch.float32)), num_targets)

    everywhere(patch, steps.loss_of, loss_of)


def total(batch: Batch, flat: Tensor) -> Tensor:
    """Return the right sum over targets."""
    return cross_entropy(flat, batch.flat_targets, ignore_index=IGNORE_INDEX, reduction="sum")


@STEPS.inject(SPLIT, PACKED, links=("transformers#34191",))
def mean_of_means(patch: pytest.MonkeyPatch) -> None:
    """Every micro-batch counts by its tokens, whether they are supervised or not."""

    def loss(batch: Batch, flat: Tensor, num_targets: int | None) -> Tensor:
        mean = total(batch, flat) / max(batch.num_targets, 1)
        return mean if num_targets is None else mean * batch.num_tokens / max(num_targets, 1)

    with_loss(patch, loss)


@STEPS.inject(ALONE, PADDED, links=("Liger-Kernel#802",))
def num_targets_of_all_micro_batches_ignored(patch: pytest.MonkeyPatch) -> None:
    """Every micro-batch is divided by its own targets."""
    with_loss(patch, lambda batch, flat, num_targets: total(batch, flat) / max(batch.num_targets, 1))


@STEPS.inject(EQUAL, PACKED)
def denominator_counts_padding(patch: pytest.MonkeyPatch) -> None:
    """The loss is divided by all slots, padding included."""
    with_loss(patch, lambda batch, flat, num_targets: total(batch, flat) / (num_targets or batch.num_slots))


@STEPS.inject(SPLIT, PACKED)
def denominator_counts_unsupervised_tokens(patch: pytest.MonkeyPatch) -> None:
    """The loss is divided by all tokens, supervised or not."""
    with_loss(patch, lambda batch, flat, num_targets: total(batch, flat) / (num_targets or batch.num_tokens))


@STEPS.inject(LOSS)
def loss_is_a_sum(patch: pytest.MonkeyPatch) -> None:
    """The loss is not divided at all."""
    with_loss(patch, lambda batch, flat, num_targets: total(batch, flat))


@STEPS.inject(LOSS)
def loss_twice_as_large(patch: pytest.MonkeyPatch) -> None:
    """The loss is twice the mean over targets, in the cells and in the reference."""
    with_loss(patch, lambda batch, flat, num_targets: 2 * total(batch, flat) / max(num_targets or batch.num_targets, 1))


@STEPS.inject("test_splitting.py::test_no_supervised_target_gives_no_loss_and_no_gradient", PACKED)
def nothing_divided_by_nothing(patch: pytest.MonkeyPatch) -> None:
    """Without a supervised target the loss is 0 / 0."""
    with_loss(
        patch,
        lambda batch, flat, num_targets: (
            total(batch, flat) / (batch.num_targets if num_targets is None else num_targets)
        ),
    )


@STEPS.inject("test_splitting.py::test_no_supervised_target_gives_no_loss_and_no_gradient", PADDED)
def unsupervised_tokens_predict_0(patch: pytest.MonkeyPatch) -> None:
    """Targets of -100 are taken for class 0."""

    def loss(batch: Batch, flat: Tensor, num_targets: int | None) -> Tensor:
        summed = cross_entropy(flat, batch.flat_targets.clamp(min=0), reduction="sum")
        return summed / max(num_targets or batch.num_targets, 1)

    with_loss(patch, loss)


@STEPS.inject(FLOAT32)
def float32_autocast_to_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """Steps of float32 cells run under bfloat16 autocast, those of the reference too."""
    right = steps.autocast

    def autocast(case: Case) -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if case.dtype == torch.float32 else right(case)

    everywhere(patch, steps.autocast, autocast)


def with_step(patch: pytest.MonkeyPatch, change: Any) -> None:
    """Let the training step call `change(model)` once the gradients are there."""

    def train_step(
        model: Decoder, backend: Backend, batch: Batch, case: Case, optimizer: torch.optim.Optimizer
    ) -> Result:
        result = steps.forward(model, backend, batch, case)
        result.loss.backward()
        change(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return result

    everywhere(patch, steps.train_step, train_step)


@STEPS.inject(MOVED, PACKED)
def parameter_never_moved(patch: pytest.MonkeyPatch) -> None:
    """The bias of the head gets no gradient."""
    with_step(patch, lambda model: setattr(model.head.bias, "grad", None))


@STEPS.inject(MOVED, PACKED)
def step_uphill(patch: pytest.MonkeyPatch) -> None:
    """Gradients have the wrong sign."""

    def negate(model: nn.Module) -> None:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.neg_()

    with_step(patch, negate)


@STEPS.inject(MOVED, PACKED)
def gradients_clipped(patch: pytest.MonkeyPatch) -> None:
    """Gradients are clipped to a norm that most do not reach."""
    with_step(patch, lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))


@STEPS.inject(MOVED, PADDED)
def gradients_of_the_step_before_kept(patch: pytest.MonkeyPatch) -> None:
    """Gradients are not dropped after a step, and add up."""
    right = steps.train_step

    def train_step(
        model: Decoder, backend: Backend, batch: Batch, case: Case, optimizer: torch.optim.Optimizer
    ) -> Result:
        with pytest.MonkeyPatch.context() as kept:
            kept.setattr(optimizer, "zero_grad", lambda **options: None)
            return right(model, backend, batch, case, optimizer)

    everywhere(patch, right, train_step)


@STEPS.inject(MOVED, PADDED)
def gradients_of_the_step_before_applied(patch: pytest.MonkeyPatch) -> None:
    """Every step applies the gradients of the one before, the first none."""
    last: dict[int, list[Tensor | None]] = {}

    def delay(model: nn.Module) -> None:
        parameters = list(model.parameters())
        before = last.get(id(model), [None] * len(parameters))
        last[id(model)] = [parameter.grad for parameter in parameters]
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient

    with_step(patch, delay)
