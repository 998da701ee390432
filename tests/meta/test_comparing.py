"""A session that compares: what it exits with, what it says, and what it will not let pass."""

import re

import pytest

from gate.__main__ import main
from gate.baseline import comparing, confirming
from tests.meta.test_records import (  # noqa: F401
    FA2,
    INNER_CONFTEST,
    INNER_TEST,
    SLUG,
    XFORMERS,
    info,
    journals,
    place,
    saved,
    session,
)

pytestmark = pytest.mark.meta

OLD = "2026-03-01T00:00:00+00:00"


@pytest.fixture
def against(session, pytester):  # noqa: F811
    """Compares a run of cells, without timing any again, with a record of others."""

    def run(infos, then, *args):
        place(pytester, "0001_then.json", OLD, then)
        return session("--benchmark-compare", "--gate-confirm=0", *args, infos=infos)

    return run


def last_words(result):
    return [line for line in result.outlines if line.startswith(("passed:", "FAILED:", "NOTHING WAS COMPARED:"))]


def test_a_slower_cell_fails_the_run(against):
    result = against([info(ms=40.0), info("xformers_auto")], [info(), info("xformers_auto")])
    assert result.ret == 1
    result.stdout.re_match_lines([rf"\| {FA2} +\| +40\.0 \| +31\.0 \| +\+29\.\d% \(.*\) \| REGRESSED "])
    assert last_words(result) == ["FAILED: 1 regressed, 1 cannot tell"]


def test_unchanged_cells_pass_and_are_counted(against):
    backends = [f"backend{number}" for number in range(6)]
    cells = [info(backend) for backend in backends]
    result = against(cells, cells, "--gate-threshold-percent=10")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["6 cells are the same: none moved by more than 0.0%, and noise hides *"])
    assert last_words(result) == ["passed: 6 same"]


@pytest.mark.parametrize("strict", [False, True])
def test_strict_fails_what_was_not_judged(against, strict):
    option = ["--gate-strict"] if strict else []
    result = against([info()], [info(), info("gone")], "--gate-threshold-percent=10", *option)
    assert result.ret == strict
    told = "FAILED: 1 missing, 1 same" if strict else "passed: 1 missing, 1 same (missing and cannot tell fail under"
    assert last_words(result)[0].startswith(told)
    result.stdout.re_match_lines([r"\| gone-packed-\S+ +\| .* MISSING +\| in the record, not run now"])


@pytest.mark.parametrize("strict", [False, True])
def test_a_device_without_a_record_is_told_how_to_make_one(session, strict):  # noqa: F811
    result = session("--benchmark-compare", *(["--gate-strict"] if strict else []))
    assert result.ret == strict
    result.stdout.fnmatch_lines([f"No record of article/uniform on {SLUG} yet; make one: pytest -m performance *"])


def test_cells_left_out_on_purpose_are_not_missing(against):
    both = [info(), info("xformers_auto")]
    result = against(both, both, "-k", "fa2", "--gate-threshold-percent=10", "--gate-strict")
    assert result.ret == 0
    assert last_words(result) == ["passed: 1 same"]


#: Another value of each part of a cell's key but its workload's, which a run chooses, and the option that a run of the
#: first value alone is given.
AXES = {
    "backend": ({"backend": "sdpa_padded"}, "--backend=sdpa_loop"),
    "collator": ({"collator": "packed_multiple"}, "--collator=packed"),
    "mode": ({"mode": "train"}, "--cells=*-eval-*"),
    "causal": ({"causal": True}, "--cells=*-full-*"),
    "dtype": ({"dtype": "float32"}, "--cells=*-bfloat16-*"),
    "execution": ({"execution": "compiled"}, "--compiled=none"),
}


#: As tests/selection.py has them: that plugin leaves no test without the suite's own cells.
NARROWING = """
    def pytest_addoption(parser):
        parser.addoption("--cells")
        parser.addoption("--backend", action="append")
        parser.addoption("--collator", action="append")
        parser.addoption("--compiled", default="default")
"""


@pytest.mark.parametrize("lost", AXES)
def test_a_cell_that_vanishes_is_missing_unless_the_run_leaves_out_just_that(session, pytester, lost):  # noqa: F811
    assert AXES.keys() | {"workload", "lengths"} == info()["cell"].keys()
    kept, gone = info("sdpa_loop"), info(**{"backend": "sdpa_loop"} | AXES[lost][0])
    pytester.makeconftest(INNER_CONFTEST + NARROWING)
    place(pytester, "0001_then.json", OLD, [kept, gone])
    for axis, option in [(None, "--compiled=default"), *((axis, option) for axis, (_, option) in AXES.items())]:
        result = session("--benchmark-compare", "--gate-confirm=0", option, infos=[kept])
        missing = [line for line in result.outlines if line.startswith(f"| {gone['id']} ") and " MISSING " in line]
        assert len(missing) == (axis != lost), (option, result.outlines)


