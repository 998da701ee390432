"""What a run is compared with: a committed baseline of several processes, or one saved record.

A baseline is a JSON file of its own kind and schema, `baselines/<device>/<workload>[-lengths].json`, written by
`python -m gate promote` and named with its digest in `baselines/index.json`, so that one that was lost or edited is
seen. A record of pytest-benchmark is a baseline of one process.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gate.estimates import session_of
from gate.host import calm_ms
from gate.records import Record, cells, check_shapes, load_record, recorded_at

KIND = "varlen-gate baseline"
INDEX_KIND = "varlen-gate index of baselines"
SCHEMA = 1
INDEX = "index.json"

Infos = dict[str, dict[str, Any]]

#: Session, and versions of Python and torch.
Host = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class Process:
    """One process of a baseline, or the one that is judged: when and on what it ran, and its cells by id."""

    at: datetime
    session: str
    machine: dict[str, Any]
    commit: dict[str, Any]
    cells: Infos


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with; `processes` are at least one, and of one device model.

    `regressed` are the cells that were slower than before in the run that saved it, `unjudged` those that it missed, or
    that seemed slower and could not be judged. A `partial` one is of a run that was narrowed or did not get to its end.
    """

    path: Path
    processes: tuple[Process, ...]
    committed: bool
    regressed: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    partial: bool = False

    @property
    def doubts(self) -> str:
        """Why nothing should pass that is as this record, "" where nothing speaks against it."""
        if self.regressed:
            cells = _plural(len(self.regressed), "cell was", "cells were")
            return f"{cells} slower than before when it was saved"
        if self.unjudged:
            cells = _plural(len(self.unjudged), "cell was", "cells were")
            return f"{cells} missing, or seemed slower and could not be judged, when it was saved"
        return ""

    @property
    def at(self) -> datetime:
        """When its newest process ran."""
        return max(process.at for process in self.processes)

    @property
    def newest(self) -> Process:
        """The process that stands for all where one is shown: machine, versions, exact costs."""
        return max(self.processes, key=lambda process: process.at)

    @property
    def workloads(self) -> set[tuple[str, str]]:
        """The pairs (workload, lengths) it holds cells of."""
        infos = [info for process in self.processes for info in process.cells.values()]
        return {(info["cell"]["workload"], info["cell"]["lengths"]) for info in infos}

    def infos(self, cell: str) -> list[tuple[Process, dict[str, Any]]]:
        """The processes that hold the cell, and what they hold."""
        return [(process, process.cells[cell]) for process in self.processes if cell in process.cells]

    @property
    def cell_ids(self) -> list[str]:
        """Every cell of any process, in the order they were run."""
        return list(dict.fromkeys(cell for process in self.processes for cell in process.cells))

    def __str__(self) -> str:
        sessions = len({process.session for process in self.processes})
        counts = f"{_plural(len(self.processes), 'process', 'processes')} of {_plural(sessions, 'session', 'sessions')}"
        kind = "baseline" if self.committed else "record"
        return f"{kind} {self.path.name} of {self.at:%Y-%m-%d %H:%M} UTC ({counts})"


def host_of(process: Process) -> Host:
    """What the pace of a host depends on: the session, and the versions of Python and torch that the work runs in."""
    versions = process.machine.get("versions") or {}
    return process.session, process.machine.get("python"), versions.get("torch")


def calm_by_host(processes: Iterable[Process]) -> dict[Host, float | None]:
    """The pace of each host at its calmest, in ms (gate/host.py)."""
    found: dict[Host, list[dict[str, Any]]] = {}
    for process in processes:
        found.setdefault(host_of(process), []).extend(process.cells.values())
    return {host: calm_ms(infos) for host, infos in found.items()}


def process_of(record: Record) -> Process:
    """A record as a process."""
    machine, commit = record.get("machine_info", {}), record.get("commit_info") or {}
    return Process(recorded_at(record), session_of(record), machine, commit, cells(record))


