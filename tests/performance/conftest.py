"""What the timed cells of one run share."""

import gc
from collections.abc import Iterator

import pytest

from gate.measure.bench import Shared, settle_allocator
from model.attention import default_device
from tests.selection import chosen_workload


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Iterator[Shared]:
    """Batches, reference outcomes and the matmul rate of this run's workload."""
    settle_allocator()
    yield Shared(chosen_workload(pytestconfig), default_device(), pytestconfig.getoption("steps"))
    # As each cell froze what it found.
    gc.unfreeze()
