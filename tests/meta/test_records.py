"""A timing session: what it saves, where, what it compares with, what it prints and what a crash leaves."""

import json
import os
import re
from pathlib import Path

import pytest
import pytest_benchmark.plugin

from gate import environment
from gate.records import cell_id, load_record, matches, record_from_journal, step_ms

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]
SLUG = "NVIDIA-H100-80GB-HBM3"
ENVIRONMENT = {
    "device": "NVIDIA H100 80GB HBM3",
    "device_slug": SLUG,
    "session": "this",
    "power_limit_w": 700.0,
    "sm_clock_mhz": 1980,
    "versions": {"torch": "2.13.0", "xformers": None},
}

# Hypothesis' plugin imports all of Hypothesis anew in every inner session: a second each.
WITHOUT = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")

INNER_CONFTEST = """
    pytest_plugins = ["gate.plugin"]

    def pytest_configure(config):
        config.addinivalue_line("markers", "performance: timed")
"""

INNER_TEST = """
    import os
    import pytest

    INFOS = {infos!r}

    @pytest.mark.performance
    @pytest.mark.parametrize("info", INFOS, ids=[info["id"] for info in INFOS])
    def test_step(info, benchmark, record_cell):
        if info["verdict"] != "timed":
            return record_cell(info)
        benchmark.extra_info.update(info)
        benchmark.pedantic(lambda: None, rounds=3)
        {last}

    def test_quick():
        pass
"""


def info(backend="fa2_varlen", ms=31.0, verdict="timed", workload="article", lengths="uniform", **changes):
    cell = {
        "backend": backend,
        "collator": "packed",
        "mode": "eval",
        "causal": False,
        "dtype": "bfloat16",
        "execution": "eager",
        "workload": workload,
        "lengths": lengths,
    } | changes
    device_ms = [ms - 1, ms - 0.5, *[ms] * 6, ms + 0.5, ms + 2]
    timed = {"device_ms": device_ms, "median_device_ms": ms, "peak_bytes": 41_200_000_000}
    return {"cell": cell, "verdict": verdict, "id": cell_id(cell)} | (timed if verdict == "timed" else {})


FA2 = cell_id(info()["cell"])
XFORMERS = cell_id(info("xformers_auto")["cell"])


@pytest.fixture
def session(pytester, monkeypatch):
    """Runs pytest in-process on a simulated GPU over the given cells."""
    monkeypatch.setattr(environment, "device_slug", lambda: SLUG)
    monkeypatch.setattr(environment, "environment", lambda: ENVIRONMENT)
    # Reading the CPU's features takes 0.2 s a session and proves nothing here.
    monkeypatch.setattr("pytest_benchmark.plugin.get_cpu_info", dict)
    pytester.makeconftest(INNER_CONFTEST)

    def run(*args, infos=None, last="pass"):
        pytester.makepyfile(test_step=INNER_TEST.format(infos=infos or [info()], last=last))
        return pytester.runpytest_inprocess(*WITHOUT, *args)

    return run


def saved(pytester, folder=f".benchmarks/{SLUG}"):
    return sorted((pytester.path / folder).glob("*.json"))


def journals(pytester):
    return sorted((pytester.path / ".benchmarks" / SLUG).glob("journal-*.jsonl"))


def place(pytester, name, when, infos, folder=f".benchmarks/{SLUG}", **keys):
    """Writes a record by hand."""
    entries = [
        {
            "fullname": each["id"],
            "name": each["id"],
            "extra_info": each,
            "stats": {"mean": 1.0, "median": 1.0},
        }
        for each in infos
    ]
    record = {"datetime": when, "machine_info": ENVIRONMENT, "benchmarks": entries, **keys}
    path = pytester.path / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_save_holds_raw_samples_in_the_folder_of_the_device(session, pytester):
    result = session("--benchmark-save=mine")
    assert result.ret == 0
    (path,) = saved(pytester)
    assert path.name == "0001_mine.json"
    (entry,) = load_record(path)["benchmarks"]
    assert len(entry["stats"]["data"]) == 3
    assert [folder.name for folder in (pytester.path / ".benchmarks").iterdir()] == [SLUG]
    assert session("--benchmark-save=mine").ret == 0
    assert saved(pytester)[1].name == "0002_mine.json"


