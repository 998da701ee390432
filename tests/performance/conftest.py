"""What the timed cells of one run share."""

import gc
from collections.abc import Iterator

import pytest
import torch

from model.attention import default_device
from tests.performance.bench import Shared
from tests.selection import chosen_workload

#: DEFAULT_MMAP_THRESHOLD_MAX of 64-bit glibc, in bytes.
GLIBC_LARGEST_THRESHOLD = 32 * 2**20


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Iterator[Shared]:
    """Batches, reference outcomes and the matmul rate of this run's workload."""
    settle_allocator()
    yield Shared(chosen_workload(pytestconfig), default_device(), pytestconfig.getoption("steps"))
    # As each cell froze what it found.
    gc.unfreeze()


def settle_allocator() -> None:
    """Bring glibc's allocator to where it would get in the end, so that every cell finds it there.

    It maps what is larger than its threshold afresh each time, and each page then faults. The threshold grows with the
    largest mapped block that was freed, up to 32 MiB: a cell that was timed alone took up to 25% longer than the same
    one after others.
    """
    # Made and dropped at once.
    torch.empty(GLIBC_LARGEST_THRESHOLD - 2**16, dtype=torch.uint8)
