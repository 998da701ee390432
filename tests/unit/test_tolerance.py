"""A batch that is wrong is seen to be: the comparison passes the truth, and fails on one bad row."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from collators import collator_named
from model.attention import Backend, backend_named, default_device
from model.attention.oracle import RESULTS
from model.decoder import DecoderConfig
from model.equivalence import differences, reduction_length
from model.reference import Outcome
from model.tolerance import Mismatch, mismatch, rounding_floor
from tests.correctness.attention_bench import AttentionInput, AttentionRun, expected_of, mismatches
from tests.correctness.attention_bench import reduction_length as reduction_length_of_attention

pytestmark = pytest.mark.unit

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
        [truth.to(dtype) if reference is None else reference],
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
# Its last row has two thirds of the norm of the largest: 2 percent of its own are 0.125, where 0.127 are allowed.
@example(seed=90591445)
def test_a_batch_with_any_row_moved_by_2_percent_fails(dtype: torch.dtype, seed: int) -> None:
    """Percent of the largest row: all rows of a tensor share one bound. Rounding moves a row by half a unit in the last
    place at most, 2^-8 of its norm in bfloat16: the bound is 4 times that and once more as the floor, 1.96 percent."""
    truth = drawn(9, 64, seed=seed)
    norms = truth.norm(dim=1)
    for row in range(len(truth)):
        # In float64: rounded, the row might end nearer.
        wrong = truth.to(dtype).to(torch.float64, copy=True)
        wrong[row] = truth[row] * (1 + 0.02 * norms.max() / norms[row])
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
    found = mismatch("logits", wrong, truth, [truth], dtype=torch.float32, error_factor=2, reduction_length=16)
    assert found is not None
    # The roundoff of float32 is 2^-24; once for the result, and the square root of 16 times for the sum.
    assert found.allowed == pytest.approx(5 * (2**-24 + 4 * 2**-24))
    assert found.error == pytest.approx(0.5)
    assert str(found) == "logits, row 1: error 5.000e-01, allowed 1.490e-06"


def test_a_batch_may_be_twice_as_many_times_off_as_the_error_factor_where_noise_is_not_known() -> None:
    truth = torch.ones(3, 4, dtype=torch.float64)
    reference = truth + 0.01
    for factor, error, passes in ((2, 0.0399, True), (2, 0.0401, False), (3, 0.0599, True), (3, 0.0601, False)):
        found = mismatch(
            "tensor", truth - error, truth, [reference], dtype=torch.float32, error_factor=factor, reduction_length=1
        )
        assert (found is None) == passes, (factor, error)


@pytest.mark.parametrize(
    ("scale", "most"), [(None, {1: 8, 3: 16}), (torch.ones(3), {1: 4, 3: 8})], ids=["noise not known", "noise known"]
)
def test_a_batch_may_be_as_far_off_as_the_worst_of_several_roundings_allows(
    scale: Tensor | None, most: dict[int, int]
) -> None:
    """By hand, in units of `off`: rows have a norm of 2, and the floor is worth 4 of it there, or 2 at a scale of 1."""
    truth = torch.ones(3, 4, dtype=torch.float64)
    off = torch.finfo(torch.float32).eps / 8
    for known, times in product(((1, 1, 1), (1, 3, 2)), (3.9, 4.1, 7.9, 8.1, 15.9, 16.1)):
        found = mismatch(
            "tensor",
            truth - times * off,
            truth,
            [truth + each * off for each in known],
            dtype=torch.float32,
            error_factor=2,
            reduction_length=0,
            scale=scale,
        )
        assert (found is None) == (times <= most[max(known)]), (known, times)


def test_a_batch_may_be_as_many_times_off_as_the_error_factor_where_noise_is_known() -> None:
    truth = torch.ones(3, 4, dtype=torch.float64)
    noise = torch.tensor([2.0, 1.0, 4.0])
    # Half a roundoff in units of the noise: the reference may be off by that.
    off = torch.finfo(torch.float32).eps / 4 / 2
    reference = truth + (off * noise)[:, None]
    for factor, times in ((2, 3.9), (2, 4.1), (3, 4.9), (3, 5.1)):
        found = mismatch(
            "tensor",
            truth - (times * off * noise)[:, None],
            truth,
            [reference],
            dtype=torch.float32,
            error_factor=factor,
            reduction_length=0,
            scale=noise,
        )
        # Rows of four elements: the reference is off by twice `off`, and the floor is worth two of that.
        assert (found is None) == (times <= factor + 2), (factor, times)


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
    return differences(actual, outcome_of(), [outcome_of(dtype)], dtype=dtype, error_factor=2, config=CONFIG)


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
    # Only a tensor of several rows has a worst one.
    assert (found.row is None) == (name != "gradient of weight")


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


def test_a_step_with_several_wrong_tensors_orders_them_by_how_far_each_passes_its_own_bound() -> None:
    """Not by size: a gradient of large numbers may be far off by little."""
    floor = rounding_floor(torch.float32, reduction_length(CONFIG))
    # Times the bound that a tensor is off, and its size.
    off = {"small": (2.2, 1.0), "large": (2.7, 1e6), "tiny": (5.0, 1e-6)}
    right = {name: torch.tensor([size, 0.0], dtype=torch.float64) for name, (_, size) in off.items()}
    wrong = {name: right[name] * (1 + times * floor) for name, (times, _) in off.items()}
    nothing = torch.zeros(2, dtype=torch.float64)
    truth = replace(outcome_of(), gradients={**right, "zero": nothing})
    actual = replace(truth, gradients={**wrong, "zero": nothing + 10 * floor * 1e6})
    found = differences(actual, truth, [truth], dtype=torch.float32, error_factor=2, config=CONFIG)
    assert [mismatch.name.removeprefix("gradient of ") for mismatch in found] == ["zero", "tiny", "large", "small"]


@pytest.mark.parametrize(("times", "found"), [(0.9, []), (1.1, ["gradient of queries"])])
def test_a_gradient_of_zeros_may_be_off_by_the_rounding_of_the_terms_that_cancel(
    times: float, found: list[str]
) -> None:
    """The gradient of queries is zero where every sequence has one token; a kernel leaves rounding there."""
    floor = rounding_floor(torch.float32, reduction_length(CONFIG))
    right = {"queries": torch.zeros(1, dtype=torch.float64), "values": torch.tensor([3.0], dtype=torch.float64)}
    truth = replace(outcome_of(), gradients=right)
    actual = replace(truth, gradients={**right, "queries": right["queries"] + times * 3 * floor})
    wrong = differences(actual, truth, [truth], dtype=torch.float32, error_factor=2, config=CONFIG)
    assert [mismatch.name for mismatch in wrong] == found


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_a_step_without_one_gradient_is_refused(missing: str) -> None:
    right = outcome_of()
    fewer = {name: value for name, value in right.gradients.items() if name != missing}
    more = {**right.gradients, "extra": torch.zeros(3)}
    for gradients, name in ((fewer, missing), (more, "extra")):
        with pytest.raises(ValueError, match=rf"^gradients differ in name: .*'{name}'"):
            found_in(replace(right, gradients=gradients))


def test_a_step_of_fewer_or_more_sequences_is_refused() -> None:
    right = outcome_of()
    for logits in (right.logits[:2], [*right.logits, right.logits[0]]):
        with pytest.raises(ValueError, match=rf"^expected 3 sequences; got {len(logits)}\.$"):
            found_in(replace(right, logits=logits))


@pytest.mark.parametrize("first", [1, 3])
def test_a_step_cut_at_other_boundaries_is_refused(first: int) -> None:
    right = outcome_of()
    moved = list(torch.cat(right.logits).split((first, 6 - first, 3)))
    with pytest.raises(ValueError, match=rf"^logits of sequence 0: got \({first}, 64\), expected \(2, 64\)\.$"):
        found_in(replace(right, logits=moved))


def test_a_reference_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^tensor: shapes differ: got \(1, 64\), expected \(9, 64\)\.$"):
        compare(drawn(9, 64), drawn(9, 64), torch.float32, drawn(1, 64))


#: Attention of a few sequences, two query heads on each key-value head: the bench's own inputs.
ATTENDED = tuple(
    AttentionInput(lengths, num_heads=4, num_kv_heads=2, head_dim=64, sharpness=sharpness, seed=seed)
    for seed, (lengths, sharpness) in enumerate([((1, 7, 3), None), ((17, 2), 0.5), ((5, 20), 2.0)])
)
every_attended = pytest.mark.parametrize("given_input", ATTENDED, ids=lambda given: str(sum(given.lengths)))


def found_in_attention(
    given_input: AttentionInput, dtype: torch.dtype, results: dict[str, Tensor], *, causal: bool = True
) -> list[Mismatch]:
    """Compare as a cell without a factor or rounding of its own."""
    expected = expected_of(given_input, dtype, causal)
    return mismatches(results, expected, given_input, dtype, Backend.error_factor)


@every_dtype
@every_attended
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_batch_attended_in_another_order_of_summation_passes(
    dtype: torch.dtype, given_input: AttentionInput, causal: bool
) -> None:
    """Kernels that add in tiles, and in the order of the packed row, are not taken for wrong."""
    packed = collator_named("packed")
    for name in ("sdpa_document_mask", "sdpa_loop"):
        backend = backend_named(name)
        given_input = given_input.fitted(backend)
        run = AttentionRun.of(backend, packed, given_input, dtype, causal=causal, mode="train")
        expected = expected_of(given_input, dtype, causal, tuple(backend.rounds.get(default_device(), ())))
        assert not mismatches(run.results(), expected, given_input, dtype, backend.error_factor)
    reference = expected_of(given_input, dtype, causal).reference
    assert not found_in_attention(given_input, dtype, reference, causal=causal)


@every_dtype
@every_attended
def test_a_batch_with_any_row_of_any_head_off_by_2_percent_fails(
    dtype: torch.dtype, given_input: AttentionInput
) -> None:
    """Every row of the output and of dv, and in bfloat16 every row of dq and dk that is 0.4 of its noise or more: in
    others its rounding may be 2 percent of the row. A narrower roundoff leaves fewer out."""
    expected = expected_of(given_input, dtype, True)
    least = 0.4 * torch.finfo(dtype).eps / torch.finfo(torch.bfloat16).eps
    injected = dict.fromkeys(RESULTS, 0)
    for name in RESULTS:
        truth, noise = expected.truth.values[name], expected.truth.noise[name]
        sizes = truth.norm(dim=-1)
        for token, head in product(range(truth.shape[0]), range(truth.shape[1])):
            if name in ("dq", "dk") and sizes[token, head] < least * noise[token, head]:
                continue
            wrong = {key: value.clone() for key, value in expected.reference.items()}
            wrong[name][token, head] = (truth[token, head] * 1.02).to(dtype)
            found = found_in_attention(given_input, dtype, wrong)
            assert [mismatch.name.split(" of ")[0] for mismatch in found] == [name], (name, token, head)
            injected[name] += 1
    for name, count in injected.items():
        assert count > expected.truth.noise[name].numel() / 8, (name, count)


@every_dtype
def test_a_reference_that_is_wrong_excuses_nothing(dtype: torch.dtype) -> None:
    """Its error would allow any: the truth itself does not pass beside it."""
    expected = expected_of(ATTENDED[0], dtype, True)
    broken = {name: value * 1.1 for name, value in expected.reference.items()}
    right = {name: value.to(dtype) for name, value in expected.truth.values.items()}
    length = reduction_length_of_attention(ATTENDED[0])
    for name in RESULTS:
        found = mismatch(
            name,
            right[name],
            expected.truth.values[name],
            [broken[name]],
            dtype=dtype,
            error_factor=2,
            reduction_length=length,
            scale=expected.truth.noise[name],
        )
        assert found is not None
        assert math.isnan(found.allowed)


def test_a_row_is_compared_in_units_of_its_own_scale() -> None:
    """By hand: scales of 1 and 100, a reference off by 1 and 50 of 10^-7: half a unit of the second row, one of the
    first, so that k = 2 allows two units and the floor of either row."""
    truth = torch.zeros(2, 4, dtype=torch.float64)
    reference, scale = truth.clone(), torch.tensor([1.0, 100.0], dtype=torch.float64)
    reference[0, 0], reference[1, 0] = 1e-7, 50e-7
    bound = 2e-7 + 2**-24 + 2**-24

    def off_by(first: float, second: float) -> Mismatch | None:
        wrong = truth.clone()
        wrong[0, 1], wrong[1, 1] = first, second
        return mismatch(
            "dq", wrong, truth, [reference], dtype=torch.float32, error_factor=2, reduction_length=1, scale=scale
        )

    assert off_by(0.99 * bound, 99 * bound) is None
    first, second = off_by(1.01 * bound, 99 * bound), off_by(0.99 * bound, 101 * bound)
    assert first is not None
    assert second is not None
    assert (first.row, second.row) == (0, 1)
    assert (first.allowed, second.allowed) == (pytest.approx(bound), pytest.approx(100 * bound))


def test_a_row_without_noise_may_have_no_error() -> None:
    truth, scale = torch.zeros(2, 4, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    arguments = {"dtype": torch.float32, "error_factor": 2, "reduction_length": 1, "scale": scale}
    assert mismatch("dq", truth, truth, [truth], **arguments) is None
    wrong = truth.clone()
    wrong[0, 0] = 1e-30
    found = mismatch("dq", wrong, truth, [truth], **arguments)
    assert found is not None
    assert found.row == 0


@pytest.mark.parametrize("rows", [1, 3])
def test_a_scale_for_each_row_is_asked_for(rows: int) -> None:
    with pytest.raises(ValueError, match=rf"^dq: 2 rows need as many scales; got {rows}\.$"):
        mismatch(
            "dq",
            torch.zeros(2, 4),
            torch.zeros(2, 4),
            [torch.zeros(2, 4)],
            dtype=torch.float32,
            error_factor=2,
            reduction_length=1,
            scale=torch.ones(rows),
        )
