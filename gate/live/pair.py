"""One live pair: a worker of base and one of head, which open the same cell and run blocks of its batches in turn."""

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from gate.judge.live import FITS, PairResult
from gate.judge.pairs import block_log, host_deficit_ms, pair_change, precise
from gate.judge.verdicts import Threshold
from gate.live.workers import Lost, RankedWorker, Side, Worker
from gate.record.cell import CellRecord, cell_of

SIDES = ("base", "head")

#: A block of steps lasts about so long, in ms, and at least a step: a GPU at its power limit changes its clock within
#: 100 ms, and what moves both sides cancels.
BLOCK_MS = 30.0

#: A GPU's host launches a block so long before the device runs it, in ms: a host held up for less costs nothing.
AHEAD_MS = 15.0

#: Steps of each side before the first block, which tell how many a block holds.
PILOT = 2

Reply = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """The same batches on both sides, one after the other, and what each worker answered."""

    order: list[int]
    replies: Mapping[str, Reply]


def block_logs(blocks: Sequence[Block]) -> list[float]:
    """Return the log of head / base of each block, with what the host's launches add to a step on each side."""
    base, head = (_deficit(blocks, side) or 0.0 for side in SIDES)
    return [block_log(_times(each.replies["base"]), _times(each.replies["head"]), base, head) for each in blocks]


def _deficit(blocks: Sequence[Block], side: str) -> float | None:
    """Return the host's deficit of a side in ms a step, None on a CPU."""
    replies = [block.replies[side] for block in blocks]
    if not replies[0]["device_ms"]:
        return None
    leads = [reply["lead_ms"][-1] for reply in replies]
    return host_deficit_ms([reply["ahead_ms"] for reply in replies], leads, len(blocks[0].order))


