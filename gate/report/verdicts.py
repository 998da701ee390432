"""The table of a comparison: what each cell took on base and head, its change, its verdict and why."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gate.judge.verdicts import CellVerdict, Verdict, counts
from gate.record.cell import format_ms
from gate.report.markdown import WIDE, markdown_box, render

#: Cells that are the same and call for no word are counted, not listed, beyond so many.
FEW = 4


def verdict_lines(
    verdicts: Sequence[CellVerdict], *, strict: bool, width: int = WIDE, every: bool = False
) -> list[str]:
    """Return the table and the counts, the counts last; `every` lists cells that are the same too."""
    listed = [one for one in verdicts if every or one.verdict != Verdict.SAME or one.told or one.change]
    same = len(verdicts) - len(listed)
    if same <= FEW:
        listed, same = list(verdicts), 0
    table = markdown_box("cell", numbers=("base ms", "head ms", "change (interval)"))
    table.add_column("verdict")
    table.add_column("why")
    for one in listed:
        times = ("-" if ms is None else format_ms(ms) for ms in (one.base_ms, one.head_ms))
        table.add_row(one.cell, *times, str(one.change) if one.change else "-", one.verdict.upper(), one.told)
    lines = [*render(table, width).splitlines(), ""] if listed else []
    if same:
        lines.append(f"{same} {'more ' if listed else ''}cells are the same.")
    return [*lines, counts(verdicts, strict=strict)]


def as_data(one: CellVerdict) -> dict[str, Any]:
    """Return a verdict as plain data; changes are ratios less one."""
    change = one.change
    return {
        "cell": one.cell,
        "verdict": str(one.verdict),
        "why": one.why,
        "change": math.expm1(change.log) if change else None,
        "low": math.expm1(change.low) if change else None,
        "high": math.expm1(change.high) if change else None,
        "base_ms": one.base_ms,
        "head_ms": one.head_ms,
        "costs": [asdict(finding) for finding in one.findings],
        "cause": one.cause and one.cause.kind,
        "cause_sentence": one.cause and one.cause.sentence,
    }
