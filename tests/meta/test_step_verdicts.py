"""A cell that is wrong, too slow or runs out of memory gets a verdict instead of a time, and the run goes on."""

import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gate.records import cells, load_record
from gate.timing import StepTimer
from tests.performance import bench
from tests.performance.bench import CellBench, Shared, too_slow

pytestmark = pytest.mark.meta

#: Runs pytest with the attention of one backend replaced by what `{fault}` makes of it.
PLANTED = """
import sys, time, pytest, torch
from model.attention import backend_named
backend = backend_named("sdpa_loop")
right = backend.attend
def attend(q, k, v, context, *, scale=None):
    {fault}
object.__setattr__(backend, "attend", attend)
sys.exit(pytest.main(sys.argv[1:]))
"""
SLOW = "time.sleep(0.1); return right(q, k, v, context, scale=scale)"
OUT_OF_MEMORY = 'raise torch.OutOfMemoryError("tried to allocate too much")'
WRONG = "return right(q, k, v, context, scale=scale) * 1.02"


def timed_with(
    fault: str, pytestconfig: pytest.Config, storage: Path, *options: str, backends: tuple[str, ...] = ("sdpa_loop",)
) -> tuple[int, str]:
    arguments = ["-m", "performance", "-p", "no:cacheprovider", f"--benchmark-storage=file://{storage}", *options]
    cells = [*(f"--backend={name}" for name in backends), "--cells=*-eval-full-*-eager-smoke", "--workload=smoke"]
    run = subprocess.run(
        [sys.executable, "-c", PLANTED.format(fault=fault), *arguments, *cells],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout


def test_a_cell_out_of_memory_is_recorded_and_the_run_goes_on(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    code, printed = timed_with(OUT_OF_MEMORY, pytestconfig, tmp_path)
    assert code == 0, printed
    assert "OOM" in printed
    assert "out of memory: tried to allocate too much" in printed


def test_a_cell_out_of_memory_fails_where_it_is_required(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    code, printed = timed_with(OUT_OF_MEMORY, pytestconfig, tmp_path, "--require")
    assert code == 1, printed
    assert "OOM" in printed


def test_a_wrong_cell_has_no_time(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    code, printed = timed_with(WRONG, pytestconfig, tmp_path)
    assert code == 1, printed
    assert "is not timed: its first batch differs from the reference: logits of sequence" in printed
    assert "wrong" in printed.partition("step times")[2]


def test_a_cell_that_would_take_too_long_is_recorded_and_the_others_are_timed(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    both = ("sdpa_loop", "sdpa_document_mask")
    # 0.2 s in the two blocks of a step; a step of the other takes some milliseconds.
    options = ("--cell-seconds=4", "--steps=6", "--collator=packed", "--benchmark-save=slow")
    code, printed = timed_with(SLOW, pytestconfig, tmp_path, *options, backends=both)
    assert code == 0, printed
    assert re.search(r"too slow: 25 steps of 0\.\d+ s would take \d+ s; the limit is --cell-seconds=4", printed), (
        printed
    )
    (path,) = tmp_path.glob("*/0001_slow.json")
    verdicts = {info["cell"]["backend"]: info["verdict"] for info in cells(load_record(path)).values()}
    assert verdicts == {"sdpa_loop": "too slow", "sdpa_document_mask": "timed"}
    assert "| too slow |" in re.sub(" +", " ", printed.partition("step times")[2])


def test_a_cell_that_would_take_too_long_fails_where_it_is_required(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    options = ("--cell-seconds=4", "--steps=6", "--collator=packed", "--require")
    code, printed = timed_with(SLOW, pytestconfig, tmp_path, *options)
    assert code == 1, printed
    assert "is too slow: 25 steps of" in printed


def test_the_limit_is_on_all_steps_to_come_and_the_seconds_of_compilation_are_no_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert too_slow(2.0, 10, 20.0) == ""
    assert too_slow(2.1, 10, 20.0) == "10 steps of 2.1 s would take 21 s; the limit is --cell-seconds=20"
    assert too_slow(1e9, 10, math.inf) == ""
    now, compiler = SimpleNamespace(s=0.0), SimpleNamespace(seconds=5.0)

    def step(_: object) -> None:
        now.s, compiler.seconds = now.s + 40.0, compiler.seconds + 37.0

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now.s))
    ready = CellBench(Shared(None, "cpu"), None, None, 0, compiler)
    assert ready.first_step_s(StepTimer(step, "cpu"), None) == 3.0
