"""How fast the host is while a cell is timed: fixed work of its own between every two steps, plain torch.

Neighbours on a shared host slow a step down by its caches, memory and clocks even while it runs, for seconds or for
minutes. None of this project's code is in the work beside it, so no change of it moves the pace (but for one that keeps
other threads of the process busy).

On a CPU it is a matrix product and a block, and a step is timed in what they take: matrices that fit into a core's
cache hardly notice neighbours; a block, forward and backward, that goes over memory and takes new memory notices more
than most steps (gate/estimates.py weighs the two). On a GPU, where only some steps wait for the host, it is small
operations, and tells whether the host was as fast as at other times (gate/host.py).

Where it was not, steps are queued from another core. A rented machine's cores are threads of a host's cores, whose
other threads have other tenants: while one of these works, a core takes 1.6 times as long, for a second or so
(docs/h100.md). At most times some cores have idle neighbours. The thread that calls moves: torch queues backward passes
from a thread of its own, which runs where the system has it.
"""

import argparse
import math
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F

from gate.host import SLOW
from gate.table import WIDE, markdown_box, render
from gate.waiting import net_ms
from model.attention import Device, Mode

#: Sizes for about 2 ms (product) and 5 ms (block) on two cores of a server: short against a step, long enough to time.
ROWS = 512
TOKENS, WIDTH, HIDDEN, VOCABULARY = 512, 128, 512, 256
SEQUENCES, HEADS = 8, 4
SHAPES = (
    (TOKENS, WIDTH),
    (SEQUENCES, HEADS, TOKENS // SEQUENCES, WIDTH // HEADS),
    (WIDTH, HIDDEN),
    (HIDDEN, WIDTH),
    (WIDTH, VOCABULARY),
)

#: Cores that are tried between two steps at most, and steps that a search without success is not repeated for.
TRIED, REST = 16, 4

#: Operations on a small tensor, and how often they are timed at once: the fastest counts, as caches and clocks are cold
#: where the host was idle before. 0.3 ms or so in all, by which every step that waits for the host is longer.
OPERATIONS, ATTEMPTS = 20, 4

#: Where Linux tells which core a thread is on: among what follows the name of its program.
THREAD, PROCESSOR = Path("/proc/thread-self/stat"), 36

#: How often every batch is timed. A neighbour comes and goes within seconds, and a CPU's cell takes about one a pass.
#: On a GPU a step of evaluation takes a third of a training step or less, and a hiccup of the host is more of it.
PASSES: dict[Device, dict[Mode, int]] = {"cuda": {"eval": 3, "train": 1}, "cpu": {"eval": 3, "train": 3}}


@dataclass
class Pace:
    """Times of the product and of the block, before each step and after the last, without waiting for a core."""

    factor: torch.Tensor = field(default_factory=lambda: _numbers(ROWS, ROWS))
    parameters: list[torch.Tensor] = field(default_factory=lambda: [_numbers(*s).requires_grad_() for s in SHAPES])
    product_ms: list[float] = field(default_factory=list)
    block_ms: list[float] = field(default_factory=list)

    def tick(self) -> bool:
        """Time both now: call it before each step, and after the last. The first call warms up too.

        Returns whether a step is to settle before the next one is timed: never.
        """
        if not self.block_ms:
            self._product(), self._block()
        self.product_ms.append(net_ms(self._product))
        self.block_ms.append(net_ms(self._block))
        return False

    def steps(self) -> dict[str, list[float]]:
        """Return what the cell's record holds: the mean of the two times around each step."""
        return {
            "product_ms": around(self.product_ms, self.product_ms),
            "block_ms": around(self.block_ms, self.block_ms),
        }

    def _product(self) -> None:
        _ = self.factor @ self.factor

    def _block(self) -> None:
        tokens, heads, up, down, unembed = self.parameters
        hidden = F.gelu(F.layer_norm(tokens, (WIDTH,)) @ up) @ down
        attended = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        out = tokens + hidden + attended.transpose(1, 2).reshape(TOKENS, WIDTH)
        F.cross_entropy(out @ unembed, torch.zeros(TOKENS, dtype=torch.long)).backward()
        for parameter in self.parameters:
            parameter.grad = None


def allowed() -> list[int]:
    """Return the cores that this thread may run on, the one that it is on first; none where the system does not let it
    choose, or has only one."""
    try:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores)
        here = int(THREAD.read_text().rpartition(")")[2].split()[PROCESSOR])
    except (AttributeError, OSError, IndexError, ValueError):
        return []
    return sorted(cores, key=lambda core: core != here) if len(cores) > 1 else []


def move(core: int, cores: list[int]) -> bool:
    """Move this thread to a core, and let it run on all `cores` as before: the system has it stay while it can.

    Returns whether it could: a core can be taken away meanwhile.
    """
    try:
        os.sched_setaffinity(0, [core])
        os.sched_setaffinity(0, cores)
    except OSError:
        return False
    return True


