"""Pytest plugin: makes the timed steps of some cells slower, for runs that show what the gate sees.

    VARLEN_GATE_PLANTED='host_sleep=0.2@sdpa_loop-*' \
        pytest -m performance --benchmark-compare -p tests.meta.planted.slowdowns

Several are divided by commas. A variable, not an option: the fresh processes that time suspects again are as slow.
Where VARLEN_GATE_PLANTED_IN names a folder, only its checkout is slower: so is one side of `gate ab`
(tests/meta/planted/live.py).
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

from gate.timing import StepTimer
from gate.waiting import net_ms
from model.attention import backend_named
from tests.performance.bench import WARM_UP, CellBench, cell_bench

VARIABLE = "VARLEN_GATE_PLANTED"
PLACE = "VARLEN_GATE_PLANTED_IN"

MakeTimer = Callable[[CellBench], StepTimer]

#: How long the GPU spins to find out how long a cycle is: about 5 ms.
SPIN_CYCLES = 10_000_000


def host_sleep(bench: CellBench, share: str, timer: MakeTimer) -> StepTimer:
    """Sleep on the host for `share` of what each step just took there, less its waiting for a core."""
    made = timer(bench)
    step = made.step
    made.step = lambda batch: time.sleep(net_ms(lambda: step(batch)) / 1e3 * float(share))
    return made


def device_sleep(bench: CellBench, share: str, timer: MakeTimer) -> StepTimer:
    """Have the GPU spin after each step for `share` of what a step took in the warm-up."""
    made = timer(bench)
    step, taken_ms = made.step, list[float]()

    def slow(batch: Any) -> None:
        if len(taken_ms) < WARM_UP - 1:
            taken_ms.append(_drained_ms(lambda: step(batch)))
            return
        step(batch)
        spin_ms = statistics.median(taken_ms) * float(share)
        torch.cuda._sleep(int(SPIN_CYCLES * spin_ms / spun_ms))

    torch.cuda._sleep(SPIN_CYCLES)
    spun_ms = _drained_ms(lambda: torch.cuda._sleep(SPIN_CYCLES))
    made.step = slow
    return made


def recompile(bench: CellBench, _: str, timer: MakeTimer) -> StepTimer:
    """Throw away what was compiled, once after the warm-up."""
    made = timer(bench)
    step, calls = made.step, 0

    def slow(batch: Any) -> object:
        nonlocal calls
        calls += 1
        if calls == len(bench.batches) + 2:
            torch.compiler.reset()
        return step(batch)

    made.step = slow
    return made


def kernel(bench: CellBench, backend: str, timer: MakeTimer) -> StepTimer:
    """Attend with another backend."""
    cell = replace(bench.cell, backend=backend_named(backend))
    return timer(cell_bench(bench.shared, cell, bench.compiler))


def multiple(bench: CellBench, tokens: str, timer: MakeTimer) -> StepTimer:
    """Pad each batch to a multiple of so many tokens (for the collators that pad to one)."""
    workload = replace(bench.shared.workload, multiple=int(tokens))
    bench.shared = replace(bench.shared, workload=workload)
    return timer(bench)


#: What can be planted.
KINDS: dict[str, Callable[[CellBench, str, MakeTimer], StepTimer]] = {
    each.__name__: each for each in (host_sleep, device_sleep, recompile, kernel, multiple)
}


@dataclass(frozen=True)
class Slowdown:
    """A kind, its value ("" for none), and the glob of its cells."""

    kind: str
    value: str
    cells: str


def slowdowns(text: str) -> list[Slowdown]:
    """Read `kind=value@glob,kind@glob`; ValueError for a kind that there is not.

    >>> slowdowns("host_sleep=0.02@sdpa_loop-*")
    [Slowdown(kind='host_sleep', value='0.02', cells='sdpa_loop-*')]
    """
    found = []
    for word in text.split(","):
        what, _, cells = word.partition("@")
        kind, _, value = what.partition("=")
        if kind not in KINDS or not cells:
            raise ValueError(f"{VARIABLE}: {word!r} is not KIND[=VALUE]@GLOB with one of {', '.join(KINDS)}.")
        found.append(Slowdown(kind, value, cells))
    return found


def planted_in(cell: str, wanted: Sequence[Slowdown]) -> Slowdown | None:
    """Return the first that names the cell, by its id; None where none does."""
    return next((one for one in wanted if fnmatch(cell, one.cells)), None)


@pytest.fixture(scope="session", autouse=True)
def planted(pytestconfig: pytest.Config) -> Iterator[None]:
    """Slow down the steps of the named cells for this session."""
    place = os.environ.get(PLACE)
    here = place is None or Path(place).resolve() == pytestconfig.rootpath.resolve()
    wanted, original = slowdowns(os.environ[VARIABLE]) if here else [], CellBench.timer

    def timer(bench: CellBench) -> StepTimer:
        one = planted_in(bench.cell.id, wanted)
        return KINDS[one.kind](bench, one.value, original) if one else original(bench)

    CellBench.timer = timer  # type: ignore[method-assign]
    yield
    CellBench.timer = original  # type: ignore[method-assign]


def _drained_ms(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e3
