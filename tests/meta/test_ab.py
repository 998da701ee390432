"""A against B: processes take turns, a change is found in its cell, and nothing that goes wrong ends the run."""

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gate.ab import command as ab
from gate.ab import plan as ab_plan
from gate.ab import run as ab_run
from gate.ab import worktrees
from gate.ab.disturbances import disturbance
from gate.ab.judge import Found
from gate.ab.report import _quality
from gate.ab.run import Pair, Phase
from gate.estimates import PACE
from gate.processes import Side, cell_of, run_cells

from gate.__main__ import main
from tests.meta.fake_sides import CELLS, checkout, python

pytestmark = pytest.mark.meta

COSTS = {"peak_bytes": 100, "compilations": 1, "kernel_launches": 7}


class Arena:
    """Two folders that pass for checkouts, and the command that compares them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "run"
        self.python = python(folder)
        self.set()

    def set(self, *, base: dict[str, Any] | None = None, head: dict[str, Any] | None = None) -> None:
        for name, fake in (("base", base), ("head", head)):
            checkout(self.folder / name, **{"calls": str(self.folder / "calls")} | (fake or {}))

    def ab(self, *options: str) -> int:
        sides = [f"--{name}={self.folder / name}" for name in ("base", "head")]
        environments = [f"--{name}-env={self.python}" for name in ("base", "head")]
        return main(["ab", *sides, *environments, f"--folder={self.runs}", *options])

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def order(self) -> str:
        """Which side each process was of: `bhbhhb`."""
        return "".join(Path(call[0]).name[0] for call in self.calls)

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.runs / "report.json").read_text())

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        return {cell["cell"]: cell for cell in self.report["cells"]}

    @property
    def verdicts(self) -> dict[str, str]:
        return {cell: found["verdict"] for cell, found in self.cells.items()}


def failing_once(monkeypatch: pytest.MonkeyPatch, cell: str, process: str) -> None:
    """Have a cell run out of memory in one process, and in no other."""

    def flaky(side: Side, options: Any, folder: Path, name: str, **more: Any) -> Any:
        record = run_cells(side, options, folder, name, **more)
        for entry in record["benchmarks"] if name == process else []:
            if entry["fullname"] == cell:
                entry["extra_info"].update(verdict="out of memory", reason="said so")
        return record

    monkeypatch.setattr(ab_run, "run_cells", flaky)


def interrupt(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have somebody press Ctrl-C once, in place of the process of this number."""
    calls = 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return run_cells(*args, **options)

    monkeypatch.setattr(ab_run, "run_cells", interrupted)


