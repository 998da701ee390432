"""A replay of recorded processes counts false alarms and misses as live comparisons would have them."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from gate import estimates
from gate.__main__ import main
from gate.baseline.baselines import Process
from gate.estimates import estimate
from gate.records import cell_id
from gate.replay import command as replay
from gate.replay import rivals as replay_rivals
from gate.replay.command import figures
from gate.replay.components import components
from gate.replay.data import START_S, Data, Recording, comparable, read
from gate.replay.effects import KINDS, step_ms
from gate.replay.remembering import remembered
from gate.replay.rules import Planted, ab, against_baseline, dealt, rules, shuffled
from gate.replay.tables import BEGIN, END, NO_FIGURES, figures_path, markdown, written
from tests.meta.gate_cells import MACHINE, START, key, timed

pytestmark = pytest.mark.meta

RULES = pytest.mark.parametrize("rule", [ab, against_baseline])
CELLS = [cell_id(key(f"backend{number}", mode)) for number in range(2) for mode in ("train", "eval")]
EVERY = KINDS[0]


def recordings(
    count=16, *, sd=0.003, seed=0, session="s0", level=0.0, cells=4, step_sd=0.0, held=()
) -> list[Recording]:
    """Processes whose cells scatter by `sd` between them, and whose steps by `step_sd` within; `held` are numbers of
    cells that wait for the host."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        infos = {}
        for place in range(cells):
            info = timed(key(f"backend{place // 2}", ("train", "eval")[place % 2]))
            factor = math.exp(level + rng.normal(0, sd)) * np.exp(rng.normal(0, step_sd, len(info["wall_ms"])))
            for clock in ("device_ms", "wall_ms"):
                info[clock] = list(np.array(info[clock]) * factor)
            info["median_device_ms"] = float(np.median(info["device_ms"]))
            info["device_busy_ms"] = (0.5 if place in held else 0.9) * info["median_device_ms"]
            if place in held:
                info |= {"host_ms": info["device_ms"], "lead_ms": [0.0] * len(info["device_ms"])}
            infos[cell_id(info["cell"])] = info
        at = START + timedelta(minutes=2 * number)
        rounds = {cell: tuple(ms / 1e3 for ms in info["wall_ms"]) for cell, info in infos.items()}
        process = Process(at, session, MACHINE, {"id": "c0ffee" * 6 + "c0de", "dirty": False}, infos)
        made.append(Recording(f"{number:04}_{session}.json", process, rounds))
    return made


def data(**noise) -> Data:
    return comparable(recordings(**noise))


@pytest.fixture(autouse=True)
def _quick():
    with remembered(estimates, "location"):
        yield


def share(rule, source: Data, size: float, runs: int = 4) -> float:
    """How often the first cell is found when it is slower, none other ever."""
    planted = Planted(CELLS[0], EVERY, size)
    found = [rule(source, np.random.default_rng(run), planted).alarms for run in range(runs)]
    assert all(alarms <= {CELLS[0]} for alarms in found)
    return float(np.mean([bool(alarms) for alarms in found]))


@RULES
def test_unchanged_processes_raise_no_alarm(rule) -> None:
    source = data()
    assert [rule(source, np.random.default_rng(run)).alarms for run in range(6)] == [frozenset()] * 6


@RULES
def test_a_slower_cell_is_found_the_more_often_the_slower_it_is(rule) -> None:
    source = data()
    rates = [share(rule, source, size) for size in (0.003, 0.012, 0.05)]
    assert rates == sorted(rates)
    assert rates[0] == 0
    assert rates[-1] == 1


def test_a_baseline_of_other_sessions_is_asked_where_there_are_any() -> None:
    """Both sessions have levels 1.5% apart, which is no change of the code."""
    several = comparable([*recordings(), *recordings(seed=1, session="s1", level=0.015)])
    assert "against a baseline of other sessions" not in rules(data())
    rule = rules(several)["against a baseline of other sessions"]
    found = [rule(several, np.random.default_rng(run), None) for run in range(5)]
    assert [one.alarms for one in found] == [frozenset()] * 5
    planted = Planted(CELLS[0], EVERY, 0.2)
    assert rule(several, np.random.default_rng(0), planted).alarms == {CELLS[0]}
    assert {one.process.session for one in shuffled(several, np.random.default_rng(0))} < {"s0", "s1"}


