"""The table of a comparison: what each cell took on base and head, its change, its verdict and why."""

import math
from collections.abc import Sequence

from gate.judge.verdicts import CellVerdict, Verdict, counts
from gate.record.cell import format_ms
from gate.report.markdown import WIDE, markdown_box, render

#: Cells that are the same and call for no word are counted, not listed, beyond so many.
FEW = 4


def verdict_lines(
    verdicts: Sequence[CellVerdict], *, strict: bool, width: int = WIDE, every: bool = False
) -> list[str]:
    """Return the table and the counts, the counts last; `every` lists cells that are the same too."""
    listed = [one for one in verdicts if every or one.verdict != Verdict.SAME or one.told]
    same = [one for one in verdicts if one not in listed]
    if len(same) <= FEW:
        listed, same = list(verdicts), []
    lines = [*_table(listed, width).splitlines(), ""] if listed else []
    if same:
        lines.append(f"{len(same)} {'more ' if listed else ''}cells are the same{_moved(same)}.")
    return [*lines, counts(verdicts, strict=strict)]


def _table(verdicts: Sequence[CellVerdict], width: int) -> str:
    table = markdown_box("cell", numbers=("base ms", "head ms", "change (interval)"))
    table.add_column("verdict")
    table.add_column("why")
    for one in verdicts:
        times = ("-" if ms is None else format_ms(ms) for ms in (one.base_ms, one.head_ms))
        table.add_row(one.cell, *times, str(one.change) if one.change else "-", one.verdict.upper(), one.told)
    return render(table, width)


def _moved(same: Sequence[CellVerdict]) -> str:
    """How far cells moved that are the same, and what noise may hide in any of them."""
    changes = [one.change for one in same if one.change is not None]
    if not changes:
        return ""
    moved = max(abs(math.expm1(change.log)) for change in changes)
    return f": none moved by more than {moved:.1%}, and the intervals reach up to {max(c.high for c in changes):+.1%}"