def test_nothing_timed_is_no_pass_when_strict(against):
    assert against([info()], [info()], "-k", "nothing", "--gate-strict").ret == 1


@pytest.mark.parametrize(
    ("then", "now", "options", "told"),
    [
        # In the order of the verdicts: a cell that was left out on purpose is not missing.
        ("fa2_varlen", "xformers_auto", [], "1 missing, 1 new"),
        ("fa2_varlen", "xformers_auto", ["-k", "xformers"], "1 new"),
        ("fa2_varlen", None, [], "no cell"),
    ],
)
def test_a_run_without_a_cell_of_the_record_compares_nothing(session, pytester, then, now, options, told):  # noqa: F811
    place(pytester, "0001_then.json", OLD, [info(then)])
    # Without a cell's key it is a benchmark of something else.
    infos = [info(now), info(then)] if options else [info(now) if now else {"id": "other", "verdict": "timed"}]
    loud = session("--benchmark-compare=0001", "--gate-confirm=0", *options, infos=infos)
    assert (loud.ret, last_words(loud)) == (0, [f"NOTHING WAS COMPARED: {told} (fails under --gate-strict)"])
    strict = session("--benchmark-compare=0001", "--gate-confirm=0", "--gate-strict", *options, infos=infos)
    assert (strict.ret, last_words(strict)) == (1, [f"FAILED: {told}; nothing was compared"])


def test_another_device_is_not_judged(session, pytester):  # noqa: F811
    other = {"device": "NVIDIA A100", "device_slug": "NVIDIA-A100"}
    place(pytester, "a100.json", OLD, [info(ms=10.0)], machine_info=other, folder="elsewhere")
    result = session("--benchmark-compare=elsewhere/a100.json")
    result.stdout.re_match_lines([r".* CANNOT TELL +\| another device: NVIDIA H100 80GB HBM3 now, NVIDIA A100 then"])
    assert session("--benchmark-compare=elsewhere/a100.json", "--gate-strict").ret == 1


def test_suspects_are_timed_again_before_they_fail(session, pytester, monkeypatch):  # noqa: F811
    place(pytester, "0001_then.json", OLD, [info(), info("xformers_auto")])
    asked = []

    def timed_again(config, suspects, processes):
        asked.append((suspects, processes))
        return {cell: [info(ms=31.0)] * processes for cell in suspects}, []

    monkeypatch.setattr(comparing, "timed_again", timed_again)
    now = [info(ms=40.0), info("xformers_auto")]
    result = session("--benchmark-compare", "--gate-threshold-percent=10", infos=now)
    assert (result.ret, asked) == (0, [([FA2], 3)])
    result.stdout.fnmatch_lines(
        ["1 cell seems slower; timing again in 3 fresh processes ...", "*timed again in 3 processes*"]
    )
    assert session("--benchmark-compare", "--gate-confirm=0", infos=now).ret == 1
    assert len(asked) == 1


def test_an_interrupt_while_suspects_are_timed_again_costs_no_more_than_that(session, pytester, monkeypatch):  # noqa: F811
    place(pytester, "0001_then.json", OLD, [info(), info("xformers_auto")])

    def timed_again(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "timed_again", timed_again)
    slow = [info(ms=62.0), info("xformers_auto")]
    result = session("--benchmark-compare", "--benchmark-save=now", infos=slow)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["| fa2_varlen *62.0*", "Interrupted while cells were timed again: they are judged by*"]
    )
    assert last_words(result) == ["FAILED: 1 regressed, 1 cannot tell"]
    assert [path.name for path in saved(pytester)] == ["0001_then.json", "0002_now.json"]
    assert not journals(pytester)


def test_a_slower_run_that_is_saved_is_no_record_to_compare_with(session, pytester):  # noqa: F811
    place(pytester, "0001_then.json", OLD, [info()])
    slow = [info(ms=40.0)]
    result = session("--benchmark-compare", "--benchmark-save=slow", "--gate-confirm=0", infos=slow)
    assert result.ret == 1
    assert saved(pytester)[1].name == "0002_slow.json"
    again = session("--benchmark-compare", "--gate-confirm=0", infos=slow)
    assert again.ret == 1
    again.stdout.fnmatch_lines(["Passed over 0002_slow.json: 1 cell was slower*", "Against record 0001_then*"])
    assert session("--benchmark-compare=slow", "--gate-confirm=0", infos=slow).ret == 0


STRICTLY = ("--benchmark-compare", "--gate-strict", "--gate-confirm=0", "--gate-threshold-percent=10")


