"""A rank that fails ends the run with its own error, and leaves no process behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.conftest import UNDER_TORCHRUN
from tests.distributed.jobs import ends_on_last, hangs_on_last, raises_on_last, rank_here
from tests.distributed.ranks import Processes, RankFailed

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(UNDER_TORCHRUN, reason="these start ranks of their own"),
]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (raises_on_last, r"^rank 1 of 2 raised:\n(.*\n)*ValueError: this rank has no batch"),
        (ends_on_last, r"^rank 1 of 2 ended with code 3$"),
        (hangs_on_last, r"^rank 0, 1 of 2 did not answer within 2 s$"),
    ],
)
def test_a_rank_that_fails_is_named_first_and_no_process_is_left(job: Callable[[], int], told: str) -> None:
    ranks = Processes(2)
    try:
        assert ranks.run(rank_here) == [0, 1]
        running = [process.pid for process in ranks.processes]
        begin = time.monotonic()
        with pytest.raises(RankFailed, match=told):
            ranks.run(job, timeout_s=2)
        assert time.monotonic() - begin < 10
        for pid in running:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        # The next job has new ranks.
        assert ranks.run(rank_here) == [0, 1]
    finally:
        ranks.close()


#: What each of torchrun's ranks runs; a rank that raised waits for the others for 3 s, a collective takes up to 5 s.
FAILS = """
import sys
from tests.distributed import jobs, ranks
ranks.LATE_S, ranks.TIMEOUT_S = 3, 5
found = ranks.Torchrun()
print(found.run(jobs.rank_here), flush=True)
try:
    found.run(getattr(jobs, sys.argv[1]))
except ranks.RankFailed as error:
    # In one piece: torchrun leaves standard output unbuffered, and the ranks share it.
    sys.stdout.write(f"{str(error).splitlines()[0]} {found.run(jobs.rank_here)}\\n")
# A process that ends with its group open may abort.
found.close()
"""


def torchrun(folder: Path, job: str) -> subprocess.CompletedProcess[str]:
    """Run a job on two ranks of torchrun."""
    script = folder / "fails.py"
    script.write_text(FAILS)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, job],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ("hangs_on_last", "no answer of rank 1 within 3 s, and this one raised:"),
        ("raises_on_last", "no answer of rank 0 within 3 s, and this one raised:"),
        ("is_late_on_last", "no answer of rank 1 within 5 s"),
    ],
)
def test_a_rank_of_torchrun_that_fails_ends_the_session_in_time(tmp_path: Path, job: str, told: str) -> None:
    begin = time.monotonic()
    ran = torchrun(tmp_path, job)
    assert ran.returncode == 1
    assert ran.stdout.count("[0, 1]") == 2
    assert told in ran.stderr
    assert time.monotonic() - begin < 60


def test_ranks_of_torchrun_that_all_raise_one_after_the_other_go_on(tmp_path: Path) -> None:
    ran = torchrun(tmp_path, "raises_on_all")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("rank 0 of 2 raised: [0, 1]") == 2
