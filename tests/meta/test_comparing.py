"""A session that compares: what it exits with, what it says, and what it will not let pass."""

import sys
from types import SimpleNamespace

import pytest

from gate.__main__ import main
from gate.baseline.store import write
from gate.judge.verdicts import PERCENT, CellVerdict, Change, Threshold, Verdict
from gate.record.files import load_record
from tests.meta.timed_sessions import ENVIRONMENT, FA2, SLUG, XFORMERS, info

pytestmark = pytest.mark.meta

BOTH = [info(), info("xformers_auto")]

#: Slower by 10%: to be settled. By 29%: no noise between processes explains it.
SEEMS_SLOWER = [info(ms=34.0), info("xformers_auto")]
SLOWER = [info(ms=40.0), info("xformers_auto")]


@pytest.fixture
def settled(monkeypatch):
    """What settles suspects: `settled.by()` is what comes of it, `settled.asked` what it was given, call by call."""
    made = SimpleNamespace(asked=[], by=None)

    def settle(commit, machines, head, ids, hello, folder, threshold, say):
        made.asked.append((commit["id"], machines["base"]["device"], head, ids, hello["selection"]["cells"], threshold))
        return made.by()

    monkeypatch.setitem(sys.modules, "gate.live.settle", SimpleNamespace(settle=settle))
    return made


@pytest.fixture
def against(session):
    """Compares a run of cells with a record of others; nothing is settled."""

    def run(infos, base, *args):
        session.place("0001_base.json", base)
        return session("--benchmark-compare", "--gate-no-settle", *args, infos=infos)

    return run


def last_words(result):
    return [line for line in result.outlines if line.startswith(("passed:", "FAILED:", "NO VERDICT:"))]


def test_a_cell_that_is_slower_by_more_than_any_noise_or_lost_its_time_fails_the_run(against):
    lost = [info("flex", verdict="out of memory"), info("sdpa_loop", verdict="out of memory")]
    result = against([*SLOWER, *lost], [*BOTH, info("flex"), lost[1]])
    assert result.ret == 1
    result.stdout.re_match_lines_random(
        [rf"\| {FA2} +\| .* REGRESSED +\| .*too large for noise", r"\| flex-\S+ .* REGRESSED +\| .*out of memory"]
    )
    assert last_words(result) == ["FAILED: 2 regressed, 2 same"]


def test_unchanged_cells_pass_and_are_counted(against):
    cells = [info(f"backend{number}") for number in range(6)]
    result = against(cells, cells)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["Against record 0001_base.json of 2026-03-01*", "6 cells are the same*"])
    assert last_words(result) == ["passed: 6 same"]


@pytest.mark.parametrize("strict", [False, True])
def test_strict_fails_what_was_not_judged(against, strict):
    option = ["--gate-strict"] if strict else []
    result = against(SEEMS_SLOWER, [*BOTH, info("gone")], *option)
    assert result.ret == strict
    told = "FAILED: 1 missing, 1 inconclusive, 1 same" if strict else "passed: 1 missing, 1 inconclusive, 1 same ("
    assert last_words(result)[0].startswith(told)
    result.stdout.re_match_lines_random(
        [r"\| gone-packed-\S+ +\| .* MISSING ", rf"\| {FA2} .* INCONCLUSIVE +\| .*not settled: --gate-no-settle"]
    )


def test_thresholds_are_options(against):
    assert last_words(against(SEEMS_SLOWER, BOTH, "--gate-threshold-percent=12")) == ["passed: 2 same"]
    assert last_words(against(SEEMS_SLOWER, BOTH, "--gate-threshold-us=4000")) == ["passed: 2 same"]


@pytest.mark.parametrize("strict", [False, True])
def test_a_device_without_a_record_is_told_how_to_make_one(session, strict):
    result = session("--benchmark-compare", *(["--gate-strict"] if strict else []))
    assert result.ret == strict
    result.stdout.fnmatch_lines([f"{SLUG} has no record of article/uniform yet; save one: pytest -m performance *"])


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