def load(path: Path) -> Baseline:
    """Read a baseline or a record; ValueError, one line that names the file and what to do, if it is neither."""
    content = _json(path)
    if not (isinstance(content, dict) and content.get("kind") == KIND):
        record = load_record(path)
        gate = record.get("gate") or {}
        regressed, unjudged = (tuple(gate.get(key) or ()) for key in ("regressed", "unjudged"))
        partial = bool(gate.get("partial"))
        return Baseline(path, (process_of(record),), False, regressed, unjudged, partial)
    if content.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {content.get('schema')!r}, this version of the gate reads {SCHEMA}. "
            f"Make it anew: python -m gate record, then {again(path)}"
        )
    try:
        processes = tuple(_process(entry) for entry in content["processes"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable baseline ({_named(error)}). {_restore(path)}") from None
    if not processes:
        raise ValueError(f"{path} holds no process. {_restore(path)}")
    return Baseline(path, processes, committed=True)


def find(folders: Iterable[Path], root: Path) -> list[Baseline]:
    """The baselines and records of the folders, newest first by the time stored in them.

    `root` is the folder of the index, which is checked first. ValueError for a file that cannot be read, that the
    index names and is gone or was edited, or that is a baseline the index does not name.
    """
    indexed = check_index(root)
    found = [_indexed(path, indexed, root) for folder in folders for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda baseline: baseline.at, reverse=True)


def find_file(path: Path, root: Path) -> Baseline:
    """The baseline or record of a path; below `root` it is held to the index as those that `find` finds."""
    if not path.resolve().is_relative_to(root.resolve()):
        return load(path)
    return _indexed(path, check_index(root), root)


def _indexed(path: Path, indexed: set[Path], root: Path) -> Baseline:
    baseline = load(path)
    if baseline.committed and path.resolve() not in indexed:
        raise ValueError(f"{path} is not in {root / INDEX}: {again(path)}")
    return baseline


def check_index(root: Path) -> set[Path]:
    """The files that the index of `root` names, each with the digest it names; ValueError otherwise."""
    index = read_index(root)
    named = set()
    for name, digest in index.items():
        path = root / name
        if not path.is_file():
            raise ValueError(f"{path} is gone, though {root / INDEX} names it. {_restore(path)}")
        if digest_of(_json(path)) != digest:
            raise ValueError(f"{path} is not as it was promoted: it was edited, or cut short. {_restore(path)}")
        named.add(path.resolve())
    return named


def read_index(root: Path) -> dict[str, str]:
    """Path below `root` -> digest; empty without an index."""
    path = root / INDEX
    if not path.exists():
        return {}
    content = _json(path)
    try:
        if content["kind"] != INDEX_KIND or content["schema"] != SCHEMA:
            raise ValueError(f"kind {content['kind']!r}, schema {content['schema']!r}")
        entries = [(entry["path"], entry["sha256"]) for entry in content["baselines"]]
        for entry in entries:
            if not all(isinstance(value, str) and value for value in entry):
                raise ValueError(f"an entry has the path {entry[0]!r:.40} and the sha256 {entry[1]!r:.40}")
        return dict(entries)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable index of baselines ({_named(error)}). Restore it: git checkout -- {path}"
        ) from None


def write(path: Path, root: Path, processes: Sequence[Process], workload: tuple[str, str]) -> None:
    """Write a baseline, and its digest into the index of `root`."""
    machine = processes[0].machine
    content = {
        "kind": KIND,
        "schema": SCHEMA,
        "workload": workload[0],
        "lengths": workload[1],
        "device": machine.get("device"),
        "device_slug": machine.get("device_slug"),
        "processes": [_entry(process) for process in processes],
    }
    # As JSON has it: the digest is of what a reader will find.
    content = json.loads(json.dumps(content))
    index = read_index(root) | {path.relative_to(root).as_posix(): digest_of(content)}
    entries = [{"path": name, "sha256": digest} for name, digest in sorted(index.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, content)
    _write(root / INDEX, {"kind": INDEX_KIND, "schema": SCHEMA, "baselines": entries})


def file_name(workload: tuple[str, str]) -> str:
    """`article.json`, or `article-recorded.json` for other lengths than uniform ones."""
    name, lengths = workload
    return f"{name}.json" if lengths == "uniform" else f"{name}-{lengths}.json"


def digest_of(content: Any) -> str:
    """The SHA-256 of a file's content: of its values, not of its spaces and line ends, which git may change."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def newest_for(
    baselines: Sequence[Baseline],
    wanted: set[tuple[str, str]],
    needs: Callable[[str, dict[str, Any]], bool] = lambda _cell, _info: True,
    *,
    strict: bool = False,
) -> Baseline | None:
    """The newest that holds cells of one of the workloads and leaves no doubt: `baselines` come newest first.

    A record in doubt is passed over: compared with it, what was slower or missing would be fine in the next run. So is
    a partial one that lacks cells that the run `needs` (told by id and `extra_info`), for any that holds more of them.
    `strict` takes none but committed baselines where there are any.
    """
    fit = [baseline for baseline in baselines if baseline.workloads & wanted and not baseline.doubts]
    committed = [baseline for baseline in fit if baseline.committed]
    if strict and committed:
        return committed[0]
    needed = {cell for one in fit for cell in one.cell_ids if needs(cell, one.infos(cell)[-1][1])}

    def held(baseline: Baseline) -> int:
        # What a whole run did not hold was not there to be timed.
        return len(needed.intersection(baseline.cell_ids)) if baseline.partial else len(needed)

    # The first of equals, which is the newest.
    return max(fit, key=held, default=None)


def again(path: Path) -> str:
    """How to make a baseline again."""
    return f"python -m gate promote RECORD... (with the records of {path.stem} on {path.parent.name})"


def _restore(path: Path) -> str:
    return f"Restore it (git checkout -- {path}), or make it anew: {again(path)}"


def _process(entry: dict[str, Any]) -> Process:
    record = {
        "datetime": entry["datetime"],
        "machine_info": entry["machine_info"] | {"session": entry["session"]},
        "commit_info": entry["commit_info"],
        "benchmarks": [],
        "cells_without_time": [{"extra_info": info} for info in entry["cells"].values()],
    }
    check_shapes(record)
    process = process_of(record)
    if not process.cells or process.cells.keys() != entry["cells"].keys():
        raise ValueError("its cells are not named by their ids")
    return process


#: What a baseline does not keep of a cell, as it serves no comparison.
LEFT_OUT = ("warmup_ms",)


def _entry(process: Process) -> dict[str, Any]:
    kept = {
        cell: {key: value for key, value in info.items() if key not in LEFT_OUT} for cell, info in process.cells.items()
    }
    return {
        "datetime": process.at.isoformat(),
        "session": process.session,
        "commit_info": process.commit,
        "machine_info": process.machine,
        "cells": kept,
    }


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable benchmark record ({_named(error)}). Restore it, or move it out of its folder."
        ) from None


def _write(path: Path, content: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    partial.replace(path)


def _named(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