def promoted(pytester, infos):
    """Commits a baseline of five processes, and returns its path."""
    paths = [f"records/000{hour}_x.json" for hour in range(5)]
    for hour, path in enumerate(paths):
        when, commit = OLD.replace("T00", f"T0{hour}"), {"id": "c0ffee", "dirty": False}
        place(pytester, path.removeprefix("records/"), when, infos, commit_info=commit, folder="records")
    assert main(["promote", *paths]) == 0
    return pytester.path / "baselines" / SLUG / "article.json"


def test_strict_compares_with_the_committed_baseline_whatever_was_saved_since(session, pytester):  # noqa: F811
    promoted(pytester, [info(), info("xformers_auto")])
    slow = [info(), info("xformers_auto", ms=62.0)]
    assert session(*STRICTLY, infos=slow).ret == 1
    assert session("--benchmark-save=whole", infos=slow).ret == 0
    result = session(*STRICTLY, infos=slow)
    assert (result.ret, last_words(result)) == (1, ["FAILED: 1 regressed, 1 same"])
    result.stdout.fnmatch_lines(["Against baseline article.json*"])
    result.stdout.no_fnmatch_line("Passed over*")
    # By hand it is what was saved last, and by name whatever was named.
    session("--benchmark-compare", infos=slow).stdout.fnmatch_lines(["Against record 0001_whole.json*"])
    session(*STRICTLY, "--benchmark-compare=whole", infos=slow).stdout.fnmatch_lines(
        ["Against record 0001_whole.json*"]
    )


STOP = "if 'fa2' in info['id']: pytest.exit('enough')"


@pytest.mark.parametrize(
    ("options", "last"),
    [
        (["-k", "fa2"], "pass"),
        ([f"test_step.py::test_step[{FA2}]"], "pass"),
        (["-x"], "assert 'fa2' not in info['id']"),
        ([], STOP),
    ],
)
def test_a_part_of_a_run_stands_for_no_whole_one(session, pytester, options, last):  # noqa: F811
    place(pytester, "0001_then.json", OLD, [info(), info("xformers_auto")])
    slow = [info(), info("xformers_auto", ms=62.0)]
    session("--benchmark-save=part", "-m", "performance", *options, infos=slow, last=last)
    assert saved(pytester)[1].name == "0002_part.json"
    result = session(*STRICTLY, infos=slow)
    assert (result.ret, last_words(result)) == (1, ["FAILED: 1 regressed, 1 same"])
    result.stdout.fnmatch_lines(["Passed over 0002_part.json: it lacks cells*", "Against record 0001_then.json*"])
    # It holds all that such a run needs.
    session(*STRICTLY, "-k", "fa2", infos=slow).stdout.fnmatch_lines(["Against record 0002_part.json*"])


def test_a_part_is_better_than_nothing(session, pytester):  # noqa: F811
    both = [info(), info("xformers_auto")]
    session("--benchmark-save=part", "-k", "fa2", "-m", "performance", infos=both)
    session("--benchmark-compare", infos=both).stdout.fnmatch_lines(["Against record 0001_part.json*"])


def test_a_missing_cell_is_missing_until_a_run_is_saved_without_it_on_purpose(session, pytester):  # noqa: F811
    place(pytester, "0001_then.json", OLD, [info(), info("xformers_auto")])
    loud = [option for option in STRICTLY if option != "--gate-strict"]
    assert session(*loud, "--benchmark-save=lost").ret == 0
    result = session(*STRICTLY)
    assert (result.ret, last_words(result)) == (1, ["FAILED: 1 missing, 1 same"])
    result.stdout.fnmatch_lines(["Passed over 0002_lost.json: 1 cell was missing, *"])
    session("--benchmark-save=agreed")
    assert session(*STRICTLY).ret == 0


def test_a_slowdown_that_was_not_confirmed_is_no_record_to_compare_with(session, pytester, monkeypatch):  # noqa: F811
    place(pytester, "0001_then.json", OLD, [info(), info("xformers_auto")])
    monkeypatch.setattr(comparing, "timed_again", lambda _config, suspects, _count: ({one: [] for one in suspects}, []))
    slow = [info(ms=62.0), info("xformers_auto")]
    options = ["--benchmark-compare", "--gate-threshold-percent=10"]
    result = session(*options, "--benchmark-save=slow", infos=slow)
    assert result.ret == 0
    assert last_words(result)[0].startswith("passed: 1 cannot tell, 1 same")
    again = session(*options, infos=slow)
    assert last_words(again)[0].startswith("passed: 1 cannot tell, 1 same")
    again.stdout.fnmatch_lines(["Passed over 0002_slow.json: 1 cell was missing, or seemed slower and could not*"])


