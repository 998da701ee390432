"""The truth a cell is compared with: the padded reference, and the oracle that proves the reference."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from collators import CollatorOptions, Example, collator_named
from collators.batch import Batch, PaddedBatch
from model.attention import REFERENCE, Backend, Case
from model.attention.sdpa import SdpaContext
from model.models import Model, ProvedModel
from model.steps import forward

REFERENCE_COLLATOR = collator_named("pad_longest")


def _no_mask(batch: PaddedBatch, case: Case) -> SdpaContext:
    return SdpaContext(mask=None, is_causal=case.causal)


#: What runs one sequence alone: the math kernel as the reference, but with no mask that could be wrong.
ORACLE: Backend = replace(REFERENCE, name="oracle", prepare=_no_mask)


@dataclass(frozen=True)
class Outcome:
    """What a model computed of a batch: one (length, vocabulary) tensor of logits for each sequence, the loss,
    and in training the gradient of every parameter by name."""

    logits: list[Tensor]
    loss: Tensor
    gradients: dict[str, Tensor]


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off for float32 matrix products, and back to what it was."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Let nothing be dropped inside; a model that drops nothing is left as it is."""
    training = model.training
    drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())
    # Only then: a compiled model is compiled again for the other mode.
    if drops:
        model.eval()
    try:
        yield
    finally:
        if drops:
            model.train(training)


def outcome(model: Model, backend: Backend, batch: Batch, case: Case, num_targets: int | None = None) -> Outcome:
    """Run one forward, and in training one backward, and collect what came out; the model is left as it was.

    Nothing is dropped at random.

    `num_targets` is the number in all micro-batches where `batch` is one of several.
    """
    training = case.mode == "train"
    with full_precision(), without_dropout(model), torch.set_grad_enabled(training):
        result = forward(model, backend, batch, case, num_targets)
        gradients = {}
        if training:
            names, parameters = zip(*model.named_parameters(), strict=True)
            grads = torch.autograd.grad(result.loss, parameters)
            gradients = dict(zip(names, grads, strict=True))
    logits = [piece.detach() for piece in batch.split(result.logits)]
    return Outcome(logits, result.loss.detach(), gradients)


def with_backend(model: ProvedModel, backend: Backend, dtype: torch.dtype) -> ProvedModel:
    """Return an eager copy of `model` in `dtype` that attends with `backend`."""
    clone = model.attending(backend.attend).to(next(model.parameters()).device, dtype)
    clone.load_state_dict(model.state_dict())
    return clone


def reference_case(case: Case, dtype: torch.dtype) -> Case:
    """Return `case` as the reference runs it, in `dtype`."""
    collator = REFERENCE_COLLATOR
    layout, side = collator.layout, collator.padding_side
    return replace(case, layout=layout, padding_side=side, dtype=dtype, execution="eager")


def summed(model: Model, backend: Backend, examples: Sequence[Example], case: Case, *, sequences: int) -> Outcome:
    """Return the outcome of `examples` computed `sequences` at a time: losses and gradients are summed."""
    collate = REFERENCE_COLLATOR.build(CollatorOptions(model.config.max_length, model.config.pad_id))
    batches = [collate(examples[start : start + sequences]) for start in range(0, len(examples), sequences)]
    total = max(sum(batch.num_targets for batch in batches), 1)
    logits: list[Tensor] = []
    loss = torch.zeros(())
    gradients: dict[str, Tensor] = {}
    for batch in batches:
        part = outcome(model, backend, batch.to(case.device), case)
        # Each part's loss is a mean over its own targets, and zero where it has none.
        share = batch.num_targets / total
        logits += part.logits
        loss = part.loss * share + loss.to(part.loss)
        for name, gradient in part.gradients.items():
            gradients[name] = gradients[name].add_(gradient, alpha=share) if name in gradients else gradient * share
    return Outcome(logits, loss, gradients)


def padded_reference(
    model: Model,
    examples: Sequence[Example],
    case: Case,
    *,
    sequences: int | None = None,
    backend: Backend = REFERENCE,
) -> Outcome:
    """Return what the reference backend computes of `examples`, padded to the longest, in `case.dtype`.

    `model` is one made by `with_backend(..., REFERENCE, ...)`, or another whose reference is `backend`. The math
    kernel holds all scores: a large model takes its batch `sequences` at a time.
    """
    reference = reference_case(case, case.dtype)
    return summed(model, backend, examples, reference, sequences=sequences or len(examples))


def solo_oracle(model: ProvedModel, examples: Sequence[Example], case: Case) -> Outcome:
    """Return the same from each sequence alone, with neither padding nor document mask.

    `model` is a float64 one made by `with_backend(..., REFERENCE, torch.float64)`.
    """
    return summed(model, ORACLE, examples, reference_case(case, torch.float64), sequences=1)
