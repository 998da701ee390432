"""A timing session: what it saves, where, what it prints and what a crash leaves."""

import json
import os
import re
from pathlib import Path

import pytest
import pytest_benchmark.plugin

from gate.record.files import load_record, record_from_journal
from tests.meta.timed_sessions import ENVIRONMENT, FA2, SLUG, WITHOUT, XFORMERS, info

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]


def test_a_save_holds_raw_samples_in_the_folder_of_the_device_and_names_neither_host_nor_people(
    session, pytester, monkeypatch
):
    asked = []
    monkeypatch.setattr(pytest_benchmark.plugin, "get_cpu_info", lambda: asked.append(1) or {"arch": "here"})
    (pytester.path / ".git").mkdir()
    result = session("--benchmark-save=mine")
    assert result.ret == 0
    result.stdout.no_fnmatch_line("No record was saved*")
    assert not session.journals()
    assert [folder.name for folder in (pytester.path / ".benchmarks").iterdir()] == [SLUG]
    (path,) = session.saved()
    assert path.name == "0001_mine.json"
    assert load_record(path).cells[FA2].times_ms == info()["device_ms"]
    record = json.loads(path.read_text())
    assert len(record["benchmarks"][0]["stats"]["data"]) == 3
    assert record["machine_info"]["device_slug"] == SLUG
    assert record["machine_info"]["cpu"] == {"arch": "here"}
    assert "node" not in record["machine_info"]
    assert record["commit_info"].keys() <= {"id", "time", "dirty"}
    assert "gate" not in record
    # The processor is asked for once.
    assert asked == [1]
    assert session("--benchmark-save=mine").ret == 0
    assert session.saved()[1].name == "0002_mine.json"


def test_a_parameter_with_an_id_is_saved_as_that(session, pytester):
    pytester.makepyfile(
        test_cells=f"""
        import pytest

        class Cell:
            id = "packed"

        @pytest.mark.performance
        @pytest.mark.parametrize("timed", [True, False])
        @pytest.mark.parametrize("cell", [Cell()], ids=[Cell.id])
        def test_cells(cell, timed, benchmark, record_cell):
            if timed:
                benchmark.pedantic(lambda: None, rounds=3)
            else:
                record_cell({info(verdict="failed")!r})
        """
    )
    assert pytester.runpytest_inprocess(*WITHOUT, "--benchmark-save=mine").ret == 0
    record = json.loads(session.saved()[0].read_text())
    entries = [*record["benchmarks"], *record["cells_without_time"]]
    assert [entry["params"] for entry in entries] == [{"cell": "packed", "timed": timed} for timed in (True, False)]


def test_cells_without_a_time_are_saved_once_also_when_lost_while_they_were_timed(session):
    lost = [info(verdict="out of memory"), info("xformers_auto", verdict="wrong")]
    last = "info['id'].startswith('lost') and record_cell({'cell': info['cell'], 'verdict': 'too slow'})"
    infos = [*lost, info("flex"), info("lost")]
    assert session("--benchmark-save=some", "-W", "error", infos=infos, last=last).ret == 0
    assert session("--benchmark-save=none", "-W", "error", infos=lost).ret == 0
    some, none = (load_record(path).cells for path in session.saved())
    assert [one.verdict for one in some.values()] == ["timed", "out of memory", "wrong", "too slow"]
    assert [one.verdict for one in none.values()] == ["out of memory", "wrong"]
    record = json.loads(session.saved()[0].read_text())
    assert (len(record["benchmarks"]), len(record["cells_without_time"])) == (1, 3)
    assert not session.journals()


@pytest.mark.filterwarnings("ignore:Not saving anything")
@pytest.mark.parametrize(
    ("args", "count"),
    [
        ((), 1),
        (("--benchmark-compare",), 2),
        (("--benchmark-save=x",), 2),
        (("--benchmark-autosave",), 2),
        (("--benchmark-compare", "-m", "not performance"), 1),
        (("-m", ""), 3),
    ],
)
def test_marks_follow_from_the_options(session, args, count):
    result = session(*args, "--collect-only", "-q", infos=[info(), info("xformers_auto")])
    assert len([line for line in result.outlines if line.startswith("test_step.py::")]) == count


def test_journal_outlives_a_killed_process(session, pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    simulated = (
        "import gate.measure.environment as environment\n"
        f"environment.device_slug = lambda: {SLUG!r}\n"
        f"environment.environment = lambda: {ENVIRONMENT!r}\n"
        'pytest_plugins = ["gate.plugin"]\n'
    )
    pytester.makeconftest(simulated)
    pytester.makeini("[pytest]\nmarkers = performance: timed\n")
    infos = [info(), info("xformers_auto", verdict="out of memory"), info("killer")]
    session.write(infos, "if 'killer' in info['id']: os.write(2, b'killed'); os._exit(9)")
    result = pytester.runpytest_subprocess(*WITHOUT, "--benchmark-save=x")
    assert result.ret == 9
    # The cell that ran is the last word.
    assert result.outlines[-1].startswith(f"[3/3] {FA2.replace('fa2_varlen', 'killer')}:")
    assert not session.saved()
    (journal,) = session.journals()
    path = session.store / "0001_rescued.json"
    path.write_text(json.dumps(record_from_journal(journal)))
    record = load_record(path)
    assert {cell: one.verdict for cell, one in record.cells.items()} == {FA2: "timed", XFORMERS: "out of memory"}
    assert record.machine["device_slug"] == SLUG


def test_a_journal_that_is_not_saved_is_named(session, monkeypatch):
    result = session("-m", "performance", "-k", "fa2", "--benchmark-stock-table", infos=[info(), info("xformers_auto")])
    (journal,) = session.journals()
    result.stdout.fnmatch_lines([f"No record was saved. The step times of 1 cell are in {journal}"])
    result.stdout.fnmatch_lines(["*Name (time in*"])
    assert record_from_journal(journal)["gate"] == {"partial": True}

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("pytest_benchmark.storage.file.FileStorage.save", full_disk)
    assert session("--benchmark-save=x").ret != 0
    assert len(session.journals()) == 2


@pytest.mark.parametrize("args", [(), ("-q",), ("-v",), ("-s",)])
def test_progress_names_each_cell_and_its_result_on_one_line_before_the_tables(session, args):
    infos = [info(ms=97.8), info("xformers_auto", verdict="out of memory"), info("bad")]
    result = session("-m", "performance", *args, infos=infos, last="assert 'bad' not in info['id']")
    lines = [line for line in result.outlines if re.match(r"\[\d/3\]", line)]
    bad = FA2.replace("fa2_varlen", "bad")
    assert lines == [
        f"[1/3] {FA2}: 97.8 ms (96.8..99.8), 41.2 GB",
        f"[2/3] {XFORMERS}: OOM",
        f"[3/3] {bad}: FAILED, 31.0 ms (30.0..33.0), 41.2 GB",
    ]
    result.stdout.fnmatch_lines([f"FAILED test_step.py::test_step[[]{bad}[]]*"])
    result.stdout.no_fnmatch_line("*Name (time in*")
    result.stdout.fnmatch_lines(["| fa2_varlen *| 97.8 (51, 1.92x) |*"])
    session().stdout.fnmatch_lines(["test_step.py . *"])
