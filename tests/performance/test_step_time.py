"""A batch takes so long a step: every cell of the workload, timed once it is shown to be right."""

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from gate.comparing import ASKED
from gate.measure.bench import Shared, opened, release_memory, settle_allocator
from gate.measure.environment import gpu_state
from gate.measure.ranks import stall_of, timed_on_ranks
from gate.record.cell import NoTime
from model.attention import default_device
from model.cells import Cell
from tests.selection import RankedCell, chosen_workload, required_backends

pytestmark = pytest.mark.performance


@pytest.fixture(scope="module")
def shared(pytestconfig: pytest.Config) -> Iterator[Shared]:
    """Batches, reference outcomes and the matmul rate of this run's workload."""
    settle_allocator()
    yield Shared(chosen_workload(pytestconfig), default_device(), pytestconfig.getoption("steps"))
    # As each cell froze what it found.
    gc.unfreeze()


class StepClock:
    """A clock that finished steps alone move: pytest-benchmark reads it around each of its rounds.

    On a GPU steps run ahead of the host, so that each has its time only when all have ended. The clock hands these
    times on: a round is a step, and all that pytest-benchmark tells is of the times that the gate compares.
    """

    now_s = 0.0

    @classmethod
    def move(cls, step_ms: float) -> None:
        """Let a step have taken so long."""
        cls.now_s += step_ms / 1e3


@pytest.mark.cells
@pytest.mark.benchmark(timer=lambda: StepClock.now_s)
def test_a_batch_is_timed(
    cell: Cell | RankedCell,
    shared: Shared,
    benchmark: BenchmarkFixture,
    record_cell: Callable[[dict[str, Any]], None],
    request: pytest.FixtureRequest,
) -> None:
    config, info = request.config, {"cell": cell.key, "gpu_before": gpu_state()}
    one = cell.cell if isinstance(cell, RankedCell) else cell
    # What holds a step up for a moment is more of a short one.
    passes = 1 if (shared.device, one.mode) == ("cuda", "train") else 3
    costs = {"exact": not config.getoption("no_exact_costs"), "kernels": config.getoption("profile_kernels")}
    try:
        if isinstance(cell, RankedCell):
            info |= on_ranks(cell, config, {"passes": passes, **costs}, info["gpu_before"])
            replay(benchmark, info["device_ms"] or info["wall_ms"])
        else:
            with opened(shared, cell, config.getoption("cell_seconds"), passes) as bench:
                order = [*range(len(bench.batches))] * passes
                samples = bench.timed(order)
                # Before the device cools down: clocks are those under load.
                info["gpu_after"] = gpu_state()
                replay(benchmark, samples.times_ms)
                info |= {**bench.rates(samples, order), **bench.costs(**costs)}
        benchmark.extra_info.update(info, verdict="timed")
    except NoTime as error:
        record_cell({**info, "verdict": error.verdict, "reason": error.reason})
        if error.verdict in ("out of memory", "too slow") and one.backend.attention not in required_backends(config):
            pytest.skip(str(error))
        raise
    finally:
        release_memory(shared.device)


def on_ranks(cell: RankedCell, config: pytest.Config, how: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return what the ranks measured of a cell."""
    hello = config.stash[ASKED]
    plan = {**hello, **how, "cell": cell.cell.id, "how": cell.how, "balanced": cell.balanced}
    found = timed_on_ranks(plan, cell.ranks, stall_s=stall_of(hello["cell_seconds"]))
    # The processes that a rank sees beside itself are the other ranks and this one.
    if found["gpu_after"]:
        found["gpu_after"] |= {"other_processes": before.get("other_processes")}
    return found


def replay(benchmark: BenchmarkFixture, times_ms: Sequence[float]) -> None:
    """Hand step times to pytest-benchmark, each as a round."""
    times = iter(times_ms)
    benchmark.pedantic(StepClock.move, setup=lambda: ((next(times),), {}), rounds=len(times_ms))
