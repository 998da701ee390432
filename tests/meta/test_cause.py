"""A slower cell is laid at the right door, by what two records of it tell."""

from dataclasses import replace

import pytest

from gate.judge.cause import cause, host_bound
from gate.record.cell import CellRecord, cell_of

pytestmark = pytest.mark.meta

CELL = cell_of("fa2_varlen-packed-train-causal-bfloat16-eager-article")
STEPS = 9


def kernels(**total_us: float) -> list[dict[str, object]]:
    return [{"name": name, "count": 24, "total_us": us} for name, us in total_us.items()]


def timed(device: float, host: float, lead: float, *, busy: float, **costs: object) -> CellRecord:
    """A cell that takes so many ms on the device, and of the host to launch; it has some left when all is launched."""
    times = {"device_ms": [device] * STEPS, "host_ms": [host] * STEPS, "lead_ms": [lead] * STEPS}
    return CellRecord(CELL, "timed", compilations=1, device_busy_ms=busy, **{"padded_token_share": 0.0} | times | costs)


#: The host waits for the device in the one, and the device for the host in the other.
DEVICE = timed(100.0, 20.0, 250.0, busy=99.0)
HOST = timed(40.0, 39.0, 1.0, busy=15.0)


@pytest.mark.parametrize(
    ("head", "base", "kind", "sentence"),
    [
        (timed(105.0, 20.0, 260.0, busy=104.0), DEVICE, "device", "device: step 105.0 ms (was 100.0), host 20.0 ms"),
        (timed(120.0, 119.0, 1.0, busy=99.0), DEVICE, "host", "host: step 120.0 ms (was 100.0), host 119.0 ms"),
        (timed(42.0, 41.0, 1.0, busy=15.0), HOST, "host", "(was 39.0) to launch it; the device waits for the host"),
        # A step that waits for the device in its midst keeps the host as long.
        (timed(44.0, 43.0, 1.0, busy=19.0), HOST, "device", "device: "),
        (timed(44.0, 39.0, 1.0, busy=15.0), HOST, "unclear", "unclear: step 44.0 ms"),
        (replace(HOST, host_deficit_ms=4.0, host_ms=[43.0]), HOST, "host", "host: step 44.0 ms (was 40.0)"),
        (
            replace(DEVICE, device_ms=[105.0], padded_token_share=0.048),
            DEVICE,
            "padding",
            "4.8% of the slots, was 0.0%",
        ),
        (timed(120.0, 20.0, 260.0, busy=119.0, padded_token_share=0.01), DEVICE, "device", "device: "),
        (replace(DEVICE, device_ms=[101.0], compilations=4), DEVICE, "recompiled", "recompiled: 4 compilations, was 1"),
        (
            replace(DEVICE, device_ms=[104.0], prepare_ms=[3.5, 3.5]),
            replace(DEVICE, prepare_ms=[0.5, 0.5]),
            "preparation",
            "batch preparation: 3.50 ms a batch (was 0.500)",
        ),
        (DEVICE, DEVICE, "unclear", "unclear: the median step is not slower on head"),
        (CellRecord(CELL, "failed"), DEVICE, "unclear", "unclear: step times of both sides are needed"),
    ],
)
def test_the_cause_is_what_explains_half_of_the_slowdown(
    head: CellRecord, base: CellRecord, kind: str, sentence: str
) -> None:
    found = cause(head, base)
    assert (found.kind, sentence in str(found)) == (kind, True), str(found)


def test_the_kernels_that_gained_most_are_named_with_their_times() -> None:
    base = replace(DEVICE, kernels=kernels(flash_fwd_kernel=20_000, gemm=60_000, copy=9))
    head = replace(DEVICE, device_ms=[106.5], kernels=kernels(flash_fwd_kernel=25_000, gemm=60_100, spin=1_500, copy=8))
    assert str(cause(head, base)) == (
        "device: flash_fwd_kernel +5.00 ms (20.00 -> 25.00), spin +1.50 ms (0.00 -> 1.50, 0 runs -> 24)"
    )


def test_kernels_tell_more_than_the_device_busy_time() -> None:
    base = replace(HOST, kernels=kernels(gemm=15_000))
    slow = timed(44.0, 43.0, 1.0, busy=15.0)
    assert cause(replace(slow, kernels=kernels(gemm=19_000)), base).kind == "device"
    assert cause(replace(slow, kernels=kernels(gemm=15_100)), base).kind == "host"


def test_on_a_cpu_the_host_is_named_with_its_operators() -> None:
    base, head = (CellRecord(CELL, "timed", wall_ms=[ms] * STEPS) for ms in (11.0, 13.0))
    assert str(cause(head, base)) == "host: wall 13.0 ms (was 11.0)"
    base = replace(base, kernels=kernels(addmm=9_000))
    slower, alike = (str(cause(replace(head, kernels=kernels(addmm=us)), base)) for us in (10_500, 9_000))
    assert slower == "host: wall 13.0 ms (was 11.0); addmm +1.50 ms (9.00 -> 10.50)"
    assert alike == "host: wall 13.0 ms (was 11.0); no torch operator is slower"


def test_who_waits_for_whom_is_told_by_what_the_device_has_left() -> None:
    assert (host_bound(DEVICE), host_bound(HOST)) == (False, True)
    # Of a live pair by what launching takes longer than the device's work.
    assert [host_bound(replace(HOST, host_deficit_ms=ms)) for ms in (0.0, 0.5, 1.0)] == [False, False, True]
    for unread in ({"lead_ms": None}, {"lead_ms": [1.0]}, {"lead_ms": [float("nan")] * STEPS}):
        assert host_bound(replace(HOST, **unread)) is None
