"""A profiled step: its launches, synchronisations and kernels are counted, and only what is the step's own."""

import json
import os

import pytest
import torch

from gate.measure.trace import (
    STEP,
    busy_us,
    detached_afterwards,
    device_profile,
    kernel_launches,
    lost_kernels,
    of_steps,
    profiled,
    step_profile,
    synchronisations,
)
from gate.record.kernels import KEPT, OTHERS, KernelTime, as_data, from_data, moved, short_name

pytestmark = pytest.mark.meta

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: CUPTI sees its kernels")

BACKWARD, STREAM = 2, 7


class Trace:
    """Writes a trace as Kineto does: calls of the host and the device's work share a correlation."""

    def __init__(self):
        self.written = [{"ph": "M", "name": "process_name"}, {"ph": "f", "name": "flow"}]
        self.correlation = 100
        self.add("user_annotation", STEP, 1000.0, 500.0)

    def add(self, category, name, start, duration, thread=1, **arguments):
        self.written.append(
            {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "tid": thread, "args": arguments}
        )

    def call(self, name, start, thread=1, category="cuda_runtime"):
        self.correlation += 1
        self.add(category, name, start, 2.0, thread, correlation=self.correlation, cbid=1)
        return self.correlation

    def launch(self, kernel, start, *, at, lasts=10.0, thread=1, call="cudaLaunchKernel", category="cuda_runtime"):
        self.add("kernel", kernel, at, lasts, STREAM, correlation=self.call(call, start, thread, category), stream=7)

    def copy(self, direction, start, *, at):
        self.add("gpu_memcpy", f"Memcpy {direction}", at, 1.0, STREAM, correlation=self.call("cudaMemcpyAsync", start))

    def of_steps(self):
        return of_steps(json.loads(json.dumps({"traceEvents": self.written})))


@pytest.fixture
def trace():
    return Trace()


def test_launches_of_every_kind_and_thread_are_counted(trace) -> None:
    # A trace is not sorted.
    trace.launch("backward", 1300, at=1400, thread=BACKWARD)
    trace.launch("sdpa", 1010, at=1020)
    trace.launch("gemm", 1011, at=1030, call="cudaLaunchKernelExC")
    trace.launch("triton_poi_fused_0", 1012, at=1040, call="cuLaunchKernelEx", category="cuda_driver")
    trace.call("cudaGraphLaunch", 1310)
    trace.call("cudaEventRecord", 1311)
    trace.copy("DtoD (Device -> Device)", 1312, at=1450)
    trace.add("gpu_memset", "Memset (Device)", 1460, 1.0, STREAM, correlation=trace.call("cudaMemsetAsync", 1313))
    assert kernel_launches(trace.of_steps()) == 5


def test_what_ran_before_and_after_the_step_is_not_the_steps(trace) -> None:
    trace.launch("lead_in", 900, at=950)
    trace.call("cudaDeviceSynchronize", 990)
    trace.launch("own", 1499, at=1600)
    trace.call("cudaDeviceSynchronize", 1501)
    trace.launch("later", 1510, at=1700)
    step = trace.of_steps()
    assert (kernel_launches(step), synchronisations(step)) == (1, 0)
    assert list(device_profile(step)) == ["own"]


def test_a_kernel_or_a_launch_that_the_profiler_dropped_is_counted_by_the_other(trace) -> None:
    trace.call("cudaLaunchKernel", 1010)
    trace.launch("seen", 1020, at=1030)
    trace.add("kernel", "hidden", 1030, 5.0, STREAM, correlation=7)
    step = trace.of_steps()
    assert (kernel_launches(step), lost_kernels(step)) == (3, 1)


def test_calls_that_wait_are_synchronisations_and_others_are_not(trace) -> None:
    waiting = "cudaStreamSynchronize cudaDeviceSynchronize cudaEventSynchronize cudaStreamSynchronize_ptsz cudaMemcpy"
    waiting += " cuStreamSynchronize cuCtxSynchronize cudaMemcpy_v3020 cuMemcpyDtoH_v2"
    others = "cudaStreamWaitEvent cudaEventQuery cudaEventRecord cudaMemcpyAsync cudaFree cudaMalloc"
    for name in others.split():
        trace.call(name, 1100)
        assert synchronisations(trace.of_steps()) == 0, name
    for count, name in enumerate(waiting.split(), 1):
        trace.call(name, 1100, BACKWARD)
        assert synchronisations(trace.of_steps()) == count, name


def test_an_item_is_one_synchronisation_and_so_is_a_copy_to_pageable_memory(trace) -> None:
    trace.copy("DtoH (Device -> Pageable)", 1100, at=1110)
    trace.call("cudaStreamSynchronize", 1120)
    assert synchronisations(trace.of_steps()) == 1
    trace.copy("DtoH (Device -> Pageable)", 1200, at=1210)
    trace.launch("next", 1220, at=1230)
    assert synchronisations(trace.of_steps()) == 2
    trace.copy("DtoH (Device -> Pageable)", 1300, at=1310)
    trace.copy("DtoH (Device -> Pinned)", 1400, at=1410)
    assert synchronisations(trace.of_steps()) == 3


def test_the_device_is_busy_once_where_streams_overlap(trace) -> None:
    trace.launch("a", 1010, at=1100, lasts=50)
    trace.launch("b", 1011, at=1120, lasts=10)
    trace.launch("c", 1012, at=1140, lasts=20)
    trace.launch("d", 1013, at=1300, lasts=5)
    assert busy_us(trace.of_steps()) == pytest.approx(65)


