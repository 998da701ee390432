"""The report of a red test by hand: what repeats, what is excused, which batch is kept, and what the block says."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from collators import Example
from model.tolerance import Mismatch
from tests.correctness.attention_bench import SHOWN_LENGTHS, AttentionInput
from tests.correctness.conftest import again
from tests.correctness.report import (
    RUNS,
    SHOWN,
    SMALL_TOKENS,
    Failure,
    Found,
    Hunt,
    assert_changed,
    assert_same,
    block,
    excused,
    fingerprint,
)
from tests.correctness.wrong import Wrong
from tests.known_failures import KnownFailure
from tests.selection import EVERY

pytestmark = pytest.mark.unit

KNOWN = KnownFailure(
    tests=("test_one",),
    device="cpu",
    matches={},
    package="torch",
    versions=">=2.0",
    reason="broken",
    reproduction="broken.py",
    tensors=r"gradient of \w+\.bias",
)


def wrong(*names: str, error: float = 2.0, on: str = "") -> Wrong:
    return Wrong("differs from the reference", [Mismatch(name, None, error, 1.0) for name in names], on=on)


def batch(*lengths: int) -> list[Example]:
    return [Example(torch.ones(length), torch.ones(length)) for length in lengths]


def test_a_block_says_what_is_worst_how_often_on_what_and_how_to_run_it_again() -> None:
    """In this order; the tensors in that in which they were found, the worst first."""
    names = [f"tensor {number}" for number in range(SHOWN + 3)]
    failure = Failure({"batch": batch(2, 3), "at": 1}, (wrong(*names), None, wrong(*names), None))
    assert block("a-cell", failure, "pytest this").splitlines() == [
        "a-cell: tensor 0: error 2.000e+00, allowed 1.000e+00; failed 2 of 4 runs",
        "  it does not repeat: a kernel gives other numbers in each run, or reads memory that it must not read",
        "  differs from the reference",
        "  on lengths [2, 3]",
        "  drawn: at=1",
        *[f"  {name}: error 2.000e+00, allowed 1.000e+00" for name in names[1:SHOWN]],
        "  ... and 3 tensors more",
        "  again: pytest this",
    ]


def test_a_block_of_a_test_that_draws_nothing_says_on_what_and_no_runs() -> None:
    lines = block("a-cell", Failure({}, (wrong("out", on="lengths [3, 1], window=4"),)), "pytest this").splitlines()
    assert lines == [
        "a-cell: out: error 2.000e+00, allowed 1.000e+00",
        "  differs from the reference",
        "  on lengths [3, 1], window=4",
        "  again: pytest this",
    ]


def test_a_block_names_the_batch_that_was_computed_and_not_what_it_was_made_of() -> None:
    failure = Failure({"given": AttentionInput((1,)), "longest": 259}, (wrong("out", on="lengths [1, 259]"),))
    lines = block("a-cell", failure, "pytest this").splitlines()
    assert lines[2:4] == ["  on lengths [1, 259]", "  drawn: longest=259"]


def test_a_block_of_an_error_that_is_no_assertion_says_its_type_and_where() -> None:
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise RuntimeError("\nthe kernel gave up\nfor reasons that take\nmany lines")

    with pytest.raises(RuntimeError) as caught:
        deep(50)
    lines = block("a-cell", Failure({"given": AttentionInput((5,))}, (caught.value,)), "pytest this").splitlines()
    assert lines[:2] == ["a-cell: RuntimeError: the kernel gave up", "  on lengths [5]"]
    assert len(lines) == 3 + SHOWN
    assert f"{__file__}:" in lines[-2]
    assert lines[-2].endswith(" in deep")


def test_an_input_of_attention_is_its_lengths_and_what_is_unusual() -> None:
    assert str(AttentionInput((3, 1))) == "lengths [3, 1]"
    assert str(AttentionInput((3,), form="fused", window=4)) == "lengths [3], form=fused, window=4"
    many = str(AttentionInput((1,) * (SHOWN_LENGTHS + 7)))
    assert many.endswith("1 and 7 more]")
    assert len(many) < 100


SAME = [wrong("weight"), wrong("weight")]


@pytest.mark.parametrize(
    ("runs", "repeats"),
    [
        (SAME, True),
        ([wrong("weight"), None], False),
        ([wrong("weight"), wrong("bias")], False),
        ([wrong("weight"), wrong("weight", error=2.5)], False),
        ([RuntimeError("one"), RuntimeError("one")], True),
        ([RuntimeError("one"), RuntimeError("other")], False),
        ([RuntimeError("one"), ValueError("one")], False),
        ([AssertionError("at 0x7f01"), AssertionError("at 0x7f02")], True),
        ([AssertionError("none\nassert <x at 0x1>"), AssertionError("none\nassert <y at 0x2>")], True),
    ],
)
def test_a_failure_repeats_where_every_run_fails_alike(runs: list[Any], repeats: bool) -> None:
    assert Failure({}, tuple(runs)).repeats == repeats
    assert (fingerprint(runs[0]) == (runs[1] and fingerprint(runs[1]))) == repeats


@pytest.mark.parametrize(
    ("runs", "excuse"),
    [
        ([wrong("gradient of a.bias"), None], True),
        ([wrong("gradient of a.bias", "gradient of b.bias"), None], True),
        ([wrong("gradient of a.bias"), wrong("gradient of a.bias", error=3.0)], True),
        ([wrong("gradient of a.bias"), wrong("gradient of a.bias")], False),
        ([wrong("gradient of a.weight"), None], False),
        ([wrong("gradient of a.bias", "logits"), None], False),
        ([wrong("gradient of a.bias"), wrong("logits"), None], False),
        ([wrong("gradient of a.bias"), RuntimeError("no"), None], False),
        ([RuntimeError("gradient of a.bias"), None], False),
        ([AssertionError("gradient of a.bias"), None], False),
        ([Wrong("must change, but does not"), None], False),
    ],
)
def test_what_is_known_excuses_what_comes_and_goes_in_its_own_tensors_alone(runs: list[Any], excuse: bool) -> None:
    failure = Failure({}, tuple(runs))
    assert excused(failure, KNOWN) == excuse
    assert not excused(failure, replace(KNOWN, tensors=""))


def hunted(test: Callable[..., None], *lengths: tuple[int, ...], known: bool = False) -> tuple[Hunt, int]:
    """Return a hunt after a call for each batch, and how often the test was called."""
    calls = 0

    def counted(batch: list[Example]) -> None:
        nonlocal calls
        calls += 1
        test(batch)

    hunt = Hunt([KNOWN] if known else [])
    once = hunt.guarded(counted)
    for each in lengths:
        try:
            once(batch=batch(*each))
        except Found:
            break
        except AssertionError:
            pass
    return hunt, calls


def every_time(name: str = "weight") -> Callable[..., None]:
    def test(batch: list[Example]) -> None:
        raise wrong(name)

    return test


def first_time(name: str = "weight") -> Callable[..., None]:
    seen: list[int] = []

    def test(batch: list[Example]) -> None:
        seen.append(1)
        if len(seen) == 1:
            raise wrong(name)

    return test


def test_the_first_batch_that_fails_is_run_five_times_and_every_failure_counted() -> None:
    for test, failed in ((every_time(), RUNS), (first_time(), 1)):
        hunt, calls = hunted(test, (40,))
        failure = hunt.smallest()
        assert failure is not None
        assert (calls, len(failure.runs), len(failure.errors)) == (RUNS, RUNS, failed) == (5, 5, failed)


def test_the_smallest_batch_that_fails_is_kept_and_run_as_often() -> None:
    hunt, calls = hunted(every_time(), (40,), (20, 9), (50,), (30,))
    failure = hunt.smallest()
    assert failure is not None
    assert failure.tokens == 29
    # Its four other runs, and one of each of the three others.
    assert len(failure.runs) == RUNS
    assert calls == RUNS + 3


def test_a_search_ends_with_a_batch_that_is_small() -> None:
    hunt, calls = hunted(every_time(), (40,), (SMALL_TOKENS,), (30,), (1,))
    failure = hunt.smallest()
    assert failure is not None
    assert failure.tokens == SMALL_TOKENS
    assert calls == RUNS + 1


def test_a_search_ends_where_the_first_batch_does_not_repeat() -> None:
    hunt, calls = hunted(first_time(), (40,), (30,))
    assert calls == RUNS
    assert hunt.failure is not None


def test_a_search_ends_after_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr("tests.correctness.report.time", SimpleNamespace(monotonic=lambda: next(clock)))
    hunt, _ = hunted(every_time(), *[(40 - number,) for number in range(20)])
    assert hunt.failure is not None
    # At 0 it starts, at 7 the first fails: until 17 one more is looked at.
    assert hunt.failure.tokens == 39


def test_a_batch_that_fails_as_known_ends_no_search() -> None:
    hunt, calls = hunted(first_time("gradient of a.bias"), (40,), (30,), known=True)
    assert hunt.smallest() is None
    assert [(known, failure.tokens, len(failure.errors)) for known, failure in hunt.known] == [(KNOWN, 40, 1)]
    assert calls == RUNS + 1


def test_same_is_every_bit() -> None:
    one = torch.ones(3)
    assert_same("it", one, one.clone())
    near = one.clone()
    near[1] = torch.nextafter(one[1], torch.tensor(2.0))
    for other in (near, one.double(), one[:2], one * torch.nan):
        with pytest.raises(Wrong):
            assert_same("it", one, other)
    assert_changed("it", one, near)
    with pytest.raises(Wrong, match=r"^it must change, but does not$"):
        assert_changed("it", one, one.clone())


def item_of(**options: Any) -> Any:
    found = {"compiled": "default", "collator": None, "require": None} | options
    config = SimpleNamespace(getoption=lambda name, default=None: found.get(name, default))
    return SimpleNamespace(nodeid="tests/test_a.py::test_one[a cell]", config=config)


def test_a_command_has_every_option_that_the_batch_depends_on() -> None:
    assert again(item_of()) == "pytest 'tests/test_a.py::test_one[a cell]'"
    options = {
        "compiled": "all",
        "collator": ["pad_left", "packed"],
        "require": "a,b",
        "hypothesis_profile": "dev",
        "hypothesis_seed": "0",
    }
    assert again(item_of(**options)).split(" ")[3:] == [
        "--compiled=all",
        "--collator=pad_left",
        "--collator=packed",
        "--require=a,b",
        "--hypothesis-profile=dev",
        "--hypothesis-seed=0",
    ]
    assert again(item_of(require=EVERY)).endswith(" --require")