@dataclass
class HostPace:
    """Times of small operations that the host dispatches one by one, before each step: no kernel is launched.

    `left_ms` are of the core that the step before was queued from, `taken_ms` of the one that the next is queued from.
    """

    small: torch.Tensor = field(default_factory=lambda: torch.zeros(8, 8, device="cpu"))
    cores: list[int] = field(default_factory=allowed)
    left_ms: list[float] = field(default_factory=list)
    taken_ms: list[float] = field(default_factory=list)
    calm_ms: float = math.inf
    rest: int = 0

    def tick(self) -> bool:
        """Time them now: call it before each step, and after the last. Return whether a step is to settle first.

        Where they are slow, other cores are tried, and a calm one is taken; the first call warms up, and tries all.
        That takes the host 0.4 ms a core, which a step that waits for the host would be longer by.
        """
        first = not self.left_ms
        if first:
            self._dispatch()
        here = self._time()
        self.left_ms.append(here)
        self.rest -= 1
        search = bool(self.cores) and (first or (here > SLOW * self.calm_ms and self.rest < 0))
        self.taken_ms.append(self._calmer(every=first) if search else here)
        return search

    def steps(self) -> dict[str, list[float]]:
        """Return what the cell's record holds: the mean of the two times around each step."""
        return {"host_pace_ms": around(self.taken_ms, self.left_ms)}

    def _calmer(self, *, every: bool) -> float:
        """Move to the first core that is calm, else to the calmest, and return its time; try all of them if asked."""
        times: dict[int, float] = {}
        for core in self.cores if every else self.cores[:TRIED]:
            if move(core, self.cores):
                times[core] = self._time()
                if times[core] <= SLOW * self.calm_ms and not every:
                    break
        if not times:
            self.cores = []
            return self._time()
        calm = [core for core, ms in times.items() if ms <= SLOW * self.calm_ms]
        core = calm[0] if calm else min(times, key=times.__getitem__)
        self.rest = 0 if calm else REST
        # Those that were not tried come first the next time.
        self.cores.sort(key=times.__contains__)
        move(core, self.cores)
        return times[core]

    def _time(self) -> float:
        ms = self.fastest_ms()
        self.calm_ms = min(self.calm_ms, ms)
        return ms

    def fastest_ms(self) -> float:
        """Return what the operations take on this core now, the fastest of some attempts."""
        return min(self._dispatched_ms() for _ in range(ATTEMPTS))

    def _dispatched_ms(self) -> float:
        begin = time.perf_counter()
        self._dispatch()
        return (time.perf_counter() - begin) * 1e3

    def _dispatch(self) -> None:
        numbers = self.small
        for _ in range(OPERATIONS // 2):
            numbers = (numbers + 1.0).transpose(0, 1)


def core_times(seconds: float) -> dict[int, list[float]]:
    """Return the times of the small operations in ms on each core, in turn, one of each core a round."""
    pace = HostPace()
    times: dict[int, list[float]] = {core: [] for core in sorted(pace.cores)}
    pace.fastest_ms()
    end = time.perf_counter() + seconds
    while times and time.perf_counter() < end:
        for core, found in times.items():
            move(core, pace.cores)
            found.append(pace.fastest_ms())
    return times


def told(times: dict[int, list[float]]) -> str:
    """Say in a table how fast each core was, and how often it was slow beside the calmest time of all."""
    if not times:
        return "Only one core, or a system that does not let a program choose: nothing to compare."
    calm = min(map(min, times.values()))
    table = markdown_box("core", "fastest us", "median us", "slowest us", "slow")
    for core, found in times.items():
        numbers = [f"{1e3 * ms:.0f}" for ms in (min(found), statistics.median(found), max(found))]
        table.add_row(str(core), *numbers, f"{statistics.mean(ms > SLOW * calm for ms in found):.0%}")
    rounds = list(zip(*times.values(), strict=True))
    some = sum(min(each) <= SLOW * calm for each in rounds)
    said = f"{some} of {len(rounds)} rounds found a core that was not slow ({SLOW:g} times the calmest)."
    return f"{render(table, WIDE)}\n{said}"


def main() -> None:
    """Time small work of the host on each of its cores in turn: on cores of your own none is slow."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.pace", description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="for so long (default 10)")
    print(told(core_times(parser.parse_args().seconds)))


def pace_of(device: Device) -> Pace | HostPace:
    """Return the work that tells how fast the host of steps on `device` is."""
    return Pace() if device == "cpu" else HostPace()


def around(before_ms: list[float], after_ms: list[float]) -> list[float]:
    """Return the mean of the times before and after each step; a tick is after one step and before the next."""
    return [statistics.mean(both) for both in zip(before_ms[:-1], after_ms[1:], strict=True)]


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    main()
