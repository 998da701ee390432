"""One page that answers: `report.html` for people, `report.md` for a pull request, `report.json` for machines."""

import base64
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gate.judge.verdicts import device_of
from gate.record.cell import CellRecord, cell_of, format_ms, number_of_ranks
from gate.record.files import Record, write_json, write_whole
from gate.report.answer import against_tokens, answer, histogram, spread
from gate.report.outcomes import DRAWN, Outcome
from gate.report.tables import ARTICLE_MS, COLUMNS, OF_EACH_RANK, RANKS_LEGEND, of_ranks, same_work

KIND = "varlen-gate report"

#: docs/reference/report-format.md says what each field is.
SCHEMA = 1

#: States of a cell, the worst first.
STATES = ("wrong", "slow", "known failure", "inconclusive", "right", "timed", "unavailable", "undeclared")

#: What the page names beside its verdict, and how many of them at most.
BAD = ("wrong", "slow", "inconclusive")
NAMED = 5

#: What is known of a cell that was only timed.
TIMED = "its first batch equals the reference; drawn batches were not run"

TEMPLATES = Path(__file__).parent / "templates"

#: A summary of GitHub may hold 1 MiB.
SUMMARY = "GITHUB_STEP_SUMMARY"


@dataclass
class Page:
    """What a report is made of; every part may be empty."""

    command: str = ""
    passed: bool = True
    machine: Mapping[str, Any] = field(default_factory=dict)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    other_failures: int = 0
    states: Sequence[Mapping[str, Any]] = ()
    times: Sequence[CellRecord] = ()
    history: Sequence[Record] = ()
    comparison: Sequence[Mapping[str, Any]] = ()
    compared: str = ""
    compare: str = "pytest -m performance --benchmark-compare"
    lengths: Sequence[int] = ()
    padding: Mapping[str, float] = field(default_factory=dict)
    packing: Sequence[Mapping[str, Any]] = ()
    trainers: Sequence[Mapping[str, Any]] = ()

    def content(self) -> dict[str, Any]:
        """Return everything as plain data, as `report.json` holds it."""
        ordered = sorted(self.times, key=lambda one: (one.cell["mode"] != "train", one.step_ms or math.inf))
        times = [_time(one) for one in ordered]
        cells = self._cells()
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "passed": self.passed,
            "verdict": self._verdict(cells),
            "answer": answer(self.times, self.machine, self.padding),
            "machine": dict(self.machine),
            "cells": cells,
            "times": times,
            "against_tokens": against_tokens(self.times, device_of(self.machine.get("device_slug", "cpu-"))),
            "time_series": self._time_series(),
            "compared": self.compared,
            "comparison": [dict(one) | {"again": self._compare_again(one["cell"])} for one in self.comparison],
            "lengths": [{"from": low, "to": high, "count": count} for low, high, count in histogram(self.lengths)],
            "padding": dict(self.padding),
            "packing": [dict(one) for one in self.packing],
            "trainers": [dict(one) for one in self.trainers],
        }

    def _cells(self) -> list[dict[str, Any]]:
        """Return each cell with its state, the worst first."""
        found: dict[str, dict[str, Any]] = {}
        for state in self.states:
            if state["state"] == "undeclared":
                found[state["id"]] = _cell(state["id"], "undeclared", "; ".join(state["reasons"]))
        for name, outcome in self.outcomes.items():
            numbers = {key: getattr(outcome, key) for key in ("passed", "failed", "known", "skipped")}
            found[name] = _cell(name, outcome.state, outcome.why) | numbers
            if outcome.state == "right" and found[name]["workload"] != DRAWN:
                found[name] |= {"state": "timed", "why": TIMED}
        # A cell is timed only after its first batch was found right.
        for record in self.times:
            no_time = "wrong" if record.verdict in ("wrong", "failed") else "unavailable"
            found.setdefault(
                record.id, _cell(record.id, no_time if record.no_time else "timed", record.no_time or TIMED)
            )
        slow = {"regressed": "slow", "missing": "inconclusive", "inconclusive": "inconclusive"}
        for one in self.comparison:
            cell = found.setdefault(one["cell"], _cell(one["cell"], "timed", TIMED))
            if one["verdict"] in slow and cell["state"] in ("timed", "unavailable"):
                times = (
                    f"{one['base_ms']:.2f} -> {one['head_ms']:.2f} ms ({one['change']:+.1%}): " if one["change"] else ""
                )
                again = self._compare_again(one["cell"])
                cell |= {"state": slow[one["verdict"]], "why": f"{times}{one['why']}", "again": again}
        return sorted(found.values(), key=lambda cell: (STATES.index(cell["state"]), cell["id"]))

    def _compare_again(self, name: str) -> str:
        cell = cell_of(name)
        ranks = f" --distributed {number_of_ranks(cell)}" if "ranks" in cell else ""
        return f"{self.compare}{ranks} --cells '{name}'"

    def _time_series(self) -> dict[str, Any]:
        """Return the step time of each cell in each record, the oldest first; empty for fewer than two records."""
        records = sorted(self.history, key=lambda record: record.at)
        if len(records) < 2:
            return {}
        names = sorted({name for record in records for name in record.cells})
        times = [[record.cells[name].step_ms if name in record.cells else None for record in records] for name in names]
        shown = [
            {"at": one.at.isoformat(timespec="minutes"), "commit": str(one.commit.get("id") or "")} for one in records
        ]
        return {"records": shown, "cells": [{"id": name, "ms": row} for name, row in zip(names, times, strict=True)]}

    def _verdict(self, cells: Sequence[Mapping[str, Any]]) -> str:
        counted = {state: sum(cell["state"] == state for cell in cells) for state in STATES}
        told = [f"{counted[state]} {state}" for state in STATES if counted[state] and state != "undeclared"]
        if self.other_failures:
            told.insert(0, f"{self.other_failures} failed tests that are of no cell")
        if self.packing:
            told.append(f"{len(self.packing)} model famil{'y' if len(self.packing) == 1 else 'ies'}")
        if self.trainers:
            told.append(f"{len(self.trainers)} paths of trainers")
        if not told:
            return "Nothing was run, so nothing is shown."
        return f"{'Passed' if self.passed else 'FAILED'}: {', '.join(told)}."


