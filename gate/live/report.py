"""The report of `gate ab`: text for people, and everything behind it as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gate.live.comparison import Found
from gate.record.files import write_json
from gate.report.verdicts import as_data, verdict_lines

SCHEMA = 2


def write_report(found: Found, asked: Sequence[str], alpha: float, folder: Path, *, strict: bool) -> str:
    """Write `report.md` and `report.json` to the folder, and return the text."""
    text = report(found, asked, alpha, strict=strict)
    (folder / "report.md").write_text(text + "\n", encoding="utf8")
    write_json(folder / "report.json", as_json(found, asked))
    return text


def report(found: Found, asked: Sequence[str], alpha: float, *, strict: bool) -> str:
    """Return the report as Markdown, the line with the counts last."""
    versions = [f"{name} {version}" for name, version in (found.machine.get("versions") or {}).items() if version]
    machine = ", ".join([str(found.machine.get("device", "unknown device")), *versions])
    pairs = f"{found.pairs} live pair{'s' * (found.pairs > 1)} in {found.seconds / 60:.1f} minutes"
    threshold = found.threshold
    lines = [
        f"## {asked[0]} (base) against {asked[1]} (head)",
        "",
        f"{machine}. {pairs}. A change counts only beyond {threshold.percent:g}% and {threshold.us:g} us a step. "
        f"The probability of any false slowdown is at most {alpha:g}. "
        f"All intervals hold together with a probability of {1 - alpha:g}.",
        "",
        *verdict_lines(found.verdicts, strict=strict, every=True)[:-1],
    ]
    if found.noise.freedom > 1:
        lines.append(f"Noise of one pair (standard deviation of head / base over all cells): {found.noise.sd:.2%}.")
    lines += [*found.notes, verdict_lines(found.verdicts, strict=strict)[-1]]
    return "\n".join(lines)


def as_json(found: Found, asked: Sequence[str]) -> dict[str, Any]:
    """Return the report as data: a verdict a cell, with the blocks of every pair."""
    return {
        "schema": SCHEMA,
        "asked": list(asked),
        "machine": found.machine,
        "threshold": asdict(found.threshold),
        "seconds": found.seconds,
        "noise_sd": found.noise.sd,
        "notes": found.notes,
        "cells": [
            as_data(one) | {"pairs": [result.blocks for result in found.results.get(one.cell, [])]}
            for one in found.verdicts
        ],
    }