def hurry(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[float]:
    """Have each process of a phase take so many seconds of a clock that stands still otherwise; its time is in the
    list that is returned."""
    now, run = [0.0], ab_run.run_cells

    def timed(side: Side, options: Any, folder: Path, name: str, **more: Any) -> Any:
        now[0] += seconds[name.partition("-")[0]]
        return run(side, options, folder, name, **more)

    monkeypatch.setattr(ab_run, "run_cells", timed)
    for module in (ab, ab_run):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    return Arena(tmp_path)


def slower(cell: str = CELLS[2], share: float = 0.05, **more: Any) -> dict[str, Any]:
    return {"cells": dict.fromkeys(CELLS, 30.0) | {cell: 30.0 * (1 + share)}} | more


def test_unchanged_code_passes(arena: Arena, capsys: pytest.CaptureFixture[str]):
    assert arena.ab() == 0
    assert set(arena.verdicts.values()) == {"same"}
    assert "passed: 4 same" in capsys.readouterr().out


def test_processes_take_turns(arena: Arena):
    arena.set(head=slower())
    arena.ab("--screen-pairs=4")
    screen, confirm = arena.order[:8], arena.order[8:20]
    assert screen in ("bhhbbhhb", "hbbhhbbh")
    assert confirm in ("bhhbbhhbbhhb", "hbbhhbbhhbbh")


def test_both_sides_of_a_pair_time_the_cells_in_one_order(arena: Arena):
    arena.ab()
    seeds = [argument for call in arena.calls for argument in call if argument.startswith("--order-seed")]
    pairs = [set(seeds[index : index + 2]) for index in range(0, len(seeds), 2)]
    assert [len(pair) for pair in pairs] == [1] * len(pairs)
    assert len(set.union(*pairs)) == len(pairs), "another order in each pair"


def test_who_starts_follows_from_the_seed(arena: Arena, tmp_path: Path):
    starts = set()
    for seed in (0, 1):
        other = Arena(tmp_path / str(seed)) if (tmp_path / str(seed)).mkdir() is None else arena
        other.ab(f"--seed={seed}")
        starts.add(other.order[0])
    assert starts == {"b", "h"}


def test_a_slowdown_is_found_in_its_cell(arena: Arena, capsys: pytest.CaptureFixture[str]):
    arena.set(head=slower(share=0.02))
    assert arena.ab() == 1
    assert arena.verdicts == {cell: "regressed" if cell == CELLS[2] else "same" for cell in CELLS}
    found = arena.cells[CELLS[2]]
    assert found["low"] < 0.02 < found["high"]
    assert found["p_slower"] <= 0.05
    assert len(found["confirm_log_ratios"]) == 6
    printed = capsys.readouterr().out
    assert "FAILED: 1 regressed, 3 same" in printed
    assert (arena.runs / "report.md").read_text() in printed


def test_only_flagged_cells_are_timed_again(arena: Arena):
    arena.set(head=slower())
    arena.ab()
    confirmed = [call for call in arena.calls if f"--cells={CELLS[2]}" in call and "--no-exact-costs" in call]
    assert len(confirmed) == 12


def test_a_speedup_is_told_and_passes(arena: Arena):
    arena.set(head=slower(share=-0.05))
    assert arena.ab() == 0
    assert arena.verdicts[CELLS[2]] == "improved"


def test_a_real_change_below_the_threshold_passes(arena: Arena):
    arena.set(base={"noise": 0.0005}, head=slower(share=0.009, noise=0.0005))
    assert arena.ab() == 0
    found = arena.cells[CELLS[2]]
    assert (found["verdict"], found["why"]) == ("same", "slower, by less than the threshold of 1.0%")


def test_microseconds_count_as_well_as_percent(arena: Arena):
    tiny = dict.fromkeys(CELLS, 0.2)
    arena.set(base={"cells": tiny}, head={"cells": tiny | {CELLS[0]: 0.21}})
    assert arena.ab() == 0
    assert arena.verdicts[CELLS[0]] == "same"


def test_a_cell_that_is_noisier_than_the_others_is_timed_again_and_hides_none(arena: Arena):
    noisy = {"noisy": {CELLS[1]: 0.2}}
    arena.set(base=noisy, head=slower(share=0.02) | noisy)
    assert arena.ab() == 1
    assert arena.verdicts == dict.fromkeys(CELLS, "same") | {CELLS[1]: "cannot tell", CELLS[2]: "regressed"}
    again = [call for call in arena.calls if any("--cells=" in each and CELLS[1] in each for each in call)]
    assert len(again) > 12


def test_noise_that_hides_a_slowdown_is_told(arena: Arena):
    arena.set(base={"noise": 0.02}, head={"noise": 0.02})
    assert arena.ab() == 0
    assert set(arena.verdicts.values()) == {"cannot tell"}
    whys = " ".join(found["why"] for found in arena.cells.values())
    assert "noise hides what is below" in whys
    assert "but noise may be all of it" in whys


@pytest.mark.parametrize(
    ("does", "word"), [("crash", "crashed"), ("out of memory", "out of memory"), ("fail", "failed")]
)
def test_a_cell_that_head_cannot_run_has_regressed(arena: Arena, does: str, word: str):
    arena.set(head={"does": {CELLS[1]: does}})
    assert arena.ab() == 1
    assert arena.verdicts == {cell: "regressed" if cell == CELLS[1] else "same" for cell in CELLS}
    assert arena.cells[CELLS[1]]["why"].startswith(f"{word} on head")


def test_a_cell_that_base_cannot_run_is_new(arena: Arena):
    arena.set(base={"does": {CELLS[1]: "out of memory"}})
    assert arena.ab() == 0
    assert arena.cells[CELLS[1]]["why"] == "out of memory on base: said so; it has a time on head"
    assert arena.verdicts[CELLS[1]] == "new"


def test_a_cell_that_neither_can_run_is_the_same(arena: Arena):
    fake = {"does": {CELLS[1]: "out of memory"}}
    arena.set(base=fake, head=fake)
    assert arena.ab("--gate-strict") == 0
    assert arena.verdicts[CELLS[1]] == "same"


@pytest.mark.parametrize(("does", "word"), [("crash", "crashed"), ("fail", "failed")])
def test_a_cell_that_is_broken_on_both_sides_cannot_be_told(arena: Arena, does: str, word: str):
    fake = {"does": {CELLS[1]: does}}
    arena.set(base=fake, head=fake)
    assert arena.ab("--gate-strict") == 1
    assert arena.verdicts == dict.fromkeys(CELLS, "same") | {CELLS[1]: "cannot tell"}
    why = arena.cells[CELLS[1]]["why"]
    assert why.startswith(f"{word} on base: ")
    assert f"{word} on head: " in why


@pytest.mark.parametrize("on_head", ["", "fail", "out of memory"])
@pytest.mark.parametrize("on_base", ["fail", "out of memory"])
def test_a_base_without_any_time_is_no_comparison(arena: Arena, on_base: str, on_head: str):
    sides = {"base": on_base, "head": on_head}
    arena.set(**{side: {"does": dict.fromkeys(CELLS, does)} for side, does in sides.items()})
    assert arena.ab("--gate-strict") == 1
    assert set(arena.verdicts.values()) == {"cannot tell"}
    assert arena.cells[CELLS[0]]["why"].startswith(f"{on_base} on base: ".replace("fail ", "failed "))


def test_cells_of_head_alone_are_no_comparison(arena: Arena):
    arena.set(base={"cells": {}})
    assert arena.ab("--gate-strict") == 1
    assert arena.cells[CELLS[0]]["why"] == "runs on head, not on base; no cell has a time on base to compare with"


@pytest.mark.parametrize("strict", [False, True])
def test_sides_without_a_cell_in_common_are_no_comparison(
    arena: Arena, capsys: pytest.CaptureFixture[str], strict: bool
):
    for side, cell in (("base", CELLS[0]), ("head", CELLS[1])):
        checkout(arena.folder / side, cells={cell: 30.0})
    assert arena.ab(*["--gate-strict"] * strict) == strict
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == (
        "FAILED: 1 missing, 1 new; nothing was compared"
        if strict
        else "NOTHING WAS COMPARED: 1 missing, 1 new (fails under --gate-strict)"
    )


def test_sides_that_skip_all_cells_are_told_in_one_line(arena: Arena, capsys: pytest.CaptureFixture[str]):
    arena.set(base={"cells": {}}, head={"cells": {}})
    with pytest.raises(SystemExit) as stopped:
        arena.ab()
    assert stopped.value.code == 2
    assert "cells were to be compared, and neither side ran one" in capsys.readouterr().err.splitlines()[-1]
    assert not (arena.runs / "report.md").exists()


def test_a_crashing_cell_is_not_run_for_ever(arena: Arena):
    arena.set(head={"does": {CELLS[1]: "crash"}})
    arena.ab("--screen-pairs=6")
    tried = [call for call in arena.calls if Path(call[0]).name == "head" and CELLS[1] in " ".join(call)]
    assert len(tried) <= 3


@pytest.mark.parametrize(("gone", "verdict"), [("head", "missing"), ("base", "new")])
def test_cells_of_one_side_are_named(arena: Arena, gone: str, verdict: str):
    arena.set(**{gone: {"cells": dict.fromkeys(CELLS[1:], 30.0)}})
    assert arena.ab() == 0
    assert arena.verdicts[CELLS[0]] == verdict


def test_a_missing_cell_fails_where_nothing_may_pass_unjudged(arena: Arena):
    arena.set(head={"cells": dict.fromkeys(CELLS[1:], 30.0)})
    assert arena.ab("--gate-strict") == 1


@pytest.mark.parametrize(("cost", "status", "verdict"), [("kernel_launches", 1, "regressed"), ("none", 0, "same")])
def test_exact_costs_are_compared(arena: Arena, cost: str, status: int, verdict: str):
    now = {key: value + (key == cost) for key, value in COSTS.items()}
    arena.set(base={"costs": {CELLS[0]: COSTS}}, head={"costs": {CELLS[0]: now}})
    assert arena.ab() == status
    assert arena.verdicts[CELLS[0]] == verdict


def test_a_cost_that_rose_fails_whatever_the_time_and_one_that_fell_hides_no_time(arena: Arena):
    times = {"improved": 28.5, "same": 30.0, "regressed": 31.5, "cannot tell": 30.0}
    combined = [(time, moved) for time in times for moved in (1, 0, -1)]
    ids = {f"backend{n}-packed-train-causal-bfloat16-eager-w": each for n, each in enumerate(combined)}
    noisy = {cell: 0.2 for cell, (time, _) in ids.items() if time == "cannot tell"}
    checkout(arena.folder / "base", cells=dict.fromkeys(ids, 30.0), costs=dict.fromkeys(ids, COSTS), noisy=noisy)
    costs = {cell: COSTS | {"peak_bytes": 100 + moved} for cell, (_, moved) in ids.items()}
    checkout(
        arena.folder / "head", cells={cell: times[time] for cell, (time, _) in ids.items()}, costs=costs, noisy=noisy
    )
    assert arena.ab() == 1
    fell = {"same": "improved"}
    assert arena.verdicts == {
        cell: {1: "regressed", 0: time, -1: fell.get(time, time)}[moved] for cell, (time, moved) in ids.items()
    }


@pytest.mark.parametrize("share", [0, -0.05])
def test_a_cost_that_is_lost_leaves_its_cell_untold(arena: Arena, capsys: pytest.CaptureFixture[str], share: float):
    costs = {key: value for key, value in COSTS.items() if key != "kernel_launches"}
    arena.set(base={"costs": {CELLS[2]: COSTS}}, head=slower(share=share, costs={CELLS[2]: costs}))
    assert arena.ab("--gate-strict") == 1
    assert arena.verdicts == dict.fromkeys(CELLS, "same") | {CELLS[2]: "cannot tell"}
    assert "kernel launches is not measured now, was 7" in arena.cells[CELLS[2]]["why"]
    assert "FAILED: 1 cannot tell, 3 same" in capsys.readouterr().out


def test_a_control_that_moved_is_told_in_percent():
    pairs = [Pair(f"screen-{half}", {}, {}, "", {"copy_ms": math.log(half)}) for half in (0.5, 0.125)]
    (told,) = _quality(Found([], Phase(pairs), Phase(), {}, {}, {}, 0.0))
    assert told == "Control, head against base: copy -75.00% (pairs: -87.5% .. -50.0%)."


def test_a_recompilation_is_named_as_the_cause(arena: Arena):
    arena.set(base={"costs": {CELLS[0]: COSTS}}, head={"costs": {CELLS[0]: COSTS | {"compilations": 2}}})
    assert arena.ab() == 1
    assert arena.cells[CELLS[0]]["cause"] == "recompiled"


def test_a_cause_is_named_where_no_time_can_be_told(arena: Arena):
    costs = {"costs": {CELLS[0]: COSTS | {"padded_token_share": 0.01}}}
    more = {"costs": {CELLS[0]: COSTS | {"padded_token_share": 0.06}}}
    arena.set(base=costs, head=more | {"disturbed": list(range(1000, 1010))})
    assert arena.ab() == 1
    found = arena.cells[CELLS[0]]
    assert (found["verdict"], found["change"], found["cause"]) == ("regressed", None, "padding")
    assert found["cause_sentence"] == "padding: 6.0% of the tokens, was 1.0%"


def test_other_packages_may_have_other_costs(arena: Arena):
    arena.set(
        base={"costs": {CELLS[0]: COSTS}, "versions": {"torch": "1"}},
        head={"costs": {CELLS[0]: COSTS | {"kernel_launches": 9}}, "versions": {"torch": "2"}},
    )
    assert arena.ab() == 0
    assert "kernel launches 9, was 7" in arena.cells[CELLS[0]]["why"]


@pytest.mark.parametrize("process", ["screen-2-base", "screen-2-head"])
def test_a_cost_that_rose_is_told_of_a_cell_that_failed_once(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, process: str
):
    failing_once(monkeypatch, CELLS[0], process)
    arena.set(base={"costs": {CELLS[0]: COSTS}}, head={"costs": {CELLS[0]: COSTS | {"kernel_launches": 9}}})
    assert arena.ab() == 1
    found = arena.cells[CELLS[0]]
    assert found["verdict"] == "regressed"
    side = process.rpartition("-")[2]
    assert found["why"] == f"out of memory on {side} in 1 of 2 processes: said so; kernel launches 9, was 7 (+28.6%)"
    assert [finding["cost"] for finding in found["findings"]] == ["kernel_launches"]


def test_other_costs_of_other_packages_are_told_of_a_cell_that_failed_once(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
):
    failing_once(monkeypatch, CELLS[0], "screen-2-head")
    arena.set(
        base={"costs": {CELLS[0]: COSTS}, "versions": {"torch": "1"}},
        head={"costs": {CELLS[0]: COSTS | {"kernel_launches": 9}}, "versions": {"torch": "2"}},
    )
    assert arena.ab() == 0
    assert arena.verdicts[CELLS[0]] == "cannot tell"
    assert "kernel launches 9, was 7" in arena.cells[CELLS[0]]["why"]


def test_a_pair_in_another_state_of_the_machine_is_replaced(arena: Arena):
    arena.set(head={"disturbed": [1001]})
    assert arena.ab() == 0
    pairs = {pair["name"]: pair["disturbed"] for pair in arena.report["pairs"]}
    assert pairs == {
        "screen-1": "the control moved (matmul +10.0%)",
        "screen-2": "",
        "screen-3": "",
    }


def test_a_control_that_moved_is_nothing_where_times_are_over_the_pace():
    def record(torch: str, control_ms: float) -> dict[str, Any]:
        control = {"matmul_ms": [control_ms], "copy_ms": [0.1]}
        info = {"cell": cell_of(CELLS[0]), "verdict": "timed", "control": control} | {key: [1.0] for key in PACE}
        return {"machine_info": {"versions": {"torch": torch}}, "benchmarks": [{"extra_info": info}]}

    assert disturbance(record("1", 0.2), record("1", 0.3), {}) == ""
    # Another torch times another pace: the wall's clock is compared, and the control is what there is.
    assert disturbance(record("1", 0.2), record("2", 0.3), {}) == "the control moved (matmul +50.0%)"


def test_only_a_control_in_another_state_is_one_that_moved():
    def record(*times_ms: float) -> dict[str, Any]:
        control = {"matmul_ms": list(times_ms), "copy_ms": [0.1] * 6}
        info = {"cell": cell_of(CELLS[0]), "verdict": "timed", "device_ms": [30.0] * 6, "control": control}
        return {"machine_info": {}, "benchmarks": [{"extra_info": info}]}

    then = record(*[0.2] * 6)
    assert disturbance(then, record(*[0.21] * 6), {}) == ""
    assert disturbance(then, record(*[0.22] * 6), {}) == "the control moved (matmul +10.0%)"
    # Before the cell the device had been idle.
    assert disturbance(then, record(*[0.3] * 6, *[0.2] * 6), {}) == ""


def test_a_pair_beside_a_slow_host_is_replaced_for_the_cells_it_held_up(arena: Arena):
    arena.set(head={"slow_host": {"1002": [CELLS[1]]}})
    assert arena.ab("--gate-strict") == 0
    assert arena.order == "bhhbbh"
    assert [len(call[-1].split(",")) for call in arena.calls[-2:]] == [1, 1]
    assert set(arena.verdicts.values()) == {"same"}


def test_a_slowdown_is_found_beside_a_slow_host(arena: Arena):
    # 1101 to 1106 are the confirming pairs.
    arena.set(base={"slow_host": {"1103": [CELLS[2]]}}, head=slower(slow_host={"1102": [CELLS[2]]}))
    assert arena.ab() == 1
    assert arena.verdicts == dict.fromkeys(CELLS, "same") | {CELLS[2]: "regressed"}
    assert "slower in 6 fresh pairs" in arena.cells[CELLS[2]]["why"]
    assert len([pair for pair in arena.report["pairs"] if pair["name"].startswith("confirm")]) == 8
    assert arena.cells[CELLS[2]]["change"] == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_few_steps_that_a_slow_host_held_up_cost_no_pair(arena: Arena, side: str):
    held = {"slow_host": {str(seed): [CELLS[2]] for seed in range(1000, 1110)}, "held_steps": 3}
    arena.set(**{"base": held, "head": slower()} if side == "base" else {"head": slower(**held)})
    assert arena.ab() == 1
    # Whole ones were wanted, and the last is for the profile.
    assert arena.order == "bhhb" * 2 + "hbbh" * 4 + "bh"
    assert arena.verdicts == dict.fromkeys(CELLS, "same") | {CELLS[2]: "regressed"}
    found = arena.cells[CELLS[2]]
    assert found["change"] == pytest.approx(0.05, abs=0.01)
    assert found["cause"] == "device"
    assert "slower in 8 fresh pairs" in found["why"]


@pytest.mark.parametrize("side", ["base", "head"])
def test_the_same_by_what_a_slow_host_left_does_not_pass(arena: Arena, side: str):
    """Head may be slower where it waits for the host, and nowhere else: the steps that are left out would show it."""
    held = {str(seed): [CELLS[1]] for seed in range(1000, 1110)}
    arena.set(**{side: {"slow_host": held, "held_steps": 3}})
    assert arena.ab("--gate-strict") == 1
    assert arena.verdicts == dict.fromkeys(CELLS, "same") | {CELLS[1]: "cannot tell"}
    assert arena.cells[CELLS[1]]["why"] == (
        "a slow host held up steps in 4 of 4 pairs that count: "
        "without these, slower work of its own there would not show"
    )
    # Pairs beside a calm host would have told.
    assert [len(call[-1].split(",")) for call in arena.calls[-4:]] == [1] * 4


def test_a_calm_host_in_the_next_pair_is_enough(arena: Arena):
    arena.set(head={"slow_host": {"1001": [CELLS[1]]}, "held_steps": 3})
    assert arena.ab("--gate-strict") == 0
    assert arena.order == "bhhb"


def test_what_is_left_of_other_batches_tells_nothing():
    """Both have a time, of batches that cannot be compared one by one."""

    def side(held: int, tokens: int) -> dict[str, Any]:
        leads = [0.0] * held + [30.0] * (12 - held)
        info = {"cell": cell_of(CELLS[0]), "verdict": "timed", "device_ms": [30.0] * 12, "tokens": [tokens] * 12}
        info |= {"lead_ms": leads, "host_pace_ms": [0.4 if held else 0.2] * 12}
        return {"machine_info": {}, "benchmarks": [{"extra_info": info}]}

    calm = (0.2, 0.2)
    pair = Pair("screen-1", side(3, 5), side(0, 5), "", {})
    assert pair.times(CELLS[0], calm) is not None
    assert pair.held_up(CELLS[0], calm) == ""
    pair = Pair("screen-1", side(3, 5), side(0, 6), "", {})
    assert pair.times(CELLS[0], calm) is None
    assert pair.held_up(CELLS[0], calm).startswith("the host was slow and held up 25% of the steps")


def test_a_pace_of_other_versions_is_another(arena: Arena):
    arena.set(base={"versions": {"torch": "1"}}, head={"versions": {"torch": "2"}, "pace": 0.3, "held": True})
    assert arena.ab("--gate-strict") == 0
    assert arena.order == "bhhb"


def test_a_side_that_cannot_tell_has_no_pair_left_out(arena: Arena):
    arena.set(base={"pace": None}, head={"slow_host": {"1002": [CELLS[1]]}})
    arena.ab()
    assert {pair["name"] for pair in arena.report["pairs"] if pair["name"].startswith("screen")} == {
        "screen-1",
        "screen-2",
    }


def test_a_host_that_is_slow_all_the_time_tells_nothing_of_what_waits_for_it(arena: Arena):
    arena.set(head={"slow_host": {str(seed): [CELLS[1]] for seed in range(1000, 1010)}})
    assert arena.ab("--gate-strict") == 1
    assert arena.verdicts == dict.fromkeys(CELLS, "same") | {CELLS[1]: "cannot tell"}
    why = arena.cells[CELLS[1]]["why"]
    assert why.startswith("0 of 2 pairs count; screen-1: the host was slow and held up 100% of the steps: its own work")


def test_a_machine_that_never_settles_tells_nothing(arena: Arena):
    arena.set(head={"disturbed": list(range(1000, 1010))})
    assert arena.ab("--gate-strict") == 1
    assert set(arena.verdicts.values()) == {"cannot tell"}
    moved = [f"screen-{number}: the control moved (matmul +10.0%)" for number in (1, 2)]
    assert arena.cells[CELLS[0]]["why"] == f"0 of 2 pairs count; {'; '.join(moved)}; and 2 more"


def test_the_time_limit_leaves_cells_untold_and_a_run_to_go_on_with(arena: Arena):
    assert arena.ab("--minutes=0", "--gate-strict") == 1
    assert set(arena.verdicts.values()) == {"cannot tell"}
    assert "no time for more within --minutes" in arena.cells[CELLS[0]]["why"]
    assert main(["ab", f"--resume={arena.runs}", "--gate-strict"]) == 0
    assert arena.order[:2] == "bh"
    assert len(arena.order) == 4


@pytest.mark.parametrize(
    ("minutes", "last"),
    # Screening takes 4 minutes: 60 s for a process of four cells. A pair of one cell is taken to need 30 s.
    [
        (4.4, "screen-2"),
        (4.6, "confirm-1"),
        (4.9, "confirm-1"),
        (5.1, "confirm-2"),
        (7.1, "confirm-6"),
        (7.6, "profile"),
    ],
)
def test_no_pair_is_started_that_would_end_too_late(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, minutes: float, last: str
):
    timed = hurry(monkeypatch, screen=60, confirm=15, profile=15)
    arena.set(head=slower())
    arena.ab(f"--minutes={minutes}")
    names = [path.name.rpartition("-")[0] for path in (arena.runs / "processes").iterdir()]
    assert max(names, key=lambda name: (("screen", "confirm", "profile").index(name.partition("-")[0]), name)) == last
    assert timed[0] <= minutes * 60


def test_a_profile_that_is_kept_takes_no_time(arena: Arena, capsys: pytest.CaptureFixture[str]):
    arena.set(head=slower())
    arena.ab()
    capsys.readouterr()
    assert main(["ab", f"--resume={arena.runs}", "--minutes=0"]) == 1
    assert "profile head: 1 cells" in capsys.readouterr().out


def test_cells_that_are_flagged_later_are_confirmed_in_processes_that_ran_them(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
):
    # Cell 1 seems no slower in the first two pairs; then time is up for more of all cells, and not for one cell.
    def run(side: Side, options: Any, folder: Path, name: str, **more: Any) -> Any:
        early = name in ("screen-1-head", "screen-2-head")
        if side.name == "head":
            shares = {CELLS[1]: 0.0 if early else 0.03, CELLS[2]: 0.05}
            checkout(arena.folder / "head", **quiet, cells={cell: 30.0 * (1 + shares.get(cell, 0)) for cell in CELLS})
        return run_cells(side, options, folder, name, **more)

    quiet = {"noise": 0.0005, "calls": str(arena.folder / "calls")}
    arena.set(base=quiet)
    monkeypatch.setattr(ab_run, "run_cells", run)
    hurry(monkeypatch, screen=60, confirm=1, profile=1)
    assert arena.ab("--screen-pairs=4", "--minutes=5.5") == 1
    assert "Stopped at the limit of --minutes before all pairs were run." in arena.report["notes"]
    assert arena.verdicts == dict.fromkeys(CELLS, "same") | {CELLS[2]: "regressed"}
    assert main(["ab", f"--resume={arena.runs}"]) == 1
    assert arena.verdicts == dict.fromkeys(CELLS, "same") | {CELLS[1]: "regressed", CELLS[2]: "regressed"}
    assert len(arena.cells[CELLS[1]]["confirm_log_ratios"]) == 6
    assert {cell["cause"] for cell in arena.cells.values()} == {None, "device"}
    done = len(arena.calls)
    assert main(["ab", f"--resume={arena.runs}"]) == 1
    assert len(arena.calls) == done


def test_an_interrupted_run_goes_on_where_it_was(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arena.set(head=slower())
    interrupt(monkeypatch, 9)
    assert arena.ab() == 130
    assert f"go on with: python -m gate ab --resume {arena.runs}" in capsys.readouterr().out.splitlines()[-1]
    done = len(arena.calls)
    assert done == 8
    assert main(["ab", f"--resume={arena.runs}"]) == 1
    assert arena.verdicts[CELLS[2]] == "regressed"
    # 4 screening, 12 confirming and 2 profiled processes, none of them twice.
    assert len(arena.calls) == 18


def test_a_strict_run_stays_strict(arena: Arena, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    arena.set(head={"cells": dict.fromkeys(CELLS[1:], 30.0)})
    interrupt(monkeypatch, 3)
    assert arena.ab("--gate-strict") == 130
    command = capsys.readouterr().out.splitlines()[-1].partition("python -m gate ")[2].split()
    assert main(command) == 1
    assert "FAILED: 1 missing, 3 same" in capsys.readouterr().out


def test_a_resumed_run_may_become_strict_and_stays_so(arena: Arena):
    arena.set(head={"cells": dict.fromkeys(CELLS[1:], 30.0)})
    assert arena.ab() == 0
    assert main(["ab", f"--resume={arena.runs}"]) == 0
    assert main(["ab", f"--resume={arena.runs}", "--gate-strict"]) == 1
    assert main(["ab", f"--resume={arena.runs}"]) == 1


def test_a_plan_from_before_it_kept_strictness_is_read(arena: Arena):
    assert arena.ab() == 0
    path = arena.runs / "plan.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "strict"}))
    assert main(["ab", f"--resume={arena.runs}"]) == 0


def test_a_report_is_made_again_without_any_process(arena: Arena):
    arena.set(head=slower())
    arena.ab()
    report, calls = (arena.runs / "report.md").read_text(), len(arena.calls)
    assert main(["ab", f"--resume={arena.runs}"]) == 1
    assert (arena.runs / "report.md").read_text() == report
    assert len(arena.calls) == calls


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits, the second with a slower cell, tagged `old` and `new`."""
    folder = tmp_path / "repository"
    for name, fake in (("old", {}), ("new", slower())):
        checkout(folder, **fake)
        for command in (
            ["init", "-q"],
            ["add", "."],
            ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", name],
            ["tag", name],
        ):
            subprocess.run(["git", *command], cwd=folder, check=True)
    for module in (ab, ab_plan):
        monkeypatch.setattr(module, "ROOT", folder)
    monkeypatch.setattr(ab_plan.sys, "executable", str(python(tmp_path)))
    return folder


def trees(repository: Path) -> int:
    listed = subprocess.run(["git", "worktree", "list"], cwd=repository, check=True, capture_output=True, text=True)
    return len(listed.stdout.splitlines())


def test_two_commits_are_compared_in_checkouts_that_go_again(repository: Path, tmp_path: Path):
    assert main(["ab", "--base=old", "--head=new", f"--folder={tmp_path / 'run'}"]) == 1
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [cell["cell"] for cell in report["cells"] if cell["verdict"] == "regressed"] == [CELLS[2]]
    assert trees(repository) == 1
    assert not list((tmp_path / "run" / "worktrees").iterdir())


def test_checkouts_go_when_a_run_is_interrupted(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*args: Any, **options: Any) -> Any:
        assert trees(repository) == 3
        raise KeyboardInterrupt

    monkeypatch.setattr(ab_run, "run_cells", interrupted)
    assert main(["ab", "--base=old", "--head=new", f"--folder={tmp_path / 'run'}"]) == 130
    assert trees(repository) == 1


def test_what_a_killed_run_left_is_no_obstacle(repository: Path, tmp_path: Path):
    with worktrees.checkout("old", tmp_path / "tree", repository):
        (tmp_path / "tree" / "dirt").write_text("left behind")
        with worktrees.checkout("new", tmp_path / "tree", repository) as again:
            assert not (again / "dirt").exists()
    assert trees(repository) == 1


def test_one_environment_shares_what_is_compiled(repository: Path, tmp_path: Path):
    def caches(*pythons: str) -> list[Path]:
        plan = ab_plan.Plan(("old", "new"), (pythons[0], pythons[1]), ("old", "new"), [])
        with ab._sides(plan, tmp_path / "run") as sides:
            return [side.cache for side in sides.values()]

    base, head = caches("/env/bin/python", "/env/bin/python")
    assert base == head
    base, head = caches("/env/bin/python", "/other/bin/python")
    assert base != head


USAGE = {
    "nothing": ([], "nothing to compare: give --base and --head"),
    "one_side": (["--base=HEAD"], "--base needs --head"),
    "one_environment": (["--head-env=/x"], "--head-env needs --base-env"),
    "no_commit": (["--base=HEAD", "--head=no-such-ref"], "'no-such-ref' is neither a commit"),
    "option_for_a_commit": (["--base=HEAD", "--head=--all"], "'--all' is neither a commit"),
    "no_environment": (["--base-env=/nowhere", "--head-env=/nowhere"], "'/nowhere' holds no python"),
    "few_pairs": (["--base=HEAD", "--head=HEAD", "--confirm-pairs=4"], "--confirm-pairs 4 is not between 5 and 14"),
    "one_screen": (["--base=HEAD", "--head=HEAD", "--screen-pairs=1"], "--screen-pairs 1 is not between 2"),
    "alpha": (["--base=HEAD", "--head=HEAD", "--alpha=0.01"], "--alpha 0.01 is not between 0.015625"),
    "no_plan": (["--resume=/nowhere"], "/nowhere/plan.json is no plan to go on with"),
    "resume_and_more": (["--resume=/nowhere", "--cells=*"], "--resume goes on with the run as it was planned"),
    "resume_for_less": (["--resume=/nowhere", "--minutes=-3"], "--minutes -3 is not between 0 and inf"),
    "resume_for_nan": (["--resume=/nowhere", "--minutes=nan"], "--minutes nan is not between 0 and inf"),
} | {
    f"resume_{option}": (["--resume=/nowhere", f"--{option}={value}"], f"got --{option}: leave that out")
    for option, value in {
        "base": "HEAD",
        "head-env": "/x",
        "workload": "smoke",
        "backend": "sdpa_loop",
        "steps": 2,
        "stall-seconds": -1,
        "screen-pairs": 9,
        "confirm-pairs": 7,
        "threshold-percent": 50,
        "threshold-us": 1,
        "alpha": 0.4,
        "seed": 7,
        "folder": "/x",
        "cache": "/x",
    }.items()
}


@pytest.mark.parametrize("case", USAGE)
def test_a_bad_command_is_told_in_one_line(
    case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options, told = USAGE[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["ab", *options])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_folder_is_not_used_twice(arena: Arena, capsys: pytest.CaptureFixture[str]):
    arena.ab()
    with pytest.raises(SystemExit):
        arena.ab()
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize("kept", ["{", "[]", '{"schema": 99}', '{"schema": 1}'])
def test_a_broken_plan_is_told(tmp_path: Path, kept: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "plan.json").write_text(kept)
    with pytest.raises(SystemExit):
        main(["ab", f"--resume={tmp_path}"])
    assert "is no plan to go on with" in capsys.readouterr().err.splitlines()[-1]


def test_a_broken_process_is_told_and_named(arena: Arena, capsys: pytest.CaptureFixture[str]):
    arena.ab()
    (arena.runs / "processes" / "screen-1-head.json").write_text('{"seconds": 1, "rec')
    with pytest.raises(SystemExit):
        main(["ab", f"--resume={arena.runs}"])
    assert "screen-1-head.json is not a finished process" in capsys.readouterr().err.splitlines()[-1]


def test_a_side_that_pytest_refuses_is_told(arena: Arena, capsys: pytest.CaptureFixture[str]):
    arena.set(head={"usage": "unrecognized arguments: --order-seed=1"})
    with pytest.raises(SystemExit):
        arena.ab()
    assert "head: pytest ended before a cell did" in capsys.readouterr().err.splitlines()[-1]