def _cell(name: str, state: str, why: str) -> dict[str, Any]:
    numbers = {"passed": 0, "failed": 0, "known": 0, "skipped": 0}
    return {"id": name, **cell_of(name), "state": state, "why": why, **numbers, "again": _again(name)}


def _again(name: str) -> str:
    cell = cell_of(name)
    ranks = f" --distributed {number_of_ranks(cell)}" if "ranks" in cell else ""
    return f"pytest -m {'correctness' if cell['workload'] == DRAWN else 'performance'}{ranks} --cells '{name}'"


def _time(one: CellRecord) -> dict[str, Any]:
    cell = one.cell
    article = None
    if same_work(cell):
        theirs = ARTICLE_MS.get((cell["backend"], cell["collator"]), (None,) * len(COLUMNS))
        article = dict(zip(COLUMNS, theirs, strict=True))[cell["mode"], cell["execution"]]
    low, high = spread(one) or (None, None)
    return {
        "id": one.id,
        **cell,
        "step_ms": one.step_ms,
        "shortest_ms": low,
        "longest_ms": high,
        "article_ms": article if isinstance(article, int) else None,
        "tokens_per_s": one.tokens_per_s,
        "peak_bytes": one.peak_bytes,
        "padded_token_share": one.padded_token_share,
        "mfu": one.mfu,
        "exposed_ms": one.exposed_ms,
        "imbalance": one.imbalance,
        "efficiency": one.efficiency,
        "tokens_per_s_rank": one.tokens_per_s_rank,
        "of_ranks": {name: of_ranks(one, name, shown) for name, _, shown in OF_EACH_RANK} if one.ranks else {},
        "no_time": one.no_time,
        "again": _again(one.id),
    }


