"""The timer gives each batch its own time, and utilisation counts the operations that a step must do."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from collators import CollatorOptions, Example, collator_named
from gate.timing import StepTimer, matmul_tflops, median
from model.attention import MODES, REFERENCE, Case
from model.decoder import DecoderConfig, seeded_decoder
from model.flops import step_flops
from model.steps import forward

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


@needs_cuda
def test_on_a_gpu_a_step_is_timed_from_the_end_of_the_one_before() -> None:
    cycles = {"short": 20_000_000, "long": 200_000_000}
    timer = StepTimer(lambda batch: torch.cuda._sleep(cycles[batch]), "cuda")
    for batch in ("short", "short", "long"):
        timer(batch)
    timer.forget()
    for batch in ("short", "short", "long"):
        timer(batch)
    samples = timer.samples
    assert samples.batches == ["long", "short", "short"]
    assert samples.device_ms[0] > 5 * samples.device_ms[1]
    assert samples.wall_ms[0] == pytest.approx(samples.device_ms[0], rel=0.2)
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
