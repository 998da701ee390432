"""Compares what a cell computed with the truth: logits, loss and every gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoder import DecoderConfig
from model.reference import Outcome
from model.tolerance import Bound, Mismatch, bound, largest_row


def reduction_length(config: DecoderConfig) -> int:
    """Return how many terms are added on the way from an input through every layer and, for gradients, back."""
    width = config.hidden_size
    projections, attention = width + width + width + 4 * width, config.head_dim + config.max_length
    return 2 * config.num_layers * (projections + attention)


@dataclass(frozen=True)
class Bounds:
    """What outcomes of one batch are compared with: made once, for all cells whose truth and references it is of."""

    truth: Outcome
    references: tuple[Outcome, ...]
    logits: Bound
    loss: Bound
    gradients: Mapping[str, Bound]

    def differences(self, actual: Outcome, error_factor: float) -> list[Mismatch]:
        """Return every tensor of `actual` that is further from the truth than allowed, the worst first."""
        if len(actual.logits) != len(self.truth.logits):
            raise ValueError(f"expected {len(self.truth.logits)} sequences; got {len(actual.logits)}.")
        for index, (got, wanted) in enumerate(zip(actual.logits, self.truth.logits, strict=True)):
            if got.shape != wanted.shape:
                raise ValueError(f"logits of sequence {index}: got {tuple(got.shape)}, expected {tuple(wanted.shape)}.")
        if actual.gradients.keys() != self.gradients.keys():
            raise ValueError(f"gradients differ in name: {actual.gradients.keys() ^ self.gradients.keys()}.")
        found = [
            # All sequences at once: the bound is the reference's worst row in the batch.
            _named_by_sequence(self.logits.mismatch(torch.cat(actual.logits), error_factor), self.truth),
            self.loss.mismatch(actual.loss, error_factor),
            *(bound.mismatch(actual.gradients[name], error_factor) for name, bound in self.gradients.items()),
        ]
        return sorted((m for m in found if m is not None), key=lambda m: -m.error / max(m.allowed, 1e-300))


def bounds(truth: Outcome, references: Sequence[Outcome], *, dtype: torch.dtype, config: DecoderConfig) -> Bounds:
    """Return how far a cell in `dtype` may be from `truth` in each tensor.

    `truth` is the reference in float64 (or float32 on large models), `references` the same in the cell's dtype, rounded
    in one way or several.
    """
    length = reduction_length(config)

    # The gradient of a model's queries is zero where every sequence has one token.
    largest = max(map(largest_row, truth.gradients.values()), default=0.0)

    def compare(name: str, wanted: Tensor, rounded: Sequence[Tensor], cancelled: float = 0.0) -> Bound:
        return bound(name, wanted, rounded, dtype=dtype, reduction_length=length, cancelled=cancelled)

    return Bounds(
        truth=truth,
        references=tuple(references),
        logits=compare("logits", torch.cat(truth.logits), [torch.cat(each.logits) for each in references]),
        loss=compare("loss", truth.loss, [each.loss + _loss_rounding(truth, each) for each in references]),
        gradients={
            name: compare(f"gradient of {name}", wanted, [each.gradients[name] for each in references], largest)
            for name, wanted in truth.gradients.items()
        },
    )


def differences(
    actual: Outcome,
    truth: Outcome,
    references: Sequence[Outcome],
    *,
    dtype: torch.dtype,
    error_factor: float,
    config: DecoderConfig,
) -> list[Mismatch]:
    """Return every tensor of `actual` that is further from the truth than `bounds` allow, the worst first."""
    return bounds(truth, references, dtype=dtype, config=config).differences(actual, error_factor)


def _loss_rounding(truth: Outcome, reference: Outcome) -> Tensor:
    """Return how far rounding of the logits may move the loss.

    The loss of one batch may be exact by luck in the reference. It moves with the logits by at most sqrt(2) times
    the norm of their error, averaged over tokens.
    """
    errors = torch.cat(reference.logits).double() - torch.cat(truth.logits).double()
    sign = torch.sign(reference.loss.double() - truth.loss.double())
    return torch.where(sign == 0, 1.0, sign) * 2**0.5 * errors.norm(dim=1).mean()


def _named_by_sequence(found: Mismatch | None, truth: Outcome) -> Mismatch | None:
    if found is None or found.row is None:
        return found
    row = found.row
    for sequence, logits in enumerate(truth.logits):
        if row < len(logits):
            return Mismatch(f"logits of sequence {sequence}, position {row}", None, found.error, found.allowed)
        row -= len(logits)
    raise AssertionError("the worst row lies past the last sequence")
