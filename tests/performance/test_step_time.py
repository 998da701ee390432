"""A batch takes so long a step: every cell of the workload, timed once it is shown to be right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from gate.measure.bench import Shared, cell_bench, release_memory, synchronize, too_slow, warm_up
from gate.measure.costs import no_collection
from gate.measure.environment import gpu_state
from model.attention import Device, Mode
from model.attention.backend import first_line
from model.cells import Cell
from model.compilation import fresh_compiler
from tests.selection import required_backends

pytestmark = pytest.mark.performance

#: How often every batch is timed: what holds a step up for a moment is more of a short one.
PASSES: dict[Device, dict[Mode, int]] = {"cuda": {"eval": 3, "train": 1}, "cpu": {"eval": 3, "train": 3}}


class StepClock:
    """A clock that finished steps alone move: pytest-benchmark reads it around each of its rounds.

    On a GPU steps run ahead of the host, so that each has its time only when all have ended. The clock hands these
    times on: a round is a step, and all that pytest-benchmark tells is of the times that the gate compares.
    """

    now_s = 0.0

    @classmethod
    def read(cls) -> float:
        """Return the seconds that steps have taken so far."""
        return cls.now_s

    @classmethod
    def move(cls, step_ms: float) -> None:
        """Let a step have taken so long."""
        cls.now_s += step_ms / 1e3


@pytest.mark.cells
@pytest.mark.benchmark(timer=StepClock.read)
def test_a_batch_is_timed(
    cell: Cell,
    shared: Shared,
    benchmark: BenchmarkFixture,
    record_cell: Callable[[dict[str, Any]], None],
    request: pytest.FixtureRequest,
) -> None:
    info: dict[str, Any] = {"cell": cell.key, "gpu_before": gpu_state()}
    try:
        with fresh_compiler() as compiler:
            bench = cell_bench(shared, cell, compiler)
            wrong = bench.mismatches()
            if wrong:
                record_cell({**info, "verdict": "wrong", "reason": str(wrong[0])})
                pytest.fail(f"{cell.id} is not timed: its first batch differs from the reference: {wrong[0]}")
            release_memory(shared.device)
            warming = warm_up(bench.batches, cell)
            order = [*range(len(bench.batches))] * PASSES[shared.device][cell.mode]
            first_s, limit_s = bench.first_step_s(warming[0]), request.config.getoption("cell_seconds")
            if slow := too_slow(first_s, len(warming) + len(order), limit_s):
                record_cell({**info, "verdict": "too slow", "reason": slow})
                if cell.backend.name in required_backends(request.config):
                    pytest.fail(f"{cell.id} is too slow: {slow}")
                pytest.skip(f"too slow: {slow}")
            for batch in warming:
                bench.step(batch)
            synchronize(shared.device)
            with no_collection():
                samples = bench.timed(order)
            # Before the device cools down: clocks are those under load.
            info["gpu_after"] = gpu_state()
            times = iter(samples.times_ms)
            benchmark.pedantic(StepClock.move, setup=lambda: ((next(times),), {}), rounds=len(order))
            info |= {"verdict": "timed", "prepare_ms": bench.prepare_ms(), **bench.rates(samples, order)}
            if not request.config.getoption("no_exact_costs"):
                info |= bench.exact_costs(kernels=request.config.getoption("profile_kernels"))
            benchmark.extra_info.update(info)
    except torch.OutOfMemoryError as error:
        record_cell({**info, "verdict": "out of memory", "reason": first_line(error)})
        if cell.backend.name in required_backends(request.config):
            raise
        pytest.skip(f"out of memory: {first_line(error)}")
    except Exception as error:
        record_cell({**info, "verdict": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"})
        raise
    finally:
        release_memory(shared.device)
