"""What a save holds: one process on a GPU, and a few on a CPU, whose processes differ."""

import json

import pytest

from gate.__main__ import main
from gate.baseline import saving
from gate.baseline.baselines import load
from gate.processes import CHILD
from gate.records import load_record
from tests.meta.test_records import ENVIRONMENT, FA2, info, place, saved, session  # noqa: F401

pytestmark = pytest.mark.meta

#: What a CPU's cell has instead of device times.
ON_CPU = {"device_ms": None, "median_device_ms": None, "waited_ms": [0.0] * 3, "pace_ms": [3.0] * 3}


def on_cpu(ms=31.0):
    return info() | ON_CPU | {"wall_ms": [ms] * 3, "median_wall_ms": ms}


@pytest.fixture
def asked(monkeypatch):
    """What fresh processes are asked for; each takes a millisecond more than the one before, and the third crashes."""
    calls = []

    def fresh_records(config, ids, processes, *options):
        calls.append((list(ids), processes, options))
        for number in range(processes):
            if number == 2:
                yield "again: pytest ended before a cell did"
                continue
            yield {
                "machine_info": ENVIRONMENT,
                "commit_info": {"id": "c0ffee", "dirty": False},
                "datetime": f"2026-03-01T00:00:0{number}+00:00",
                "benchmarks": [],
                "cells_without_time": [{"extra_info": on_cpu(32.0 + number)}],
            }

    monkeypatch.setattr(saving, "fresh_records", fresh_records)
    monkeypatch.delenv(CHILD, raising=False)
    return calls


def test_a_cpus_record_holds_three_processes(session, pytester, asked):  # noqa: F811
    result = session("--benchmark-save=base", infos=[on_cpu()])
    assert (result.ret, asked) == (0, [([FA2], 2, ())])
    result.stdout.fnmatch_lines(["Timing all for the record again in 2 fresh processes, as one says little (*"])
    (path,) = saved(pytester)
    record = load(path)
    assert [process.cells[FA2]["wall_ms"][0] for process in record.processes] == [31.0, 32.0, 33.0]
    assert record.newest is record.processes[0]
    then = session("--benchmark-compare", "--gate-confirm=0", infos=[on_cpu()])
    then.stdout.fnmatch_lines(["Against record 0001_base.json of * (3 processes of 1 session)."])
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("options", "infos", "processes"),
    [
        (["--benchmark-save=x"], [info()], 0),
        (["--benchmark-save=x", "--gate-processes=2"], [info()], 1),
        (["--benchmark-save=x", "--gate-processes=1"], [on_cpu()], 0),
        (["--benchmark-autosave"], [on_cpu()], 2),
        (["--benchmark-json=x.json"], [on_cpu()], 0),
        ([], [on_cpu()], 0),
        (["--benchmark-save=x"], [info(verdict="failed")], 0),
    ],
)
def test_how_many_processes_a_save_holds(session, asked, options, infos, processes):  # noqa: F811
    session(*options, infos=infos)
    assert [number for _, number, _ in asked] == ([processes] if processes else [])


def test_a_process_that_another_one_started_saves_itself_alone(session, asked, monkeypatch):  # noqa: F811
    monkeypatch.setenv(CHILD, "1")
    session("--benchmark-save=x", "--gate-processes=3", infos=[on_cpu()])
    assert asked == []


def test_a_process_that_timed_nothing_is_told_and_the_others_are_kept(session, pytester, asked):  # noqa: F811
    result = session("--benchmark-save=x", "--gate-processes=4", infos=[on_cpu()])
    result.stdout.fnmatch_lines(["again: pytest ended before a cell did"])
    assert len(load(saved(pytester)[0]).processes) == 3


def test_an_interrupt_keeps_what_is_done(session, pytester, monkeypatch, asked):  # noqa: F811
    fresh_records = saving.fresh_records

    def interrupted(*args):
        yield next(iter(fresh_records(*args)))
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "fresh_records", interrupted)
    result = session("--benchmark-save=x", infos=[on_cpu()])
    assert result.ret == 0
    result.stdout.fnmatch_lines(["Interrupted: the record holds 2 of 3 processes."])
    assert len(load(saved(pytester)[0]).processes) == 2


def test_all_processes_of_a_record_are_promoted(session, pytester, asked, capsys):  # noqa: F811
    session("--benchmark-save=x", infos=[on_cpu()])
    assert main(["promote", str(saved(pytester)[0]), "--allow-dirty"]) == 0
    assert "3 processes of 1 sessions, 1 cells." in capsys.readouterr().out


def test_an_edited_process_is_told_in_one_line(session, pytester):  # noqa: F811
    place(pytester, "0001_x.json", "2026-03-01T00:00:00+00:00", [info()])
    path = saved(pytester)[0]
    path.write_text(json.dumps(load_record(path) | {"again": [{"cells": 3}]}))
    result = session("--benchmark-compare")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (error,) = [line for line in result.errlines if line.startswith("ERROR")]
    assert "0001_x.json is not a readable benchmark record (again: KeyError" in error


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--gate-processes=2"], "--gate-processes is of a record that is saved; add --benchmark-save=NAME."),
        (["--gate-processes=0", "--benchmark-save=x"], "--gate-processes 0: a record holds at least 1."),
    ],
)
def test_a_bad_number_of_processes_is_refused_in_one_line(session, options, reason):  # noqa: F811
    result = session(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert [line for line in result.errlines if line.startswith("ERROR")] == [f"ERROR: {reason}"]
