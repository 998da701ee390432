"""What a run is compared with: a committed baseline of several processes, or one saved record.

A baseline is `baselines/<device>/<workload>[-lengths][-N-ranks].json`, written by `python -m gate promote`. It holds
one JSON line for itself, then one for each process, then one for each cell of each process. `baselines/index.json`
names it with its digest, so that one that was lost or edited is seen. A saved record is a baseline of one process.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gate.record.cell import CellRecord
from gate.record.files import Record, cells_of, load_record, reason, time_of, write_whole

KIND = "varlen-gate baseline"
INDEX_KIND = "varlen-gate index of baselines"
SCHEMA = 2
INDEX_SCHEMA = 1
INDEX = "index.json"

#: Digits behind the point that a baseline keeps of a time in ms: clocks tick no finer.
DIGITS = 4

Line = dict[str, Any]


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with; `processes` are at least one, the oldest first, and of one device model."""

    path: Path
    processes: tuple[Record, ...]
    committed: bool

    @property
    def newest(self) -> Record:
        """The process that stands for all where one is shown: machine, versions, exact costs."""
        return self.processes[-1]

    @property
    def at(self) -> datetime:
        """When its newest process ran."""
        return self.newest.at

    @property
    def doubts(self) -> str:
        """Why nothing should pass that is as this record, "" where nothing speaks against it."""
        slower, unjudged = len(self.newest.regressed), len(self.newest.unjudged)
        if not slower and not unjudged:
            return ""
        what = "slower than before" if slower else "missing, or seemed slower and could not be judged,"
        count = slower or unjudged
        return f"{count} cell{'s were' if count > 1 else ' was'} {what} when it was saved"

    @property
    def workloads(self) -> set[tuple[str, ...]]:
        """The pairs (workload, lengths) it holds cells of; of several ranks with their number."""
        return set().union(*(process.workloads for process in self.processes))

    @property
    def cell_ids(self) -> list[str]:
        """Every cell of any process, in the order they were run."""
        return list(dict.fromkeys(cell for process in self.processes for cell in process.cells))

    def records(self, cell: str) -> list[CellRecord]:
        """Return what each process that ran the cell measured, the oldest first; empty for a cell it does not hold."""
        return [process.cells[cell] for process in self.processes if cell in process.cells]

    def newest_of(self, cell: str) -> Record:
        """Return the newest process that timed the cell, or that ran it: a later one may have run others alone."""
        ran = [process for process in self.processes if cell in process.cells]
        return next((process for process in reversed(ran) if not process.cells[cell].no_time), ran[-1])

    def __str__(self) -> str:
        kind, count = "baseline" if self.committed else "record", len(self.processes)
        return f"{kind} {self.path.name} of {self.at:%Y-%m-%d %H:%M} UTC ({count} process{'es' * (count > 1)})"


def load(path: Path) -> Baseline:
    """Read a baseline or a record; ValueError, one line that names the file and what to do, if it is neither."""
    lines = _lines(path)
    if lines is None:
        return Baseline(path, (load_record(path),), committed=False)
    try:
        processes = _processes(lines[1:])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable baseline ({reason(error)}). {_restore(path)}") from None
    if not processes:
        raise ValueError(f"{path} holds no process. {_restore(path)}")
    return Baseline(path, processes, committed=True)


def _lines(path: Path) -> list[Line] | None:
    """Return the lines of a baseline, None for what is none; ValueError if it cannot be read or has another schema."""
    try:
        text = path.read_text(encoding="utf8")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable benchmark record ({reason(error)}). Restore it, or move it out of its folder."
        ) from None
    first, *others = text.splitlines() or [""]
    # Until schema 1 a baseline was one value over many lines, as a record of pytest-benchmark is.
    head = _json(first) or _json(text)
    if not isinstance(head, dict) or head.get("kind") != KIND:
        return None
    if head.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {head.get('schema')!r}, but this version of the gate reads {SCHEMA}. "
            f"Record it again (python -m gate record), then run {again(path)}"
        )
    lines = [_json(line) for line in others]
    if not text.endswith("\n") or not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"{path} is not a readable baseline: a line was edited, or cut short. {_restore(path)}")
    return [head, *lines]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _processes(lines: Sequence[Line]) -> tuple[Record, ...]:
    infos: dict[int, list[Line]] = {line["process"]: [] for line in lines if "cell" not in line}
    for line in lines:
        if "cell" in line:
            infos[line["process"]].append(line)
    found = []
    for about in (line for line in lines if "cell" not in line):
        given = infos[about["process"]]
        cells = cells_of(given)
        if not cells or len(cells) != len(given):
            raise ValueError(f"process {about['process']} has {len(given)} lines of {len(cells)} cells")
        found.append(Record(time_of(about["at"]), dict(about["machine"]), dict(about["commit"]), cells))
    return tuple(sorted(found, key=lambda process: process.at))


