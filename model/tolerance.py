"""How far a cell may be from the truth: the one place where correctness tolerances live.

The truth is computed in float64. The reference, run in the cell's dtype, shows what rounding alone does to the
same numbers; the cell may be `error_factor` times as far off (its kernels add in another order), plus a floor
that follows from the dtype and the length of the reductions, for the cases where the reference happens to be
exact. Errors are L2 norms of rows (one token of logits, one row of a weight's gradient), so a single bad row
cannot hide in a mean.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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


def mismatch(
    name: str,
    actual: Tensor,
    truth: Tensor,
    reference: Tensor,
    *,
    dtype: torch.dtype,
    error_factor: float,
    reduction_length: int,
) -> Mismatch | None:
    """Compare `actual` with `truth` row by row; return the worst row where it is too far off, or None.

    `reference` is the same tensor from the reference in `dtype`. Anything not finite is infinitely far off.
    """
    for tensor in (actual, reference):
        if tensor.shape != truth.shape:
            raise ValueError(f"{name}: shapes differ: got {tuple(tensor.shape)}, expected {tuple(truth.shape)}.")
    wanted = _rows(truth)
    errors = (_rows(actual) - wanted).norm(dim=-1)
    errors = errors.where(errors.isfinite(), torch.inf)
    reference_error = float((_rows(reference) - wanted).norm(dim=-1).max())
    floor = rounding_floor(dtype, reduction_length) * float(wanted.norm(dim=-1).max())
    allowed = error_factor * reference_error + floor
    row = int(errors.argmax())
    error = float(errors[row])
    # A bound that is not finite comes from a broken reference, and passes nothing.
    return None if error <= allowed < math.inf else Mismatch(name, row if actual.ndim > 1 else None, error, allowed)