class LivePair:
    """Two workers, base and head; a side whose worker is gone gets another one for what is asked next.

    With `ranks` in the greeting each side has a worker a rank.
    """

    def __init__(
        self, name: str, sides: Mapping[str, Side], hello: Mapping[str, Any], logs: Path, stall_s: float
    ) -> None:
        self.name, self.sides, self.hello, self.logs, self.stall_s = name, sides, hello, logs, stall_s
        self.workers: dict[str, Worker | RankedWorker] = {}
        self.greeted: dict[str, Reply] = {}
        try:
            for side in SIDES:
                self._start(side)
        except BaseException:
            self.close()
            raise

    def _start(self, side: str) -> None:
        self.greeted.pop(side, None)
        given = self.sides[side], self.logs / f"{self.name}-{side}.log", self.stall_s
        ranks = self.hello.get("ranks", 1)
        self.workers[side] = RankedWorker(*given, ranks) if ranks > 1 else Worker(*given)
        self.workers[side].send("hello", **self.hello)

    def ready(self) -> dict[str, Reply]:
        """Wait until both sides told what they can run; ValueError, in one line, for a side that cannot be driven."""
        for side in SIDES:
            self._greet(side)
        return self.greeted

    def _greet(self, side: str) -> None:
        if side in self.greeted:
            return
        worker = self.workers[side]
        try:
            reply = worker.answer()
        except Lost as error:
            raise ValueError(f"{side}: the worker stopped ({error}). Its last line: {worker.last_line}") from None
        if "error" in reply:
            raise ValueError(
                f"{side} ({worker.side.checkout}) cannot be driven by this gate: {reply['error']}. "
                "Correct the options, or choose a commit whose models this gate knows."
            )
        self.greeted[side] = reply

    def measure(
        self, cell: str, threshold: Threshold, rng: random.Random, *, costs: bool = True, kernels: bool = False
    ) -> PairResult:
        """Time the cell on both sides in turn, and ask for its exact `costs`; what has no time says why."""
        opened = self._both("open", cell=cell)
        try:
            _all_are("ready", opened)
            tokens: list[list[int]] = [opened[side]["tokens"] for side in SIDES]
            if tokens[0] != tokens[1]:
                had, has = (f"{len(each)} batch{'es' * (len(each) != 1)} with {sum(each):,} tokens" for each in tokens)
                return _without_time(cell, opened, f"other batches: base has {had}, head {has}")
            blocks: list[Block] = []
            for block in self._blocks(len(tokens[0]), rng):
                blocks.append(block)
                if block.order[-1] == len(tokens[0]) - 1:
                    base_ms = statistics.median(chain.from_iterable(_times(each.replies["base"]) for each in blocks))
                    if precise(pair_change(block_logs(blocks)), threshold.log(base_ms)):
                        break
            known = self._costs(costs, kernels)
        except _Ended as ended:
            # With both sides in memory, neither is to be blamed.
            full = any(reply["verdict"] == "out of memory" for reply in ended.replies.values())
            return _without_time(cell, self._alone(cell) if full else ended.replies)
        base, head = (_record(cell, side, blocks, opened[side], known[side]) for side in SIDES)
        return PairResult(cell, base, head, block_logs(blocks))

    def _alone(self, cell: str) -> dict[str, Reply]:
        """Open the cell on one side after the other."""
        self._both("close")
        opened = {}
        for side in SIDES:
            opened[side] = self._ask(side, "open", cell=cell)
            self._ask(side, "close")
        return opened

    def _blocks(self, batches: int, rng: random.Random) -> Iterator[Block]:
        """Yield blocks of about `BLOCK_MS`: parts of a pass over the batches, or several passes."""
        every = [*range(batches)]
        pilot = self._block(every[:PILOT], SIDES)
        ms = min(statistics.median(_times(reply)) for reply in pilot.replies.values())
        steps = max(1, round(BLOCK_MS / ms))
        count = -(-batches // steps)
        passes = max(1, round(steps / batches))
        while True:
            for part in range(count):
                order = every[part * batches // count : (part + 1) * batches // count] * passes
                yield self._block(order, rng.sample(SIDES, 2))

    def _block(self, order: list[int], sides: Sequence[str]) -> Block:
        # Both are asked, whatever came of the first: it may fail on both.
        replies = {side: self._ask(side, "block", order=order, ahead_ms=AHEAD_MS) for side in sides}
        _all_are("timed", replies)
        return Block(order, replies)

    def _costs(self, costs: bool, kernels: bool) -> dict[str, Reply]:
        """Return the clocks and exact costs of both sides: measured at once, or in turn where kernels are timed."""
        states = self._both("state")
        found: dict[str, Reply] = {side: {} for side in SIDES}
        if kernels:
            found = {side: self._ask(side, "costs", kernels=True) for side in SIDES}
        elif costs:
            found = self._both("costs", kernels=False)
        for replies in (states, found):
            if any("verdict" in reply for reply in replies.values()):
                raise _Ended({side: {"verdict": "ready"} | replies[side] for side in SIDES})
        return {side: found[side] | {"gpu_after": states[side]["gpu"] or None} for side in SIDES}

    def _both(self, do: str, **arguments: Any) -> dict[str, Reply]:
        """Ask both sides at once."""
        for side in SIDES:
            self._send(side, do, **arguments)
        return {side: self._answer(side) for side in SIDES}

    def _ask(self, side: str, do: str, **arguments: Any) -> Reply:
        self._send(side, do, **arguments)
        return self._answer(side)

    def _send(self, side: str, do: str, **arguments: Any) -> None:
        self._greet(side)
        self.workers[side].send(do, **arguments)

    def _answer(self, side: str) -> Reply:
        """Return a side's answer; one that is gone, or whose CUDA context may be broken, starts again."""
        try:
            reply = self.workers[side].answer()
        except Lost as error:
            reply = {"verdict": "crashed", "reason": str(error)}
        if "error" in reply:
            reply = {"verdict": "failed", "reason": reply["error"]}
        if reply.get("verdict") in ("crashed", "failed") or self.workers[side].killed:
            self.workers[side].kill()
            self._start(side)
        return reply

    def close(self) -> None:
        """End both workers and what they started."""
        for worker in self.workers.values():
            worker.kill()


class _Ended(Exception):
    """A side failed in the midst of a cell; `replies` says which."""

    def __init__(self, replies: Mapping[str, Reply]) -> None:
        super().__init__()
        self.replies = replies


def _all_are(verdict: str, replies: Mapping[str, Reply]) -> None:
    if any(reply["verdict"] != verdict for reply in replies.values()):
        raise _Ended(replies)


def _without_time(cell: str, replies: Mapping[str, Reply], note: str = "") -> PairResult:
    """Return a result without blocks: a side that could run says so, and the others why they could not."""
    base, head = (
        CellRecord(
            cell_of(cell), FITS if each["verdict"] in ("ready", "timed") else each["verdict"], each.get("reason", "")
        )
        for each in (replies[side] for side in SIDES)
    )
    if not note and base.verdict == head.verdict == FITS:
        note = "each side alone fits into memory, but both together do not"
    return PairResult(cell, base, head, note=note)


def _record(cell: str, side: str, blocks: Sequence[Block], opened: Reply, costs: Reply) -> CellRecord:
    """Return what one side measured."""
    replies = [block.replies[side] for block in blocks]
    batches = [*chain.from_iterable(block.order for block in blocks)]
    # What a worker answers as a list has one number for each step.
    names = [name for name, value in replies[0].items() if isinstance(value, list)]
    times = {name: [*chain.from_iterable(reply[name] for reply in replies)] or None for name in names}
    found = {
        "cell": cell_of(cell),
        "verdict": "timed",
        "batches": batches,
        "tokens": [opened["tokens"][number] for number in batches],
        "gpu_before": opened["gpu"] or None,
        "host_deficit_ms": _deficit(blocks, side),
    }
    return CellRecord.read(found | times | costs)


def _times(reply: Reply) -> list[float]:
    """The times of a block's steps, by the device's clock where there is one."""
    times: list[float] = reply["device_ms"] or reply["wall_ms"]
    return times
