"""What the timed cells of one run share."""

import gc
from collections.abc import Iterator

import pytest

from model.attention import default_device
from tests.performance.bench import Shared
from tests.selection import chosen_workload


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Iterator[Shared]:
    """Batches, reference outcomes and the matmul rate of this run's workload."""
    # Several collections a cell would each walk the 300,000 objects that imports leave behind.
    gc.collect()
    gc.freeze()
    yield Shared(chosen_workload(pytestconfig), default_device(), pytestconfig.getoption("steps"))
    gc.unfreeze()
