"""A slower cell is laid at the right door: what was planted in times recorded on an H100 is what is named."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gate.cause import Cause, cause, host_bound
from gate.estimates import PACE
from gate.records import cells, load_record

pytestmark = pytest.mark.meta

RECORD = Path(__file__).parents[2] / "baselines" / "NVIDIA-H100-80GB-HBM3" / "0001_article.json"

Cells = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def recorded() -> Cells:
    """The timed cells of a record. Not read at the top: a checkout without baselines is collected all the same."""
    return {cell: info for cell, info in cells(load_record(RECORD)).items() if info["verdict"] == "timed"}


def waiting_for_the_host(recorded: Cells) -> set[str]:
    """Eager NestedTensors read offsets on the host all the time (docs/h100.md)."""
    return {cell for cell in recorded if cell.startswith("sdpa_nested") and "-eager-" in cell}


def with_costs(info):
    """As a record of today: the work of the device in one step beside its times, and its counts."""
    busy = np.median(info["device_ms"]) * (0.3 if host_bound(info) else 0.99)
    return copy.deepcopy(info) | {"device_busy_ms": float(busy), "kernel_launches": 900, "synchronisations": 0}


def another_process(info, seed):
    """The same cell timed in another process: all of it 0.3% off, each step 0.5%."""
    random = np.random.default_rng(seed)
    process = random.normal(0, 0.003)
    again = copy.deepcopy(info)
    for clock in ("device_ms", "wall_ms", "host_ms"):
        again[clock] = [ms * np.exp(process + random.normal(0, 0.005)) for ms in info[clock]]
    return again


def device_slower(info, share):
    """Each step keeps the device longer; a host that waits for it, too."""
    slow = copy.deepcopy(info)
    extra = share * np.median(info["device_ms"])
    waits = np.median(info["host_ms"]) > 0.9 * np.median(info["device_ms"])
    for clock in ("device_ms", "wall_ms", *(("host_ms",) if waits else ())):
        slow[clock] = [ms + extra for ms in info[clock]]
    slow["device_busy_ms"] = info["device_busy_ms"] + extra
    return slow


def host_slower(info, share):
    """The host sleeps in each step until it holds the device up by `share`."""
    slow = copy.deepcopy(info)
    if host_bound(info):
        extra = share * np.median(info["device_ms"])
        for clock in ("device_ms", "wall_ms", "host_ms"):
            slow[clock] = [ms + extra for ms in info[clock]]
        return slow
    host = np.asarray(info["device_ms"]) * (1 + share)
    for clock in ("device_ms", "wall_ms"):
        slow[clock] = list(host)
    slow["host_ms"] = [ms * 0.999 for ms in host]
    return slow


def named(recorded, planted, *arguments):
    """The cause found in each cell when `planted` made it slower, by cell."""
    found = {}
    for seed, (cell, info) in enumerate(recorded.items()):
        then = with_costs(info)
        found[cell] = cause(planted(another_process(then, seed), *arguments), then)
    return found


def others(found, kind):
    return {cell: str(told) for cell, told in found.items() if told.kind != kind}


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_a_slower_device_is_named(recorded: Cells, share: float) -> None:
    assert others(named(recorded, device_slower, share), "device") == {}


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_a_slower_host_is_named_where_the_device_waits_for_it(recorded: Cells, share: float) -> None:
    found = named(recorded, host_slower, share)
    assert others(found, "host") == {}
    assert all("the device waits for it" in str(told) for told in found.values())


def test_who_holds_the_steps_up_is_told_from_the_clocks_alone(recorded: Cells) -> None:
    told = {cell for cell, info in recorded.items() if host_bound(info)}
    waiting = waiting_for_the_host(recorded)
    assert told >= waiting
    # A host that waits for a full queue of launches looks much the same in steps of nearly equal length.
    assert len(told - waiting) <= 1, told


def test_more_padding_is_named(recorded: Cells) -> None:
    def padded(info):
        return device_slower(info, 0.04) | {"padded_token_share": 1 - (1 - info["padded_token_share"]) / 1.05}

    found = named(recorded, padded)
    assert others(found, "padding") == {}
    packed = next(told for cell, told in found.items() if cell.startswith("fa2_varlen-packed-"))
    assert str(packed) == "padding: 4.8% of the tokens, was 0.0%"


def test_a_little_more_padding_does_not_hide_a_slower_device(recorded: Cells) -> None:
    then = with_costs(next(info for cell, info in recorded.items() if cell.startswith("fa2")))
    now = device_slower(then, 0.2) | {"padded_token_share": 0.01}
    assert cause(now, then).kind == "device"


def test_a_recompilation_is_named(recorded: Cells) -> None:
    def recompiled(info):
        return device_slower(info, 0.05) | {"compilations": info["compilations"] + 3}

    found = named(recorded, recompiled)
    assert others(found, "recompiled") == {}
    assert "recompiled: 4 compilations, was 1" in map(str, found.values())


def kernels(**total_us: float) -> list[dict[str, object]]:
    return [{"name": name, "count": 24, "total_us": us} for name, us in total_us.items()]


def test_a_changed_kernel_is_named_with_its_times(recorded: Cells) -> None:
    for seed, info in enumerate(recorded.values()):
        step_us = 1e3 * float(np.median(info["device_ms"]))
        then = with_costs(info) | {"kernels": kernels(flash_fwd_kernel=0.2 * step_us, gemm=0.1 * step_us, copy=9)}
        now = device_slower(another_process(then, seed), 0.05)
        now["kernels"] = kernels(flash_fwd_kernel=0.25 * step_us, gemm=0.101 * step_us, copy=8)
        times = f"+{step_us * 5e-5:.2f} ms ({step_us * 2e-4:.2f} -> {step_us * 2.5e-4:.2f})"
        assert cause(now, then) == Cause("device", f"device: flash_fwd_kernel {times}")


def test_a_sleeping_device_is_a_kernel_that_was_not_there(recorded: Cells) -> None:
    then = with_costs(next(iter(recorded.values()))) | {"kernels": kernels(gemm=60_000)}
    now = device_slower(then, 0.05) | {"kernels": [*kernels(gemm=60_100), *kernels(spin_kernel=3_000)]}
    assert str(cause(now, then)) == "device: spin_kernel +3.00 ms (0.00 -> 3.00, 0 runs -> 24)"


def test_kernels_decide_where_a_step_waits_for_the_device_in_its_midst(recorded: Cells) -> None:
    then = with_costs(recorded[min(waiting_for_the_host(recorded))]) | {
        "kernels": kernels(gemm=100_000),
        "synchronisations": 5,
    }
    slow = host_slower(then, 0.05)
    assert cause(slow | {"kernels": kernels(gemm=106_000)}, then).kind == "device"
    assert cause(slow | {"kernels": kernels(gemm=100_200), "synchronisations": 30}, then).kind == "host"


def test_on_a_cpu_the_host_is_named_with_its_operators() -> None:
    cpu = {"verdict": "timed", "device_ms": None, "host_ms": None, "compilations": 0, "padded_token_share": 0.4}
    then = cpu | {"wall_ms": [10.0, 11.0, 12.0]}
    now = cpu | {"wall_ms": [12.0, 13.0, 14.0]}
    assert str(cause(now, then)) == "host: wall 13.0 ms (was 11.0)"
    profiles = then | {"kernels": kernels(addmm=9_000)}, now | {"kernels": kernels(addmm=10_500)}
    assert str(cause(*reversed(profiles))) == "host: wall 13.0 ms (was 11.0); addmm +1.50 ms (9.00 -> 10.50)"
    assert str(cause(profiles[1] | {"kernels": kernels(addmm=9_000)}, profiles[0])) == (
        "host: wall 13.0 ms (was 11.0); torch's operators take no longer"
    )


def test_a_step_slower_than_the_work_beside_it_is_slower_though_the_clock_says_no(recorded: Cells) -> None:
    key = next(iter(recorded.values()))["cell"]

    def steps(ms: float, pace_ms: float) -> dict[str, object]:
        beside = {work: [pace_ms] * 5 for work in PACE}
        return {"cell": key, "verdict": "timed", "wall_ms": [ms] * 5, "tokens": [9] * 5, **beside}

    slow_minute, slower = steps(12.0, 6.0), steps(11.0, 5.0)
    assert str(cause(slower, slow_minute, paced=True)) == "host: wall 11.0 ms (was 12.0), +10.0% over the pace"
    assert cause(slower, slow_minute).kind == "unclear"
    assert cause(steps(12.0, 6.5), slow_minute, paced=True).kind == "unclear"
    assert cause({}, slow_minute, paced=True).kind == "unclear"


@pytest.mark.parametrize(
    "broken",
    [{}, {"device_ms": []}, {"device_ms": [float("nan")], "wall_ms": ["9"]}, {"device_ms": "no", "host_ms": 3}],
)
def test_what_lacks_is_unclear_and_no_error(recorded: Cells, broken: dict[str, object]) -> None:
    whole = with_costs(next(iter(recorded.values())))
    for now, then in ((broken, whole), (whole, broken), (broken, broken)):
        assert cause(now, then).kind == "unclear"


def test_a_cell_that_is_no_slower_has_no_cause(recorded: Cells) -> None:
    whole = with_costs(next(iter(recorded.values())))
    assert str(cause(whole, whole)) == "unclear: its steps were no slower"
