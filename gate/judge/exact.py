"""Costs that follow from the code alone: compared exactly, as one step of one process measures them for good."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gate.record.cell import CellRecord, is_number

Kind = Literal["worse", "better", "lost", "new", "other work"]


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


def _count(value: float) -> str:
    return f"{value:,}"


def _share(value: float) -> str:
    return f"{value:.1%}"


#: The costs that are compared, all of them better when lower: what sentences call them, and how they write them.
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "peak_bytes": ("peak memory", _gigabytes),
    "compilations": ("compilations", _count),
    "graph_breaks": ("graph breaks", _count),
    "kernel_launches": ("kernel launches", _count),
    "synchronisations": ("synchronisations", _count),
    "padded_token_share": ("padded-token share", _share),
}

EXACT = tuple(COSTS)

#: What one side lacks is no cost that rose, and must not pass for one that did not.
FAILS_STRICT: tuple[Kind, ...] = ("worse", "lost", "other work")


@dataclass(frozen=True)
class Finding:
    """A cost that is not what it was; `str()` is the sentence about it.

    `kind` says what to do: *worse* fails; *better* and *new* (the baseline lacks the cost) ask for a new baseline;
    *lost* (no longer measured, or unreadable on one side) and *other work* (other batches were run, so nothing can
    be compared) cannot be judged: loud, and failures where nothing may pass unjudged.
    """

    cost: str
    now: float | None
    then: float | None
    kind: Kind
    note: str = ""

    @property
    def worse(self) -> bool:
        """Whether it fails the cell."""
        return self.kind == "worse"

    def __str__(self) -> str:
        if self.cost not in COSTS:
            return self.note
        name, shown = COSTS[self.cost]
        if self.note:
            return f"{name}: {self.note}"
        if self.now is None or self.then is None:
            value = self.then if self.now is None else self.now
            known = "" if value is None else shown(value)
            return (
                f"{name} is not measured now, was {known}"
                if self.kind == "lost"
                else f"{name} {known}, not measured before"
            )
        return f"{name} {_told_apart(self.now, self.then, shown)}{_change(self.now, self.then)}"


def compare(head: CellRecord, base: CellRecord) -> list[Finding]:
    """Return the exact costs of a cell that are not what they were, in the order of `EXACT`.

    Empty where either side was not timed (its verdict says more than its costs), and where a cost is None on both, as
    the GPU's are on a CPU. There is no tolerance: each cost is measured so that one number comes of one version of the
    code and its packages (docs/explanation/how-the-gate-decides.md), and a byte more is a byte more.
    """
    if head.verdict != "timed" or base.verdict != "timed":
        return []
    if work := _other_work(head, base):
        return [Finding("tokens", None, None, "other work", work)]
    why = head.unmeasured or ""
    found = (_finding(cost, getattr(head, cost), getattr(base, cost), why) for cost in EXACT)
    return [finding for finding in found if finding is not None]


def _finding(cost: str, head: Any, base: Any, why: str) -> Finding | None:
    for side, value in (("head", head), ("base", base)):
        if value is not None and not _is_cost(value):
            return Finding(cost, None, None, "lost", f"{side} has {value!r}, which is no valid value")
    if head == base:
        return None
    if head is None:
        return Finding(cost, None, base, "lost", f"not measured now, as {why}" if why else "")
    if base is None:
        return Finding(cost, head, None, "new")
    return Finding(cost, head, base, "worse" if head > base else "better")


def _is_cost(value: Any) -> bool:
    return is_number(value) and value >= 0


def _other_work(head: CellRecord, base: CellRecord) -> str:
    """Say how the batches differ, "" where they do not; how often each was run is no matter."""
    new, old = ({*(record.tokens or ())} for record in (head, base))
    if not new or not old or new == old:
        return ""
    return (
        f"other batches: {len(new - old)} of head's {len(new)} sizes are not on base, "
        f"{len(old - new)} of base's {len(old)} not on head; exact costs are not compared"
    )


def _told_apart(now: float, then: float, shown: Callable[[float], str]) -> str:
    """Both values, in full where they look alike when rounded: 20.41 GB, was 20.37 GB; 20,367,128,576, was ..."""
    new, old = shown(now), shown(then)
    return f"{new}, was {old}" if new != old else f"{now:,}, was {then:,}"


def _change(now: float, then: float) -> str:
    """` (+0.2%)`, with as many digits as it takes to be no zero; nothing where it was 0."""
    if then == 0:
        return ""
    change = now / then - 1
    digits = min(max(1, 1 - math.floor(math.log10(abs(change))) - 2), 9)
    return f" ({change:+.{digits}%})"
