"""Benchmark records on disk: their cells, how they are found, kept in a journal and compared.

A record is pytest-benchmark's JSON with one key more: `cells_without_time`, entries like those under
`benchmarks` but without `stats`, for cells that were never timed (out of memory, wrong).
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

Record = dict[str, Any]

NO_TIME_WORDS = {"out of memory": "OOM"}


def cell_id(cell: dict[str, Any]) -> str:
    """The cell's stable name, read left to right; the lengths are named where they are not the default.

    >>> cell_id({"backend": "fa2_varlen", "collator": "packed", "mode": "train", "causal": True,
    ...          "dtype": "bfloat16", "execution": "eager", "workload": "article", "lengths": "uniform"})
    'fa2_varlen-packed-train-causal-bfloat16-eager-article'
    """
    mask = "causal" if cell["causal"] else "full"
    parts = [cell["backend"], cell["collator"], cell["mode"], mask, cell["dtype"], cell["execution"]]
    lengths = [] if cell["lengths"] == "uniform" else [cell["lengths"]]
    return "-".join([*parts, cell["workload"], *lengths])


def cells(record: Record) -> dict[str, dict[str, Any]]:
    """`extra_info` of every cell in a record by cell id; benchmarks that are no cells are left out."""
    entries = [*record["benchmarks"], *record.get("cells_without_time", [])]
    infos = [entry["extra_info"] for entry in entries]
    return {cell_id(info["cell"]): info for info in infos if "cell" in info}


def step_ms(info: dict[str, Any]) -> float | None:
    """Median ms a step: of the device where it was measured, else of the wall clock; None without a valid
    time (out of memory, wrong, NaN)."""
    if info.get("verdict") != "timed":
        return None
    ms = info.get("median_device_ms")
    ms = info.get("median_wall_ms") if ms is None else ms
    return float(ms) if ms is not None and math.isfinite(ms) and ms > 0 else None


def no_time_word(info: dict[str, Any]) -> str:
    """What stands in place of a cell's time: "OOM", "wrong"."""
    verdict = info.get("verdict", "no verdict")
    return "no time" if verdict == "timed" else NO_TIME_WORDS.get(verdict, verdict)


def format_ms(ms: float) -> str:
    """Three or more digits without noise: 132.4, 31.0, 3.21, 0.045."""
    return f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" if ms >= 1 else f"{ms:.3f}"


def time_or_word(info: dict[str, Any]) -> str:
    """A cell's ms a step, or the word that stands for it."""
    ms = step_ms(info)
    return no_time_word(info) if ms is None else format_ms(ms)


def workloads(record: Record) -> set[tuple[str, str]]:
    """The pairs (workload, lengths) that a record holds cells of."""
    return {(info["cell"]["workload"], info["cell"]["lengths"]) for info in cells(record).values()}


