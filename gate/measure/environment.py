"""What a time was measured on: device, clocks, driver, package versions. No host or user names."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gate.record.files import STEP_PACKAGES

PACKAGES = (*STEP_PACKAGES, "numpy", "pytest-benchmark", "hypothesis")

# Bits of nvmlDeviceGetCurrentClocksEventReasons, from nvml.h; spelled out so that old bindings decode too.
THROTTLE_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}


def environment() -> dict[str, Any]:
    """The device, its limits and clocks, and every version a time depends on, for `machine_info`.

    Clocks are in MHz, power in W, temperature in degrees Celsius. What NVML refuses to tell is a string that
    says why ("NVML: Not Supported"). On a machine without a GPU `device` is the CPU model.
    """
    import torch.version

    found: dict[str, Any] = {
        "device": device_name(),
        "device_slug": device_slug(),
        "cpu_model": cpu_model(),
        "cpu_count": os.cpu_count(),
        "cuda_runtime": torch.version.cuda,
        "versions": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.machine()}",
    }
    handle = _gpu()
    if handle is not None and not isinstance(handle, str):
        nvml = _nvml()
        found |= {
            "driver": _read(lambda: _text(nvml.nvmlSystemGetDriverVersion())),
            "power_limit_w": _read(lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000),
            "max_sm_clock_mhz": _read(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "max_memory_clock_mhz": _read(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            "memory_total_bytes": _read(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
        }
    return found | gpu_state()


def gpu_state() -> dict[str, Any]:
    """Clocks, throttle reasons, power draw, temperature and foreign processes now; `{}` without a GPU.

    Takes well under a millisecond once NVML is loaded, so read it before and after each cell.
    """
    handle = _gpu()
    if handle is None:
        return {}
    if isinstance(handle, str):
        return {"nvml": handle}
    nvml = _nvml()
    return {
        "sm_clock_mhz": _read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "memory_clock_mhz": _read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        "throttle_reasons": _read(lambda: throttle_names(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))),
        "power_draw_w": _read(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        "temperature_c": _read(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "other_processes": _read(lambda: _other_processes(nvml, handle)),
    }


def device_name() -> str:
    """The GPU's name where torch sees one, else the CPU's model."""
    cuda = _cuda()
    return cpu_model() if cuda is None else str(cuda.get_device_name())


def device_slug() -> str:
    """The device's name as a folder name: `NVIDIA-H100-80GB-HBM3`, `cpu-AMD-EPYC-7763-64-Core-Processor`."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", re.sub(r"\((?:R|TM|C)\)|\bCPU\b|@.*", "", device_name())).strip("-")
    return f"cpu-{slug}" if _cuda() is None else slug


@cache
def cpu_model() -> str:
    """The CPU's model, e.g. `AMD EPYC 7763 64-Core Processor`; its architecture where nothing tells more."""
    name = ""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    elif Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1] if found else ""
    return name.strip() or platform.processor() or platform.machine()


def throttle_names(bits: int) -> list[str]:
    """Names of the reasons set in NVML's mask; an unknown bit is given as hex: 0x84 is
    `["sw_power_cap", "hw_power_brake_slowdown"]`."""
    set_bits = [1 << shift for shift in range(bits.bit_length()) if bits >> shift & 1]
    return [THROTTLE_REASONS.get(bit, hex(bit)) for bit in set_bits]


def _read(read: Callable[[], Any]) -> Any:
    # NVML fails in many ways (no permission, not supported under MIG, a binding older than the driver), and
    # none of them may end a run that times something else.
    try:
        return read()
    except Exception as error:
        return f"NVML: {error}"


@cache
def _nvml() -> Any:
    """The initialised pynvml module; it stays initialised, as starting it takes milliseconds."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _cuda() -> Any:
    """torch.cuda if it sees a GPU, else None."""
    import torch

    return torch.cuda if torch.cuda.is_available() else None


def _gpu() -> Any:
    """NVML's handle of the GPU that this process uses, None without one, or a string that says why not.

    Chosen by the UUID of torch's current device, as NVML ignores CUDA_VISIBLE_DEVICES: index 0 there may be
    a GPU that somebody else is using.
    """
    cuda = _cuda()
    return None if cuda is None else _read(lambda: _handle(str(cuda.get_device_properties(cuda.current_device()).uuid)))


def _handle(uuid: str) -> Any:
    nvml = _nvml()
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if _text(nvml.nvmlDeviceGetUUID(handle)).removeprefix("GPU-") == uuid.removeprefix("GPU-"):
            return handle
    raise ValueError(f"no GPU with the UUID {uuid}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _other_processes(nvml: Any, handle: Any) -> int:
    """Count the processes on the GPU that are not this one.

    In a container NVML gives the host's process ids, among which our own cannot be told: one of them is ours.
    """
    both = (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses)
    pids = {process.pid for processes in both for process in processes(handle)}
    others = pids - {os.getpid()}
    ours_unnamed = others == pids and _cuda().is_initialized()
    return max(len(others) - ours_unnamed, 0)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
