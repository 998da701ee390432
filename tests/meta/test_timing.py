"""The timer gives each batch its own time, and utilisation counts the operations that a step must do."""

import math
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from collators import CollatorOptions, Example, collator_named
from gate.baseline.doubts import CONTROL_REPEATS
from gate.timing import StepTimer, matmul_tflops, median
from model.attention import MODES, REFERENCE, Case
from model.decoder import DecoderConfig, seeded_decoder
from model.flops import step_flops
from model.steps import forward
from tests.performance.control import queued_on_device

pytestmark = pytest.mark.meta

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: events time its steps")


def test_on_the_cpu_every_call_is_a_sample() -> None:
    seen: list[int] = []
    timer = StepTimer(seen.append, "cpu")
    for batch in range(3):
        timer(batch)
    warmup = timer.forget()
    timer(3)
    assert (seen, warmup.batches, timer.samples.batches) == ([0, 1, 2, 3], [0, 1, 2], [3])
    assert len(timer.samples.wall_ms) == 1
    assert timer.samples.device_ms == []


@pytest.fixture
def device(monkeypatch):
    """A GPU that takes the milliseconds it is given one after the other; `waits` are the ends queued at each wait."""

    class Simulated:
        def __init__(self) -> None:
            self.at_ms, self.ends, self.waits = 0.0, 0, []

        def work(self, ms: float) -> None:
            self.at_ms += ms

    simulated = Simulated()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            self.at_ms = math.nan

        def record(self) -> None:
            self.at_ms, simulated.ends = simulated.at_ms, simulated.ends + 1

        def synchronize(self) -> None:
            simulated.waits.append(simulated.ends)

        def elapsed_time(self, later: "Event") -> float:
            return later.at_ms - self.at_ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    return simulated


def test_the_control_of_a_gpu_is_queued_before_anything_waits(device) -> None:
    product, copied = (queued_on_device(lambda ms=ms: device.work(ms), 2) for ms in (0.2, 0.1))
    assert device.waits == []
    assert product() == pytest.approx([0.2] * CONTROL_REPEATS)
    assert copied() == pytest.approx([0.1] * CONTROL_REPEATS)
    assert device.at_ms == pytest.approx(0.3 * (CONTROL_REPEATS + 2))


def test_steps_of_a_gpu_are_timed_a_few_calls_later(device) -> None:
    timer = StepTimer(device.work, "cuda")
    for batch in (1.0, 2.0, 3.0, 4.0, 5.0):
        timer(batch)
    # The first has no step before it.
    assert timer.forget().batches == [2.0]
    assert device.waits == [4, 5]
    for batch in (1.0, 2.0, 3.0, 4.0, 5.0):
        timer(batch)
    samples = timer.finish()
    assert samples.batches == samples.device_ms == [5.0, 1.0, 2.0, 3.0, 4.0]
    assert len(samples.lead_ms) == len(samples.host_ms) == len(samples.wall_ms) == 5
    assert device.waits[:7] == [4, 5, 6, 7, 8, 9, 10]


def test_a_step_that_settles_on_a_gpu_begins_the_next_one(device) -> None:
    timer = StepTimer(device.work, "cuda")
    for batch in (1.0, 2.0, 3.0, 4.0, 5.0):
        if batch == 4.0:
            device.work(100.0)
            timer.settle(9.0)
        timer(batch)
    assert timer.finish().device_ms == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_on_a_gpu_are_timed_too(device, steps) -> None:
    timer = StepTimer(device.work, "cuda")
    for batch in (7.0, 8.0):
        timer(batch)
    timer.forget()
    for batch in range(steps):
        timer(float(batch))
    assert timer.finish().batches == [8.0, *map(float, range(steps - 1))]


@needs_cuda
def test_on_a_gpu_the_host_queues_steps_as_fast_as_they_end() -> None:
    timer = StepTimer(lambda _: torch.cuda._sleep(50_000_000), "cuda")
    for batch in range(20):
        timer(batch)
    samples = timer.finish()
    assert median(samples.wall_ms) == pytest.approx(median(samples.device_ms), rel=0.2)


def test_what_the_host_takes_between_two_steps_is_wall_time(device) -> None:
    timer = StepTimer(lambda _: device.work(0.0), "cuda")
    for batch in range(8):
        time.sleep(0.01)
        timer(batch)
    samples = timer.finish()
    assert samples.batches == [1, 2, 3, 4, 5, 6]
    assert min(samples.wall_ms) >= 10


@needs_cuda
def test_on_a_gpu_a_step_is_timed_from_the_end_of_the_one_before() -> None:
    cycles = {"short": 20_000_000, "long": 200_000_000}
    timer = StepTimer(lambda batch: torch.cuda._sleep(cycles[batch]), "cuda")
    for batch in ("short", "short", "long"):
        timer(batch)
    timer.forget()
    for batch in ("short", "short", "long"):
        timer(batch)
    samples = timer.finish()
    assert samples.batches == ["long", "short", "short"]
    assert samples.device_ms[0] > 5 * samples.device_ms[1]
    # Queueing a sleep is quick: the host does not wait for it.
    assert max(samples.host_ms) < samples.device_ms[0]


def test_no_samples_have_no_median() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        median([])


def test_a_matrix_product_has_a_rate() -> None:
    assert matmul_tflops("cpu", torch.float32, repeats=2) > 0


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_step_counts_the_operations_of_its_matrix_products(kv_heads: int) -> None:
    config = DecoderConfig(vocab_size=50, max_length=16, num_layers=2, num_heads=4, head_dim=8, num_kv_heads=kv_heads)
    model = seeded_decoder(config, REFERENCE.attend, device="cpu")
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
