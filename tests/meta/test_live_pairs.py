"""Workers of a live pair that go wrong: each cell is told what happened, the others go on, and no process stays."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gate import ROOT
from gate.judge.live import FITS
from gate.live import workers
from gate.live.comparison import Comparison, Found, Request
from gate.live.pair import Block, block_logs
from gate.live.workers import Side

pytestmark = pytest.mark.meta

CELLS = [f"sdpa_loop-packed-train-causal-bfloat16-eager-w{number}" for number in range(4)]
ODD = CELLS[1]


def fake_side(name: str, folder: Path, **fake: Any) -> Side:
    """Return a side whose worker does what `fake` says (tests/meta/fake_worker.py).

    `ms` are the steps of its cells, `does` what it does instead of answering, by cell and request (`open`, or
    `open on rank 1`); `hello` is more of its greeting, `costs` and `tokens` are those of cells. The folder passes for a
    checkout.
    """
    checkout, python = folder / name, folder / "python"
    (checkout / "model").mkdir(parents=True, exist_ok=True)
    (checkout / "fake.json").write_text(json.dumps({"ms": dict.fromkeys(CELLS, 30.0)} | fake))
    worker = Path(__file__).with_name("fake_worker.py")
    # The last two arguments are those of the gate and of the checkout.
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S {worker} "$4"\n')
    python.chmod(0o755)
    return Side(name, checkout, python, folder / "cache")


def left(folder: Path) -> list[int]:
    """The workers that live; asked a while, as what was killed ends a moment later."""
    path = folder / "pids"
    pids = [int(pid) for pid in path.read_text().split()] if path.exists() else []
    until = time.monotonic() + 5
    while (alive := [pid for pid in pids if lives(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    return alive


def lives(pid: int) -> bool:
    """Tell whether a process lives; one that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


#: How long a worker that hangs is waited for.
STALL_S = 3.0


class Arena:
    """Compares two fake sides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self, base: dict[str, Any], head: dict[str, Any], ranks: int = 1, **more: Any
    ) -> dict[str, tuple[str, str]]:
        """Return each cell's verdict and why."""
        sides = {"base": fake_side("base", self.folder, **base), "head": fake_side("head", self.folder, **head)}
        # A loaded machine takes a second to start a worker.
        stall_s = STALL_S if "'hang'" in str((base, head)) else 60.0
        request = Request(sides, self.folder / "run", {"ranks": ranks}, stall_s=stall_s, **more)
        self.said: list[str] = []
        self.found: Found = Comparison(request, self.said.append).run()
        return {one.cell: (str(one.verdict), one.told) for one in self.found.verdicts}


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    yield Arena(tmp_path)
    assert left(tmp_path) == []


def does(what: str, asked: str = "open") -> dict[str, Any]:
    return {"does": {ODD: {asked: what}}}


SAME = ("same", "")
REST = {cell: SAME for cell in CELLS if cell != ODD}
GONE = {
    "crash": "crashed on {}: killed by SIGSEGV",
    "hang": "crashed on {}: killed after 3 s without an answer",
    "out of memory": "out of memory on {}: said so",
    "wrong": "wrong on {}: said so",
    "too slow": "too slow on {}: said so",
    "failed": "failed on {}: said so",
    "error": "failed on {}: ValueError: said so",
}


@pytest.mark.parametrize("what", GONE)
def test_a_cell_that_one_side_alone_cannot_open_is_regressed_or_new_and_the_others_go_on(arena: Arena, what: str):
    assert arena.run({}, does(what)) == REST | {ODD: ("regressed", GONE[what].format("head"))}
    # Fresh pairs confirmed it.
    assert [one.head.verdict for one in arena.found.results[ODD]] == [GONE[what].partition(" on")[0]] * 3


def test_two_ranks_answer_as_one_worker(arena: Arena):
    assert arena.run({}, {}, ranks=2) == REST | {ODD: SAME}
    # The tokens of both.
    assert {*(arena.found.results[ODD][0].head.tokens or ())} == {14, 16}
    assert len((arena.folder / "pids").read_text().split()) == 4


