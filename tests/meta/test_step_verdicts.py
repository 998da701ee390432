"""A cell that is wrong, too slow or runs out of memory gets a verdict instead of a time, and the run goes on."""

import json
import math
import os
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

#: What the attention of a cell does instead, by its backend and collator; one that is slow takes 1 s a step.
FAULTS = {
    "sdpa_loop-packed": "slow",
    "sdpa_loop-packed_multiple": "full",
    "sdpa_document_mask-packed": "slow",
    "sdpa_document_mask-packed_multiple": "full",
    "sdpa_nested-nested": "wrong",
    "flex_document_mask-packed": "broken",
}
TIMED = "sdpa_padded-pad_longest-eval-full-float32-eager-smoke"
PLANTED = f"""
import os, sys, time, pytest, torch
from model.attention import BACKENDS

def planted(right):
    def attend(*given, scale=None):
        backend, collator = os.environ["PYTEST_CURRENT_TEST"].partition("[")[2].split("-")[:2]
        fault = {FAULTS}.get(backend + "-" + collator)
        if fault == "full":
            raise torch.OutOfMemoryError("tried to allocate too much")
        if fault == "broken":
            raise RuntimeError("broken")
        # In each of the two blocks of a step.
        time.sleep(0.5 if fault == "slow" else 0)
        return right(*given, scale=scale) * (1.02 if fault == "wrong" else 1)
    return attend

for backend in BACKENDS:
    if any(each.startswith(backend.name + "-") for each in {[*FAULTS]}):
        object.__setattr__(backend, "attend", planted(backend.attend))
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_a_cell_without_a_time_says_why_and_fails_if_it_is_wrong_broken_or_required_and_the_others_are_timed(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    cells = [f"{name}-eval-full-float32-eager-smoke" for name in FAULTS]
    options = ["-m", "performance", "-p", "no:cacheprovider", "-n0", "--workload=smoke", "--steps=2"]
    options += [f"--benchmark-storage=file://{tmp_path}", "--benchmark-save=some", "--cell-seconds=7.5"]
    options += [f"--cells={','.join([*cells, TIMED])}", "--require=sdpa_loop"]
    run = subprocess.run(
        [sys.executable, "-c", PLANTED, *options],
        cwd=pytestconfig.rootpath,
        env=os.environ | {"COLUMNS": "500"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout
    told = dict(re.findall(r"^FAILED \S+\[(\w+-\w+)-\S+ - \S*NoTime: (.*)", run.stdout, re.MULTILINE))
    assert told.keys() == {cell for cell in FAULTS if not cell.startswith("sdpa_document_mask")}, run.stdout
    full = "out of memory: tried to allocate too much"
    slow = r"too slow: \d steps of [\d.]+ s would take \d+ s; the limit is --cell-seconds=7.5"
    assert told["sdpa_loop-packed_multiple"] == full
    assert told["flex_document_mask-packed"] == "failed: RuntimeError: broken"
    assert told["sdpa_nested-nested"].startswith("wrong: logits of sequence")
    assert re.fullmatch(slow, told["sdpa_loop-packed"])
    assert all(re.search(rf"^SKIPPED .*: {why}", run.stdout, re.MULTILINE) for why in (full, slow)), run.stdout
    assert all(f" {word} " in run.stdout.partition("step times")[2] for word in ("OOM", "too slow", "wrong", "failed"))

    (path,) = tmp_path.glob("*/0001_some.json")
    record = load_record(path)
    verdicts = {"slow": "too slow", "full": "out of memory", "wrong": "wrong", "broken": "failed"}
    assert {cell: one.verdict for cell, one in record.cells.items()} == {
        cell: verdicts[fault] for cell, fault in zip(cells, FAULTS.values(), strict=True)
    } | {TIMED: "timed"}
    timed = record.cells[TIMED]
    # Every batch three times, in turn; a round of pytest-benchmark is a step, and lasts as long.
    assert timed.batches == [*range(2)] * 3
    assert (len(timed.tokens or ()), len(timed.prepare_ms or ())) == (6, 2)
    (entry,) = json.loads(path.read_text())["benchmarks"]
    assert (entry["stats"]["rounds"], entry["stats"]["iterations"]) == (6, 1)
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
