"""A batch that is wrong is seen to be: the comparison passes the truth, and fails on one bad row."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.decoder import DecoderConfig
from model.equivalence import differences, reduction_length
from model.reference import Outcome
from model.tolerance import Mismatch, mismatch, rounding_floor

pytestmark = pytest.mark.correctness

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CONFIG = DecoderConfig(vocab_size=64, max_length=130, num_layers=2, num_heads=3, head_dim=16)
LENGTHS = (2, 4, 3)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compare(actual: Tensor, truth: Tensor, dtype: torch.dtype, reference: Tensor | None = None) -> Mismatch | None:
    """Compare as a cell of `dtype` with the usual factor; the reference is the truth rounded to `dtype`."""
    return mismatch(
        "tensor",
        actual,
        truth,
        truth.to(dtype) if reference is None else reference,
        dtype=dtype,
        error_factor=2,
        reduction_length=reduction_length(CONFIG),
    )


@every_dtype
@pytest.mark.parametrize("shape", [(), (64,), (9, 64), (2, 9, 64)])
@given(seed=st.integers(0, 2**32 - 1))
def test_a_batch_equal_to_the_truth_passes(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> None:
    truth = drawn(*shape, seed=seed)
    assert compare(truth, truth, dtype) is None
    assert compare(truth.to(dtype), truth, dtype) is None
    assert compare(torch.zeros(shape), torch.zeros(shape).double(), dtype) is None


@every_dtype
@given(seed=st.integers(0, 2**32 - 1))
def test_a_batch_with_any_row_moved_by_2_percent_fails(dtype: torch.dtype, seed: int) -> None:
    truth = drawn(9, 64, seed=seed)
    for row in range(len(truth)):
        wrong = truth.to(dtype, copy=True)
        wrong[row] = (truth[row] * 1.02).to(dtype)
        found = compare(wrong, truth, dtype)
        assert found is not None
        assert found.row == row


@every_dtype
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_batch_with_one_number_that_is_not_finite_fails(dtype: torch.dtype, value: float) -> None:
    truth = drawn(9, 64)
    for row, column in ((0, 0), (4, 17), (8, 63)):
        wrong = truth.to(dtype, copy=True)
        wrong[row, column] = value
        found = compare(wrong, truth, dtype)
        assert found is not None
        assert (found.row, found.error) == (row, math.inf)


@every_dtype
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("broken", ["truth", "reference"])
def test_a_batch_passes_no_broken_truth_or_reference(dtype: torch.dtype, value: float, broken: str) -> None:
    """Not even a tensor that is broken alike."""
    right = drawn(9, 64)
    wrong = right.clone()
    wrong[3, 5] = value
    truth, reference = (wrong, right) if broken == "truth" else (right, wrong)
    for actual in (right, wrong, torch.zeros_like(right)):
        assert compare(actual, truth, dtype, reference.to(dtype)) is not None


def test_a_batch_with_one_bad_row_among_10000_fails_at_that_row() -> None:
    truth = drawn(10_000, 64)
    wrong = truth.to(torch.bfloat16, copy=True)
    wrong[7_321] = (truth[7_321] * 1.02).to(torch.bfloat16)
    found = compare(wrong, truth, torch.bfloat16)
    assert found is not None
    assert found.row == 7_321
    assert compare(truth.to(torch.bfloat16), truth, torch.bfloat16) is None


def test_a_batch_whose_rows_are_swapped_fails() -> None:
    truth = drawn(9, 64)
    assert compare(truth.flip(0), truth, torch.bfloat16) is not None


def test_a_batch_of_zeros_fails() -> None:
    truth = drawn(9, 64) * 1e-6
    assert compare(torch.zeros(9, 64), truth, torch.bfloat16) is not None


@pytest.mark.parametrize("shape", [(9, 1), (1, 64), (64,), (64, 9), (9, 64, 1)])
def test_a_batch_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"^tensor: shapes differ: got {re.escape(str(shape))}, expected \(9, 64\)\.$"
    ):
        compare(torch.zeros(shape), drawn(9, 64), torch.float32)


def test_a_mismatch_says_row_error_and_allowed_error() -> None:
    """By hand: the reference is exact, so two rows of norm 5 leave the floor of a row of norm 5."""
    truth = torch.tensor([[3.0, 4.0], [4.0, 3.0]], dtype=torch.float64)
    wrong = truth + torch.tensor([[0.0, 0.0], [0.3, 0.4]])
    found = mismatch("logits", wrong, truth, truth, dtype=torch.float32, error_factor=2, reduction_length=16)
    assert found is not None
    # The roundoff of float32 is 2^-24; once for the result, and the square root of 16 times for the sum.
    assert found.allowed == pytest.approx(5 * (2**-24 + 4 * 2**-24))
    assert found.error == pytest.approx(0.5)
    assert str(found) == "logits, row 1: error 5.000e-01, allowed 1.490e-06"


def test_a_batch_may_be_as_many_times_off_as_the_error_factor() -> None:
    truth = torch.ones(3, 4, dtype=torch.float64)
    reference = truth + 0.01
    for factor, error, passes in ((2, 0.0199, True), (2, 0.0201, False), (3, 0.0299, True), (3, 0.0301, False)):
        found = mismatch(
            "tensor", truth - error, truth, reference, dtype=torch.float32, error_factor=factor, reduction_length=1
        )
        assert (found is None) == passes, (factor, error)


@every_dtype
def test_a_rounding_floor_grows_with_the_reduction_length(dtype: torch.dtype) -> None:
    floors = [rounding_floor(dtype, length) for length in (1, 16, 1024, 2**20)]
    assert floors == sorted(set(floors))
    assert floors[0] > torch.finfo(dtype).eps / 2


def test_a_rounding_floor_shrinks_with_the_roundoff_of_the_dtype() -> None:
    assert [torch.finfo(dtype).eps for dtype in DTYPES] == sorted(torch.finfo(dtype).eps for dtype in DTYPES)
    for length in (1, 1024):
        floors = [rounding_floor(dtype, length) for dtype in DTYPES]
        assert floors == sorted(set(floors))


@every_dtype
def test_a_rounding_floor_stays_below_2_percent(dtype: torch.dtype) -> None:
    assert rounding_floor(dtype, reduction_length(CONFIG)) < 0.01


def outcome_of(dtype: torch.dtype = torch.float64) -> Outcome:
    """Return what a step might give: logits of three sequences, the loss and two gradients, rounded to `dtype`."""
    return Outcome(
        logits=[drawn(length, 64, seed=length).to(dtype) for length in LENGTHS],
        loss=torch.tensor(4.25, dtype=dtype),
        gradients={"weight": drawn(5, 64, seed=8).to(dtype), "bias": drawn(64, seed=9).to(dtype)},
    )


def found_in(actual: Outcome, dtype: torch.dtype = torch.float32) -> list[Mismatch]:
    return differences(actual, outcome_of(), outcome_of(dtype), dtype=dtype, error_factor=2, config=CONFIG)


@every_dtype
def test_a_step_equal_to_the_truth_passes(dtype: torch.dtype) -> None:
    assert found_in(outcome_of(), dtype) == []
    assert found_in(outcome_of(dtype), dtype) == []


@every_dtype
def test_a_step_with_one_wrong_token_names_its_sequence_and_position(dtype: torch.dtype) -> None:
    for sequence, length in enumerate(LENGTHS):
        for position in range(length):
            wrong = outcome_of(dtype)
            wrong.logits[sequence][position] *= 1.03
            (found,) = found_in(wrong, dtype)
            assert found.name == f"logits of sequence {sequence}, position {position}"


@every_dtype
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("loss", lambda outcome: replace(outcome, loss=outcome.loss * 1.2)),
        ("loss", lambda outcome: replace(outcome, loss=outcome.loss * 0.8)),
        ("loss", lambda outcome: replace(outcome, loss=outcome.loss * torch.nan)),
        (
            "gradient of weight",
            lambda outcome: replace(
                outcome, gradients={**outcome.gradients, "weight": outcome.gradients["weight"] * 1.03}
            ),
        ),
        (
            "gradient of bias",
            lambda outcome: replace(outcome, gradients={**outcome.gradients, "bias": outcome.gradients["bias"] * 0}),
        ),
    ],
)
def test_a_step_with_one_wrong_tensor_names_it(
    dtype: torch.dtype, name: str, change: Callable[[Outcome], Outcome]
) -> None:
    (found,) = found_in(change(outcome_of(dtype)), dtype)
    assert found.name == name


def test_a_step_with_several_wrong_tensors_names_the_worst_first() -> None:
    wrong = outcome_of()
    wrong.logits[1][2] *= 1.1
    wrong.gradients["weight"][0] *= 3
    wrong.gradients["bias"] *= 1.5
    assert [found.name for found in found_in(wrong)] == [
        "gradient of weight",
        "gradient of bias",
        "logits of sequence 1, position 2",
    ]


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_a_step_without_one_gradient_is_refused(missing: str) -> None:
    right = outcome_of()
    fewer = {name: value for name, value in right.gradients.items() if name != missing}
    more = {**right.gradients, "extra": torch.zeros(3)}
    for gradients, name in ((fewer, missing), (more, "extra")):
        with pytest.raises(ValueError, match=rf"^gradients differ in name: .*'{name}'"):
            found_in(replace(right, gradients=gradients))


def test_a_step_without_one_sequence_is_refused() -> None:
    right = outcome_of()
    with pytest.raises(ValueError, match=r"^expected 3 sequences; got 2\.$"):
        found_in(replace(right, logits=right.logits[:2]))


def test_a_step_cut_at_other_boundaries_is_refused() -> None:
    right = outcome_of()
    moved = list(torch.cat(right.logits).split((3, 3, 3)))
    with pytest.raises(ValueError, match=r"^logits of sequence 0: got \(3, 64\), expected \(2, 64\)\.$"):
        found_in(replace(right, logits=moved))


def test_a_reference_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^tensor: shapes differ: got \(1, 64\), expected \(9, 64\)\.$"):
        compare(drawn(9, 64), drawn(9, 64), torch.float32, drawn(1, 64))