def heat_map(cells: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns (mode, mask, execution) and a row for each backend, collator and dtype that is not empty."""
    columns: dict[str, None] = {}
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for cell in sorted(cells, key=lambda cell: (cell["mode"], cell["causal"], cell["execution"] != "eager")):
        # What runs on several ranks has a table of its own.
        if cell["state"] == "undeclared" or "ranks" in cell:
            continue
        column = f"{cell['mode']} {'causal' if cell['causal'] else 'full'} {cell['execution']}"
        columns[column] = None
        key = (cell["backend"], cell["collator"], cell["dtype"], cell["workload"], cell["lengths"])
        rows.setdefault(key, {"name": key, "cells": {}})["cells"][column] = cell
    return [*columns], [rows[key] for key in sorted(rows)]


def render(content: Mapping[str, Any]) -> str:
    """Return the page: one file, which asks for nothing and runs no script but its own."""
    columns, rows = heat_map(content["cells"])
    script = (TEMPLATES / "page.js").read_text(encoding="utf8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["ms"] = lambda ms: "-" if ms is None else format_ms(ms)
    # The fastest cell of a mode is a sixth of a bar, unless all are close.
    scales = {}
    for mode in ("train", "eval"):
        timed = [one for one in content["times"] if one["mode"] == mode and one["step_ms"]]
        if timed:
            scales[mode] = min(max(one["longest_ms"] for one in timed), 6 * min(one["step_ms"] for one in timed))
    return environment.get_template("page.html").render(
        content,
        columns=columns,
        rows=rows,
        bad=[cell for cell in content["cells"] if cell["state"] in BAD],
        named=NAMED,
        script=script,
        digest=digest,
        scales=scales,
        several=[one for one in content["times"] if "ranks" in one],
        ranks_legend=RANKS_LEGEND,
    )


def markdown(content: Mapping[str, Any]) -> str:
    """Return the verdict, the answer and what is not right, for a pull request; the rest is in the page."""
    lines = [f"**{_plain(content['verdict'])}**", "", *(f"- {line}" for line in content["answer"])]
    bad = [cell for cell in content["cells"] if cell["state"] in BAD]
    if bad:
        lines += ["", "| cell | state | why |", "| --- | --- | --- |"]
        lines += [f"| {_plain(cell['id'])} | {cell['state']} | {_plain(cell['why'])} |" for cell in bad[:50]]
        lines += [f"| {len(bad) - 50} more | | |"] if len(bad) > 50 else []
    changed = [one for one in content["comparison"] if one["change"] is not None]
    if changed:
        lines += ["", f"Compared with {_plain(content['compared'])}:", ""]
        lines += ["| cell | base ms | head ms | change | verdict |", "| --- | ---: | ---: | ---: | --- |"]
        for one in changed[:50]:
            times = f"{one['base_ms']:.2f} | {one['head_ms']:.2f} | {one['change']:+.1%}"
            lines.append(f"| {_plain(one['cell'])} | {times} | {one['verdict']} |")
    return "\n".join(lines) + "\n"


def _plain(text: object) -> str:
    """Return text that Markdown shows as it is, in one line."""
    found = " ".join(str(text).split())[:300]
    for mark in "\\`*_{}[]<>|#":
        found = found.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return found


def write_page(page: Page, folder: Path) -> Path:
    """Write the three files to a folder, and the Markdown to GitHub's job summary where there is one."""
    content = page.content()
    write_json(folder / "report.json", content, indent=1)
    write_whole(folder / "report.md", text := markdown(content))
    write_whole(folder / "report.html", render(content))
    if summary := os.environ.get(SUMMARY):
        with Path(summary).open("a", encoding="utf8") as file:
            file.write(text)
    return folder / "report.html"