def test_a_cell_that_vanishes_is_missing_unless_the_run_leaves_out_just_that(session):
    assert AXES.keys() | {"workload", "lengths"} == info()["cell"].keys()
    kept = info("sdpa_loop")
    gone = {axis: info(**{"backend": "sdpa_loop"} | change)["id"] for axis, (change, _) in AXES.items()}
    session.place("0001_base.json", [kept, *(info(**{"backend": "sdpa_loop"} | change) for change, _ in AXES.values())])
    for left_out, option in [(None, "--compiled=default"), *((axis, option) for axis, (_, option) in AXES.items())]:
        result = session("--benchmark-compare", "--gate-no-settle", option, infos=[kept])
        missing = [line.split()[1] for line in result.outlines if " MISSING " in line]
        assert sorted(missing) == sorted(cell for axis, cell in gone.items() if axis != left_out), option


def test_cells_that_pytest_leaves_out_are_not_missing(against):
    result = against(BOTH, BOTH, "-k", "fa2", "--gate-strict")
    assert (result.ret, last_words(result)) == (0, ["passed: 1 same"])
    assert against(BOTH, BOTH, "-k", "nothing", "--gate-strict").ret == 1, "nothing was timed"


# In the order of the verdicts: a cell that was left out on purpose is not missing.
@pytest.mark.parametrize(("options", "told"), [([], "1 missing, 1 new"), (["-k", "xformers"], "1 new")])
def test_a_run_without_a_cell_of_the_record_compares_nothing(against, options, told):
    infos = BOTH if options else BOTH[1:]
    loud = against(infos, [info()], *options)
    assert (loud.ret, last_words(loud)) == (
        0,
        [f"NO VERDICT: {told}; nothing was compared (fails only under --gate-strict)"],
    )
    strict = against(infos, [info()], "--gate-strict", *options)
    assert (strict.ret, last_words(strict)) == (1, [f"FAILED: {told}; nothing was compared"])


def test_another_device_is_not_judged(session):
    other = {"device": "NVIDIA A100", "device_slug": "NVIDIA-A100"}
    session.place("elsewhere/a100.json", [info(ms=10.0)], machine_info=other)
    result = session("--benchmark-compare=elsewhere/a100.json")
    result.stdout.re_match_lines([r".* INCONCLUSIVE +\| .*another device"])
    assert session("--benchmark-compare=elsewhere/a100.json", "--gate-strict").ret == 1


@pytest.mark.parametrize(("verdict", "status"), [(Verdict.SAME, 0), (Verdict.REGRESSED, 1)])
def test_what_seems_slower_is_settled_live_and_has_that_verdict(session, pytester, settled, verdict, status):
    session.place("0001_base.json", BOTH, commit_info={"id": "c0ffee", "dirty": False})
    found = CellVerdict(FA2, verdict, "by fresh pairs", Change(0.1, 0.05, 0.15), 31.0, 34.0)
    settled.by = lambda: ({FA2: found}, "")
    result = session("--benchmark-compare", "--cells=*", infos=SEEMS_SLOWER)
    assert result.ret == status
    assert settled.asked == [
        ("c0ffee", ENVIRONMENT["device"], pytester.path, [FA2], "*", Threshold(PERCENT["cuda"])),
    ]
    result.stdout.fnmatch_lines(["1 cell seems slower; *", f"| {FA2} * {verdict.upper()} * by fresh pairs*"])
    assert session("--benchmark-compare", "--gate-no-settle", infos=SEEMS_SLOWER).ret == 0
    assert session("--benchmark-compare", infos=BOTH).ret == 0
    assert len(settled.asked) == 1, "only what seems slower is settled"


def test_a_suspect_is_settled_beside_the_code_that_its_cell_was_recorded_with(session, settled):
    records = [
        load_record(
            session.place(
                f"elsewhere/{day}.json", infos, day=day, commit_info=commit, machine_info=ENVIRONMENT | driver
            )
        )
        for day, (infos, commit, driver) in enumerate(
            [
                ([info()], {"id": "c0ffee", "dirty": False}, {"driver": "one"}),
                ([info("xformers_auto")], {"id": "c0ffee", "dirty": True}, {"driver": "two"}),
                ([info("flex")], {"id": "decaf"}, {"driver": "three"}),
            ],
            start=1,
        )
    ]
    root = session.pytester.path / "baselines"
    write(root / SLUG / "article.json", root, records, ("article", "uniform"))
    settled.by = lambda: ({}, f"reason {len(settled.asked)}")
    result = session("--benchmark-compare", infos=[info(ms=34.0), info("xformers_auto", ms=34.0)])
    assert [(commit, ids) for commit, _, _, ids, *_ in settled.asked] == [("c0ffee", [FA2]), ("c0ffee", [XFORMERS])]
    result.stdout.re_match_lines_random(
        [rf"\| {FA2} .* not settled: reason 1 +\|", rf"\| {XFORMERS} .* not settled: reason 2 +\|"]
    )
    told = [line for line in result.outlines if line.startswith("changed: driver")]
    assert [line.rpartition(", ")[2] for line in told] == ["one on base", "two on base"]


