"""A compiled step of several ranks is the step of one process, though FSDP2 shards what a graph reads."""

import pytest

from model.distributed import HOWS, How
from tests.correctness.workbench import Workbench
from tests.distributed.conftest import WORLDS_HERE
from tests.distributed.jobs import Asked, step
from tests.distributed.ranks import Ranks
from tests.distributed.test_gradients import as_they_come, joined, outcome_of

pytestmark = [pytest.mark.distributed, pytest.mark.layout("packed", execution="compiled", first=True)]

#: A block is compiled on every rank, in every test anew.
TIMEOUT_S = 240.0


@pytest.mark.parametrize("ranks", WORLDS_HERE[:1], indirect=True)
@pytest.mark.parametrize("how", HOWS)
def test_a_compiled_step_of_several_ranks_is_the_step_of_one_process(
    workbench: Workbench, ranks: Ranks, how: How
) -> None:
    shares = as_they_come(ranks.world)
    found = ranks.run(step, Asked(workbench.cell.key, how), shares, timeout_s=TIMEOUT_S)
    workbench.assert_right(outcome_of(found), joined(shares))
