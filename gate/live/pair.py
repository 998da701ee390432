"""One live pair: a worker of base and one of head, which open the same cell and run blocks of its batches in turn."""

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from gate.judge.pairs import PairChange, block_log, host_deficit_ms, pair_change, precise
from gate.judge.verdicts import Threshold
from gate.live.workers import Lost, Side, Worker
from gate.record.cell import CellRecord, cell_of

SIDES = ("base", "head")

#: A block of steps lasts about so long, in ms, and at least a step: a GPU at its power limit changes its clock within
#: 100 ms, and what moves both sides cancels.
BLOCK_MS = 30.0

#: A GPU's host launches a block so long before the device runs it, in ms: a host that is held up for less costs nothing.
AHEAD_MS = 15.0

#: Steps of each side before the first block, which tell how many a block holds.
PILOT = 2

#: The verdict of a side that could be opened alone, and was not timed.
FITS = "fits alone"

Reply = dict[str, Any]


@dataclass
class PairResult:
    """What one live pair measured of a cell: both sides, and the log of head / base of each block.

    `note` says why two that fit alone were not timed.
    """

    cell: str
    base: CellRecord
    head: CellRecord
    blocks: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def change(self) -> PairChange | None:
        """The cell's change in this pair, None where it was not timed on both sides."""
        return pair_change(self.blocks) if self.blocks else None

    @property
    def lost(self) -> dict[str, str]:
        """Why a side has no time, by side; empty where both have one."""
        both = {"base": self.base, "head": self.head}
        return {side: one.no_time for side, one in both.items() if one.verdict != FITS and one.no_time}

    def save(self, path: Path) -> None:
        """Write the result whole or not at all."""
        content = {"cell": self.cell, "blocks": self.blocks, "note": self.note}
        write_json(path, content | {"base": self.base.written(), "head": self.head.written()})

    @classmethod
    def load(cls, path: Path) -> "PairResult":
        """Read what `save` wrote; ValueError names the file."""
        try:
            content = json.loads(path.read_text(encoding="utf8"))
            base, head = (CellRecord.read(content[side]) for side in SIDES)
            return cls(content["cell"], base, head, [float(log) for log in content["blocks"]], content["note"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no finished cell ({error}); remove it to measure that again.") from None


@dataclass(frozen=True)
class Block:
    """The same batches on both sides, one after the other, and what each worker answered."""

    order: list[int]
    base: Reply
    head: Reply


def block_logs(blocks: Sequence[Block]) -> list[float]:
    """Return the log of head / base of each block, with what the host's launches add to a step on each side."""
    deficits = [_deficit(blocks, side) or 0.0 for side in SIDES]
    return [block_log(_times(block.base), _times(block.head), *deficits) for block in blocks]


def _deficit(blocks: Sequence[Block], side: str) -> float | None:
    """Return the host's deficit of a side in ms a step, None on a CPU."""
    replies = [getattr(block, side) for block in blocks]
    if not replies[0]["device_ms"]:
        return None
    leads = [reply["lead_ms"][-1] for reply in replies]
    return host_deficit_ms([reply["ahead_ms"] for reply in replies], leads, len(blocks[0].order))


class LivePair:
    """Two workers, base and head; a side whose worker is gone gets another one for the next cell."""

    def __init__(
        self, name: str, sides: Mapping[str, Side], hello: Mapping[str, Any], logs: Path, stall_s: float
    ) -> None:
        self.name, self.sides, self.hello, self.logs, self.stall_s = name, sides, hello, logs, stall_s
        self.workers: dict[str, Worker] = {}
        self.greeted: dict[str, Reply] = {}
        for side in SIDES:
            self._start(side)

    def _start(self, side: str) -> None:
        self.workers[side] = Worker(self.sides[side], self.logs / f"{self.name}-{side}.log", self.stall_s)
        self.greeted.pop(side, None)
        self.workers[side].send("hello", **self.hello)

    def ready(self) -> dict[str, Reply]:
        """Wait until both sides told what they can run; ValueError, in one line, for a side that cannot be driven."""
        for side, worker in self.workers.items():
            if side in self.greeted:
                continue
            try:
                reply = worker.answer()
            except Lost as error:
                raise ValueError(f"{side}: its worker ended ({error}): {worker.last_line}") from None
            if "error" in reply:
                raise ValueError(
                    f"{side} ({self.sides[side].checkout}) cannot be driven by this gate: {reply['error']}. "
                    "Compare with a commit whose models it knows."
                )
            self.greeted[side] = reply
        return self.greeted

    def measure(self, cell: str, threshold: Threshold, rng: random.Random, *, kernels: bool = False) -> PairResult:
        """Time the cell on both sides in turn; what has no time says why."""
        self.ready()
        opened = self._open(cell)
        if any(reply["verdict"] != "ready" for reply in opened.values()):
            return self._without_time(cell, opened)
        blocks: list[Block] = []
        try:
            chunks = self._chunks(len(opened["base"]["tokens"]))
            while True:
                for order in chunks:
                    replies = {side: self._timed(side, order) for side in rng.sample(SIDES, 2)}
                    blocks.append(Block(order, replies["base"], replies["head"]))
                base_ms = statistics.median(chain.from_iterable(_times(block.base) for block in blocks))
                logs = block_logs(blocks)
                if precise(pair_change(logs), threshold.log(base_ms)):
                    break
            costs = self._costs(kernels)
        except _SideError as error:
            return self._without_time(cell, opened | {error.side: error.reply})
        numbers = [*chain.from_iterable(block.order for block in blocks)]
        records = {}
        for side in SIDES:
            replies = [getattr(block, side) for block in blocks]
            given: Reply = {key: [*chain.from_iterable(each[key] for each in replies)] or None for key in _LISTS}
            given |= {"batches": numbers, "tokens": [opened[side]["tokens"][number] for number in numbers]}
            given |= {"gpu_before": opened[side]["gpu"] or None, "cell": cell_of(cell), "verdict": "timed"}
            given |= {"host_deficit_ms": _deficit(blocks, side)}
            records[side] = CellRecord.read(given | costs[side])
        return PairResult(cell, records["base"], records["head"], logs)

    def _open(self, cell: str) -> dict[str, Reply]:
        """Open the cell on both sides at once; where memory lacks, each side alone, so that one is not blamed for two."""
        for side in SIDES:
            self.workers[side].send("open", cell=cell)
        opened = {side: self._answer(side) for side in SIDES}
        if all(reply["verdict"] != "out of memory" for reply in opened.values()):
            return opened
        for side in SIDES:
            self._again(side, "close")
        for side in SIDES:
            opened[side] = self._again(side, "open", cell=cell)
            self._again(side, "close")
            if opened[side]["verdict"] == "ready":
                opened[side] = {"verdict": FITS}
        return opened

    def _again(self, side: str, do: str, **arguments: Any) -> Reply:
        try:
            self.workers[side].send(do, **arguments)
        except Lost as error:
            return self._gone(side, str(error))
        return self._answer(side)

    def _answer(self, side: str) -> Reply:
        """Return a side's answer; one that is gone, or whose CUDA context may be broken, starts again."""
        try:
            reply = self.workers[side].answer()
        except Lost as error:
            return self._gone(side, str(error))
        if "error" in reply:
            return self._gone(side, reply["error"], "failed")
        if reply.get("verdict") == "failed":
            return self._gone(side, reply["reason"], "failed")
        return reply

    def _gone(self, side: str, reason: str, verdict: str = "crashed") -> Reply:
        self.workers[side].kill()
        self._start(side)
        return {"verdict": verdict, "reason": reason}

    def _timed(self, side: str, order: Sequence[int]) -> Reply:
        reply = self._again(side, "block", order=list(order), ahead_ms=AHEAD_MS)
        if reply["verdict"] != "timed":
            raise _SideError(side, reply)
        return reply

    def _chunks(self, batches: int) -> list[list[int]]:
        """Divide the batches, or several passes over them, into blocks of about `BLOCK_MS`."""
        pilot = [*range(batches)][:PILOT]
        ms = min(statistics.median(_times(self._timed(side, pilot))) for side in SIDES)
        steps = max(1, round(BLOCK_MS / ms))
        if steps >= batches:
            return [[*range(batches)] * round(steps / batches)]
        count = -(-batches // steps)
        return [[*range(batches)][place * batches // count : (place + 1) * batches // count] for place in range(count)]

    def _costs(self, kernels: bool) -> dict[str, Reply]:
        """Return the exact costs of both sides: measured at once, or one after the other where kernels are timed."""
        found = {}
        for side in SIDES:
            state = self._again(side, "state")
            found[side] = {"gpu_after": state.get("gpu") or None}
        if not kernels:
            for side in SIDES:
                self.workers[side].send("costs", kernels=False)
            return {side: found[side] | self._measured(side, self._answer(side)) for side in SIDES}
        return {side: found[side] | self._measured(side, self._again(side, "costs", kernels=True)) for side in SIDES}

    def _measured(self, side: str, reply: Reply) -> Reply:
        if reply.get("verdict") in ("crashed", "failed"):
            raise _SideError(side, reply)
        return reply

    def _without_time(self, cell: str, replies: Mapping[str, Reply]) -> PairResult:
        key = cell_of(cell)
        records = {
            side: CellRecord(key, FITS)
            if replies[side]["verdict"] in ("ready", FITS)
            else CellRecord(key, replies[side]["verdict"], replies[side].get("reason", ""))
            for side in SIDES
        }
        together = all(record.verdict == FITS for record in records.values())
        note = "each side fits into memory alone, and the two do not" if together else ""
        return PairResult(cell, records["base"], records["head"], note=note)

    def close(self) -> None:
        """End both workers and what they started."""
        for worker in self.workers.values():
            worker.kill()


class _SideError(Exception):
    """A side that failed in the midst of a cell."""

    def __init__(self, side: str, reply: Reply) -> None:
        super().__init__(side)
        self.side, self.reply = side, reply


#: The lists of times in a block's answer.
_LISTS = ("device_ms", "wall_ms", "host_ms", "lead_ms")


def _times(reply: Reply) -> list[float]:
    """The times of a block's steps, by the device's clock where there is one."""
    times: list[float] = reply["device_ms"] or reply["wall_ms"]
    return times


def write_json(path: Path, value: object) -> None:
    """Write a file whole or not at all: a name that is there is a file that is finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value), encoding="utf8")
    partial.replace(path)
