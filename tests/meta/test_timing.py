"""Every step has its own time on the device and on the host, and utilisation counts what a step must do."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from collators import CollatorOptions, Example, collator_named
from gate.measure import timing
from gate.measure.timing import CYCLES_PER_MS, matmul_tflops, timed_steps
from model.attention import MODES, REFERENCE, Case
from model.decoder import DecoderConfig
from model.flops import step_flops
from model.models import seeded_model
from model.steps import forward

pytestmark = pytest.mark.meta


def test_on_the_cpu_every_call_is_a_sample_of_the_wall_clock() -> None:
    seen: list[int] = []
    samples = timed_steps(lambda ms: (time.sleep(ms / 1e3), seen.append(ms)), [20, 1, 20], "cpu")
    assert seen == [20, 1, 20]
    assert len(samples.times_ms) == 3
    assert min(samples.wall_ms[0], samples.wall_ms[2]) >= 20
    assert samples.device_ms == samples.host_ms == samples.lead_ms == []


class Machine:
    """A host and a GPU of simulated time, in ms: a step is launched by the one and run by the other."""

    def __init__(self) -> None:
        self.host, self.device = 0.0, 0.0

    def run(self, ms: float) -> None:
        self.device = max(self.device, self.host) + ms

    def step(self, launch_and_run_ms: tuple[float, float]) -> None:
        self.host += launch_and_run_ms[0]
        self.run(launch_and_run_ms[1])

    def wait(self, until: float | None = None) -> None:
        self.host = max(self.host, self.device if until is None else until)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            made.run(0.0)
            self.at = made.device

        def synchronize(self) -> None:
            made.wait(self.at)

        def elapsed_time(self, later: "Event") -> float:
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", made.wait)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: made.run(cycles / CYCLES_PER_MS))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: made.host / 1e3))
    return made


def test_a_host_that_is_faster_runs_three_steps_ahead_of_the_device(machine: Machine) -> None:
    samples = timed_steps(machine.step, [(1.0, 10.0)] * 6, "cuda")
    # The device waits for the first launch alone, and the host before the fifth launch for the end of the first step.
    assert samples.device_ms == pytest.approx([11.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    assert samples.host_ms == pytest.approx([1.0] * 6)
    assert samples.wall_ms == pytest.approx([1.0, 1.0, 1.0, 1.0, 8.0, 10.0])
    assert samples.lead_ms == pytest.approx([10.0, 19.0, 28.0, 37.0, 39.0, 39.0])
    assert samples.times_ms is samples.device_ms
    assert machine.host == machine.device, "the device is idle afterwards"


def test_a_device_that_waits_for_the_host_has_little_left_unless_steps_are_launched_ahead(machine: Machine) -> None:
    samples = timed_steps(machine.step, [(10.0, 1.0)] * 4, "cuda")
    assert samples.device_ms == pytest.approx([11.0, 10.0, 10.0, 10.0])
    assert samples.host_ms == samples.wall_ms == pytest.approx([10.0] * 4)
    assert samples.lead_ms == pytest.approx([1.0] * 4)
    samples = timed_steps(machine.step, [(4.0, 5.0), (4.0, 6.0)], "cuda", ahead_ms=15.0)
    assert samples.ahead_ms == pytest.approx(15.0)
    assert samples.device_ms == pytest.approx([5.0, 6.0])
    assert samples.lead_ms == pytest.approx([16.0, 18.0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: events time its steps")
def test_on_a_gpu_a_step_is_timed_from_the_end_of_the_one_before() -> None:
    cycles = [20_000_000, 200_000_000, 20_000_000]
    samples = timed_steps(torch.cuda._sleep, cycles, "cuda")
    assert samples.device_ms[1] > 5 * max(samples.device_ms[0], samples.device_ms[2])
    # To launch a sleep is quick: the host does not wait for it.
    assert max(samples.host_ms) < samples.device_ms[1]


def test_a_matrix_product_has_a_rate() -> None:
    assert matmul_tflops("cpu", torch.float32, repeats=2) > 0


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_step_counts_the_operations_of_its_matrix_products(kv_heads: int) -> None:
    config = DecoderConfig(vocab_size=50, max_length=16, num_layers=2, num_heads=4, head_dim=8, num_kv_heads=kv_heads)
    model = seeded_model(config, REFERENCE, device="cpu")
    ids = torch.arange(1, 12)
    batch = collator_named("pad_longest").build(CollatorOptions(16))([Example(ids, ids)])
    case = Case("cpu", "padded", "right", MODES[0], False, torch.float32, "eager", 4, kv_heads, 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(model, REFERENCE, batch, case)
    eval_flops = step_flops(config, (11,), mode="eval", causal=False)
    assert counter.get_total_flops() == eval_flops
    assert step_flops(config, (11,), mode="train", causal=False) == 3 * eval_flops
    assert step_flops(config, (11, 11), mode="eval", causal=False) == 2 * eval_flops
    assert eval_flops - step_flops(config, (11,), mode="eval", causal=True) == 4 * 2 * 32 * 11**2 / 2
