"""A batch takes so long a step: every cell of the workload, timed once it is shown to be right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from collators.batch import Batch
from gate.environment import gpu_state
from model.attention.backend import first_line
from model.cells import Cell
from model.compilation import fresh_compiler
from tests.performance.bench import Shared, cell_bench, release_memory, too_slow, warm_up
from tests.performance.pace import PASSES, pace_of
from tests.selection import required_backends

pytestmark = pytest.mark.performance


@pytest.mark.cells
@pytest.mark.benchmark(disable_gc=True)
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
            timer = bench.timer()
            batches = bench.batches
            warming = warm_up(batches, cell)
            order = [*range(len(batches))] * PASSES[shared.device][cell.mode]
            if slow := too_slow(
                bench.first_step_s(timer, warming[0]),
                len(warming) + len(order),
                request.config.getoption("cell_seconds"),
            ):
                record_cell({**info, "verdict": "too slow", "reason": slow})
                if cell.backend.name in required_backends(request.config):
                    pytest.fail(f"{cell.id} is too slow: {slow}")
                pytest.skip(f"too slow: {slow}")
            for batch in warming:
                timer(batch)
            info["warmup_ms"] = timer.forget().wall_ms
            rounds = iter(order)
            pace = pace_of(shared.device)

            def setup() -> tuple[tuple[Batch], dict[str, Any]]:
                batch = batches[next(rounds)]
                if pace.tick():
                    timer.settle(batch)
                return (batch,), {}

            benchmark.pedantic(timer, setup=setup, rounds=len(order))
            # Behind the last steps, which are still queued where the device is slower than the host.
            control_times = shared.control.queue()
            pace.tick()
            # Before it is idle: clocks are those under load.
            info["gpu_after"] = gpu_state()
            samples, info["control"] = timer.finish(), control_times()
            info |= pace.steps()
            # By the order in which they are timed: on a GPU the first one is the last of the warm-up.
            info["batches"] = order
            costs = bench.costs(samples)
            if not request.config.getoption("no_exact_costs"):
                costs |= bench.exact_costs(timer, kernels=request.config.getoption("profile_kernels"))
            benchmark.extra_info.update(info | {"verdict": "timed"} | costs)
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