@RULES
def test_what_noise_hides_is_not_passed_as_told(rule) -> None:
    found = rule(data(sd=0.05), np.random.default_rng(0), None)
    assert found.cannot_tell


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_planted_slowdown_is_as_large_as_it_says_and_has_its_cause(kind) -> None:
    source = data(held=[0] if kind.cause == "host" else [])
    info = source.recordings[0].process.cells[CELLS[0]]
    assert kind.shows_in(info)
    slower = kind.slower(info, 0.05).info
    before, after = estimate(info), estimate(slower)
    assert after.log_ms - before.log_ms == pytest.approx(0.05, abs=0.006)
    assert step_ms(slower).mean() / step_ms(info).mean() == pytest.approx(1.05, abs=0.005)
    assert info["device_ms"] != slower["device_ms"]
    assert ab(source, np.random.default_rng(0), Planted(CELLS[0], kind, 0.05)).causes == {CELLS[0]: kind.cause}


def test_a_sleep_of_the_host_slows_down_only_what_waits_for_it(monkeypatch) -> None:
    monkeypatch.setattr(replay, "KINDS", KINDS[2:])
    monkeypatch.setattr(replay, "CURVE", {True: (0.05,)})
    assert figures(data(cells=2), 1, 1, others=False)["sensitivity"] == []
    found = figures(data(cells=2, held=[1]), 1, 1, others=False)["sensitivity"]
    assert [list(row["cells"]) for row in found] == [[CELLS[1]], [CELLS[1]]]
    assert {row["detected"] for row in found} == {1.0}


