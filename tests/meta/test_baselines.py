"""A baseline is promoted on purpose, and one that was lost, edited or made for something else is no silent pass."""

import json
import math
import os
import subprocess

import pytest

from gate.__main__ import main
from gate.baseline.baselines import INDEX, find, load, newest_for
from tests.meta.gate_cells import LOG, MACHINE, START, key, timed

pytestmark = pytest.mark.meta

SLUG = MACHINE["device_slug"]
CELLS = [key(), key(mode="eval")]


def record(folder, name, *, infos=None, hour=0, session="s0", commit=None, machine=MACHINE, **keys):
    """Write a record of one process and return its path."""
    infos = [timed(cell) for cell in CELLS] if infos is None else infos
    entries = [{"fullname": str(n), "name": str(n), "extra_info": info} for n, info in enumerate(infos)]
    content = {
        "datetime": START.replace(hour=hour).isoformat(),
        "machine_info": machine | {"session": session},
        "commit_info": {"id": "c0ffee", "dirty": False} if commit is None else commit,
        "benchmarks": [],
        "cells_without_time": entries,
    } | keys
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "baselines"


def promote(root, *paths, options=()):
    return main(["promote", *map(str, paths), "--baselines", str(root), *options])


@pytest.fixture
def promoted(root, tmp_path):
    """The path of a baseline of two processes."""
    assert promote(root, *(record(tmp_path, f"{n}.json", hour=n) for n in range(2))) == 0
    return root / SLUG / "article.json"


def test_a_baseline_holds_its_processes_as_they_were(promoted, root, tmp_path):
    (found,) = find([root / SLUG], root)
    assert found.committed
    assert [process.session for process in found.processes] == ["s0", "s0"]
    single = load(tmp_path / "1.json")
    assert not single.committed
    assert found.newest.cells == single.newest.cells
    assert found.at == single.at
    assert str(found) == "baseline article.json of 2026-03-01 01:00 UTC (2 processes of 1 session)"


def test_another_session_is_added(promoted, root, tmp_path, capsys):
    assert promote(root, record(tmp_path, "new.json", hour=5, session="s1"), options=["--add"]) == 0
    assert "3 processes of 2 sessions, 2 cells" in capsys.readouterr().out
    assert len(find([root / SLUG], root)[0].processes) == 3


def test_other_lengths_are_another_baseline(promoted, root, tmp_path):
    promote(root, record(tmp_path, "r.json", infos=[timed(key(lengths="recorded"))]))
    assert sorted(path.name for path in (root / SLUG).iterdir()) == ["article-recorded.json", "article.json"]
    assert [entry["path"] for entry in json.loads((root / INDEX).read_text())["baselines"]] == [
        f"{SLUG}/article-recorded.json",
        f"{SLUG}/article.json",
    ]


