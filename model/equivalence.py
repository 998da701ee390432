"""Compares what a cell computed with the truth: logits, loss and every gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decoder import DecoderConfig
from model.reference import Outcome
from model.tolerance import Mismatch, mismatch


def reduction_length(config: DecoderConfig) -> int:
    """Return how many terms are added on the way from an input through every layer and, for gradients, back."""
    width = config.hidden_size
    projections, attention = width + width + width + 4 * width, config.head_dim + config.max_length
    return 2 * config.num_layers * (projections + attention)


def differences(
    actual: Outcome,
    truth: Outcome,
    references: Sequence[Outcome],
    *,
    dtype: torch.dtype,
    error_factor: float,
    config: DecoderConfig,
) -> list[Mismatch]:
    """Return every tensor of `actual` that is further from `truth` than allowed, the worst first.

    `truth` is the reference in float64 (or float32 on large models), `references` the same in the cell's dtype, rounded
    in one way or several.
    """

    def compare(name: str, got: Tensor, wanted: Tensor, rounded: Sequence[Tensor]) -> Mismatch | None:
        length = reduction_length(config)
        return mismatch(name, got, wanted, rounded, dtype=dtype, error_factor=error_factor, reduction_length=length)

    if len(actual.logits) != len(truth.logits):
        raise ValueError(f"expected {len(truth.logits)} sequences; got {len(actual.logits)}.")
    for index, (got, wanted) in enumerate(zip(actual.logits, truth.logits, strict=True)):
        if got.shape != wanted.shape:
            raise ValueError(f"logits of sequence {index}: got {tuple(got.shape)}, expected {tuple(wanted.shape)}.")
    if actual.gradients.keys() != truth.gradients.keys():
        raise ValueError(f"gradients differ in name: {actual.gradients.keys() ^ truth.gradients.keys()}.")
    found = [
        # All sequences at once: the bound is the reference's worst row in the batch.
        _named_by_sequence(
            compare(
                "logits",
                torch.cat(actual.logits),
                torch.cat(truth.logits),
                [torch.cat(reference.logits) for reference in references],
            ),
            truth,
        ),
        compare("loss", actual.loss, truth.loss, [each.loss + _loss_rounding(truth, each) for each in references]),
        *(
            compare(
                f"gradient of {name}", actual.gradients[name], wanted, [each.gradients[name] for each in references]
            )
            for name, wanted in truth.gradients.items()
        ),
    ]
    return sorted((m for m in found if m is not None), key=lambda m: -m.error / max(m.allowed, 1e-300))


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
