"""The truth a cell is compared with: the padded reference, and the oracle that proves the reference."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from collators import CollatorOptions, Example, collator_named
from collators.batch import Batch, PaddedBatch
from model.attention import REFERENCE, Backend, Case
from model.attention.sdpa import SdpaContext
from model.decoder import Decoder
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


def outcome(model: Decoder, backend: Backend, batch: Batch, case: Case) -> Outcome:
    """Run one forward, and in training one backward, and collect what came out; the model is left as it was."""
    training = case.mode == "train"
    with full_precision(), torch.set_grad_enabled(training):
        result = forward(model, backend, batch, case)
        gradients = {}
        if training:
            names, parameters = zip(*model.named_parameters(), strict=True)
            grads = torch.autograd.grad(result.loss, parameters)
            gradients = dict(zip(names, grads, strict=True))
    logits = [piece.detach() for piece in batch.split(result.logits)]
    return Outcome(logits, result.loss.detach(), gradients)


def with_backend(model: Decoder, backend: Backend, dtype: torch.dtype) -> Decoder:
    """Return an eager copy of `model` in `dtype` that attends with `backend`."""
    clone = Decoder(model.config, backend.attend).to(next(model.parameters()).device, dtype)
    clone.load_state_dict(model.state_dict())
    return clone


def reference_case(case: Case, dtype: torch.dtype) -> Case:
    """Return `case` as the reference runs it, in `dtype`."""
    collator = REFERENCE_COLLATOR
    layout, side = collator.layout, collator.padding_side
    return replace(case, layout=layout, padding_side=side, dtype=dtype, execution="eager")


def padded_reference(model: Decoder, examples: Sequence[Example], case: Case) -> Outcome:
    """Return what the reference backend computes of `examples`, padded to the longest, in `case.dtype`.

    `model` is one made by `with_backend(..., REFERENCE, ...)`.
    """
    batch = REFERENCE_COLLATOR.build(CollatorOptions(model.config.max_length, model.config.pad_id))(examples)
    return outcome(model, REFERENCE, batch.to(case.device), reference_case(case, case.dtype))


def solo_oracle(model: Decoder, examples: Sequence[Example], case: Case) -> Outcome:
    """Return the same from each sequence alone: no padding, no document mask; losses and gradients are summed.

    `model` is a float64 one made by `with_backend(..., REFERENCE, torch.float64)`.
    """
    batches = [
        REFERENCE_COLLATOR.build(CollatorOptions(model.config.max_length, model.config.pad_id))([example])
        for example in examples
    ]
    total = max(sum(batch.num_targets for batch in batches), 1)
    solo_case = reference_case(case, torch.float64)
    alone = [outcome(model, ORACLE, batch.to(case.device), solo_case) for batch in batches]
    shares = [max(batch.num_targets, 1) / total for batch in batches]
    weighted = list(zip(shares, alone, strict=True))
    return Outcome(
        logits=[one.logits[0] for one in alone],
        loss=torch.stack([share * one.loss for share, one in weighted]).sum(),
        gradients={
            name: torch.stack([share * one.gradients[name] for share, one in weighted]).sum(0)
            for name in alone[0].gradients
        },
    )
