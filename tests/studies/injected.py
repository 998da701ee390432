"""Makes the timed steps of some cells slower; `tests.studies.live` copies this file into a checkout's `model`.

What is injected is `KIND[=VALUE]@GLOB`, several between commas: `device_sleep=0.9@fa2_varlen-train-eager`. Sleeps
are in ms a step. The glob is of backend, mode and execution, which is what a step knows of its cell.
"""

import functools
import time
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

#: How long the GPU spins to find out how many cycles a millisecond has: about 0.5 ms.
SPIN_CYCLES = 1_000_000

Step = Callable[..., Any]


def wait_on_host(ms: float) -> None:
    """Sleep until the time is over, to the microsecond."""
    until = time.perf_counter() + ms / 1e3
    time.sleep(max(0.0, ms / 1e3 - 2e-4))
    while time.perf_counter() < until:
        pass


def wait_on_device(ms: float) -> None:
    """Launch a kernel that spins so long."""
    import torch

    torch.cuda._sleep(int(ms * cycles_per_ms()))


@functools.cache
def cycles_per_ms() -> float:
    """Return the cycles of a millisecond: by the shortest of a few spins, as another process may use the GPU."""
    import torch

    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        torch.cuda._sleep(SPIN_CYCLES)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return SPIN_CYCLES / min(times[1:])


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
    # Made by the first step of a cell: some make all steps of the process slower.
    made = {glob: functools.cache(functools.partial(KINDS[kind], step, value)) for kind, value, glob in wanted}

    def run(model: Any, backend: Any, batch: Any, case: Any, *rest: Any) -> Any:
        name = f"{backend.name}-{case.mode}-{case.execution}"
        slower = next((each() for glob, each in made.items() if fnmatch(name, glob)), step)
        return slower(model, backend, batch, case, *rest)

    return run


def _waiting(wait: Callable[[float], None]) -> Callable[[Step, str], Step]:
    def slower(step: Step, value: str) -> Step:
        def run(*arguments: Any) -> Any:
            found = step(*arguments)
            wait(float(value))
            return found

        return run

    return slower


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

    Backend.prepared = slower  # type: ignore[method-assign, assignment]
    return step


#: What can be injected.
KINDS: dict[str, Callable[[Step, str], Step]] = {
    "host_sleep": _waiting(wait_on_host),
    "device_sleep": _waiting(wait_on_device),
    "kernel": _kernel,
    "prepare": _prepare,
}
