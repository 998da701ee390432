"""A baseline is made on purpose, of valid records of one device, version and workload."""

import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from gate.__main__ import main
from gate.baseline.store import INDEX, find
from tests.meta.gate_cells import MACHINE, content_of, key, record, timed

pytestmark = pytest.mark.meta

SLUG = MACHINE["device_slug"]
EVAL = key(mode="eval")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "baselines"


@pytest.fixture
def promote(tmp_path, root, capsys):
    """Promotes records, saved first, or paths: returns the exit status, or the line that refuses them."""

    def run(*given, options=()):
        paths = []
        for number, one in enumerate(given):
            paths.append(one if isinstance(one, Path) else tmp_path / "records" / f"{number}.json")
            if one is not paths[-1]:
                paths[-1].parent.mkdir(exist_ok=True)
                paths[-1].write_text(json.dumps(content_of(one)))
        try:
            return main(["promote", *map(str, paths), "--baselines", str(root), *options])
        except SystemExit as ended:
            return f"{ended.code}: " + capsys.readouterr().err.splitlines()[-1]

    return run


def test_records_of_fresh_processes_become_one_baseline_that_more_are_added_to(promote, root, capsys):
    assert promote(record(timed()), record(timed(), hours=1)) == 0
    assert promote(record(timed(), hours=5), options=["--add"]) == 0
    assert "article.json: 1 cell of 3 processes." in capsys.readouterr().out
    (found,) = find([root / SLUG], root)
    assert (found.committed, len(found.processes)) == (True, 3)
    assert promote(record(timed(cell=key(lengths="recorded")))) == 0
    assert [entry["path"] for entry in json.loads((root / INDEX).read_text())["baselines"]] == [
        f"{SLUG}/article-recorded.json",
        f"{SLUG}/article.json",
    ]


FIRST = record(timed(), timed(cell=EVAL))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (record(timed(), timed(cell=EVAL)), "come from the same process; give only one"),
        (replace(FIRST, machine=MACHINE | {"device": "NVIDIA A100"}), "another device: NVIDIA A100"),
        (replace(FIRST, machine=MACHINE | {"power_limit_w": 500.0}), "power limit"),
        (replace(FIRST, machine=MACHINE | {"versions": {"torch": "2.14.0"}}), "has torch 2.14.0, was 2.13.0 in "),
        (
            replace(FIRST, commit={"id": "c0ffee", "dirty": True}),
            "unknown code; commit and record again",
        ),
        (replace(FIRST, commit={}), "comes from uncommitted or unknown code"),
        (replace(FIRST, commit={"id": "decaf", "dirty": False}), "comes from commit decaf,"),
        (record(timed()), "do not both have "),
        (record(timed(cell=key(workload="long"))), "a baseline needs records of one workload; got article/uniform in"),
        (record(timed(), timed(cell=EVAL, verdict="wrong")), "has no valid time (wrong)"),
        (record(timed(), timed(cell=EVAL, device_ms=[math.nan])), "has no valid time (a step time is nan"),
        (record(timed(), timed(cell=EVAL, gpu_after={"other_processes": 1})), "1 other process used the GPU"),
    ],
)
def test_what_does_not_fit_is_not_promoted(promote, root, other, why):
    at = other.at.replace(hour=0 if "the same process" in why else 1)
    refused = promote(FIRST, replace(other, at=at))
    assert refused != 0
    assert refused.startswith("2: ")
    assert why in refused
    assert not root.exists()


def test_only_records_are_promoted(promote, root, tmp_path):
    assert "leave --add out" in promote(FIRST, options=["--add"])
    assert promote(FIRST) == 0
    assert "is not a readable benchmark record (IsADirectory" in promote(tmp_path / "records")
    assert "is not a readable benchmark record (FileNotFound" in promote(tmp_path / "gone")
    assert "is already a baseline" in promote(root / SLUG / "article.json")


def test_a_cell_that_is_out_of_memory_and_dirty_code_on_demand_are_promoted(promote):
    dirty = replace(FIRST, commit={"id": "c0ffee", "dirty": True})
    assert promote(dirty, options=["--allow-dirty"]) == 0
    assert promote(record(timed(), timed(cell=EVAL, verdict="out of memory"))) == 0


def test_records_from_after_the_commit_of_their_baseline_are_of_the_same_code(promote, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def git(*words):
        options = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
        done = subprocess.run(["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        git("add", name)
        git("commit", "--quiet", "--message", name)
        return {"id": git("rev-parse", "HEAD"), "dirty": False}

    git("init", "--quiet")
    assert promote(replace(FIRST, commit=commit("code.py"))) == 0
    later = record(*FIRST.cells.values(), hours=5)
    assert promote(replace(later, commit=commit("baselines/README")), options=["--add"]) == 0
    code = commit("more.py")
    other = replace(record(*FIRST.cells.values(), hours=6), commit=code)
    assert "Record a cell at one commit" in promote(other, options=["--add"])
    added = key(backend="fa4_varlen")
    both = replace(record(timed(), timed(cell=added), hours=6), commit=code)
    assert "Record a cell at one commit" in promote(both, options=["--add"])
    # What a backend that was added needs is later code, and a package that the first processes lack.
    machine, other = (MACHINE | {"versions": {**MACHINE["versions"], "flash-attn-4": one}} for one in ("4.0", "4.1"))
    new = [replace(record(timed(cell=added), hours=6 + n), commit=code, machine=machine) for n in range(3)]
    refused = promote(new[0], replace(new[1], machine=other), options=["--add"])
    assert "has flash-attn-4 4.1, was 4.0 in" in refused
    assert "keep its processes with --add" in promote(*new)
    assert promote(*new, options=["--add"]) == 0
    assert "article.json: 2 cells of 2 processes, 1 cell of 3 processes." in capsys.readouterr().out
    (found,) = find([tmp_path / "baselines" / SLUG], tmp_path / "baselines")
    assert found.newest_of(timed().id).commit != found.newest.commit == code