@pytest.mark.parametrize(
    ("error", "why", "status"), [(None, "its commit is gone", 0), (KeyboardInterrupt, "interrupted", 2)]
)
def test_what_is_not_settled_says_why_and_an_interrupt_costs_no_more_than_that(session, settled, error, why, status):
    def by():
        if error:
            raise error
        return {}, why

    settled.by = by
    session.place("0001_base.json", BOTH, commit_info={"id": "c0ffee"})
    result = session("--benchmark-compare", "--benchmark-save=now", infos=SEEMS_SLOWER)
    assert result.ret == status
    result.stdout.fnmatch_lines([f"*not settled: {why}*"])
    assert [path.name for path in session.saved()] == ["0001_base.json", "0002_now.json"]
    assert not session.journals()


STRICTLY = ("--benchmark-compare", "--gate-no-settle", "--gate-strict")


@pytest.mark.parametrize(
    ("infos", "status", "doubt"),
    [
        (SLOWER, 1, "1 cell was slower*"),
        (SEEMS_SLOWER, 0, "1 cell was missing, or seemed slower*"),
        ([info("xformers_auto")], 0, "1 cell was missing, or seemed slower*"),
    ],
)
def test_a_run_in_doubt_is_no_record_to_compare_with_until_one_is_saved_on_purpose(session, infos, status, doubt):
    session.place("0001_base.json", BOTH)
    assert session("--benchmark-compare", "--gate-no-settle", "--benchmark-save=odd", infos=infos).ret == status
    again = session(*STRICTLY, infos=infos)
    assert again.ret == 1
    again.stdout.fnmatch_lines([f"Passed over 0002_odd.json: {doubt}", "Against record 0001_base*"])
    session("--benchmark-save=agreed", infos=infos)
    assert session(*STRICTLY, infos=infos).ret == 0


@pytest.mark.parametrize(
    ("options", "last"),
    [
        (["-k", "fa2"], "pass"),
        ([f"test_step.py::test_step[{FA2}]"], "pass"),
        (["--backend=fa2_varlen"], "pass"),
        (["-x"], "assert 'fa2' not in info['id']"),
        ([], "if 'fa2' in info['id']: pytest.exit('enough')"),
    ],
)
def test_a_part_of_a_run_stands_for_no_whole_one(session, options, last):
    session.place("0001_base.json", BOTH)
    slow = [info(), info("xformers_auto", ms=62.0)]
    part = slow[:1] if "--backend=fa2_varlen" in options else slow
    session("--benchmark-save=part", "-m", "performance", *options, infos=part, last=last)
    assert (session.saved()[1].name, load_record(session.saved()[1]).partial) == ("0002_part.json", True)
    if options != ["-k", "fa2"]:
        return
    result = session(*STRICTLY, infos=slow)
    assert (result.ret, last_words(result)) == (1, ["FAILED: 1 regressed, 1 same"])
    result.stdout.fnmatch_lines(["Passed over 0002_part.json: it lacks cells*", "Against record 0001_base.json*"])
    # It holds all that such a run needs, and is better than nothing.
    session(*STRICTLY, "-k", "fa2", infos=slow).stdout.fnmatch_lines(["Against record 0002_part.json*"])
    session.saved()[0].unlink()
    session("--benchmark-compare", infos=slow).stdout.fnmatch_lines(["Against record 0002_part.json*"])


