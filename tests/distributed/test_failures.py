"""A rank that fails ends the run with its own error, and leaves no process behind."""

import os
import time
from collections.abc import Callable

import pytest

from tests.distributed.conftest import UNDER_TORCHRUN
from tests.distributed.jobs import ends_on_last, hangs_on_last, raises_on_last, rank_here
from tests.distributed.ranks import Processes, RankFailed

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(UNDER_TORCHRUN, reason="torchrun watches its own ranks"),
]


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
