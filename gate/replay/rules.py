"""The gate's two ways to compare, run on recorded processes: `gate ab`, and a new process against a baseline.

The judges are those of live runs (gate/ab/judge.py, gate/baseline/verdicts.py); only where processes come from differs.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gate.ab.judge import judge
from gate.ab.pairs import Threshold
from gate.ab.plan import SIDES
from gate.ab.run import Duel
from gate.baseline.baselines import Baseline, Infos, Process
from gate.baseline.comparing import CONFIRM
from gate.baseline.verdicts import CellVerdict, Comparison, Verdict
from gate.processes import Side
from gate.records import Record, cells
from gate.replay.data import Data, Recording
from gate.replay.effects import Kind

#: `gate ab`'s own defaults.
SCREEN_PAIRS, CONFIRM_PAIRS, ALPHA = 2, 6, 0.05

#: As many processes as a baseline has at least (gate/baseline/promote.py), where there are so many.
BASELINE = 5


@dataclass(frozen=True)
class Planted:
    """One cell of the newer side is slower by `size`, a share."""

    cell: str
    kind: Kind
    size: float

    def infos(self, recording: Recording) -> Infos:
        """The recording's cells with this one slower."""
        cells = recording.process.cells
        return cells | {self.cell: self.kind.slower(cells[self.cell], self.size).info}


@dataclass(frozen=True)
class Outcome:
    """What one comparison said: cells it failed, cells it could not tell, those it called faster, causes of the failed
    ones, the cells it timed again, and the seconds that its processes would have taken."""

    alarms: frozenset[str]
    cannot_tell: frozenset[str] = frozenset()
    faster: frozenset[str] = frozenset()
    causes: Mapping[str, str] = field(default_factory=dict)
    confirmed: int = 0
    seconds: float = 0.0


#: A rule: the data, its random numbers and what is planted -> what it says.
Rule = Callable[[Data, np.random.Generator, Planted | None], Outcome]


def shuffled(data: Data, rng: np.random.Generator) -> list[Recording]:
    """The processes of one session in random order; a session comes as often as it has processes."""
    groups = list(data.sessions.values())
    sizes = np.array([len(group) for group in groups])
    group = groups[rng.choice(len(groups), p=sizes / sizes.sum())]
    return [group[place] for place in rng.permutation(len(group))]


def dealt(processes: Sequence[Recording], rng: np.random.Generator) -> Iterator[tuple[Recording, Recording]]:
    """Pairs of different processes without end: all are used once before any is used again, in another order."""
    while True:
        order = rng.permutation(len(processes))
        for first, second in zip(order[::2], order[1::2], strict=False):
            yield processes[first], processes[second]


@dataclass
class Replayed(Duel):
    """A duel whose processes are dealt from recorded ones; `planted` slows the head."""

    data: Data | None = None
    planted: Planted | None = None
    deck: Iterator[tuple[Recording, Recording]] = field(default_factory=lambda: iter(()))
    names: dict[str, tuple[Recording, Recording]] = field(default_factory=dict)

    def process(self, name: str, side: str, ids: Sequence[str] | None, order_seed: int, *options: str) -> Record:
        """A recorded process with the cells of `ids` in place of a new one."""
        assert self.data is not None
        if name not in self.names:
            self.names[name] = next(self.deck)
        recording = self.names[name][SIDES.index(side)]
        infos = self.planted.infos(recording) if self.planted and side == "head" else recording.process.cells
        chosen = self.data.cells if ids is None else ids
        self.seconds += self.data.seconds(chosen)
        return recording.record({cell: infos[cell] for cell in chosen})


def ab(data: Data, rng: np.random.Generator, planted: Planted | None = None) -> Outcome:
    """`python -m gate ab` with its defaults, on pairs dealt from the processes of one session."""
    processes = shuffled(data, rng)
    nowhere = Path("replayed")
    sides = {name: Side(name, nowhere, nowhere, nowhere) for name in SIDES}
    duel = Replayed(sides, nowhere, [], data=data, planted=planted, deck=dealt(processes, rng))
    with contextlib.redirect_stdout(io.StringIO()):
        found = judge(duel, SCREEN_PAIRS, CONFIRM_PAIRS, Threshold(), ALPHA)
    causes = {cell: said.kind for cell, said in found.causes.items()}
    return _outcome(
        found.verdicts, causes, len(cells(found.confirms.pairs[0].base)) if found.confirms.pairs else 0, duel.seconds
    )


def against_baseline(data: Data, rng: np.random.Generator, planted: Planted | None = None) -> Outcome:
    """`pytest -m performance --benchmark-compare`: a process against others, suspects timed again in further ones."""
    new, *others = shuffled(data, rng)
    return _against(data, planted, new, others[:CONFIRM], others[CONFIRM:][:BASELINE])


def against_another_session(data: Data, rng: np.random.Generator, planted: Planted | None = None) -> Outcome:
    """The same with a baseline of processes of the other sessions."""
    new, *others = shuffled(data, rng)
    strangers = [one for one in data.recordings if one.process.session != new.process.session]
    before = [strangers[place] for place in rng.permutation(len(strangers))[:BASELINE]]
    return _against(data, planted, new, others[:CONFIRM], before)


def _against(
    data: Data, planted: Planted | None, new: Recording, again: Sequence[Recording], before: Sequence[Recording]
) -> Outcome:
    def cells(recording: Recording) -> Infos:
        infos = planted.infos(recording) if planted else recording.process.cells
        return {cell: infos[cell] for cell in data.cells}

    def process(recording: Recording, infos: Infos) -> Process:
        own = recording.process
        return Process(own.at, own.session, own.machine, own.commit, infos)

    then = [process(old, {cell: old.process.cells[cell] for cell in data.cells}) for old in before]
    now = process(new, cells(new))
    comparison = Comparison(now, Baseline(Path("replayed"), tuple(then), committed=True), data.cells)
    suspects = comparison.suspects()
    confirmed = {cell: [cells(recording)[cell] for recording in again] for cell in suspects}
    seconds = data.seconds(data.cells) + (CONFIRM * data.seconds(suspects) if suspects else 0.0)
    verdicts = comparison.judge(confirmed)
    causes = {one.cell: one.cause.kind for one in verdicts if one.cause is not None}
    return _outcome(verdicts, causes, len(suspects), seconds)


def rules(data: Data) -> dict[str, Rule]:
    """The rules that these records can answer for, by what the tables call them; none without enough of a session."""
    if not data.sessions:
        return {}
    found: dict[str, Rule] = {"gate ab": ab, "against a baseline": against_baseline}
    if len(data.sessions) > 1:
        found["against a baseline of other sessions"] = against_another_session
    return found


def _outcome(verdicts: Sequence[CellVerdict], causes: Mapping[str, str], confirmed: int, seconds: float) -> Outcome:
    def cells(verdict: Verdict) -> frozenset[str]:
        return frozenset(one.cell for one in verdicts if one.verdict == verdict)

    return Outcome(
        frozenset(one.cell for one in verdicts if one.fails(strict=False)),
        cells(Verdict.CANNOT_TELL),
        cells(Verdict.IMPROVED),
        causes,
        confirmed,
        seconds,
    )
