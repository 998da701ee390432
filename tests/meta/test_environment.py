"""The environment names the GPU that is used, survives every NVML failure, and names no host and no user."""

import getpass
import os
import platform
import sys
from types import SimpleNamespace

import pytest
import torch

from gate.measure import environment as env

pytestmark = pytest.mark.meta

UUIDS = ["GPU-aaaa-0", "GPU-bbbb-1"]


def refused(*_):
    raise RuntimeError("Not Supported")


def processes(*pids):
    return lambda handle: [SimpleNamespace(pid=pid) for pid in pids]


@pytest.fixture
def nvml(monkeypatch):
    """A machine of two GPUs, torch on the second of them; NVML's handles are indices."""
    fake = SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(UUIDS),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=UUIDS.__getitem__,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1000 * handle + kind,
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: 2000 * handle + kind,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 0x84 | 1 << 12,
        nvmlDeviceGetPowerUsage=refused,
        nvmlDeviceGetPowerManagementLimit=lambda handle: 700_000,
        nvmlDeviceGetTemperature=lambda handle, sensor: 40 + handle,
        nvmlSystemGetDriverVersion=lambda: b"580.1",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=80),
        nvmlDeviceGetComputeRunningProcesses=processes(os.getpid(), 77),
        nvmlDeviceGetGraphicsRunningProcesses=processes(),
    )
    env._nvml.cache_clear()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    for name, value in {"is_available": True, "is_initialized": True, "current_device": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="bbbb-1"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    yield fake
    env._nvml.cache_clear()


@pytest.fixture
def cpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_the_environment_is_of_the_gpu_that_torch_uses_with_its_limits_state_and_versions(nvml):
    found = env.environment()
    expected = {
        "device": "NVIDIA H100 80GB HBM3",
        "device_slug": "NVIDIA-H100-80GB-HBM3",
        "power_limit_w": 700.0,
        "driver": "580.1",
        "cuda_runtime": "13.0",
        "max_sm_clock_mhz": 2001,
        "memory_total_bytes": 80,
        "sm_clock_mhz": 1001,
        "memory_clock_mhz": 1002,
        "temperature_c": 41,
        "power_draw_w": "NVML: Not Supported",
        "throttle_reasons": ["sw_power_cap", "hw_power_brake_slowdown", "0x1000"],
    }
    assert found == found | expected
    assert found["versions"].keys() == set(env.PACKAGES)
    assert found["versions"]["pytest-benchmark"]


def test_nvml_that_fails_or_is_lacking_is_recorded_not_raised(nvml, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="cccc-2"))
    assert env.gpu_state() == {"nvml": "NVML: no GPU with the UUID cccc-2"}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    env._nvml.cache_clear()
    assert env.gpu_state()["nvml"].startswith("NVML: ")
    assert env.environment()["device_slug"] == "NVIDIA-H100-80GB-HBM3"


@pytest.mark.parametrize(
    ("pids", "count"),
    [([os.getpid()], 0), ([os.getpid(), 77], 1), ([4711], 0), ([4711, 4712], 1), ([], 0)],
    ids=["alone", "one other", "alone in a container", "two seen from a container", "none seen"],
)
def test_other_processes_are_counted_without_this_one(nvml, pids, count):
    nvml.nvmlDeviceGetComputeRunningProcesses = processes(*pids)
    assert env.gpu_state()["other_processes"] == count


def test_a_cpu_has_a_plain_folder_name_and_needs_no_nvml(cpu_only, monkeypatch):
    assert env.environment()["device"] == env.cpu_model()
    assert env.gpu_state() == {}
    monkeypatch.setattr(env, "cpu_model", lambda: "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz")
    assert env.environment()["device_slug"] == "cpu-Intel-Xeon-Platinum-8481C"


def test_no_host_or_user_names(cpu_only, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    text = str(env.environment())
    assert "secret-host" not in text
    # A user called "root" or "a" may well be part of another word.
    assert len(getpass.getuser()) < 5 or getpass.getuser() not in text
