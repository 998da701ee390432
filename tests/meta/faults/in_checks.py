"""Faults of what judges: declarations, tolerances and comparisons. A check that cannot fail shows nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model import equivalence, tolerance
from model.attention import backend_named
from tests.meta.faults.fault import Faults, attends, everywhere

CHECKS = Faults("checks")
plant = CHECKS.plant

TOLERANCE = "test_tolerance.py::"
EVAL = "sdpa_loop-packed-eval-causal-bfloat16-eager-drawn"


@plant("test_declarations.py::test_a_backend_supports_what_is_declared_for_it")
def training_no_longer_claimed(patch: pytest.MonkeyPatch) -> None:
    """A backend stops to declare training, and its training cells are gone."""
    patch.setitem(vars(backend_named("sdpa_document_mask")), "modes", ("eval",))


@plant("test_declarations.py::test_a_backend_refuses_what_it_cannot_do")
def grouped_heads_claimed(patch: pytest.MonkeyPatch) -> None:
    """A backend that has no grouped heads declares them."""
    patch.setitem(vars(backend_named("sdpa_nested")), "grouped_query", True)


@plant("test_declarations.py::test_a_backend_supports_what_is_declared_for_it")
def short_batches_refused(patch: pytest.MonkeyPatch) -> None:
    """A backend refuses batches narrower than 4 tokens, which it could compute."""
    patch.setitem(vars(backend_named("sdpa_padded")), "min_keys", 4)


@plant("test_declarations.py::test_a_backend_with_an_error_factor_of_its_own_says_why")
def error_factor_without_a_limit(patch: pytest.MonkeyPatch) -> None:
    """A backend may be 50 times as far off as the reference, and says why."""
    record = vars(backend_named("sdpa_loop"))
    patch.setitem(record, "error_factor", 50.0)
    patch.setitem(record, "error_reason", "adds in another order")


@plant("test_attention.py::test_a_batch_attends_without_gradients_as_each_sequence_alone", EVAL)
def evaluation_differs_from_training(patch: pytest.MonkeyPatch) -> None:
    """Where no gradient is needed another kernel runs, with an error of 2% in one row."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: float | None) -> Tensor:
        out = right(q, k, v, context, scale=scale)
        if torch.is_grad_enabled():
            return out
        return torch.cat([out[:, :-1], out[:, -1:] * 1.02], dim=1)

    attends(patch, "sdpa_loop", attend)


@plant(TOLERANCE + "test_a_batch_with_any_row_moved_by_2_percent_fails")
def rounding_floor_of_a_percent(patch: pytest.MonkeyPatch) -> None:
    """Rounding is taken to leave 5% in every dtype."""
    patch.setattr(tolerance, "rounding_floor", lambda dtype, reduction_length: 0.05)


@plant(TOLERANCE + "test_a_batch_with_one_bad_row_among_10000_fails_at_that_row")
def errors_averaged(patch: pytest.MonkeyPatch) -> None:
    """Errors of rows are averaged before they are compared."""
    right = tolerance._rows
    patch.setattr(tolerance, "_rows", lambda tensor: right(tensor).mean(0, keepdim=True))


@plant(TOLERANCE + "test_a_batch_with_one_number_that_is_not_finite_fails")
def what_is_not_finite_counts_as_zero(patch: pytest.MonkeyPatch) -> None:
    """NaN and infinities are made zero before they are compared."""
    right = tolerance._rows
    patch.setattr(tolerance, "_rows", lambda tensor: right(tensor).nan_to_num(0, 0, 0))


@plant(TOLERANCE + "test_a_step_with_one_wrong_tensor_names_it", links=("flash-attention#1023",), errors=(ValueError,))
def truth_compared_with_itself(patch: pytest.MonkeyPatch) -> None:
    """The tensor that is compared with the truth is the truth."""
    right = tolerance.mismatch
    everywhere(
        patch, right, lambda name, actual, truth, *others, **options: right(name, truth, truth, *others, **options)
    )


@plant(TOLERANCE + "test_a_step_with_one_wrong_tensor_names_it", errors=(ValueError,))
def gradients_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Only logits and loss are compared."""
    right = tolerance.mismatch

    def compare(name: str, *tensors: Tensor, **options: Any) -> Any:
        return None if name.startswith("gradient") else right(name, *tensors, **options)

    patch.setattr(equivalence, "mismatch", compare)