def test_a_parameter_with_an_id_is_saved_as_that(session, pytester):
    cell = info(verdict="failed")
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
                record_cell({cell!r})
        """
    )
    result = pytester.runpytest_inprocess(*WITHOUT, "--benchmark-save=mine")
    assert result.ret == 0
    record = json.loads(saved(pytester)[0].read_text())
    entries = [*record["benchmarks"], *record["cells_without_time"]]
    assert [entry["params"] for entry in entries] == [{"cell": "packed", "timed": timed} for timed in (True, False)]


def test_save_names_neither_host_nor_people(session, pytester):
    (pytester.path / ".git").mkdir()
    session("--benchmark-save=mine")
    record = json.loads(saved(pytester)[0].read_text())
    assert record["machine_info"]["device_slug"] == SLUG
    assert "node" not in record["machine_info"]
    assert record["commit_info"].keys() <= {"id", "time", "dirty"}


def test_the_processor_is_asked_for_once(session, pytester, monkeypatch):
    asked = []
    monkeypatch.setattr(pytest_benchmark.plugin, "get_cpu_info", lambda: asked.append(1) or {"arch": "here"})
    assert session("--benchmark-save=mine").ret == 0
    assert load_record(saved(pytester)[0])["machine_info"]["cpu"] == {"arch": "here"}
    assert asked == [1]


def test_cells_without_time_are_saved_and_compared(session, pytester):
    lost = [info(verdict="out of memory"), info("xformers_auto", verdict="wrong")]
    result = session("--benchmark-save=lost", "-W", "error", infos=[*lost, info("flex")])
    assert result.ret == 0
    (path,) = saved(pytester)
    record = load_record(path)
    assert [entry["extra_info"]["id"] for entry in record["cells_without_time"]] == [FA2, XFORMERS]
    assert len(record["benchmarks"]) == 1
    result = session("--benchmark-compare", infos=[info(), info("flex", verdict="out of memory")])
    result.stdout.re_match_lines(
        [
            r"\| flex-\S+ +\| +- \| +31\.0 \| +- \| REGRESSED +\| OOM; had a time before",
            rf"\| {XFORMERS} +\| +- \| +- \| +- \| MISSING ",
            rf"\| {FA2} +\| +31\.0 \| +- \| +- \| NEW +\| no time in the record \(out of memory\)",
        ]
    )
    assert result.ret == 1


def test_a_session_of_cells_without_time_is_saved_too(session, pytester):
    assert session("--benchmark-save=lost", "-W", "error", infos=[info(verdict="out of memory")]).ret == 0
    (path,) = saved(pytester)
    assert load_record(path)["cells_without_time"][0]["extra_info"]["verdict"] == "out of memory"
    assert not journals(pytester)


def test_a_cell_lost_while_it_was_timed_is_saved_once(session, pytester):
    last = "record_cell(info | {'verdict': 'out of memory'})"
    assert session("--benchmark-save=lost", last=last).ret == 0
    record = load_record(saved(pytester)[0])
    assert (len(record["benchmarks"]), len(record["cells_without_time"])) == (0, 1)


def test_compare_takes_the_newest_record_by_its_own_date_of_the_same_workload(session, pytester):
    place(pytester, "0001_new.json", "2026-03-02T00:00:00+00:00", [info(ms=62.0)])
    place(pytester, "0002_old.json", "2026-03-01T00:00:00+00:00", [info(ms=1.0)])
    place(pytester, "0003_long.json", "2026-03-05T00:00:00+00:00", [info(workload="long")])
    place(pytester, "0004_real.json", "2026-03-06T00:00:00+00:00", [info(lengths="recorded")])
    place(pytester, "0005_other.json", "2026-03-09T00:00:00+00:00", [info()], folder=".benchmarks/cpu-x")
    # pytest-benchmark would warn, with both machine_infos written out.
    result = session("--benchmark-compare", "-W", "error")
    assert result.ret == 0
    faster = f"| {FA2} *31.0 *62.0 *-50.* IMPROVED *"
    result.stdout.fnmatch_lines(["Against record 0001_new.json of 2026-03-02*", faster])
    place(pytester, "a.json", "2026-03-03T00:00:00+00:00", [info(ms=31.0)], folder=f"baselines/{SLUG}")
    session("--benchmark-compare").stdout.fnmatch_lines(["Against record a.json of*"])


def test_compare_takes_a_record_by_number_name_or_path(session, pytester):
    place(pytester, "0001_first.json", "2026-03-01T00:00:00", [info()])
    place(pytester, "0002_second.json", "2026-03-02T00:00:00", [info()])
    path = f".benchmarks/{SLUG}/0001_first.json"
    for value in ("0001", "1", "first", path):
        session(f"--benchmark-compare={value}").stdout.fnmatch_lines(["Against record 0001_first.json of*"])


@pytest.mark.parametrize("name", ["12", "0012", "0012_f", "fast", "0012_fast.json", "f?st"])
def test_record_is_meant_by(name):
    assert matches(Path("x/0012_fast.json"), name)


@pytest.mark.parametrize("name", ["1", "2", "012x", "ast", "slow"])
def test_record_is_not_meant_by(name):
    assert not matches(Path("x/0012_fast.json"), name)


def test_compare_without_a_record_says_how_to_make_one(session):
    result = session("--benchmark-compare")
    assert result.ret == 0
    advice = "make one: pytest -m performance --benchmark-save=NAME"
    result.stdout.fnmatch_lines([f"No record of article/uniform on {SLUG} yet; {advice}"])


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"datetime": "x", "benchmarks": []}', "\xff\x00"])
def test_unreadable_record_is_a_usage_error(session, pytester, content):
    path = pytester.path / ".benchmarks" / SLUG / "0001_torn.json"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="latin1")
    result = session("--benchmark-compare")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in result.errlines if line.startswith("ERROR")]
    assert len(errors) == 1
    assert "0001_torn.json is not a readable benchmark record" in errors[0]
    assert session("--benchmark-compare=0001_torn").ret == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
    assert session().ret == 0


@pytest.mark.parametrize(
    ("keys", "fields", "reason"),
    [
        ({"machine_info": None}, {}, "machine_info is None, not a dict"),
        ({"machine_info": "x"}, {}, "machine_info is 'x', not a dict"),
        ({"machine_info": {"versions": "x"}}, {}, "versions is 'x', not a dict"),
        ({"commit_info": "x"}, {}, "commit_info is 'x', not a dict"),
        ({"gate": "x"}, {}, "gate is 'x', not a dict"),
        ({"gate": {"regressed": 5}}, {}, "regressed is 5, not a list"),
        ({}, {"verdict": ["timed"]}, f"verdict of {FA2} is ['timed'], not a str"),
        ({}, {"tokens": 5}, f"tokens of {FA2} is 5, not a list"),
        ({}, {"tokens": ["a"]}, f"tokens of {FA2} holds ['a'], not numbers"),
        ({}, {"batches": 5}, f"batches of {FA2} is 5, not a list"),
        ({}, {"gpu_before": ["x"]}, f"gpu_before of {FA2} is ['x'], not a dict"),
        ({}, {"gpu_after": "x"}, f"gpu_after of {FA2} is 'x', not a dict"),
        ({}, {"gpu_after": {"sm_clock_mhz": 0}}, f"sm_clock_mhz of {FA2} is 0, not a clock"),
        ({}, {"waited_ms": 5}, f"waited_ms of {FA2} is 5, not a list"),
    ],
)
def test_a_record_with_an_odd_part_is_a_usage_error(session, pytester, keys, fields, reason):
    place(pytester, "0001_odd.json", "2026-03-01T00:00:00", [info() | fields], **keys)
    result = session("--benchmark-compare")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (error,) = [line for line in result.errlines if line.startswith("ERROR")]
    assert f"0001_odd.json is not a readable benchmark record (ValueError: {reason})" in error


def test_unknown_record_is_a_usage_error(session):
    result = session("--benchmark-compare=nosuch")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --benchmark-compare=nosuch: no such record in *"])


@pytest.mark.parametrize("value", ["only", "only/test_mine.py", "only/test_mine.py::test_b"])
def test_compare_before_a_path_leaves_the_path_to_pytest(session, pytester, value):
    text = (
        "import pytest\nINFO = {!r}\npytestmark = pytest.mark.performance\n"
        "def test_b(benchmark):\n    benchmark.extra_info.update(INFO)\n    benchmark.pedantic(int)\n"
    )
    (pytester.path / "only").mkdir()
    (pytester.path / "only" / "test_mine.py").write_text(text.format(info("mine")))
    result = session("--benchmark-compare", value)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*1/1* test_b: 31.0 ms*", "No record of*"])


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
        "import gate.environment\n"
        f"gate.environment.device_slug = lambda: {SLUG!r}\n"
        f"gate.environment.environment = lambda: {ENVIRONMENT!r}\n"
        'pytest_plugins = ["gate.plugin"]\n'
    )
    pytester.makeconftest(simulated)
    pytester.makeini("[pytest]\nmarkers = performance: timed\n")
    infos = [info(), info("xformers_auto", verdict="out of memory"), info("killer")]
    last = "if 'killer' in info['id']: os._exit(9)"
    pytester.makepyfile(test_step=INNER_TEST.format(infos=infos, last=last))
    assert pytester.runpytest_subprocess(*WITHOUT, "--benchmark-save=x").ret == 9
    assert not saved(pytester)
    (journal,) = journals(pytester)
    path = pytester.path / ".benchmarks" / SLUG / "0001_rescued.json"
    path.write_text(json.dumps(record_from_journal(journal)))
    record = load_record(path)
    assert [entry["extra_info"]["id"] for entry in record["benchmarks"]] == [FA2]
    assert len(record["benchmarks"][0]["stats"]["data"]) == 3
    assert [entry["extra_info"]["id"] for entry in record["cells_without_time"]] == [XFORMERS]
    assert record["machine_info"]["device_slug"] == SLUG
    session("--benchmark-compare").stdout.fnmatch_lines(["Against record 0001_rescued.json*"])


def test_journal_goes_when_all_is_saved_and_is_named_otherwise(session, pytester):
    session("--benchmark-save=x").stdout.no_fnmatch_line("Not saved*")
    assert not journals(pytester)
    assert "gate" not in load_record(saved(pytester)[0])
    result = session("-m", "performance")
    (journal,) = journals(pytester)
    result.stdout.fnmatch_lines([f"Not saved; raw samples of 1 cells are in {journal}"])


def test_a_journal_tells_that_its_run_was_narrowed(session, pytester):
    session("-m", "performance", "-k", "fa2", infos=[info(), info("xformers_auto")])
    (journal,) = journals(pytester)
    assert record_from_journal(journal)["gate"] == {"partial": True}


def test_journal_stays_when_the_save_fails(session, pytester, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("pytest_benchmark.storage.file.FileStorage.save", full_disk)
    assert session("--benchmark-save=x").ret != 0
    assert len(journals(pytester)) == 1


def test_journal_cut_short_loses_only_its_last_line(tmp_path):
    entry = {"fullname": "a", "extra_info": info(), "stats": {"mean": 1.0}}
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{{"datetime": "2026-03-01"}}\n{json.dumps(entry)}\n{json.dumps(entry)[:40]}')
    assert record_from_journal(path)["benchmarks"] == [entry]
    path.write_text('{"datetime": "2026-03-01"}\n{"torn\n{}\n')
    with pytest.raises(ValueError, match="not a readable journal"):
        record_from_journal(path)


def test_own_tables_replace_the_stock_table(session):
    result = session("-m", "performance")
    result.stdout.no_fnmatch_line("*Name (time in*")
    result.stdout.fnmatch_lines(["| fa2_varlen | packed *| 31.0* (51, 0.61x) |*"])
    result = session("-m", "performance", "--benchmark-stock-table")
    result.stdout.fnmatch_lines(["*Name (time in*"])
    result.stdout.fnmatch_lines(["| fa2_varlen *"])


@pytest.mark.parametrize("args", [(), ("-q",), ("-v",), ("-s",)])
def test_progress_names_each_cell_and_its_result_on_one_line(session, args):
    infos = [info(ms=97.8), info("xformers_auto", verdict="out of memory"), info("bad")]
    last = "assert 'bad' not in info['id']"
    result = session("-m", "performance", *args, infos=infos, last=last)
    lines = [line for line in result.outlines if re.match(r"\[\d/3\]", line)]
    bad = FA2.replace("fa2_varlen", "bad")
    assert lines == [
        f"[1/3] {FA2}: 97.8 ms (96.8..99.8), 41.2 GB",
        f"[2/3] {XFORMERS}: OOM",
        f"[3/3] {bad}: FAILED, 31.0 ms (30.0..33.0), 41.2 GB",
    ]
    result.stdout.fnmatch_lines([f"FAILED test_step.py::test_step[[]{bad}[]]*"])


def test_progress_names_the_running_cell(session, pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    last = "os.write(2, b'killed'); os._exit(9)"
    pytester.makeini("[pytest]\nmarkers = performance: timed\n")
    pytester.makepyfile(test_step=INNER_TEST.format(infos=[info()], last=last))
    result = pytester.runpytest_subprocess(*WITHOUT, "-m", "performance")
    assert result.outlines[-1].startswith(f"[1/1] {FA2}:")


def test_tests_that_time_nothing_keep_their_dots(session):
    session().stdout.fnmatch_lines(["test_step.py . *"])


def test_invalid_times_are_no_times():
    assert step_ms(info()) == 31.0
    assert step_ms(info(verdict="wrong") | {"median_device_ms": 1.0}) is None
    assert step_ms(info() | {"median_device_ms": float("nan")}) is None
    assert step_ms(info() | {"median_device_ms": None, "median_wall_ms": 2.0}) == 2.0