def recorded_at(record: Record) -> datetime:
    """When the record was made; a time without a zone is taken as UTC."""
    at = datetime.fromisoformat(record["datetime"])
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def load_record(path: Path) -> Record:
    """Read a record. ValueError, on one line and naming the file, if it cannot be read or is no record."""
    try:
        record: Record = json.loads(path.read_text(encoding="utf8"))
        recorded_at(record)
        for info in cells(record).values():
            step_ms(info)
        for entry in record["benchmarks"]:
            entry["stats"].setdefault("ops", 1 / entry["stats"]["mean"])
            str(entry["fullname"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{path} is not a readable benchmark record ({reason}). Restore it, or move it out of its folder."
        ) from None
    return record


def find_records(folders: Iterable[Path]) -> list[tuple[Path, Record]]:
    """The folders' records, newest first by the time stored in them; ValueError if one is unreadable."""
    paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    records = [(path, load_record(path)) for path in paths]
    return sorted(records, key=lambda pair: recorded_at(pair[1]), reverse=True)


def matches(path: Path, name: str) -> bool:
    """Whether `--benchmark-compare=NAME` means this record: a number, a prefix or glob of the file name, or
    the name given to --benchmark-save. `0012_fast.json` is meant by 12, 0012, 0012_f and fast."""
    number, _, saved_as = path.stem.partition("_")
    same_number = name.isdecimal() and number.isdecimal() and int(name) == int(number)
    wanted = name.removesuffix(".json")
    return same_number or fnmatchcase(saved_as, wanted) or fnmatchcase(path.stem, f"{wanted}*")


def newest_of_workloads(
    records: Sequence[tuple[Path, Record]], wanted: set[tuple[str, str]]
) -> tuple[Path, Record] | None:
    """The first (newest) record that holds a cell of one of the workloads."""
    return next((pair for pair in records if workloads(pair[1]) & wanted), None)


class Journal:
    """The finished entries of a running session, one JSON line each, on disk before the next cell starts.

    The first line holds what a record has beside its entries (`machine_info`, `commit_info`, ...).
    """

    def __init__(self, folder: Path, header: Record) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        started = datetime.now(UTC)
        self.path = folder / f"journal-{started:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.jsonl"
        self._append({"datetime": started.isoformat(), **header})

    def add(self, entry: dict[str, Any]) -> None:
        """Append a benchmark entry (with `stats` and their `data`) or that of a cell without a time."""
        self._append(entry)

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf8") as file:
            file.write(json.dumps(line, default=_unserializable) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _unserializable(value: object) -> str:
    # As pytest-benchmark writes what JSON has no form for, e.g. a test's parameters.
    return f"UNSERIALIZABLE[{value!r}]"


def record_from_journal(path: Path) -> Record:
    """The record that an interrupted session would have saved, in pytest-benchmark's format.

    A last line that a crash cut short is left out. ValueError if any other line cannot be read. To make a
    record that `--benchmark-compare` finds:

        record = record_from_journal(Path(".benchmarks/cpu-x/journal-20260102T030405.000000Z-77.jsonl"))
        Path(".benchmarks/cpu-x/0007_rescued.json").write_text(json.dumps(record, indent=4))
    """
    text = path.read_text(encoding="utf8")
    lines = text.splitlines()
    if not text.endswith("\n"):
        lines.pop()
    header: Record
    entries: list[dict[str, Any]]
    try:
        header, *entries = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is not a readable journal ({error}).") from None
    return header | {
        "benchmarks": [entry for entry in entries if "stats" in entry],
        "cells_without_time": [entry for entry in entries if "stats" not in entry],
    }


def comparison(now: Record, then: Record, name: str) -> list[str]:
    """A plain comparison with the record called `name`, a line a cell, worst first. It judges nothing."""
    here = workloads(now)
    new = cells(now)
    old = {
        key: info for key, info in cells(then).items() if (info["cell"]["workload"], info["cell"]["lengths"]) in here
    }
    rows = sorted((key for key in new if key in old), key=lambda key: -_ratio(new[key], old[key]))
    lines = [
        f"Now against {name} of {recorded_at(then):%Y-%m-%d %H:%M} UTC, ms a step, slowest ratio first.",
        "A plain comparison, no verdict: a few percent between two sessions are noise.",
    ]
    lines += [f"warning: {change}" for change in _environment_changes(now, then)]
    width = max([len("cell"), *map(len, rows)])
    if rows:
        lines.append(f"{'cell':<{width}}  {'now':>10}  {'then':>10}  {'ratio':>6}")
    for key in rows:
        ratio = _ratio(new[key], old[key])
        shown = f"{ratio:.3f}" if 0 < ratio < math.inf else "-"
        times = f"{time_or_word(new[key]):>10}  {time_or_word(old[key]):>10}"
        lines.append(f"{key:<{width}}  {times}  {shown:>6}")
    lines += _named("missing now", [key for key in old if key not in new])
    lines += _named("new, not in the record", [key for key in new if key not in old])
    return lines


def _ratio(now: dict[str, Any], then: dict[str, Any]) -> float:
    """now / then; infinite where a time was lost, 0 where there is none to compare with."""
    new, old = step_ms(now), step_ms(then)
    if old is None:
        return 0.0
    return math.inf if new is None else new / old


def _named(title: str, keys: list[str]) -> list[str]:
    return [f"{title} ({len(keys)}): {', '.join(keys)}"] if keys else []


def _environment_changes(now: Record, then: Record) -> list[str]:
    """What differs between the machines of two records, a sentence each."""
    new, old = now.get("machine_info", {}), then.get("machine_info", {})
    versions = [(new.get("versions", {}), old.get("versions", {}), key) for key in new.get("versions", {})]
    settings = (
        "device",
        "driver",
        "cuda_runtime",
        "power_limit_w",
        "max_sm_clock_mhz",
        "max_memory_clock_mhz",
    )
    pairs = [*versions, *((new, old, key) for key in settings)]
    changes = [f"{key} is {a.get(key)} now, was {b.get(key)} then" for a, b, key in pairs if a.get(key) != b.get(key)]
    for key in ("sm_clock_mhz", "memory_clock_mhz"):
        # Read once a session, and moving all the time under a power cap: only a large step means anything.
        a, b = new.get(key), old.get(key)
        if isinstance(a, int | float) and isinstance(b, int | float) and abs(a - b) > 0.1 * max(a, b):
            changes.append(f"{key} is {a} now, was {b} then")
    return changes
