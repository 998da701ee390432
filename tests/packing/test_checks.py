"""The checks tell a family that computes each sequence alone from one that does not: injected faults turn them red."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import nn

from model.huggingface.families import CannotBuild, Family, build, family_named
from model.huggingface.implementations import Implementation, implementation_named, implementations
from model.huggingface.inputs import Way
from tests.packing import checks
from tests.packing.checks import Bench, Errors, Outcome, bench_of, check, check_way, errors_of, fetched

pytestmark = pytest.mark.packing

ROW = Way("flattened")


@cache
def bench(name: str, dtype: torch.dtype = torch.float32) -> Bench:
    return bench_of(family_named(name), torch.device("cpu"), dtype)


@pytest.fixture(autouse=True, scope="module")
def truth_before_faults() -> None:
    """Compute what GPT-2 is compared with before a test breaks transformers, whichever comes first in this process."""
    bench("gpt2")


def model_of(name: str) -> nn.Module:
    return build(family_named(name), "eager")


def test_a_row_is_right_and_far_from_the_limit() -> None:
    found = check_way(bench("gpt2"), model_of("gpt2"), ROW)
    assert found.state == "right"
    assert found.times < 10
    assert found.mixed == 0


def test_sequences_that_see_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import masking_utils

    if not hasattr(masking_utils, "find_packed_sequence_indices"):
        pytest.skip("this transformers looks for packed rows elsewhere")
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    found = check_way(bench("gpt2"), model_of("gpt2"), ROW)
    assert found.state == "wrong"
    assert found.mixed > 0.01
    assert found.times > 10_000


def test_wrong_positions_are_found_and_are_no_leak() -> None:
    found = check_way(bench("gpt2"), model_of("gpt2"), Way("left", positions=False, mask=True))
    assert found.state == "wrong"
    assert found.mixed == 0


def test_one_wrong_gradient_is_found() -> None:
    model = model_of("gpt2")
    weight = dict(model.named_parameters())["transformer.h.1.mlp.c_fc.bias"]
    weight.register_hook(lambda gradient: 1.01 * gradient)
    found = check_way(bench("gpt2"), model, ROW)
    assert found.state == "wrong"
    assert found.errors is not None
    assert found.errors.gradients == pytest.approx(0.01, rel=0.01)
    assert max(found.errors.logits, found.errors.loss) < 1e-5


def test_a_wrong_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    right: Callable[..., Any] = model.loss_function
    monkeypatch.setattr(type(model), "loss_function", lambda *args, **kwargs: 1.001 * right(*args[1:], **kwargs))
    found = check_way(bench("gpt2"), model, ROW)
    assert found.state == "wrong"
    assert found.errors is not None
    assert found.errors.loss == pytest.approx(0.001, rel=0.01)
    assert found.errors.logits < 1e-5


def test_a_refusal_is_no_error_of_the_suite() -> None:
    model = model_of("gpt2")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("sequences\nin one row")

    model.forward = refuse  # type: ignore[assignment]
    found = check_way(bench("gpt2"), model, ROW)
    assert (found.state, found.message) == ("refused", "ValueError: sequences in one row")


def outcome(logits: float, loss: float | None = 1.0, **gradients: float) -> Outcome:
    return Outcome(
        [torch.full((2, 2), logits, dtype=torch.float64)],
        loss,
        {name: torch.full((2,), value, dtype=torch.float64) for name, value in gradients.items()},
    )


@pytest.mark.parametrize(
    ("actual", "which"),
    [
        (outcome(float("nan"), w=1.0), "logits"),
        (outcome(1.0, float("nan"), w=1.0), "loss"),
        (outcome(1.0, None, w=1.0), "loss"),
        (outcome(1.0, w=float("nan")), "gradients"),
    ],
)
def test_what_is_no_number_is_infinitely_far_off(actual: Outcome, which: str) -> None:
    assert getattr(errors_of(actual, outcome(1.0, w=1.0)), which) == float("inf")


@pytest.mark.parametrize("actual", [outcome(1.0), outcome(1.0, w=1.0, more=1.0)])
def test_a_gradient_that_is_missing_or_too_many_counts_in_full(actual: Outcome) -> None:
    assert errors_of(actual, outcome(1.0, w=1.0)).gradients >= 1


def test_what_is_equal_has_no_error() -> None:
    found = errors_of(outcome(1.0, w=2.0), outcome(1.0, w=2.0))
    assert (found, found.worst) == (Errors(0.0, 0.0, 0.0), "")


def test_the_parameter_whose_gradient_is_furthest_off_is_named() -> None:
    assert errors_of(outcome(1.0, v=2.1, w=2.0, x=1.9), outcome(1.0, v=2.0, w=1.0, x=2.0)).worst == "w"


def test_tensors_come_to_the_cpu_as_they_were() -> None:
    given = [torch.randn(2, 3).bfloat16(), torch.randn(3, 2).t(), torch.tensor(1.5), torch.empty(0, 4)]
    for got, wanted in zip(fetched(given), given, strict=True):
        assert torch.equal(got, wanted.double())


def test_the_position_that_a_family_counts_from_is_found() -> None:
    assert (bench("gpt2").start, bench("roberta").start) == (0, 1)


def test_sixteen_bits_still_tell_a_leak_from_rounding() -> None:
    model = model_of("gpt2").to(torch.bfloat16)
    states = [check_way(bench("gpt2", torch.bfloat16), model, way).state for way in (ROW, Way("flattened", mask=True))]
    assert states == ["right", "wrong"]


def test_a_projects_backend_is_checked_through_transformers_interface() -> None:
    backend = implementation_named("sdpa_document_mask", "cpu")
    found = check(bench("llama"), backend, [Way("flattened", mask=True, cache=True)]).found
    assert [each.state for each in found.values()] == ["right"], found


def test_an_implementation_that_a_family_has_not_is_a_refusal() -> None:
    found = check(bench("mamba"), implementation_named("sdpa", "cpu"))
    assert found.found == {}
    assert "scaled_dot_product_attention" in found.refusal


def test_what_cannot_be_built_says_why() -> None:
    with pytest.raises(CannotBuild, match=r"no-such-thing|NoSuchModel"):
        bench_of(Family("no-such-thing", "NoSuchModel", "decoder"), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("unstable", [(torch.bfloat16,), (torch.float32, torch.bfloat16)], ids=["one", "both"])
def test_a_dtype_in_which_nothing_can_be_compared_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, unstable: tuple[torch.dtype, ...]
) -> None:
    own = bench_of

    def unstable_in(family: Family, device: torch.device, dtype: torch.dtype) -> Bench:
        if dtype in unstable:
            raise CannotBuild(f"rounding to {dtype} alone moves its logits")
        return own(family, device, dtype)

    monkeypatch.setattr(checks, "bench_of", unstable_in)
    eager = implementation_named("eager", "cpu")
    both = (eager, replace(eager, name="narrow", dtype=torch.bfloat16))
    asked = partial(checks.checked_with, family_named("gpt2"), both, torch.device("cpu"))
    if len(unstable) == 2:
        with pytest.raises(CannotBuild, match=r"^rounding to torch\.float32 alone"):
            asked()
        return
    found = asked()
    assert found["eager"].found[ROW].state == "right"
    assert found["narrow"].refusal == "rounding to torch.bfloat16 alone moves its logits"


def test_an_unknown_implementation_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="choose one of: eager, sdpa, "):
        implementation_named("sdpa_fast", "cpu")


def test_every_packed_backend_is_an_implementation() -> None:
    found: list[Implementation] = list(implementations("cuda"))
    assert {"eager", "sdpa", "flex_attention", "flash_attention_2", "torch_varlen", "xformers_auto"} <= {
        each.name for each in found
    }