@pytest.mark.parametrize("count", [6, 7])
def test_a_process_is_dealt_again_after_all_others_only(count) -> None:
    processes = recordings(count)
    pairs = dealt(processes, np.random.default_rng(0))
    for _ in range(3):
        names = [side.name for _ in range(count // 2) for side in next(pairs)]
        assert len(set(names)) == len(names) == count - count % 2


def test_components_are_those_of_the_processes() -> None:
    several = [one for number in range(6) for one in recordings(6, seed=number, session=f"s{number}", step_sd=0.02)]
    train = next(row for row in components(comparable(several)) if row["mode"] == "train")
    assert train["process"]["sd"] == pytest.approx(math.hypot(0.003, 0.02 / math.sqrt(24)), rel=0.25)
    assert train["round"] == pytest.approx(0.02, rel=0.1)
    assert train["step"] == pytest.approx(math.hypot(0.02, 0.0283), rel=0.1)
    assert train["session"]["sd"] < 0.003
    one = components(data())[0]["session"]
    assert one["sd"] is None
    assert one["assumed"] == 0.015


def test_a_process_of_few_cells_costs_its_start_and_theirs() -> None:
    source = data(cells=2)
    own = source.cell_s[CELLS[0]]
    assert own == pytest.approx(24 * 0.1, rel=0.05)
    assert source.process_s == 120
    assert source.seconds(source.cells) == pytest.approx(120)
    # Either has half of what is no cell's, but for the start.
    assert source.seconds([CELLS[0]]) == pytest.approx(START_S + own + (120 - START_S - 2 * own) / 2, rel=0.01)
    # The others are part of the process whether they are asked for or not.
    alone = comparable(recordings(cells=2), [CELLS[0]])
    assert alone.seconds([CELLS[0]]) == pytest.approx(source.seconds([CELLS[0]]))


def test_a_slower_cell_that_cannot_be_told_is_counted(monkeypatch) -> None:
    monkeypatch.setattr(replay, "KINDS", KINDS[:1])
    monkeypatch.setattr(replay, "CURVE", {True: (0.02,)})
    found = figures(data(cells=2, sd=0.05), 2, 2, others=False)
    (row,) = [row for row in found["sensitivity"] if row["how"] == "gate ab"]
    assert row["not_told"] > 0
    assert f"| {row['not_told']:.1%} |" in markdown(found)


def test_processes_that_confirm_do_not_count_as_whole_ones() -> None:
    whole = [replace(each, seconds=120.0) for each in recordings(4, cells=4)]
    few = [replace(each, seconds=19.0) for each in recordings(8, cells=1, seed=1)]
    source = comparable([*whole, *few])
    assert source.process_s == 120
    assert source.seconds(source.cells) > 19


def test_processes_of_fewer_cells_in_another_session_do_not_say_how_long_a_whole_one_takes() -> None:
    short = recordings(12, cells=1, seed=1, session="s1")
    near = [
        replace(each, process=replace(each.process, at=START + timedelta(seconds=30 * number)))
        for number, each in enumerate(short)
    ]
    assert comparable([*recordings(6, cells=4), *near]).process_s == 120


def test_figures_tell_the_cell_and_count_all_comparisons(monkeypatch) -> None:
    monkeypatch.setattr(replay, "CURVE", {True: (0.005, 0.05)})
    monkeypatch.setattr(replay, "SIZES", {True: (0.05,)})
    found = figures(data(cells=2), 2, 1, others=False)
    assert [row["comparisons"] for row in found["false_alarms"]] == [2, 2]
    five = [row for row in found["sensitivity"] if row["size"] == 0.05]
    assert len(five) == 4
    assert {row["not_told"] for row in five} == {0.0}
    assert {row["detected"] for row in found["sensitivity"] if row["size"] == 0.005} == {0.0}
    assert {row["detected"] for row in five} == {1.0}
    assert {row["worst_cell"] for row in five} == {1.0}
    assert {row["another_cell"] for row in five} == {0.0}
    assert {row["right_cause"] for row in five if row["how"] == "gate ab"} == {1.0}
    assert found == json.loads(json.dumps(found))
    assert markdown(found) == markdown(json.loads(json.dumps(found)))


# --- other tools


STOCK = """
import json
import pytest

TIMES = json.load(open("times.json"))

@pytest.mark.parametrize("cell", TIMES)
def test_step(benchmark, cell):
    times, clock, ticks = iter(TIMES[cell]), [0.0], [0]

    def timer():
        # Read before and after each round.
        ticks[0] += 1
        if ticks[0] % 2 == 0:
            clock[0] += next(times)
        return clock[0]

    benchmark._timer = timer
    benchmark.pedantic(lambda: None, rounds=len(TIMES[cell]))
"""


def test_pytest_benchmarks_own_comparison_says_the_same(tmp_path: Path, monkeypatch) -> None:
    """On the rounds of two cells, one slower by 8%, the other by 4%."""
    source = data(cells=2, sd=0.0)
    rival = next(one for one in replay_rivals.rivals(source) if "median:5%" in one.name)
    base, head = source.recordings[:2]
    slower = [Planted(CELLS[0], EVERY, 0.08), Planted(CELLS[1], EVERY, 0.04)]
    by_size = [replay_rivals.Sides(source, rival.times, planted) for planted in slower]
    (tmp_path / "test_cell.py").write_text(STOCK)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider"]
    told = []
    for side, options in ((base, ["save=base"]), (head, ["compare", "compare-fail=median:5%"])):
        cells = zip(CELLS, by_size, strict=False)
        times = {cell: sides.seconds(side, cell, head=side is head) for cell, sides in cells}
        (tmp_path / "times.json").write_text(json.dumps(times))
        words = [*command, *(f"--benchmark-{option}" for option in options)]
        told.append(subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False))
    assert [bool(done.returncode) for done in told] == [False, True], told
    failed = [line for line in told[1].stderr.splitlines() if "has failed PercentageRegressionCheck" in line]
    assert len(failed) == 1
    assert CELLS[0] in failed[0]
    alarms = [rival.compare([base], [head], sides)[0] for sides in by_size]
    assert alarms == [frozenset(CELLS[:1]), frozenset()]


def test_other_tools_stand_beside_the_gate_on_the_same_processes(monkeypatch) -> None:
    """Without benchmatrix, which takes a second a cell."""
    source = data(cells=2, sd=0.001)
    stock = [one for one in replay_rivals.rivals(source) if one.name.startswith("pytest-benchmark")]
    assert {one.times for one in stock} == {replay_rivals.OWN_ROUNDS, replay_rivals.GATE_TIMES}
    monkeypatch.setattr(replay, "rivals", lambda _: stock)
    found = figures(source, 2, 0)
    rows = {(row["tool"], row["times"]): row for row in found["side_by_side"]}
    assert len(rows) == 2 + len(stock)
    mean = rows["pytest-benchmark, `mean:2%`", replay_rivals.OWN_ROUNDS]
    assert list(mean["detected"]) == ["0.0", "0.01", "0.02", "0.05"]
    assert (mean["detected"]["0.0"], mean["detected"]["0.05"]) == (0, 1)
    assert rows["gate ab", "the gate's estimates"]["detected"]["0.02"] == 1
    assert (mean["alarms"], mean["another_cell"], mean["minutes"]) == (0, 0, 2)
    assert "| pytest-benchmark, `mean:2%` | its own rounds | 2 | 0 | 0 | 0% | 0% |" in markdown(found)


def test_benchmatrixs_own_command_says_the_same(tmp_path: Path) -> None:
    pytest.importorskip("benchmatrix", reason="needs the extra `replay`")
    source = data(cells=1)
    rival = next(one for one in replay_rivals.rivals(source) if one.name == "benchmatrix")
    sides = replay_rivals.Sides(source, rival.times, Planted(CELLS[0], EVERY, 0.08))
    base, head = source.recordings[:5], source.recordings[5:10]
    for number, recording in enumerate((*base, *head)):
        content = replay_rivals.exported(recording, sides, head=number >= 5)
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    more = [word for number in range(1, 5) for word in ("--baseline-run", f"{number}.json")]
    more += [word for number in range(6, 10) for word in ("--candidate-run", f"{number}.json")]
    command = [sys.executable, "-m", "benchmatrix", "compare", "0.json", "5.json", *more, "--format", "json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = {row["implementation_name"]: row["regression"] for row in json.loads(done.stdout)["comparisons"]}
    assert rival.compare(base, head, sides) == (frozenset(CELLS[:1]), frozenset())
    assert told == {CELLS[0]: "regressed"}


# --- what cannot be replayed


def changed(recording: Recording, **changes) -> Recording:
    own = recording.process
    machine = own.machine | changes.get("machine", {})
    commit = own.commit | changes.get("commit", {})
    cells = own.cells if "cells" not in changes else changes["cells"](own.cells)
    return Recording(recording.name, Process(own.at, own.session, machine, commit, cells), recording.rounds_s)


def without_times(cells):
    return {cell: info | {"verdict": "wrong", "reason": "logits"} for cell, info in cells.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": {"device": "NVIDIA A100"}}, "another device"),
        ({"machine": {"versions": {"torch": "2.14.0"}}}, "other package versions"),
        ({"commit": {"id": "f" * 40}}, "another commit"),
        ({"cells": lambda _: {}}, "no cell of these records has a valid time in each"),
        ({"cells": without_times}, "wrong: logits"),
    ],
)
def test_records_that_make_no_experiment_are_refused(change, said) -> None:
    processes = recordings(6)
    with pytest.raises(ValueError, match=said) as raised:
        comparable([*processes, changed(recordings(1, session="s1")[0], **change)])
    assert "\n" not in str(raised.value)


def test_too_few_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 6 fresh processes of one session, 2 to tell their noise; got 1"):
        comparable(recordings(1))


@pytest.mark.parametrize("processes", [recordings(5), [*recordings(3), *recordings(3, session="s1")]])
def test_few_processes_tell_their_noise_and_nothing_else(processes) -> None:
    found = figures(comparable(processes), 3, 1)
    assert [found[table] for table in ("false_alarms", "sensitivity", "side_by_side")] == [[], [], []]
    text = markdown(found)
    assert "### Variance components" in text
    assert "No comparisons are drawn from fewer than 6 processes of one session." in text


def test_a_cell_that_some_lack_is_left_out_by_name() -> None:
    processes = recordings(6)
    last = changed(processes[-1], cells=lambda cells: dict(list(cells.items())[1:]))
    found = comparable([*processes[:-1], last])
    assert found.left_out == {CELLS[0]: "not in 1 of 6 processes"}
    assert CELLS[0] not in found.cells


def saved(folder: Path, made: list[Recording]) -> Path:
    for recording in made:
        own = recording.process
        entries = [
            {
                "fullname": f"test[{cell}]",
                "extra_info": info,
                "stats": {"mean": 0.1, "data": list(recording.rounds_s[cell])},
            }
            for cell, info in own.cells.items()
        ]
        content = {
            "datetime": own.at.isoformat(),
            "machine_info": own.machine | {"session": own.session},
            "commit_info": own.commit,
            "benchmarks": entries,
        }
        (folder / recording.name).write_text(json.dumps(content))
    return folder


def test_a_folder_of_records_becomes_the_tables_of_a_document(tmp_path: Path, capsys) -> None:
    saved(tmp_path, recordings(6, cells=2))
    document = tmp_path / "gate.md"
    document.write_text(f"before\n{BEGIN}\nof last year\n{END}\nafter\n")
    command = ["replay", str(tmp_path), "--comparisons=1", "--redraws=0", "--no-rivals", "--markdown", str(document)]
    assert main(command) == 0
    text = document.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "of last year" not in text
    assert "6 fresh processes of 1 session on NVIDIA H100" in capsys.readouterr().out
    kept = json.loads(figures_path(document).read_text())
    assert written(text, markdown(kept), "gate.md") == text


def test_processes_that_gate_ab_kept_are_read_with_what_they_took(tmp_path: Path) -> None:
    saved(tmp_path, recordings(6, cells=1))
    for number, path in enumerate(sorted(tmp_path.glob("*.json"))):
        kept = {"seconds": 40.0 + number, "cells": None, "record": json.loads(path.read_text())}
        path.write_text(json.dumps(kept))
    found = read([tmp_path])
    assert [one.seconds for one in found] == [40, 41, 42, 43, 44, 45]
    assert comparable(found).process_s == 42.5
    assert set(found[0].rounds_s) == {CELLS[0]}
    path.write_text('{"seconds": 1, "record": {}}')
    with pytest.raises(ValueError, match=r"0005_s0\.json is not a readable process"):
        read([path])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "at least 6 fresh processes of one session, 2 to tell their noise; got 0"),
        (["records", "--cells=fa9*"], "no cell of these records is like --cells fa9*"),
        (["records", "--comparisons=0"], "at least 1"),
        (["records", "--markdown=plain.md"], "plain.md has no place for the tables"),
        (["plain.md"], "plain.md is not a readable benchmark record"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, monkeypatch, capsys, arguments, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records" / "gpu").mkdir(parents=True)
    saved(tmp_path / "records" / "gpu", recordings(6, cells=1))
    (tmp_path / "plain.md").write_text("no marks")
    with pytest.raises(SystemExit) as raised:
        main(["replay", *arguments])
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1]


@pytest.mark.parametrize("name", ["gate.md", "gate_core.md", "gate_cpu.md"])
def test_the_documents_tables_are_those_of_its_figures(name: str) -> None:
    """`python -m gate replay RECORDS --markdown docs/gate.md` makes both anew."""
    document = Path(__file__).parents[2] / "docs" / name
    figures_file = figures_path(document)
    tables = markdown(json.loads(figures_file.read_text())) if figures_file.exists() else NO_FIGURES
    text = document.read_text(encoding="utf8")
    assert written(text, tables, name) == text
