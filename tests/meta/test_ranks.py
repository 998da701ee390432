"""A cell that is timed on several ranks: its id, its record, what is said of it, and of a rank that fails."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gate.__main__ import main
from gate.live.workers import Lost, RankedWorker, Side
from gate.measure import ranks
from gate.measure.ranks import joined, joined_replies, timed_on_ranks
from gate.measure.worker import on_ranks
from gate.record.cell import CellRecord, NoTime, cell_id, cell_of, number_of_ranks
from gate.record.files import load_record
from model import distributed
from model.workloads import workload_named
from tests.meta.gate_cells import key
from tests.meta.timed_sessions import info
from tests.selection import check_ranks
from tests.studies.live import EQUAL, copied

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("outside_kernels.py")
CELL = "sdpa_document_mask-packed-train-causal-float32-eager-smoke"


@pytest.mark.parametrize("lengths", ["uniform", "lognormal", "my-ddp-2.txt@0123abcd"])
@pytest.mark.parametrize("words", ["ddp-2", "fsdp2-16-balanced"])
def test_an_id_names_the_ranks_last_and_is_read_back(lengths: str, words: str) -> None:
    alone = key(lengths=lengths)
    several = {**alone, "ranks": words}
    assert cell_id(several) == f"{cell_id(alone)}-{words}"
    assert cell_of(cell_id(several)) == several
    assert cell_of(cell_id(alone)) == alone
    assert (number_of_ranks(several), number_of_ranks(alone)) == (int(words.split("-")[1]), 1)


def of_rank(step_ms: list[float], own_ms: list[float], tokens: list[int], **changes: Any) -> dict[str, Any]:
    return {"wall_ms": step_ms, "device_ms": None, "own_ms": own_ms, "tokens": tokens, "alone_ms": None} | changes


def test_the_slowest_rank_is_the_step_and_what_is_no_work_of_it_is_exposed() -> None:
    found = joined(
        [
            of_rank([10.0, 12.0], [8.0, 6.0], [100, 60], alone_ms=[8.0, 8.0], peak_bytes=7, compilations=1),
            of_rank([10.0, 14.0], [4.0, 10.0], [40, 120], peak_bytes=9, compilations=2),
        ]
    )
    assert found["wall_ms"] == [10.0, 14.0]
    assert found["tokens"] == [140, 180]
    # The most of each step are 8 and 10 ms, the means 6 and 8.
    assert found["exposed_ms"] == (24 - 18) / 2
    assert found["imbalance"] == pytest.approx(18 / 14 - 1)
    # 320 tokens of two ranks in 24 ms; rank 0 alone has 160 in 16 ms.
    assert found["tokens_per_s"] == pytest.approx(320 / 0.024)
    assert found["tokens_per_s_rank"] == pytest.approx(160 / 0.024)
    assert found["efficiency"] == pytest.approx(16 / 24)
    assert (found["peak_bytes"], found["compilations"]) == (9, 2)
    assert [rank["peak_bytes"] for rank in found["ranks"]] == [7, 9]
    assert "own_ms" not in found


def test_the_ranks_of_a_live_pair_answer_with_the_slowest_block_all_tokens_and_the_highest_costs() -> None:
    fast, slow = ({"wall_ms": each, "device_ms": [], "host_ms": []} for each in ([9.0, 1.0], [5.0, 6.0]))
    assert joined_replies([fast, slow]) == slow
    # By the device's clock, where there is one.
    assert joined_replies([fast | {"device_ms": [7.0, 7.0]}, slow | {"device_ms": [6.0, 6.0]}])["device_ms"] == [7, 7]
    assert joined_replies([{"gpu": 0, "tokens": [5, 6]}, {"gpu": 1, "tokens": [7, 8]}]) == {
        "gpu": 0,
        "tokens": [12, 14],
    }
    costs = [{"kernels": [], "peak_bytes": 3, "padded_token_share": 0.2}, {"peak_bytes": 4, "padded_token_share": 0.1}]
    assert joined_replies(costs) == {"kernels": [], "peak_bytes": 4, "padded_token_share": 0.2}


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Time one cell on two ranks of a CPU, in DDP as it comes and in FSDP2 balanced."""
    folder = tmp_path_factory.mktemp("ranks")
    cells = f"--cells={CELL}-ddp-2,{CELL}-fsdp2-2-balanced"
    command = ["-m", "pytest", "-m", "performance", "-n0", "-p", "no:cacheprovider", "--distributed=2", cells]
    options = ["--workload=smoke", "--steps=3", f"--benchmark-storage=file://{folder}", "--benchmark-save=two"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    run = subprocess.run(
        [sys.executable, *command, *options, f"--report={folder / 'report'}"],
        cwd=ROOT,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run, folder


def test_a_record_has_what_every_rank_took_and_where_the_time_went(timed) -> None:
    (path,) = timed[1].glob("*/*_two.json")
    cells = load_record(path).cells
    assert [*cells] == [f"{CELL}-ddp-2", f"{CELL}-fsdp2-2-balanced"]
    for name, one in cells.items():
        assert one == CellRecord.read(one.written())
        assert one.cell == cell_of(name)
        # Three steps, three times each.
        assert one.batches == [0, 1, 2] * 3
        assert len(one.times_ms) == 9
        assert all(value is not None for value in (one.step_ms, one.exposed_ms, one.tokens_per_s_rank, one.efficiency))
        assert one.imbalance is not None
        assert one.imbalance >= 0
        assert one.ranks is not None
        assert one.tokens == [sum(each) for each in zip(*(rank["tokens"] for rank in one.ranks), strict=True)]
        assert [len(rank["own_ms"]) for rank in one.ranks] == [9, 9]
        assert [len(rank.get("alone_ms", [])) for rank in one.ranks] == [9, 0]
    as_come, balanced = (one.ranks or [] for one in cells.values())
    # The same sequences, shared out otherwise.
    assert [sum(rank["tokens"]) for rank in as_come] != [sum(rank["tokens"]) for rank in balanced]
    assert sum(sum(rank["tokens"]) for rank in as_come) == sum(sum(rank["tokens"]) for rank in balanced)
    for first, second in zip(*(rank["tokens"] for rank in balanced), strict=True):
        assert abs(first - second) < 0.1 * first


def test_its_tables_and_its_page_show_it(timed) -> None:
    run, folder = timed
    assert "Several ranks" in run.stdout
    (row,) = (line for line in run.stdout.splitlines() if line.startswith(f"| {CELL}-ddp-2 ") and "," in line[-60:])
    assert row.count("%") == 2
    report = json.loads((folder / "report" / "report.json").read_text())
    for one in report["times"]:
        assert len(one["of_ranks"]["step_ms"].split(", ")) == 2
        assert one["again"] == f"pytest -m performance --distributed 2 --cells '{one['id']}'"
    assert report["answer"] == []
    assert 'id="ranks"' in (folder / "report" / "report.html").read_text()


def plan_of(backend: str) -> dict[str, Any]:
    return {
        "workload": "smoke",
        "lengths": None,
        "steps": 1,
        "cell_seconds": 60.0,
        "selection": {"backends": [f"{FILE}:{backend}"], "collators": [], "compiled": "none", "cells": None},
        "cell": f"outside_kernels.{backend}-packed-train-causal-float32-eager-smoke",
        "how": "ddp",
        "balanced": False,
        "passes": 1,
        "exact": False,
        "kernels": False,
    }


def test_each_rank_proves_and_times_a_batch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = timed_on_ranks(plan_of("right"), 2)
    batches = replace(workload_named("smoke", "cpu"), num_batches=2).examples()
    tokens = [[sum(len(example.input_ids) for example in batch)] for batch in batches]
    assert [rank["tokens"] for rank in found["ranks"]] == tokens


@pytest.mark.parametrize(
    ("backend", "verdict", "told"),
    [
        ("leaks_on_rank_1", "wrong", "rank 0 of 2: "),
        ("raises_on_rank_1", "failed", "rank 1 of 2: RuntimeError: this rank takes no eight sequences"),
    ],
)
def test_a_rank_that_is_wrong_or_fails_is_the_reason(
    backend: str, verdict: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(NoTime) as error:
        timed_on_ranks(plan_of(backend), 2)
    assert error.value.verdict == verdict
    assert error.value.reason.startswith(told)
    assert "\n" not in error.value.reason


#: What ranks do in place of a cell.
IMPORTS = "import json, os, pathlib, sys, time; folder = pathlib.Path(sys.argv[1]); "
WAITS = IMPORTS + "time.sleep(600)"
SAYS = (
    "answer = folder / 'answer'; "
    "answer.write_text(json.dumps({'at': time.time(), 'verdict': 'failed', 'reason': WHY, 'traceback': ''})); "
    "answer.rename(folder / f'{RANK}.json'); sys.exit(1)"
)
RAISES = IMPORTS + "RANK, WHY = 1, 'no batch'; " + SAYS
ENDS = IMPORTS + "print('out of luck', flush=True); (folder / 'gone').touch(); os._exit(3)"
LOSES_IT = IMPORTS + "RANK, WHY = 0, 'closed by peer'\nwhile not (folder / 'gone').exists(): pass\n" + SAYS
ABORTS = IMPORTS + "os.abort()"
MARKS = IMPORTS + "(folder / '1.at').write_text('the proof'); time.sleep(600)"


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (WAITS, RAISES, "failed: rank 1 of 2: no batch"),
        (WAITS, ENDS, "crashed: rank 1 of 2 ended with code 3: out of luck"),
        (LOSES_IT, ENDS, "crashed: rank 1 of 2 ended with code 3: out of luck"),
        (ABORTS, RAISES, "failed: rank 1 of 2: no batch"),
        (ABORTS, WAITS, "crashed: rank 0 of 2 ended with code -6: no output"),
        (WAITS, MARKS, "failed: no rank of 2 got further for 3 s: rank 0 in its start, rank 1 in the proof"),
    ],
)
def test_a_rank_that_fails_ends_or_hangs_is_named_and_no_process_is_left(
    first: str, second: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(rank: int, world: int, folder: Path) -> "subprocess.Popen[bytes]":
        with (folder / f"{rank}.log").open("w") as log:
            command = [sys.executable, "-c", second if rank else first, str(folder)]
            started.append(subprocess.Popen(command, stdout=log, start_new_session=True))
        return started[-1]

    monkeypatch.setattr(ranks, "_started", start)
    monkeypatch.setattr(ranks, "GRACE_S", 1.0)
    with pytest.raises(NoTime) as error:
        timed_on_ranks({}, 2, stall_s=3)
    assert str(error.value) == told
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_ranks_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    # Without a plan that they can read, ranks would end by themselves: they wait for it.
    os.mkfifo(tmp_path / "plan.json")
    start = (
        "import pathlib, sys, time; from gate.measure import ranks; folder = pathlib.Path(sys.argv[1]); "
        "print(*(ranks._started(rank, 2, folder).pid for rank in range(2)), flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", start, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pids = [int(word) for word in run.stdout.readline().split()]
        assert all(map(running, pids))
        run.kill()
    # They look for it once they have imported torch.
    until = time.monotonic() + 60
    while (left := [pid for pid in pids if running(pid)]) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left


def running(pid: int) -> bool:
    """Tell whether a process runs: one that ended stays a zombie until somebody asks for its status."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_cell_of_several_ranks_that_seems_slower_is_settled_as_one_of_one(session) -> None:
    session.place("0001_base.json", [info(ranks="ddp-2")])
    result = session("--benchmark-compare", infos=[info(ranks="ddp-2", ms=34.0)])
    assert result.ret == 0
    result.stdout.re_match_lines_random([r"\| \S+-ddp-2 .*INCONCLUSIVE.* not settled: the record names no commit"])


def test_a_record_of_several_ranks_is_none_of_one(session) -> None:
    session.place("0001_one.json", [info()], day=1)
    session.place("0002_two.json", [info(ranks="ddp-2")], day=2)
    session("--benchmark-compare", infos=[info()]).stdout.fnmatch_lines(["Against record 0001_one.json*"])
    session("--benchmark-compare", infos=[info(ranks="fsdp2-2")]).stdout.fnmatch_lines(
        ["Against record 0002_two.json*", "*ddp-2*MISSING*"]
    )


#: What makes the steps of one rank slower: head's others wait for it.
SLOWER_ON_RANK_1 = """
import functools
import time

_right = accumulate


@functools.wraps(_right)
def accumulate(model, *given):
    if dist.get_rank() == 1 and isinstance(model, DistributedDataParallel):
        time.sleep(0.15)
    return _right(model, *given)
"""


def test_live_pairs_on_two_ranks_find_what_slows_one_of_them_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    head, run = copied(tmp_path / "head", EQUAL), tmp_path / "run"
    with (head / "model" / "distributed.py").open("a") as module:
        module.write(SLOWER_ON_RANK_1)
    slow, equal = f"{CELL}-ddp-2", f"{CELL}-fsdp2-2-balanced"
    options = ["--distributed=2", f"--cells={slow},{equal}", "--workload=smoke", "--steps=1"]
    # Times are of a CPU that others use too, and two fresh pairs are to be enough.
    coarse = ["--threshold-percent=50", "--alpha=0.5", f"--folder={run}"]
    assert main(["ab", f"--base={ROOT}", f"--head={head}", *options, *coarse]) == 1
    found = {cell["cell"]: cell["verdict"] for cell in json.loads((run / "report.json").read_text())["cells"]}
    assert found[slow] == "regressed"
    assert found[equal] != "regressed"
    measured = json.loads((run / "pairs" / "0" / f"{equal}.json").read_text())["head"]
    assert measured["cell"] == cell_of(equal)
    examples = replace(workload_named("smoke", "cpu"), num_batches=2).examples()
    assert {*measured["tokens"]} == {sum(len(one.input_ids) for batch in examples for one in batch)}


def test_a_rank_of_a_live_pair_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    side = Side("head", ROOT, Path(sys.executable), tmp_path / "cache")
    worker = RankedWorker(side, tmp_path / "head.log", 60.0, 2)
    try:
        plan = {key: plan_of("right")[key] for key in ("workload", "lengths", "steps", "cell_seconds", "selection")}
        worker.send("hello", **plan, ranks=2)
        (as_come, *_) = (cell["id"] for cell in worker.answer()["cells"])
        worker.send("open", cell=as_come)
        assert worker.answer()["verdict"] == "ready"
        worker.send("block", order=[0] * 10_000, ahead_ms=0.0)
        worker.ranks[1].process.kill()
        with pytest.raises(Lost, match=r"^rank 1 of 2: killed by SIGKILL$"):
            worker.answer()
        assert not any(running(one.process.pid) for one in worker.ranks)
    finally:
        worker.kill()


def test_a_timing_on_several_ranks_refuses_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its ranks would time everything, beside the others."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    config: Any = SimpleNamespace(getoption=lambda name: {"distributed": 2}[name])
    with pytest.raises(
        pytest.UsageError, match=r"^--distributed 2 starts ranks of its own; got torchrun's\. Run it with"
    ):
        check_ranks(config)


@pytest.mark.parametrize("ranks", [1, 0, -2])
def test_gate_ab_refuses_a_number_of_ranks_that_is_none_in_one_line(
    ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["ab", "--base=HEAD", "--head=HEAD", f"--distributed={ranks}"])
    assert f"--distributed {ranks} is not 2 or more." in capsys.readouterr().err.splitlines()[-1]


def test_a_side_without_the_gpus_or_the_models_for_it_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"^--distributed 4 needs 4 GPUs; got 2$"):
        on_ranks(4, "cuda")
    monkeypatch.setattr(distributed, "accumulate", lambda model, backend, batches, case: None)
    with pytest.raises(ValueError, match=r"^its models have no step on several ranks that can be timed$"):
        on_ranks(2, "cpu")
