"""A cell that is wrong, too slow or runs out of memory gets a verdict instead of a time, and the run goes on."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gate.measure import bench
from gate.measure.bench import CellBench, Shared, too_slow
from gate.record.files import load_record

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
SLOW = "time.sleep(0.5); return right(q, k, v, context, scale=scale)"
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


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--require",), 1)])
def test_a_cell_out_of_memory_is_recorded_and_fails_where_it_is_required(
    pytestconfig: pytest.Config, tmp_path: Path, options: tuple[str, ...], status: int
) -> None:
    code, printed = timed_with(OUT_OF_MEMORY, pytestconfig, tmp_path, *options)
    assert code == status, printed
    assert "| OOM |" in re.sub(" +", " ", printed.partition("step times")[2])
    assert "tried to allocate too much" in printed


def test_a_wrong_cell_has_no_time(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    code, printed = timed_with(WRONG, pytestconfig, tmp_path)
    assert code == 1, printed
    assert "is not timed: its first batch differs from the reference: logits of sequence" in printed
    assert "wrong" in printed.partition("step times")[2]


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--require",), 1)])
def test_a_cell_that_would_take_too_long_is_recorded_and_the_others_are_timed(
    pytestconfig: pytest.Config, tmp_path: Path, options: tuple[str, ...], status: int
) -> None:
    both = ("sdpa_loop", "sdpa_document_mask")
    # 1 s in the two blocks of a step; a step of the other takes some milliseconds, on a busy machine too.
    few = ("--cell-seconds=15", "--steps=6", "--collator=packed", "--benchmark-save=slow")
    code, printed = timed_with(SLOW, pytestconfig, tmp_path, *few, *options, backends=both)
    assert code == status, printed
    told = r"too slow: 25 steps of [\d.]+ s would take \d+ s; the limit is --cell-seconds=15"
    assert re.search(told, printed), printed
    assert "| too slow |" in re.sub(" +", " ", printed.partition("step times")[2])
    (path,) = tmp_path.glob("*/0001_slow.json")
    found = {one.cell["backend"]: one for one in load_record(path).cells.values()}
    assert {backend: one.verdict for backend, one in found.items()} == {
        "sdpa_loop": "too slow",
        "sdpa_document_mask": "timed",
    }
    timed = found["sdpa_document_mask"]
    # Every batch three times, in turn; a round of pytest-benchmark is a step, and lasts as long.
    assert timed.batches == [*range(6)] * 3
    assert (len(timed.tokens or ()), len(timed.prepare_ms or ())) == (18, 6)
    (entry,) = json.loads(path.read_text())["benchmarks"]
    assert (entry["stats"]["rounds"], entry["stats"]["iterations"]) == (18, 1)
    assert [second * 1e3 for second in entry["stats"]["data"]] == pytest.approx(timed.times_ms)


def test_the_limit_is_on_all_steps_to_come_and_the_seconds_of_compilation_are_no_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert too_slow(2.0, 10, 20.0) == ""
    assert too_slow(2.1, 10, 20.0) == "10 steps of 2.1 s would take 21 s; the limit is --cell-seconds=20"
    assert too_slow(1e9, 10, math.inf) == ""
    now, compiler = SimpleNamespace(s=0.0), SimpleNamespace(seconds=5.0)

    def step(*_: object) -> None:
        now.s, compiler.seconds = now.s + 40.0, compiler.seconds + 37.0

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now.s))
    monkeypatch.setattr(CellBench, "step", step)
    ready = CellBench(Shared(None, "cpu"), None, None, 0, compiler)
    assert ready.first_step_s(None) == 3.0
