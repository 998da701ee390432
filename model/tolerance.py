"""How far a cell may be from the truth: the one place where correctness tolerances live.

The truth is computed in float64. The reference, run in the cell's dtype, shows what rounding alone does to the
same numbers; the cell may be `error_factor` times as far off (its kernels add in another order; through a whole
decoder twice that), plus a floor that follows from the dtype and the length of the reductions, for the cases where the
reference happens to be exact. One rounding may be exact by luck where the next is not: of several references, each
rounded in another way, the one that is furthest off sizes the bound. Errors are L2 norms of rows (one token of logits,
one row of a weight's gradient), so a single bad row cannot hide in a mean.

Where the rounding noise of every row is known (model/attention/oracle.py), errors count in units of it, so that a
bad small row cannot hide behind an honest large one. Then the reference is held to a bound as well: one that is
wrong would excuse anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: How many times the rounding floor the reference may be off where rows have scales: 0.83 was the most that 200 drawn
#: batches showed on a CPU, in any dtype.
REFERENCE_LIMIT = 2.0

#: The same through a decoder, whose gradients cancel: 1.6 was the most that some 100 drawn batches showed in float32.
#: What it must tell from that is a reference in fewer bits: TF32 is 2^13 times as far off, bfloat16 2^16 times.
DECODER_REFERENCE_LIMIT = 16.0

#: Where the noise of a row is not known, a cell may also be off by what its kernel rounds and the reference, which
#: attends in float32, does not. Of 5,500 drawn bfloat16 training batches of honest backends on a CPU 28 needed more
#: than twice the error of one reference, the worst 5.7 times; beside the worst of four references 5, the worst 2.8.
DECODER_FACTOR = 2.0


@dataclass(frozen=True)
class Mismatch:
    """One tensor that is further from the truth than allowed; `row` is its worst row, None where it has but one."""

    name: str
    row: int | None
    error: float
    allowed: float

    def __str__(self) -> str:
        where = self.name if self.row is None else f"{self.name}, row {self.row}"
        return f"{where}: error {self.error:.3e}, allowed {self.allowed:.3e}"


def rounding_floor(dtype: torch.dtype, reduction_length: int) -> float:
    """Return the relative error that rounding to `dtype` and summing `reduction_length` terms may leave.

    One unit roundoff for the result, and a random walk of the accumulator's, which is float32 for narrower dtypes.
    """
    accumulator = torch.promote_types(dtype, torch.float32)
    return torch.finfo(dtype).eps / 2 + torch.finfo(accumulator).eps / 2 * math.sqrt(reduction_length)


def _rows(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().double()
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.flatten(0, -2)


@dataclass(frozen=True)
class Bound:
    """What a tensor is compared with where the noise of its rows is not known, made once for all cells.

    `shape` and `rows` are those of the truth, rows in float64; `reference_error` is the largest error of a row in any
    reference, and `floor` what rounding may leave at least. Both are L2 norms.
    """

    name: str
    shape: torch.Size
    rows: Tensor
    reference_error: float
    floor: float

    def allowed(self, error_factor: float) -> float:
        """Return the largest L2 error that a row may have."""
        return DECODER_FACTOR * error_factor * self.reference_error + self.floor

    def mismatch(self, actual: Tensor, error_factor: float) -> Mismatch | None:
        """Return the worst row of `actual` where it is too far off, or None; what is not finite is off by infinity."""
        _check_shape(self.name, actual, self.shape)
        errors = (_rows(actual) - self.rows).norm(dim=1)
        allowed = self.allowed(error_factor)
        # A bound that is not finite comes from a broken reference, and passes nothing. NaN is at most nothing.
        if float(errors.max()) <= allowed < math.inf:
            return None
        errors = errors.where(errors.isfinite(), torch.inf)
        row = int(errors.argmax())
        return Mismatch(self.name, row if actual.ndim > 1 else None, float(errors[row]), allowed)


def _check_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: shapes differ: got {tuple(tensor.shape)}, expected {tuple(shape)}.")


def _reference_errors(name: str, truth: Tensor, references: Sequence[Tensor]) -> Tensor:
    for reference in references:
        _check_shape(name, reference, truth.shape)
    wanted = _rows(truth)
    return torch.stack([(_rows(reference) - wanted).norm(dim=1) for reference in references])


def largest_row(tensor: Tensor) -> float:
    """Return the largest L2 norm of a row."""
    return float(_rows(tensor).norm(dim=1).max())


def bound(
    name: str,
    truth: Tensor,
    references: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    reduction_length: int,
    cancelled: float = 0.0,
) -> Bound:
    """Return how far a cell in `dtype` may be from `truth`, of which `references` are roundings, at least one.

    If the truth is zero, terms of the size `cancelled` cancel, and rounding is relative to them.
    """
    wanted = _rows(truth)
    off = float(_reference_errors(name, truth, references).max())
    floor = rounding_floor(dtype, reduction_length) * (largest_row(truth) or cancelled)
    return Bound(name, truth.shape, wanted, off, floor)


def mismatch(
    name: str,
    actual: Tensor,
    truth: Tensor,
    references: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    error_factor: float,
    reduction_length: int,
    scale: Tensor | None = None,
) -> Mismatch | None:
    """Compare `actual` with `truth` row by row; return the worst row where it is too far off, or None.

    `references` are the same tensor from the reference in `dtype`, at least one: each as far from `truth` as another
    rounding left it. Anything not finite is infinitely far off. `scale` is the size of rounding noise in each row, one
    number a row: bounds are then a row's own.
    """
    if scale is None:
        known = bound(name, truth, references, dtype=dtype, reduction_length=reduction_length)
        return known.mismatch(actual, error_factor)
    _check_shape(name, actual, truth.shape)
    errors = (_rows(actual) - _rows(truth)).norm(dim=1)
    errors = errors.where(errors.isfinite(), torch.inf)
    reference_errors = _reference_errors(name, truth, references)
    floor = rounding_floor(dtype, reduction_length)
    scale = scale.detach().double().flatten()
    if scale.shape != errors.shape:
        raise ValueError(f"{name}: {errors.numel()} rows need as many scales; got {scale.numel()}.")
    # Where no rounding is possible, none is allowed: 0 / 0 is no error.
    units = torch.where(reference_errors == 0, 0.0, reference_errors / scale)
    worst = float(units.max())
    limit = error_factor * worst + floor if worst <= REFERENCE_LIMIT * floor else math.nan
    row = int(torch.where(errors == 0, 0.0, errors / scale).argmax())
    error, allowed = float(errors[row]), float(limit * scale[row])
    return None if error <= allowed < math.inf else Mismatch(name, row if actual.ndim > 1 else None, error, allowed)
