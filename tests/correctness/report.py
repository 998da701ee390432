"""What a red test prints: one block, whose first line names the cell, the tensor, its error, and how often it failed.

Hypothesis calls a test many times. `Hunt` stands between the two: it repeats the first batch that fails, ends the
search for a smaller one early, and keeps what the report says of the smallest that failed.
"""

import functools
import math
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis.errors import HypothesisException
from torch import Tensor

from collators import Example
from model.tolerance import Mismatch
from tests.correctness.attention_bench import AttentionInput
from tests.correctness.wrong import Wrong
from tests.known_failures import KnownFailure

#: How often the first batch that fails is run in all: what does not fail each time does not repeat.
RUNS = 5

#: A batch of so few tokens need not get smaller, and after so many seconds the smallest found so far will do.
SMALL_TOKENS = 8
SHRINK_SECONDS = 10.0

#: How many tensors, and how many frames of an error that is no assertion, a report names.
SHOWN = 6


@dataclass(frozen=True)
class Failure:
    """One batch that failed: what the test was called with, and what each run of it raised, None where it passed."""

    given: Mapping[str, Any]
    runs: tuple[BaseException | None, ...]

    @property
    def errors(self) -> list[BaseException]:
        """What the runs raised."""
        return [error for error in self.runs if error is not None]

    @property
    def repeats(self) -> bool:
        """Whether every run failed in the same way."""
        return None not in self.runs and len({fingerprint(error) for error in self.errors}) == 1

    @property
    def tokens(self) -> int:
        """Tokens of the batch; 0 where the test draws none."""
        return sum(sum(lengths_of(value) or ()) for value in self.given.values())


class Found(BaseException):
    """Ends Hypothesis' search: it catches no such exception, and so looks for no smaller batch."""


class Red(pytest.fail.Exception):
    """What pytest is given in place of `error`: it prints the block alone."""

    def __init__(self, block: str, error: BaseException) -> None:
        super().__init__(block, pytrace=False)
        self.error = error


def fingerprint(error: BaseException) -> object:
    """Return what is the same when one error repeats."""
    if isinstance(error, Wrong) and error.found:
        return tuple((found.name, found.row, found.error) for found in error.found)
    # What pytest adds to an assertion, in lines of its own, may hold addresses, and so may the line itself.
    return type(error), re.sub(r"\b0x[0-9a-fA-F]+", "0x", first_line(error))


def lengths_of(value: Any) -> tuple[int, ...] | None:
    """Return the lengths of a drawn batch, None where `value` is none."""
    if isinstance(value, AttentionInput):
        return value.lengths
    if isinstance(value, list) and value and all(isinstance(each, Example) for each in value):
        return tuple(example.input_ids.numel() for example in value)
    return None


