"""What a time was measured on: device, clocks, driver, package versions. No host or user names."""

import hashlib
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

PACKAGES = (
    "torch",
    "flash-attn",
    "xformers",
    "transformers",
    "triton",
    "numpy",
    "pytest-benchmark",
    "hypothesis",
)

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
    found: dict[str, Any] = {
        "device": device_name(),
        "device_slug": device_slug(),
        "session": session(),
        "cpu_model": cpu_model(),
        "cpu_count": os.cpu_count(),
        "gpu_count": _gpu_count(),
        "cuda_runtime": _cuda_runtime(),
        "versions": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.machine()}",
    }
    if _gpu() is not None:
        found |= _limits() | gpu_state()
    return found


def gpu_state() -> dict[str, Any]:
    """Clocks, throttle reasons, power draw, temperature and foreign processes now; `{}` without a GPU.

    Takes well under a millisecond once NVML is loaded, so read it before and after each cell.
    `other_processes` counts the processes on the GPU that are not this one. In a container NVML gives the
    host's process ids, among which our own cannot be told: then `other_pids` holds them all.
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
        "throttle_reasons": _read(lambda: throttle_names(_throttle_bits(nvml, handle))),
        "power_draw_w": _read(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        "temperature_c": _read(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
    } | _other_processes(nvml, handle)


def device_name() -> str:
    """The GPU's name where torch (or, without torch, NVML) sees one, else the CPU's model."""
    cuda = _torch_cuda()
    if cuda is not None:
        return str(cuda.get_device_name())
    handle = _gpu()
    if handle is None or isinstance(handle, str):
        return cpu_model()
    name = _read(lambda: _nvml().nvmlDeviceGetName(handle))
    return name.decode() if isinstance(name, bytes) else str(name)


def device_slug() -> str:
    """The device's name as a folder name: `NVIDIA-H100-80GB-HBM3`, `cpu-AMD-EPYC-7763-64-Core-Processor`."""
    name = device_name()
    slug = re.sub(r"[^A-Za-z0-9]+", "-", re.sub(r"\((?:R|TM|C)\)|\bCPU\b|@.*", "", name)).strip("-")
    return slug if _gpu() is not None else f"cpu-{slug}"


def session() -> str | None:
    """What all processes on this machine and GPU between two boots share, and no others: a digest that names neither.

    None where the system does not tell when it was started.
    """
    boot = _boot()
    handle = _gpu()
    gpu = (
        ""
        if handle is None or isinstance(handle, str)
        else str(_read(lambda: _text(_nvml().nvmlDeviceGetUUID(handle))))
    )
    return hashlib.sha256(f"{boot} {gpu}".encode()).hexdigest()[:12] if boot else None


@cache
def _boot() -> str:
    """Something that is new after each boot, "" where there is none."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "kern.boottime"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return boot_id.read_text().strip() if boot_id.exists() else ""


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


def _torch_cuda() -> Any:
    """torch.cuda if it sees a GPU, else None. Does not make torch's import a requirement."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda if torch.cuda.is_available() else None


def _gpu() -> Any:
    """NVML's handle of the GPU that this process uses, None without one, or a string that says why not.

    Chosen by the UUID of torch's current device, as NVML ignores CUDA_VISIBLE_DEVICES: index 0 there may be
    a GPU that somebody else is using. A process without torch goes by CUDA_VISIBLE_DEVICES.
    """
    cuda = _torch_cuda()
    if cuda is not None:
        uuid = str(cuda.get_device_properties(cuda.current_device()).uuid)
        return _read(lambda: _handle(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"))
    if _has_torch():
        return None
    try:
        count = _nvml().nvmlDeviceGetCount()
    except Exception:
        return None
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return _read(lambda: _handle(chosen)) if count and chosen not in ("", "-1") else None


def _has_torch() -> bool:
    try:
        import torch  # noqa: F401 - only whether it can be imported matters
    except ImportError:
        return False
    return True


def _handle(chosen: str) -> Any:
    """The handle for an index or a UUID; a UUID may be shortened, as CUDA_VISIBLE_DEVICES allows."""
    nvml = _nvml()
    if chosen.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(chosen))
    if chosen.startswith("MIG-"):
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvml.nvmlDeviceGetHandleByUUID(chosen))
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = nvml.nvmlDeviceGetUUID(handle)
        if (uuid.decode() if isinstance(uuid, bytes) else uuid).startswith(chosen):
            return handle
    raise ValueError(f"no GPU with the UUID {chosen}")


def _limits() -> dict[str, Any]:
    handle = _gpu()
    if isinstance(handle, str):
        return {}
    nvml = _nvml()
    return {
        "driver": _read(lambda: _text(nvml.nvmlSystemGetDriverVersion())),
        "power_limit_w": _read(lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000),
        "max_sm_clock_mhz": _read(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "max_memory_clock_mhz": _read(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        "memory_total_bytes": _read(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
    }


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _throttle_bits(nvml: Any, handle: Any) -> int:
    # Renamed in driver 535; bindings from before know only the old name.
    new = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    return int((new or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle))


def _other_processes(nvml: Any, handle: Any) -> dict[str, Any]:
    def pids() -> list[int]:
        both = (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses)
        return sorted({process.pid for processes in both for process in processes(handle)})

    found = _read(pids)
    if isinstance(found, str):
        return {"other_pids": found, "other_processes": found}
    others = [pid for pid in found if pid != os.getpid()]
    ours_unnamed = len(others) == len(found) and _holds_context()
    count = max(len(others) - ours_unnamed, 0)
    return {"other_pids": others if count else [], "other_processes": count}


def _holds_context() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _gpu_count() -> int:
    cuda = _torch_cuda()
    return int(cuda.device_count()) if cuda is not None else 0


def _cuda_runtime() -> str | None:
    try:
        import torch.version
    except ImportError:
        return None
    return torch.version.cuda


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
