"""Makes the timed steps of some cells slower; `tests.studies.live` copies this file into a checkout's `model`.

What is injected is `KIND[=VALUE]@GLOB`, several between commas: `device_sleep=0.02@fa2_varlen-train-*-eager`. The glob
is of backend, mode and execution, which is what a step knows of its cell.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any
from weakref import WeakKeyDictionary

#: Steps of the warm-up that tell how long a step takes, after the first one, which may compile.
LOOKED_AT = range(1, 8)

#: How long the GPU spins to find out how long a cycle is: about 5 ms.
SPIN_CYCLES = 10_000_000

Step = Callable[..., Any]


@dataclass
class Slow:
    """Wraps a step: keeps the time of its first calls of a cell, and then makes each slower by a share of that."""

    step: Step
    share: float
    taken_ms: list[float]
    calls: int = 0

    def __call__(self, *arguments: Any) -> Any:
        """Run the step, slower once the warm-up told how long it takes."""
        self.calls += 1
        if self.calls - 1 in LOOKED_AT:
            found, ms = _drained(lambda: self.step(*arguments))
            self.taken_ms.append(ms)
            return found
        found = self.step(*arguments)
        if self.calls > LOOKED_AT.stop:
            self.wait(statistics.median(self.taken_ms) * self.share)
        return found

    def wait(self, ms: float) -> None:
        """Spend so much time."""
        raise NotImplementedError


class HostSleep(Slow):
    """Sleeps on the host after each step."""

    def wait(self, ms: float) -> None:
        """Sleep until the time is over, to the microsecond."""
        until = time.perf_counter() + ms / 1e3
        time.sleep(max(0.0, ms / 1e3 - 2e-4))
        while time.perf_counter() < until:
            pass


class DeviceSleep(Slow):
    """Has the GPU spin after each step."""

    def wait(self, ms: float) -> None:
        """Launch a kernel that spins so long."""
        import torch

        if not hasattr(self, "cycles_per_ms"):
            torch.cuda._sleep(SPIN_CYCLES)
            self.cycles_per_ms = SPIN_CYCLES / _drained(lambda: torch.cuda._sleep(SPIN_CYCLES))[1]
        torch.cuda._sleep(int(ms * self.cycles_per_ms))


def _drained(run: Callable[[], Any]) -> tuple[Any, float]:
    """Run it and return what it gives and how long it took, in ms: by the GPU's clock where there is one."""
    import torch

    if not torch.cuda.is_available():
        begin = time.perf_counter()
        return run(), (time.perf_counter() - begin) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # Launched ahead, so that a slow host is not in the time.
    torch.cuda._sleep(2 * SPIN_CYCLES)
    start.record()
    found = run()
    end.record()
    end.synchronize()
    return found, start.elapsed_time(end)


def install(names: dict[str, Any], text: str) -> None:
    """Replace `eval_step` and `train_step` among a module's names by ones that are slower where `text` says so."""
    wanted = []
    for word in text.split(","):
        what, _, glob = word.partition("@")
        kind, _, value = what.partition("=")
        if kind not in KINDS or not glob:
            raise ValueError(f"{word!r} is not KIND[=VALUE]@GLOB with one of {', '.join(KINDS)}.")
        wanted.append((kind, value, glob))
    for name in ("eval_step", "train_step"):
        names[name] = _chosen(names[name], wanted)


def _chosen(step: Step, wanted: list[tuple[str, str, str]]) -> Step:
    # By model, which is gone before the next cell's is made: a number of it may come again.
    made: WeakKeyDictionary[Any, dict[str, Step]] = WeakKeyDictionary()

    def run(model: Any, backend: Any, batch: Any, case: Any, *rest: Any) -> Any:
        name = f"{backend.name}-{case.mode}-{case.execution}"
        for kind, value, glob in wanted:
            if fnmatch(name, glob):
                of_model = made.setdefault(model, {})
                if kind not in of_model:
                    of_model[kind] = KINDS[kind](step, value)
                return of_model[kind](model, backend, batch, case, *rest)
        return step(model, backend, batch, case, *rest)

    return run


def _host_sleep(step: Step, value: str) -> Step:
    return HostSleep(step, float(value), [])


def _device_sleep(step: Step, value: str) -> Step:
    return DeviceSleep(step, float(value), [])


def _kernel(step: Step, value: str) -> Step:
    """Attend with another backend."""
    from model.attention import backend_named

    other = backend_named(value)

    def run(model: Any, backend: Any, *rest: Any) -> Any:
        for block in model.blocks:
            block.attend = other.attend
        return step(model, other, *rest)

    return run


def _prepare(step: Step, value: str) -> Step:
    """Prepare each batch so many times more; for all steps of the process."""
    from model.attention.backend import Backend

    prepared = Backend.prepared

    def slower(backend: Any, *arguments: Any) -> Any:
        for _ in range(int(value)):
            prepared(backend, *arguments)
        return prepared(backend, *arguments)

    Backend.prepared = slower  # type: ignore[method-assign]
    return step


#: What can be injected.
KINDS: dict[str, Callable[[Step, str], Step]] = {
    "host_sleep": _host_sleep,
    "device_sleep": _device_sleep,
    "kernel": _kernel,
    "prepare": _prepare,
}
