"""Faults of the gate: what it compares, counts and passes."""

from typing import Any

import pytest

from gate.measure import bench
from tests.meta.faults.fault import Faults, everywhere

GATE = Faults("gate")
plant = GATE.plant

TOO_SLOW = "test_step_verdicts.py::test_the_limit_is_on_all_steps_to_come_and_the_seconds_of_compilation_are_no_step"


@plant(TOO_SLOW)
def compilation_counts_as_a_step(patch: pytest.MonkeyPatch) -> None:
    """The seconds of the first step hold what it compiled: a compiled cell is too slow for its compilation."""
    right = bench.CellBench.first_step_s

    def first_step_s(self: bench.CellBench, *given: Any) -> float:
        before = self.compiler.seconds
        return right(self, *given) + self.compiler.seconds - before

    patch.setattr(bench.CellBench, "first_step_s", first_step_s)


@plant(TOO_SLOW)
def one_step_is_held_to_the_limit(patch: pytest.MonkeyPatch) -> None:
    """A cell is too slow where a single step takes longer than the limit of all of them."""
    right = bench.too_slow
    everywhere(patch, right, lambda step_s, steps, limit_s: right(step_s, 1, limit_s))