@pytest.fixture
def commit(tmp_path, monkeypatch):
    """Writes a file of a new git repository, commits it and what its folder holds, and returns the record's part."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def git(*words):
        options = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
        done = subprocess.run(["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def committed(name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        git("add", name.partition("/")[0])
        git("commit", "--quiet", "--message", name)
        return {"id": git("rev-parse", "HEAD"), "dirty": False}

    git("init", "--quiet")
    return committed


def test_a_session_recorded_after_its_baseline_was_committed_is_added(root, tmp_path, commit, capsys):
    assert promote(root, record(tmp_path, "records/1.json", commit=commit("code.py"))) == 0
    later = commit("baselines/README")
    assert promote(root, record(tmp_path, "records/2.json", hour=5, session="s1", commit=later), options=["--add"]) == 0
    assert "2 processes of 2 sessions" in capsys.readouterr().out
    other = record(tmp_path, "records/3.json", hour=6, session="s2", commit=commit("more.py"))
    with pytest.raises(SystemExit, match="2"):
        promote(root, other, options=["--add"])
    assert "a baseline is of one version of the code: record at the baseline's commit" in capsys.readouterr().err


LEFT = timed(CELLS[0])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"machine": MACHINE | {"device": "NVIDIA A100"}}, "another device: NVIDIA A100"),
        ({"machine": MACHINE | {"power_limit_w": 500.0}}, "power limit"),
        ({"machine": MACHINE | {"versions": {"torch": "2.14.0"}}}, "has other package versions than"),
        ({"commit": {"id": "c0ffee", "dirty": True}}, "is of uncommitted or unknown code; commit, record again"),
        ({"commit": {}}, "is of uncommitted or unknown code"),
        ({"commit": {"id": "decaf", "dirty": False}}, "is of commit decaf,"),
        ({"infos": [LEFT]}, "has other cells than"),
        ({"infos": [timed(key(workload="long"))]}, "a baseline is of one workload; got article/uniform in"),
        ({"infos": []}, "has other cells than"),
        ({"infos": [LEFT, timed(CELLS[1]) | {"verdict": "wrong"}]}, "has no valid time (wrong)"),
        ({"infos": [LEFT, timed(CELLS[1]) | {"device_ms": [math.nan]}]}, "has no valid time (a step time is nan"),
        ({"infos": [LEFT, timed(CELLS[1], gpu_after={"other_processes": 1})]}, "was timed beside 1 other processes"),
        ({"hour": 0}, "are of one process; give each once"),
    ],
)
def test_what_does_not_fit_is_not_promoted(root, tmp_path, capsys, changes, reason):
    first = record(tmp_path, "first.json")
    other = record(tmp_path, "other.json", **({"hour": 1} | changes))
    with pytest.raises(SystemExit, match="2"):
        promote(root, first, other)
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert not root.exists()


def test_dirty_code_is_promoted_when_asked_for(root, tmp_path):
    dirty = record(tmp_path, "dirty.json", commit={"id": "c0ffee", "dirty": True})
    assert promote(root, dirty, options=["--allow-dirty"]) == 0


def test_adding_to_nothing_is_refused(root, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        promote(root, record(tmp_path, "a.json"), options=["--add"])
    assert "promote without it" in capsys.readouterr().err


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def faster(content):
    info = next(iter(content["processes"][0]["cells"].values()))
    info["device_ms"] = [ms / 2 for ms in info["device_ms"]]
    info["median_device_ms"] /= 2


HARMS = {
    "deleted": (lambda path: path.unlink(), "is gone, though"),
    "edited": (lambda path: edited(path, faster), "is not as it was promoted"),
    "truncated": (lambda path: path.write_text(path.read_text()[:500]), "is not a readable benchmark record"),
    "older schema": (lambda path: edited(path, lambda content: content.update(schema=0)), "is not as it was promoted"),
    "no index": (lambda path: (path.parents[1] / INDEX).unlink(), "is not in"),
    "index torn": (lambda path: (path.parents[1] / INDEX).write_text("{"), "is not a readable benchmark record"),
    "index of another kind": (lambda path: (path.parents[1] / INDEX).write_text("[]"), "is not a readable index"),
    "index of another schema": (
        lambda path: edited(path.parents[1] / INDEX, lambda content: content.update(schema=9)),
        "is not a readable index",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_baseline_is_an_error_that_says_what_to_do(promoted, root, harm):
    harmed, reason = HARMS[harm]
    harmed(promoted)
    with pytest.raises(ValueError, match=reason) as error:
        find([root / SLUG], root)
    assert "\n" not in str(error.value)
    assert any(advice in str(error.value) for advice in ("git checkout", "gate promote", "Restore it"))


@pytest.mark.parametrize("value", ["absent", None, "", 0, []])
@pytest.mark.parametrize("field", ["path", "sha256"])
def test_an_entry_of_the_index_without_one_of_its_fields_is_refused(promoted, root, field, value):
    index = json.loads((root / INDEX).read_text())
    (entry,) = index["baselines"]
    assert entry.keys() == {"path", "sha256"}
    entry[field] = value
    if value == "absent":
        del entry[field]
    (root / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json is not a readable index .* Restore it: git checkout") as error:
        find([root / SLUG], root)
    assert field in str(error.value)
    assert "\n" not in str(error.value)


def test_spaces_and_line_ends_are_no_edits(promoted, root):
    content = json.loads(promoted.read_text())
    promoted.write_text(json.dumps(content, indent=4).replace("\n", "\r\n"))
    assert len(find([root / SLUG], root)) == 1


def test_an_older_schema_is_named(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"kind": "varlen-gate baseline", "schema": 0, "processes": []}))
    with pytest.raises(ValueError, match=r"has schema 0, this version of the gate reads 1\. Make it anew"):
        load(path)


@pytest.mark.parametrize("processes", [[], [{}], [{"datetime": "x"}], "none"])
def test_a_baseline_without_its_parts_is_unreadable(tmp_path, processes):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"kind": "varlen-gate baseline", "schema": 1, "processes": processes}))
    with pytest.raises(ValueError, match=r"is not a readable baseline|holds no process"):
        load(path)


def test_a_part_of_a_baseline_is_held_to_its_shape(promoted):
    edited(promoted, lambda content: next(iter(content["processes"][0]["cells"].values())).update(tokens=5))
    with pytest.raises(ValueError, match=r"is not a readable baseline \(ValueError: tokens of .* is 5, not a list\)"):
        load(promoted)


def test_the_newest_is_taken_and_a_regression_is_not(tmp_path):
    old = record(tmp_path, "0001_old.json", hour=1)
    record(
        tmp_path, "0002_slow.json", hour=2, infos=[timed(cell, LOG + 1) for cell in CELLS], gate={"regressed": ["x"]}
    )
    found = find([tmp_path], tmp_path / "baselines")
    assert newest_for(found, {("article", "uniform")}).path == old
    assert newest_for(found, {("long", "uniform")}) is None