def test_kernels_are_counted_and_timed_by_name_a_mean_step(trace) -> None:
    trace.add("user_annotation", STEP, 2000.0, 500.0)
    trace.launch("gemm", 1010, at=1100, lasts=30)
    trace.launch("gemm", 1020, at=1140, lasts=10)
    trace.launch("gemm", 2010, at=2100, lasts=20)
    assert device_profile(trace.of_steps(), steps=2) == {"gemm": KernelTime(1.5, 30.0)}


def test_a_profile_keeps_the_longest_kernels_and_the_sum_of_all() -> None:
    profile = {f"kernel_{number}": KernelTime(1, float(number)) for number in range(KEPT + 5)}
    kept = as_data(profile)
    assert len(kept) == KEPT + 1
    assert kept[0]["name"] == f"kernel_{KEPT + 4}"
    assert kept[-1] == {"name": OTHERS, "count": 5, "total_us": 0.0 + 1 + 2 + 3 + 4}
    back = from_data(kept)
    assert back is not None
    assert sum(time.total_us for time in back.values()) == sum(time.total_us for time in profile.values())


@pytest.mark.parametrize("broken", [None, 3, "kernels", [{"name": "gemm"}], [["gemm", 1, 2]]])
def test_a_profile_that_cannot_be_read_is_none(broken: object) -> None:
    assert from_data(broken) is None


def test_moves_are_told_by_short_names_the_largest_gain_first() -> None:
    then = {
        "void flash::flash_fwd_kernel<Traits<64, 128>, false>(Params)": KernelTime(24, 12_000),
        "gemm": KernelTime(96, 8_000),
        "gone": KernelTime(1, 400),
    }
    now = {
        "void flash::flash_fwd_kernel<Traits<64, 64>, true>(Params)": KernelTime(24, 14_100),
        "gemm": KernelTime(97, 8_100),
        "void at::native::(anonymous namespace)::spin_kernel(long)": KernelTime(1, 1_500),
    }
    assert [str(move) for move in moved(now, then)] == [
        "flash_fwd_kernel +2.10 ms (12.00 -> 14.10)",
        "spin_kernel +1.50 ms (0.00 -> 1.50, 0 runs -> 1)",
        "gemm +0.10 ms (8.00 -> 8.10, 96 runs -> 97)",
        "gone -0.40 ms (0.40 -> 0.00, 1 runs -> 0)",
    ]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, Pointers>(int)",
            "vectorized_elementwise_kernel CUDAFunctor_add",
        ),
        ("void cutlass::Kernel2<cutlass_80_bf16_s16816gemm>(Params)", "Kernel2 cutlass_80_bf16_s16816gemm"),
        ("void cutlass::device_kernel<flash::enable_sm90<FlashAttnFwdSm90<T>>>(P)", "device_kernel FlashAttnFwdSm90"),
        ("triton_poi_fused_add_native_layer_norm_3", "triton_poi_fused_add_native_layer_norm_3"),
        ("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH (Device -> Pageable)"),
        ("## Call CompiledFxGraph fhlw3aa7javi6nnze6oqqrmixniyovrdsrexe3yii7gqfu7egkvy ##", "compiled graph"),
        ("aten::addmm", "addmm"),
    ],
)
def test_a_short_name_says_what_a_kernel_does(name: str, short: str) -> None:
    assert short_name(name) == short


@pytest.mark.parametrize(("given", "during"), [(None, "1"), ("0", "0")])
def test_the_profiler_lets_go_unless_told_otherwise(
    given: str | None, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEARDOWN_CUPTI", raising=False)
    if given is not None:
        monkeypatch.setenv("TEARDOWN_CUPTI", given)
    with detached_afterwards():
        assert os.environ["TEARDOWN_CUPTI"] == during
    assert os.environ.get("TEARDOWN_CUPTI") == given


def test_a_step_of_a_cpu_is_profiled_by_operators() -> None:
    left, right = torch.ones(8, 8), torch.ones(8, 8)
    found = step_profile(lambda: left @ right, "cpu", steps=4)
    (product,) = (kernel for kernel in found["kernels"] if kernel["name"] == "aten::mm")
    assert product["count"] == 1
    assert product["total_us"] > 0


@needs_cuda
def test_on_a_gpu_a_step_has_its_launches_synchronisations_and_kernels() -> None:
    left = torch.ones(512, 512, device="cuda")
    fused = torch.compile(lambda x: torch.relu(x + 1) * 2)
    fused(left)

    def step() -> None:
        product = left @ left
        torch.cuda._sleep(1_000_000)
        (product + 1).sum().item()

    step()
    launches = {kernel_launches(profiled(step, lead_in=lead_in)) for lead_in in (0, 1, 0)}
    # The product may be several kernels; the sleep, the addition and the sum are one each.
    assert len(launches) == 1
    assert min(launches) >= 4
    assert kernel_launches(profiled(lambda: fused(left))) == 1
    assert synchronisations(profiled(step)) == 1
    assert busy_us(profiled(step, lead_in=1)) > 10
    assert sum(kernel["count"] for kernel in step_profile(step, "cuda")["kernels"]) >= 4


@needs_cuda
def test_on_a_gpu_launches_of_the_backward_are_the_steps_and_its_own_waiting_is_not() -> None:
    weight = torch.ones(256, 256, device="cuda", requires_grad=True)

    def forward() -> torch.Tensor:
        return (weight @ weight).sum()

    def backward() -> None:
        forward().backward()
        weight.grad = None

    backward()
    eager, both = profiled(forward), profiled(backward)
    assert kernel_launches(both) > kernel_launches(eager) > 0
    assert synchronisations(both) == 0
