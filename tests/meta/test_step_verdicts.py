"""A cell that is wrong or runs out of memory gets a verdict instead of a time, and the run goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.meta

#: Runs pytest with the attention of one backend replaced by what `{fault}` makes of it.
PLANTED = """
import sys, pytest, torch
from model.attention import backend_named
backend = backend_named("sdpa_loop")
right = backend.attend
def attend(q, k, v, context, *, scale=None):
    {fault}
object.__setattr__(backend, "attend", attend)
sys.exit(pytest.main(sys.argv[1:]))
"""
OUT_OF_MEMORY = 'raise torch.OutOfMemoryError("tried to allocate too much")'
WRONG = "return right(q, k, v, context, scale=scale) * 1.02"


def timed_with(fault: str, pytestconfig: pytest.Config, storage: Path, *options: str) -> tuple[int, str]:
    arguments = ["-m", "performance", "-p", "no:cacheprovider", f"--benchmark-storage=file://{storage}", *options]
    cells = ["--backend=sdpa_loop", "--cells=*-eval-full-*-eager-smoke", "--workload=smoke"]
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
