"""What the timed cells of one run share."""

import pytest

from model.attention import default_device
from tests.performance.bench import Shared
from tests.selection import chosen_workload


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Shared:
    """Batches, reference outcomes and the matmul rate of this run's workload."""
    return Shared(chosen_workload(pytestconfig), default_device())
