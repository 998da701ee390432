"""Records on disk: how pytest-benchmark's files are read and named, and the journal of a session that runs.

A record is pytest-benchmark's JSON with one key more: `cells_without_time`, entries like those under `benchmarks` but
without `stats`, for cells that were never timed (out of memory, too slow, wrong).
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gate.record.cell import CellRecord, work_of

#: What a file holds, as JSON gives it.
Content = dict[str, Any]

#: The packages that a step runs: with others of these it has other exact costs.
STEP_PACKAGES = (
    "torch",
    "flash-attn",
    "flash-attn-4",
    "quack-kernels",
    "nvidia-cudnn-frontend",
    "flashinfer-python",
    "xformers",
    "transformers",
    "triton",
)


@dataclass(frozen=True)
class Record:
    """What one process measured: when, on what and of which commit, and its cells by id.

    A `partial` one is of a run that was narrowed, or that did not get to its end. `regressed` are the cells that were
    slower than before in the run that saved it, `unjudged` those that it missed, or that seemed slower unsettled.
    """

    at: datetime
    machine: dict[str, Any] = field(default_factory=dict)
    commit: dict[str, Any] = field(default_factory=dict)
    cells: dict[str, CellRecord] = field(default_factory=dict)
    partial: bool = False
    regressed: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()

    @property
    def workloads(self) -> set[tuple[str, ...]]:
        """The pairs (workload, lengths) that it holds cells of; of several ranks with their number."""
        return {work_of(one.cell) for one in self.cells.values()}


def record_of(content: Mapping[str, Any]) -> Record:
    """Return the record of pytest-benchmark's JSON; ValueError names what of it is not what it should be.

    Benchmarks that are no cells are left out.
    """
    gate = _mapping(content, "gate")
    machine = _mapping(content, "machine_info")
    _mapping(machine, "versions")
    cells = cells_of(
        _mapping(entry, "extra_info")
        for key in ("benchmarks", "cells_without_time")
        for entry in content.get(key) or ()
    )
    return Record(
        at=time_of(content.get("datetime")),
        machine=machine,
        commit=_mapping(content, "commit_info"),
        cells=cells,
        partial=bool(gate.get("partial")),
        regressed=tuple(gate.get("regressed") or ()),
        unjudged=tuple(gate.get("unjudged") or ()),
    )


def cells_of(infos: Iterable[Mapping[str, Any]]) -> dict[str, CellRecord]:
    """Return the cells of these `extra_info`s by id; ValueError names the field that is not what it should be."""
    records = [CellRecord.read(info) for info in infos if "cell" in info]
    return {record.id: record for record in records}


def time_of(text: object) -> datetime:
    """Return the time that a file names, taken as UTC where it names no zone; ValueError if it names none."""
    if not isinstance(text, str):
        raise ValueError(f"datetime is {text!r:.40}, not a time")
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return what is under `key`, empty where nothing is; null is what nothing writes."""
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {value!r:.40}, not a mapping")
    return value


def load_content(path: Path) -> Content:
    """Return a record as pytest-benchmark's JSON has it; ValueError, on one line and naming the file, if it is none."""
    try:
        content: Content = json.loads(path.read_text(encoding="utf8"))
        for entry in content["benchmarks"]:
            # What pytest-benchmark's own table of a comparison needs.
            entry["stats"].setdefault("ops", 1 / entry["stats"]["mean"])
            str(entry["fullname"])
        record_of(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} is not a readable benchmark record ({reason(error)}). Restore it, or move it out of its folder."
        ) from None
    return content


def load_record(path: Path) -> Record:
    """Read a record; ValueError, on one line and naming the file, if it cannot be read or is no record."""
    return record_of(load_content(path))


def reason(error: Exception) -> str:
    """Return an error in one line: its kind and its words."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: a name that is there is a file that is finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf8")
    partial.replace(path)


def write_json(path: Path, value: object, indent: int | None = None) -> None:
    """Write a value as JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=indent))


def matches(path: Path, name: str) -> bool:
    """Tell whether `--benchmark-compare=NAME` means this record.

    It may be a number, a prefix or glob of the file name, or the name given to --benchmark-save: `0012_fast.json` is
    meant by 12, 0012, 0012_f and fast.
    """
    number, _, saved_as = path.stem.partition("_")
    same_number = name.isdecimal() and number.isdecimal() and int(name) == int(number)
    wanted = name.removesuffix(".json")
    return same_number or fnmatchcase(saved_as, wanted) or fnmatchcase(path.stem, f"{wanted}*")


class Journal:
    """The finished entries of a running session, one JSON line each, on disk before the next cell starts.

    The first line holds what a record has beside its entries (`machine_info`, `commit_info`, ...).
    """

    def __init__(self, folder: Path, header: Content) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        started = datetime.now(UTC)
        self.path = folder / f"journal-{started:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.jsonl"
        self.add({"datetime": started.isoformat(), **header})

    def add(self, entry: Content) -> None:
        """Append a benchmark entry (with `stats` and their `data`) or that of a cell without a time."""
        # As pytest-benchmark writes what JSON has no form for, e.g. a test's parameters.
        line = json.dumps(entry, default=lambda value: f"UNSERIALIZABLE[{value!r}]")
        with self.path.open("a", encoding="utf8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def record_from_journal(path: Path) -> Content:
    """Return the record that an interrupted session would have saved, as pytest-benchmark's JSON.

    A last line that a crash cut short is left out. ValueError if any other line cannot be read. `--benchmark-compare`
    finds it when it is written to `.benchmarks/DEVICE/0007_rescued.json`, with `"gate": {"partial": true}` where the
    run was stopped, so that it stands for no whole one.
    """
    header: Content
    entries: list[Content]
    try:
        header, *entries = map(json.loads, path.read_text(encoding="utf8").split("\n")[:-1])
    except ValueError as error:
        raise ValueError(f"{path} is not a readable journal ({error}). Delete it, and time the cells again.") from None
    return header | {
        "benchmarks": [entry for entry in entries if "stats" in entry],
        "cells_without_time": [entry for entry in entries if "stats" not in entry],
    }