ON_RANK_1 = {
    "crash": "crashed on head: rank 1 of 2: killed by SIGSEGV",
    "hang": "crashed on head: rank 1 of 2: killed after 3 s without an answer",
    "out of memory": "out of memory on head: rank 1 of 2: said so",
    "failed": "failed on head: rank 1 of 2: said so",
    "error": "failed on head: rank 1 of 2: ValueError: said so",
}


@pytest.mark.parametrize("asked", ["open", "block"])
@pytest.mark.parametrize("what", ON_RANK_1)
def test_a_rank_that_is_lost_is_named_and_the_others_that_wait_for_it_end(
    arena: Arena, what: str, asked: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers, "GRACE_S", 0.2)
    one = {f"{asked} on rank 1": what} | ({} if what == "hang" else {f"{asked} on rank 0": "hang"})
    found = arena.run({}, {"does": {ODD: one}}, ranks=2)
    verdict = ("regressed", ON_RANK_1[what])
    if (what, asked) == ("out of memory", "block"):
        # Opened alone, it fits.
        verdict = ("inconclusive", "each side alone fits into memory, but both together do not")
    assert found == REST | {ODD: verdict}


def test_what_all_ranks_find_together_is_told_once_and_ends_none_of_them(arena: Arena):
    found = arena.run(does("wrong"), does("wrong"), ranks=2)
    assert found == REST | {ODD: ("inconclusive", "wrong on base: said so; wrong on head: said so")}
    assert len((arena.folder / "pids").read_text().split()) == 4


def test_a_cell_that_base_alone_cannot_open_is_new(arena: Arena):
    assert arena.run(does("crash"), {}) == REST | {ODD: ("new", "crashed on base: killed by SIGSEGV; it runs on head")}


@pytest.mark.parametrize("what", GONE)
def test_a_cell_that_neither_opens_is_the_same_only_where_it_does_not_fit(arena: Arena, what: str):
    why = "; ".join(GONE[what].format(side) for side in ("base", "head"))
    verdict = "same" if what == "out of memory" else "inconclusive"
    assert arena.run(does(what), does(what)) == REST | {ODD: (verdict, why)}


@pytest.mark.parametrize("asked", ["open", "block"])
def test_two_that_fit_alone_and_not_together_blame_neither(arena: Arena, asked: str):
    why = "each side alone fits into memory, but both together do not"
    assert arena.run(does("crowded", asked), does("crowded", asked)) == REST | {ODD: ("inconclusive", why)}
    (only,) = arena.found.results[ODD]
    assert only.base.verdict == only.head.verdict == FITS


def test_a_side_that_fits_beside_another_is_not_blamed_for_the_one_that_does_not(arena: Arena):
    why = "each side alone fits into memory, but both together do not"
    assert arena.run({}, does("out of memory", "block")) == REST | {ODD: ("inconclusive", why)}


@pytest.mark.parametrize("asked", ["block", "state", "costs"])
@pytest.mark.parametrize("sides", ["head", "both"])
def test_a_crash_in_the_midst_of_a_cell_is_told_of_whom_it_hit(arena: Arena, asked: str, sides: str):
    told = "crashed on {}: killed by SIGSEGV".format
    found = arena.run(does("crash", asked) if sides == "both" else {}, does("crash", asked))
    both = ("inconclusive", f"{told('base')}; {told('head')}")
    assert found == REST | {ODD: both if sides == "both" else ("regressed", told("head"))}


def test_a_crash_beside_a_cell_out_of_memory_shifts_no_answer(arena: Arena):
    why = "out of memory on base: said so; crashed on head: killed by SIGSEGV"
    assert arena.run(does("out of memory"), does("crash")) == REST | {ODD: ("inconclusive", why)}


def test_a_crash_in_one_pair_of_several_is_told_with_its_count(tmp_path: Path, arena: Arena):
    arena.run({}, does("crash"))
    # As if the screening had been an accident, and no fresh pair had run yet.
    for number in (1, 2):
        (tmp_path / "run" / "pairs" / str(number) / f"{ODD}.json").unlink()
    assert arena.run({}, {})[ODD] == ("inconclusive", "crashed on head in 1 of 3 pairs: killed by SIGSEGV")


