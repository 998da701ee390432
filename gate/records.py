"""Benchmark records on disk: their cells, how they are read, named and kept in a journal.

A record is pytest-benchmark's JSON with one key more: `cells_without_time`, entries like those under
`benchmarks` but without `stats`, for cells that were never timed (out of memory, too slow, wrong).
"""

import json
import math
import os
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeGuard

Record = dict[str, Any]

#: The packages that a step runs: with others of these it has other exact costs, and work beside it another pace.
STEP_PACKAGES = ("torch", "triton", "flash-attn", "xformers", "transformers")

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


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of a record is a finite number, as it may be edited or come from another version."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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


def workloads(record: Record) -> set[tuple[str, str]]:
    """The pairs (workload, lengths) that a record holds cells of."""
    return {(info["cell"]["workload"], info["cell"]["lengths"]) for info in cells(record).values()}


def same_versions(one: Record, other: Record) -> bool:
    """Whether two records were made with the same packages, as far as a step runs them."""
    return step_versions(one.get("machine_info", {})) == step_versions(other.get("machine_info", {}))


def step_versions(machine: dict[str, Any]) -> list[str | None]:
    """The versions, in a `machine_info`, of the packages that a step runs."""
    return [(machine.get("versions") or {}).get(package) for package in STEP_PACKAGES]


def recorded_at(record: Record) -> datetime:
    """When the record was made; a time without a zone is taken as UTC."""
    at = datetime.fromisoformat(record["datetime"])
    return at if at.tzinfo else at.replace(tzinfo=UTC)


#: What a record and each cell's `extra_info` have under these names, where they have them: readers rely on it.
#: What may hold a bad number is left to those who judge it, as they can say so of one cell.
SHAPES: dict[str, type] = {"machine_info": dict, "commit_info": dict, "gate": dict}
MACHINE_SHAPES: dict[str, type] = {"versions": dict}
GATE_SHAPES: dict[str, type] = {"regressed": list, "unjudged": list}
CELL_SHAPES: dict[str, type] = {
    "verdict": str,
    "gpu_before": dict,
    "gpu_after": dict,
    "tokens": list,
    "batches": list,
    "waited_ms": list,
    "product_ms": list,
    "block_ms": list,
}


def check_shapes(record: Record) -> None:
    """ValueError for a part of a record that is not what it should be, as it may be edited or of another version."""
    # A record without it is of an unknown machine; null is what nothing writes.
    machine = record.get("machine_info", {})
    if machine is None:
        raise ValueError("machine_info is None, not a dict")
    _check(record, SHAPES)
    _check(machine, MACHINE_SHAPES)
    _check(record.get("gate") or {}, GATE_SHAPES)
    for cell, info in cells(record).items():
        _check(info, CELL_SHAPES, f" of {cell}")
        for key in ("tokens", "batches"):
            if not all(map(is_number, info.get(key) or ())):
                raise ValueError(f"{key} of {cell} holds {info[key]!r:.40}, not numbers")
        clock = (info.get("gpu_after") or {}).get("sm_clock_mhz")
        if is_number(clock) and clock <= 0:
            raise ValueError(f"sm_clock_mhz of {cell} is {clock!r}, not a clock")


def _check(content: dict[str, Any], shapes: dict[str, type], of: str = "") -> None:
    for key, shape in shapes.items():
        value = content.get(key)
        if value is not None and not isinstance(value, shape):
            raise ValueError(f"{key}{of} is {value!r:.40}, not a {shape.__name__}")


def load_record(path: Path) -> Record:
    """Read a record. ValueError, on one line and naming the file, if it cannot be read or is no record."""
    try:
        record: Record = json.loads(path.read_text(encoding="utf8"))
        recorded_at(record)
        check_shapes(record)
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


def matches(path: Path, name: str) -> bool:
    """Whether `--benchmark-compare=NAME` means this record: a number, a prefix or glob of the file name, or
    the name given to --benchmark-save. `0012_fast.json` is meant by 12, 0012, 0012_f and fast."""
    number, _, saved_as = path.stem.partition("_")
    same_number = name.isdecimal() and number.isdecimal() and int(name) == int(number)
    wanted = name.removesuffix(".json")
    return same_number or fnmatchcase(saved_as, wanted) or fnmatchcase(path.stem, f"{wanted}*")


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
        record["gate"] = {"partial": True}  # where it was stopped, so that it stands for no whole run
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