def first_line(error: BaseException) -> str:
    """Return what `error` says in a line; an error that is no assertion with its type."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = lines[0].strip()
    return said if isinstance(error, AssertionError | pytest.fail.Exception) else f"{type(error).__name__}: {said}"


def frames(error: BaseException) -> list[str]:
    """Return where an error that is no assertion was raised, the innermost last."""
    if isinstance(error, AssertionError | pytest.fail.Exception):
        return []
    stack = traceback.extract_tb(error.__traceback__)[-SHOWN:]
    return [f"at {frame.filename}:{frame.lineno} in {frame.name}" for frame in stack]


def drawn(given: Mapping[str, Any], on: str = "") -> list[str]:
    """Return the batch in a line, that of `on` where a test made it of what was drawn, and all else in another."""
    lines, others = [f"on {on}"] if on else [], []
    for name, value in given.items():
        lengths = lengths_of(value)
        if isinstance(value, AttentionInput):
            lines += [] if on else [f"on {value}"]
        elif lengths is not None:
            lines.append(f"on lengths {list(lengths)}")
        elif isinstance(value, bool | int | float | str | list | set | tuple):
            others.append(f"{name}={value}")
    return [*lines, *([f"drawn: {', '.join(others)}"] if others else [])]


def block(label: str, failure: Failure, again: str) -> str:
    """Return the report of `failure`, the worst tensor first."""
    error = failure.errors[0]
    found = error.found if isinstance(error, Wrong) else ()
    head = str(found[0]) if found else first_line(error)
    runs = f"; failed {len(failure.errors)} of {len(failure.runs)} runs" if len(failure.runs) > 1 else ""
    lines = [f"{label}: {head}{runs}"]
    if len(failure.runs) > 1 and not failure.repeats:
        lines.append(
            "it does not repeat: a kernel gives other numbers in each run, or reads memory that it must not read"
        )
    if isinstance(error, Wrong) and found and error.what:
        lines.append(error.what)
    lines += drawn(failure.given, error.on if isinstance(error, Wrong) else "")
    lines += map(str, found[1:SHOWN])
    if len(found) > SHOWN:
        lines.append(f"... and {len(found) - SHOWN} tensors more")
    return "\n  ".join([*lines, *frames(error), f"again: {again}"])


@dataclass
class Hunt:
    """What one test has met so far: its smallest batch that failed, and those that failed in a known way.

    `sometimes` are known failures that come and go (tests/known_failures.py).
    """

    sometimes: Sequence[KnownFailure] = ()
    failure: Failure | None = None
    known: list[tuple[KnownFailure, Failure]] = field(default_factory=list)
    until: float = math.inf
    again: Callable[[], BaseException | None] = field(default=lambda: None)

    def guarded(self, test: Callable[..., None]) -> Callable[..., None]:
        """Return `test` as Hypothesis is to call it: the same to look at, so that it draws the same examples."""

        @functools.wraps(test)
        def once(*args: Any, **kwargs: Any) -> None:
            if time.monotonic() > self.until:
                raise Found
            if error := raised(test, args, kwargs):
                self._met(error, kwargs, lambda: raised(test, args, kwargs))

        return once

    def _met(self, error: BaseException, given: Mapping[str, Any], again: Callable[[], BaseException | None]) -> None:
        failure = Failure(given, (error,))
        if self.failure is None:
            failure = repeated(failure, again)
            if known := next((each for each in self.sometimes if excused(failure, each)), None):
                self.known.append((known, failure))
                return
            self.until = time.monotonic() + SHRINK_SECONDS
        elif failure.tokens > self.failure.tokens:
            raise error
        self.failure, self.again = failure, again
        if failure.tokens <= SMALL_TOKENS or (len(failure.runs) > 1 and not failure.repeats):
            raise Found from error
        raise error

    def smallest(self) -> Failure | None:
        """Return the smallest batch that failed, run as often as the first; None where none did."""
        if self.failure is not None and len(self.failure.runs) == 1:
            self.failure = repeated(self.failure, self.again)
        return self.failure


def repeated(failure: Failure, again: Callable[[], BaseException | None]) -> Failure:
    """Return `failure` with `RUNS` runs of its batch."""
    return Failure(failure.given, (*failure.runs, *(again() for _ in range(RUNS - len(failure.runs)))))


def raised(test: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> BaseException | None:
    """Return what `test` fails with, None where it passes; what Hypothesis or pytest raise on purpose goes through."""
    try:
        test(*args, **kwargs)
    except HypothesisException:
        raise
    except (Exception, pytest.fail.Exception) as error:
        return error
    return None


def excused(failure: Failure, known: KnownFailure) -> bool:
    """Tell whether `failure` is one that comes and goes in the tensors of `known`, and in no others."""
    wrong = [error for error in failure.errors if isinstance(error, Wrong) and error.found]
    return (
        len(wrong) == len(failure.errors)
        and not failure.repeats
        and all(known.fluctuates(found.name) for error in wrong for found in error.found)
    )


def assert_same(name: str, was: Tensor, now: Tensor) -> None:
    """Fail where two tensors differ in any bit."""
    if was.dtype != now.dtype:
        raise Wrong(f"{name} must be {was.dtype}; got {now.dtype}")
    if not torch.equal(was, now):
        error = float((was.double() - now.double()).abs().max()) if was.shape == now.shape else float("inf")
        # A name that goes on in "must change" may end in a comma.
        raise Wrong("must be bitwise equal", [Mismatch(name.rstrip(","), None, error, 0.0)])


def assert_changed(name: str, was: Tensor, now: Tensor) -> None:
    """Fail where two tensors do not differ."""
    if torch.equal(was, now):
        raise Wrong(f"{name} must change, but does not")