@pytest.mark.parametrize("ids", ["[info['id'] for info in INFOS]", "['one']"])
def test_a_named_record_of_another_workload_is_a_usage_error(session, pytester, monkeypatch, ids):  # noqa: F811
    place(pytester, "0001_long.json", OLD, [info(workload="long")])
    if ids == "['one']":
        # Tests whose ids tell no workload are run before it can be said.
        monkeypatch.setattr(
            "tests.meta.test_records.INNER_TEST", INNER_TEST.replace('[info["id"] for info in INFOS]', ids)
        )
    result = session("--benchmark-compare=long", "--gate-strict")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = [line for line in result.outlines + result.errlines if line.startswith("ERROR: ")]
    wanted = "--benchmark-compare=long: 0001_long.json is of long/uniform, and this run times article/uniform; name a"
    assert len(told) == 1
    assert told[0].startswith(f"ERROR: {wanted}")
    assert ("[1/1]" in result.stdout.str()) == (ids == "['one']")


def test_an_edited_baseline_is_refused_by_its_path_too(session, pytester):  # noqa: F811
    path = promoted(pytester, [info()])
    assert session(f"--benchmark-compare={path}").ret == 0
    path.write_text(path.read_text().replace("31.0", "62.0"))
    result = session(f"--benchmark-compare={path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (error,) = [line for line in result.errlines if line.startswith("ERROR")]
    assert "article.json is not as it was promoted" in error


def test_a_baseline_below_the_folder_that_no_index_names_is_refused_by_its_path_too(session, pytester):  # noqa: F811
    path = promoted(pytester, [info()])
    other = path.with_name("other.json")
    other.write_text(path.read_text())
    result = session(f"--benchmark-compare={other}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *other.json is not in *index.json*"])


def test_a_promoted_baseline_is_compared_with_until_it_is_lost(session, pytester):  # noqa: F811
    place(pytester, "0001_x.json", OLD, [info()], commit_info={"id": "c0ffee", "dirty": False}, folder="records")
    assert main(["promote", "records/0001_x.json"]) == 0
    session("--benchmark-compare").stdout.fnmatch_lines(["Against baseline article.json of 2026-03-01*"])
    (pytester.path / "baselines" / SLUG / "article.json").unlink()
    result = session("--benchmark-compare")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in result.errlines if line.startswith("ERROR")]
    assert len(errors) == 1
    assert re.search(r"article\.json is gone, though \S+index\.json names it\. Restore it \(git checkout", errors[0])
    assert session().ret == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--gate-strict"], "--gate-strict judges a comparison; add --benchmark-compare."),
        (["--gate-confirm=2"], "--gate-confirm judges a comparison; add --benchmark-compare."),
        (["--benchmark-compare", "--gate-threshold-percent=nan"], "--gate-threshold-percent nan is not a number of 0"),
        (["--benchmark-compare", "--gate-threshold-us=-1"], "--gate-threshold-us -1.0 is not a number of 0 or more."),
        (["--benchmark-compare", "--gate-confirm=-1"], "--gate-confirm -1 is not a number of 0 or more."),
    ],
)
def test_bad_options_are_refused_in_one_line(session, options, reason):  # noqa: F811
    result = session(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (error,) = [line for line in result.errlines if line.startswith("ERROR")]
    assert error.startswith(f"ERROR: {reason}")
    assert "passed" not in result.stdout.str()


def test_fresh_processes_run_the_same_workload_and_plugins(pytestconfig, monkeypatch):
    calls = []

    def run_cells(side, options, folder, name, *, ids):
        calls.append((side.checkout, options, ids))
        if len(calls) == 2:
            raise ValueError("again: pytest ended before a cell did")
        entry = {"fullname": name, "extra_info": info(ms=31.0)}
        return {"benchmarks": [], "cells_without_time": [entry]}

    monkeypatch.setattr(confirming, "run_cells", run_cells)
    monkeypatch.setattr(pytestconfig.option, "steps", 6)
    monkeypatch.setattr(pytestconfig.option, "cell_seconds", 7.0)
    monkeypatch.setattr(pytestconfig.option, "plugins", ["no:cacheprovider", "tests.meta.planted.slowdowns"])
    found, troubles = confirming.timed_again(pytestconfig, [FA2], 3)
    assert [one["median_device_ms"] for one in found[FA2]] == [31.0, 31.0]
    assert troubles == ["again: pytest ended before a cell did"]
    checkout, options, ids = calls[0]
    assert (checkout, ids) == (pytestconfig.rootpath, [FA2])
    assert options[-4:] == ["-p", "tests.meta.planted.slowdowns", "--no-exact-costs", "--order-seed=0"]
    assert {"--steps=6", "--cell-seconds=7.0"} <= {*options}