def test_the_newest_record_by_its_own_date_of_the_same_workload_and_device_is_taken(session):
    session.place("0001_new.json", [info(ms=62.0)], day=2)
    session.place("0002_old.json", [info(ms=1.0)], day=1)
    session.place("0003_long.json", [info(workload="long")], day=5)
    session.place("0004_real.json", [info(lengths="recorded")], day=6)
    session.place(".benchmarks/cpu-x/0005_other.json", [info()], day=9)
    # pytest-benchmark would warn, with both machine_infos written out.
    result = session("--benchmark-compare", "-W", "error")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["Against record 0001_new.json of 2026-03-02*"])
    for value in ("0002", "2", "old", f".benchmarks/{SLUG}/0002_old.json"):
        session(f"--benchmark-compare={value}").stdout.fnmatch_lines(["Against record 0002_old.json of*"])


def promoted(session):
    """Promote a record, and return the path of the baseline."""
    session.place("records/0001_x.json", BOTH, commit_info={"id": "c0ffee", "dirty": False})
    assert main(["promote", "records/0001_x.json"]) == 0
    (path,) = (session.pytester.path / "baselines" / SLUG).iterdir()
    return path


def test_strictly_a_committed_baseline_is_compared_with_whatever_was_saved_since(session):
    path = promoted(session)
    assert session("--benchmark-save=whole", infos=SLOWER).ret == 0
    result = session(*STRICTLY, infos=SLOWER)
    assert (result.ret, last_words(result)) == (1, ["FAILED: 1 regressed, 1 same"])
    result.stdout.fnmatch_lines([f"Against baseline {path.name} of 2026-03-01*"])
    result.stdout.no_fnmatch_line("Passed over*")
    # By hand it is what was saved last, and by name whatever was named.
    for options in (["--benchmark-compare"], [*STRICTLY, "--benchmark-compare=whole"]):
        session(*options, infos=SLOWER).stdout.fnmatch_lines(["Against record 0001_whole.json*"])


def usage_error(result):
    """Return the one line of a usage error, with nothing else."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
    (error,) = [line for line in result.outlines + result.errlines if line.startswith("ERROR: ")]
    return error


def test_a_baseline_that_was_edited_moved_or_lost_is_a_usage_error(session):
    path = promoted(session)
    text = path.read_text()
    assert session("--benchmark-compare", infos=BOTH).ret == 0
    path.write_text(text.replace("31.0", "62.0"))
    for compare in ("--benchmark-compare", f"--benchmark-compare={path}"):
        assert f"{path.name} has changed since it was promoted" in usage_error(session(compare, infos=BOTH))
    path.write_text(text)
    other = path.with_stem("other")
    other.write_text(text)
    assert f"{other.name} is not in " in usage_error(session(f"--benchmark-compare={other}", infos=BOTH))
    other.unlink()
    path.unlink()
    assert f"{path.name} does not exist, but " in usage_error(session("--benchmark-compare", infos=BOTH))
    assert session(infos=BOTH).ret == 0


def test_a_record_that_cannot_be_read_is_a_usage_error_of_a_run_that_compares(session):
    session.place("0001_torn.json", []).write_text("{")
    for compare in ("--benchmark-compare", "--benchmark-compare=0001_torn"):
        assert "0001_torn.json is not a readable " in usage_error(session(compare))
    assert session().ret == 0


def test_a_named_record_of_another_workload_is_a_usage_error(session):
    session.place("0001_long.json", [info(workload="long")])
    result = session("--benchmark-compare=long", "--gate-strict")
    told = "--benchmark-compare=long: 0001_long.json holds cells of long/uniform, but this run times article/uniform"
    assert usage_error(result).startswith(f"ERROR: {told}")
    assert "[1/1]" not in result.stdout.str()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--gate-strict"], "--gate-strict needs a comparison; add --benchmark-compare."),
        (["--gate-no-settle"], "--gate-no-settle needs a comparison; add --benchmark-compare."),
        (["--benchmark-compare", "--gate-threshold-percent=nan"], "--gate-threshold-percent nan is not a number of 0"),
        (["--benchmark-compare", "--gate-threshold-us=-1"], "--gate-threshold-us -1.0 is not a number of 0 or more."),
        (["--benchmark-compare=nosuch"], "--benchmark-compare=nosuch names no record in "),
    ],
)
def test_bad_options_are_refused_in_one_line(session, options, reason):
    result = session(*options)
    assert usage_error(result).startswith(f"ERROR: {reason}")
    assert "passed" not in result.stdout.str()


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
    result.stdout.fnmatch_lines(["*1/1* test_b: 31.0 ms*", "* has no record of *"])