def find(paths: Iterable[Path], root: Path) -> list[Baseline]:
    """Return the baselines and records of these folders and files, newest first by the time stored in them.

    `root` is the folder of the index, which is checked first. ValueError for a file that cannot be read, that the
    index names and is gone or was edited, or that is a baseline the index does not name; a file that lies elsewhere
    need not be in it.
    """
    indexed = check_index(root)
    found = []
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.glob("*.json")):
            found.append(load(file))
            held = path.is_dir() or file.resolve().is_relative_to(root.resolve())
            if found[-1].committed and held and file.resolve() not in indexed:
                raise ValueError(f"{file} is not in {root / INDEX}. To add it, run {again(file)}")
    return sorted(found, key=lambda baseline: baseline.at, reverse=True)


def newest_for(baselines: Sequence[Baseline], needs: Callable[[str, CellRecord], bool]) -> Baseline | None:
    """Return the newest that leaves no doubt: `baselines` are of one workload and come newest first.

    A record in doubt is passed over: compared with it, what was slower or missing would be fine in the next run. So is
    a partial one that lacks cells that the run `needs` (told by id and record), for any that holds more of them.
    """
    fit = [baseline for baseline in baselines if not baseline.doubts]
    needed = {cell for one in fit for cell in one.cell_ids if needs(cell, one.records(cell)[-1])}

    def held(baseline: Baseline) -> int:
        # What a whole run did not hold was not there to be timed.
        return len(needed.intersection(baseline.cell_ids)) if baseline.newest.partial else len(needed)

    # The first of equals, which is the newest.
    return max(fit, key=held, default=None)


def check_index(root: Path) -> set[Path]:
    """Return the files that the index of `root` names, each with the digest it names; ValueError otherwise."""
    named = set()
    for name, digest in read_index(root).items():
        path = root / name
        if not path.is_file():
            raise ValueError(f"{path} does not exist, but {root / INDEX} names it. {_restore(path)}")
        lines = _lines(path)
        if lines is None or digest_of(lines) != digest:
            raise ValueError(f"{path} has changed since it was promoted: it was edited, or cut short. {_restore(path)}")
        named.add(path.resolve())
    return named


def read_index(root: Path) -> dict[str, str]:
    """Return path below `root` -> digest; empty without an index."""
    path = root / INDEX
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        if content["kind"] != INDEX_KIND or content["schema"] != INDEX_SCHEMA:
            raise ValueError(f"kind {content['kind']!r}, schema {content['schema']!r}")
        for entry in content["baselines"]:
            for key in ("path", "sha256"):
                if not (isinstance(entry[key], str) and entry[key]):
                    raise ValueError(f"an entry has the {key} {entry[key]!r:.40}")
        return {entry["path"]: entry["sha256"] for entry in content["baselines"]}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable index of baselines ({reason(error)}). Restore it: git checkout -- {path}"
        ) from None


def write(path: Path, root: Path, processes: Sequence[Record], workload: Sequence[str]) -> None:
    """Write a baseline, and its digest into the index of `root`."""
    machine = processes[0].machine
    kind = {"kind": KIND, "schema": SCHEMA, "workload": workload[0], "lengths": workload[1]}
    lines: list[Line] = [kind | {key: machine.get(key) for key in ("device", "device_slug")}]
    for number, process in enumerate(processes):
        about = {"at": process.at.isoformat(), "machine": process.machine, "commit": process.commit}
        lines.append({"process": number} | about)
    for number, process in enumerate(processes):
        lines += [{"process": number} | _rounded(record.written()) for record in process.cells.values()]
    texts = [json.dumps(line) for line in lines]
    # As JSON has it: the digest is of what a reader will find.
    digest = digest_of([json.loads(text) for text in texts])
    entries = sorted((read_index(root) | {path.relative_to(root).as_posix(): digest}).items())
    write_whole(path, "\n".join(texts) + "\n")
    index = {"kind": INDEX_KIND, "schema": INDEX_SCHEMA}
    index |= {"baselines": [{"path": name, "sha256": digest} for name, digest in entries]}
    write_whole(root / INDEX, json.dumps(index, indent=1) + "\n")


def digest_of(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of a baseline's lines: of their values, not of spaces and line ends, which git may change."""
    return hashlib.sha256(json.dumps(lines, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def again(path: Path) -> str:
    """Return how to make a baseline again."""
    return f"python -m gate promote RECORD... with the records of {path.stem} on {path.parent.name}."


def _restore(path: Path) -> str:
    return f"Restore it (git checkout -- {path}), or make it again: run {again(path)}"


def _rounded(info: Line) -> Line:
    times = {key: value for key, value in info.items() if key.endswith("_ms") and isinstance(value, list)}
    return info | {key: [None if ms is None else round(ms, DIGITS) for ms in value] for key, value in times.items()}
