"""The environment names the GPU that is used, survives every NVML failure, and names no host and no user."""

import getpass
import os
import platform
import sys
from types import SimpleNamespace

import pytest

from gate.measure import environment as env

pytestmark = pytest.mark.meta

UUIDS = ["GPU-aaaa-0", "GPU-bbbb-1"]


class FakeNVML:
    """Two GPUs, of which the second is ours; handles are indices."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self):
        self.pids = [os.getpid(), 77]

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, handle):
        return UUIDS[handle]

    def nvmlDeviceGetName(self, handle):
        return f"NVIDIA H{handle}00 80GB HBM3"

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return 1000 * handle + kind

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        return 2000 * handle + kind

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return 0x84 | 1 << 12

    def nvmlDeviceGetPowerUsage(self, handle):
        raise RuntimeError("Not Supported")

    def nvmlDeviceGetPowerManagementLimit(self, handle):
        return 700_000

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 40 + handle

    def nvmlSystemGetDriverVersion(self):
        return b"580.1"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=80)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid) for pid in self.pids]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):
        return []


def fake_torch(uuid):
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        current_device=lambda: 0,
        device_count=lambda: 1,
        get_device_name=lambda: "NVIDIA H100 80GB HBM3",
        get_device_properties=lambda index: SimpleNamespace(uuid=uuid),
    )
    version = SimpleNamespace(cuda="13.0")
    return SimpleNamespace(cuda=cuda, version=version, __path__=[])


@pytest.fixture
def nvml(monkeypatch):
    """A machine of two GPUs, torch on the second of them."""
    fake = FakeNVML()
    torch = fake_torch("bbbb-1")
    env._nvml.cache_clear()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.version", torch.version)
    yield fake
    env._nvml.cache_clear()


@pytest.fixture
def cpu_only(monkeypatch):
    torch = fake_torch("")
    torch.cuda.is_available = lambda: False
    torch.version.cuda = None
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.version", torch.version)
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_gpu_is_the_one_torch_uses(nvml):
    state = env.gpu_state()
    assert (state["sm_clock_mhz"], state["memory_clock_mhz"], state["temperature_c"]) == (1001, 1002, 41)


def test_gpu_environment_holds_limits_state_and_versions(nvml):
    found = env.environment()
    assert found["device"] == "NVIDIA H100 80GB HBM3"
    assert found["device_slug"] == "NVIDIA-H100-80GB-HBM3"
    assert found["power_limit_w"] == 700.0
    assert found["driver"] == "580.1"
    assert found["cuda_runtime"] == "13.0"
    assert found["max_sm_clock_mhz"] == 2001
    assert found["memory_total_bytes"] == 80
    assert found["gpu_count"] == 1
    assert found["versions"].keys() == set(env.PACKAGES)
    assert found["versions"]["pytest-benchmark"]


@pytest.mark.parametrize(("visible", "sm_clock"), [("1", 1001), ("GPU-bbbb", 1001), ("0,1", 1)])
def test_without_torch_the_visible_gpu_is_taken(nvml, monkeypatch, visible, sm_clock):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert env.gpu_state()["sm_clock_mhz"] == sm_clock


def test_hidden_gpus_are_no_gpus(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert env.gpu_state() == {}
    assert env.device_slug().startswith("cpu-")


def test_nvml_failures_are_recorded_not_raised(nvml, monkeypatch):
    assert env.gpu_state()["power_draw_w"] == "NVML: Not Supported"
    UNKNOWN = fake_torch("cccc-2")
    monkeypatch.setitem(sys.modules, "torch", UNKNOWN)
    assert env.gpu_state() == {"nvml": "NVML: no GPU with the UUID GPU-cccc-2"}
    assert env.environment()["device_slug"] == "NVIDIA-H100-80GB-HBM3"


def test_machine_without_nvml_is_recorded_not_raised(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert env.gpu_state()["nvml"].startswith("NVML: ")
    assert env.environment()["device"] == "NVIDIA H100 80GB HBM3"


def test_throttle_reasons_are_named(nvml):
    assert env.gpu_state()["throttle_reasons"] == ["sw_power_cap", "hw_power_brake_slowdown", "0x1000"]
    assert env.throttle_names(0) == []


@pytest.mark.parametrize(
    ("pids", "others", "count"),
    [
        ([os.getpid()], [], 0),
        ([os.getpid(), 77], [77], 1),
        ([4711], [], 0),
        ([4711, 4712], [4711, 4712], 1),
        ([], [], 0),
    ],
    ids=["alone", "one other", "alone in a container", "two seen from a container", "none seen"],
)
def test_other_processes_are_counted_without_this_one(nvml, pids, others, count):
    nvml.pids = pids
    state = env.gpu_state()
    assert (state["other_pids"], state["other_processes"]) == (others, count)


def test_cpu_only_machine_needs_no_nvml(cpu_only):
    found = env.environment()
    assert found["device"] == env.cpu_model()
    assert found["device_slug"].startswith("cpu-")
    assert found["gpu_count"] == 0
    assert env.gpu_state() == {}


def test_slug_is_a_plain_folder_name(cpu_only, monkeypatch):
    monkeypatch.setattr(env, "cpu_model", lambda: "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz")
    assert env.device_slug() == "cpu-Intel-Xeon-Platinum-8481C"


def test_no_host_or_user_names(cpu_only, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    text = str(env.environment())
    assert "secret-host" not in text
    # A user called "root" or "a" may well be part of another word.
    assert len(getpass.getuser()) < 5 or getpass.getuser() not in text