def test_a_broken_result_of_an_earlier_run_is_told_and_named(tmp_path: Path, arena: Arena):
    arena.run({}, {})
    path = tmp_path / "run" / "pairs" / "0" / f"{ODD}.json"
    for broken in ('{"cell": ', "[]", path.read_text().replace('"wall_ms": [', '"wall_ms": ["x", ')):
        path.write_text(broken)
        with pytest.raises(
            ValueError, match=f"{ODD}.json is not a finished cell .*; delete it to measure the cell again"
        ):
            arena.run({}, {})


def test_slower_and_faster_cells_are_told_with_what_they_cost(arena: Arena):
    ms = dict(zip(CELLS, (30.0, 31.5, 28.5, 30.2), strict=True))
    head = {"ms": ms, "costs": {CELLS[0]: {"compilations": 1}, CELLS[2]: {"prepare_ms": [1.0, 1.0]}}}
    assert arena.run({}, head, percent=1.0) == {
        CELLS[1]: ("regressed", "slower in 2 fresh pairs; host: wall 31.5 ms (was 30.0)"),
        CELLS[0]: ("regressed", "compilations 1, was 0"),
        CELLS[2]: ("improved", "faster in 2 fresh pairs"),
        CELLS[3]: ("same", "slower, but by less than the threshold"),
    }
    assert arena.found.pairs == 3
    assert len((arena.folder / "pids").read_text().split()) == 2 * 3, "every pair has workers of its own"


def test_what_launches_add_to_a_step_counts_in_its_block():
    # 15 ms ahead of the device, and so many left when two steps are launched.
    both = {"base": 15.0, "head": 13.0}
    replies = {
        side: {"device_ms": [10.0] * 2, "lead_ms": [left_ms], "ahead_ms": 15.0} for side, left_ms in both.items()
    }
    assert block_logs([Block([0, 1], replies)]) == [pytest.approx(math.log(1.1))]


COSTS = {"compilations": 2, "padded_token_share": 0.25}


@pytest.mark.parametrize(
    ("ms", "cost", "verdict"),
    [
        (30.0, {"compilations": 3}, "regressed"),
        (28.5, {"compilations": 3}, "regressed"),
        (30.0, {"compilations": 1}, "improved"),
        (31.5, {"compilations": 1}, "regressed"),
        (30.0, {"padded_token_share": None}, "inconclusive"),
        (28.5, {"padded_token_share": None}, "inconclusive"),
    ],
)
def test_a_cost_that_rose_fails_whatever_the_time_and_one_that_fell_hides_no_time(
    arena: Arena, ms: float, cost: dict[str, Any], verdict: str
):
    base = {"costs": {ODD: COSTS}}
    head = {"costs": {ODD: COSTS | cost}, "ms": dict.fromkeys(CELLS, 30.0) | {ODD: ms}}
    assert {cell: told for cell, (told, _) in arena.run(base, head).items() if told != "same"} == {ODD: verdict}


def test_costs_of_other_packages_are_told_and_not_judged(arena: Arena):
    base, head = ({"hello": {"machine": {"versions": {"torch": torch}}}} for torch in ("2.11.0", "2.13.0"))
    found = arena.run(base, head | {"costs": {ODD: {"compilations": 1}}})
    assert found == REST | {ODD: ("same", "compilations 1, was 0")}
    assert arena.found.notes == [
        "The packages of the two sides differ: exact costs are shown, but only times are judged."
    ]


def test_a_slower_preparation_is_named(arena: Arena):
    head = {"ms": dict.fromkeys(CELLS, 30.0) | {ODD: 33.0}, "costs": {ODD: {"prepare_ms": [3.0, 3.0]}}}
    why = "slower in 2 fresh pairs; batch preparation: 3.00 ms a batch (was 1.00)"
    assert arena.run({}, head) == REST | {ODD: ("regressed", why)}


def test_other_batches_are_not_compared(arena: Arena):
    why = "other batches: base has 2 batches with 15 tokens, head 3 batches with 24 tokens"
    assert arena.run({}, {"tokens": {ODD: [7, 8, 9]}}) == REST | {ODD: ("inconclusive", why)}


