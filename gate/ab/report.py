"""The report of an A/B comparison: a table for people, and everything behind it as JSON."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gate.ab.judge import Found
from gate.ab.run import Phase
from gate.baseline.report import counts
from gate.baseline.verdicts import CellVerdict
from gate.processes import write_json
from gate.records import format_ms
from gate.table import WIDE, markdown_box, render

SCHEMA = 1


def write_report(found: Found, plan: Mapping[str, Any], folder: Path, *, strict: bool = False) -> str:
    """Write `report.md` and `report.json` to the folder, and return the text."""
    text = report(found, plan, strict=strict)
    (folder / "report.md").write_text(text + "\n", encoding="utf8")
    write_json(folder / "report.json", as_json(found, plan))
    return text


def report(found: Found, plan: Mapping[str, Any], *, strict: bool = False) -> str:
    """The report as Markdown, the line with the counts last."""
    pairs = f"{len(found.screens.pairs)} screening and {len(found.confirms.pairs)} confirming pairs"
    threshold = plan["threshold"]
    lines = [
        f"## {plan['asked'][0]} (base) against {plan['asked'][1]} (head)",
        "",
        f"{_where(found)}. {pairs} of processes in {found.seconds / 60:.1f} minutes, seed {plan['seed']}. "
        f"A change counts beyond {threshold['percent']:g}% and {threshold['us']:g} us; a family-wise error of at most "
        f"{plan['alpha']:g} for slowdowns, and as much for speedups; all intervals hold at once with "
        f"{1 - plan['alpha']:g}.",
        "",
        *_table(found).splitlines(),
        "",
        *_quality(found),
        *found.notes,
        counts(found.verdicts, strict=strict),
    ]
    return "\n".join(lines)


def as_json(found: Found, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The report as data: a verdict a cell with its log-ratios, and what is said of each pair."""
    return {
        "schema": SCHEMA,
        "plan": dict(plan),
        "machine": found.screens.pairs[0].head.get("machine_info", {}),
        "seconds": found.seconds,
        "notes": found.notes,
        "pairs": [
            {"name": pair.name, "disturbed": pair.disturbed, "control_log_ratio": dict(pair.shifts)}
            for pair in (*found.screens.pairs, *found.confirms.pairs)
        ],
        "cells": [_cell(found, verdict) for verdict in found.verdicts],
    }


def _cell(found: Found, verdict: CellVerdict) -> dict[str, Any]:
    cell, shift, said = verdict.cell, found.shifts.get(verdict.cell), found.causes.get(verdict.cell)
    return asdict(verdict) | {
        "screen_log_ratios": _finite(found.screens, cell),
        "confirm_log_ratios": _finite(found.confirms, cell),
        "pair_sd": found.noise[cell].sd if cell in found.noise else None,
        "p_slower": shift and shift.p_slower,
        "p_faster": shift and shift.p_faster,
        "cause": said and said.kind,
        "cause_sentence": said and str(said),
    }


def _finite(phase: Phase, cell: str) -> list[float | None]:
    return [log if math.isfinite(log) else None for log in phase.log_ratios(cell)]


def _table(found: Found) -> str:
    table = markdown_box("cell")
    for column in ("base ms", "head ms", "change (interval)"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    table.add_column("why")
    for one in found.verdicts:
        said = found.causes.get(one.cell)
        why = "; ".join(filter(None, (one.why, str(said) if said else "")))
        table.add_row(one.cell, _ms(one.then_ms), _ms(one.now_ms), _change(one), one.verdict.upper(), why)
    return render(table, WIDE)


def _ms(ms: float | None) -> str:
    return "-" if ms is None else format_ms(ms)


def _change(one: CellVerdict) -> str:
    if one.change is None or one.low is None or one.high is None:
        return "-"
    return f"{one.change:+.1%} ({one.low:+.1%} .. {one.high:+.1%})"


def _where(found: Found) -> str:
    machine = found.screens.pairs[0].head.get("machine_info", {})
    versions = [f"{name} {version}" for name, version in (machine.get("versions") or {}).items() if version]
    return ", ".join([str(machine.get("device", "unknown device")), *versions])


def _quality(found: Found) -> list[str]:
    """What noise there was, and whether the control stayed where it was."""
    lines = []
    if found.noise:
        sds = [spread.sd for spread in found.noise.values()]
        lines.append(
            f"Noise of one pair (standard deviation of head / base): {statistics.median(sds):.2%} in the median cell, "
            f"{max(sds):.2%} in the noisiest."
        )
    pairs = [*found.screens.pairs, *found.confirms.pairs]
    moved = []
    for work in sorted({work for pair in pairs for work in pair.shifts}):
        logs = [pair.shifts[work] for pair in pairs if work in pair.shifts and not pair.disturbed]
        if logs:
            name = work.removesuffix("_ms")
            mean, least, most = (math.expm1(log) for log in (statistics.mean(logs), min(logs), max(logs)))
            moved.append(f"{name} {mean:+.2%} (pairs: {least:+.1%} .. {most:+.1%})")
    if moved:
        lines.append(f"Control, head against base: {', '.join(moved)}.")
    lines += [f"Not counted, {pair.name}: {pair.disturbed}." for pair in pairs if pair.disturbed]
    return lines