def test_a_time_that_is_no_time_is_told_and_hides_no_other_cell(arena: Arena):
    found = arena.run({}, {"ms": dict.fromkeys(CELLS, 30.0) | {ODD: math.nan}})
    assert found == REST | {ODD: ("regressed", "a step time is nan, not a positive number of milliseconds on head")}


def test_cells_of_one_side_are_missing_or_new(arena: Arena):
    base = {"unavailable": {CELLS[0]: "no GPU"}, "ms": dict.fromkeys(CELLS[:3], 30.0)}
    assert arena.run(base, {"ms": dict.fromkeys([CELLS[0], *CELLS[2:]], 30.0)}) == {
        ODD: ("missing", "runs on base, not on head"),
        CELLS[0]: ("new", "runs on head, not on base: no GPU"),
        CELLS[3]: ("new", "runs on head, not on base"),
        CELLS[2]: SAME,
    }


def test_new_cells_alone_are_no_comparison(arena: Arena):
    found = arena.run({"does": {cell: {"open": "out of memory"} for cell in CELLS}}, {})
    assert {verdict for verdict, _ in found.values()} == {"inconclusive"}
    assert found[ODD][1].endswith("base has no time of any cell, so nothing is compared")


def test_the_same_seed_has_the_same_order_and_another_one_another(tmp_path: Path):
    orders = []
    for place, seed in enumerate((0, 0, 1)):
        (tmp_path / str(place)).mkdir()
        arena = Arena(tmp_path / str(place))
        arena.run({}, {}, seed=seed)
        orders.append([line.split()[2] for line in arena.said])
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("base", "head", "told"),
    [
        (
            {"hello": {"error": "ImportError: said so"}},
            {},
            "base .* cannot be driven by this gate: ImportError: said so",
        ),
        ({}, {"hello": {"device": "cuda"}}, "base runs on cpu, head on cuda; give both sides"),
        ({"ms": {}}, {"ms": {}}, "neither side can run a cell that was asked for: none is declared here"),
        *[({"unavailable": dict.fromkeys(CELLS, "no GPU")},) * 2 + ("neither side can run a cell .*: no GPU",)],
    ],
)
def test_sides_that_cannot_be_compared_are_refused_in_one_line(
    arena: Arena, base: dict[str, Any], head: dict[str, Any], told: str
):
    with pytest.raises(ValueError, match=told) as refused:
        arena.run(base, head)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("python", "error"), [("/bin/false", ValueError), ("/nowhere", FileNotFoundError)])
def test_a_python_that_does_not_run_is_told_and_leaves_no_worker_of_the_other_side(
    tmp_path: Path, python: str, error: type[Exception]
):
    sides = {"base": fake_side("base", tmp_path), "head": Side("head", tmp_path, Path(python), tmp_path)}
    with pytest.raises(error, match=r"head: the worker stopped \(exit status 1\)|No such file"):
        Comparison(Request(sides, tmp_path / "run", {})).run()
    assert left(tmp_path) == []


def command(folder: Path, *options: str) -> list[str]:
    """`python -m gate ab` of two fake sides."""
    sides = [fake_side(name, folder, **does("hang")) for name in ("base", "head")]
    given = [f"--{side.name}={side.checkout}" for side in sides] + [
        f"--{side.name}-env={side.python}" for side in sides
    ]
    return [sys.executable, "-m", "gate", "ab", *given, f"--folder={folder / 'run'}", *options]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_no_process_and_goes_on_later(tmp_path: Path, sent: signal.Signals):
    running = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # Two workers, and what each of them started for the cell that hangs.
    while (
        running.poll() is None
        and len((tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []) < 4
    ):
        time.sleep(0.05)
    running.send_signal(sent)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 130, printed
    assert f"To resume: python -m gate ab --resume {tmp_path / 'run'}" in printed.splitlines()[-1]
    assert left(tmp_path) == []
    for name in ("base", "head"):
        fake_side(name, tmp_path)
    finished = len([*(tmp_path / "run" / "pairs" / "0").iterdir()])
    again = [sys.executable, "-m", "gate", "ab", f"--resume={tmp_path / 'run'}"]
    resumed = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (resumed.returncode, resumed.stdout.splitlines()[-1]) == (0, "passed: 4 same")
    assert finished < 4
