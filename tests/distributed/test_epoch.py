"""An epoch of ragged batches on several ranks trains what one process trains: losses, and parameters at its end."""

import random

import pytest
import torch

from collators.balanced import BalancedBatchSampler
from model.attention import default_device
from model.distributed import HOWS, How
from tests.correctness.workbench import Workbench
from tests.distributed.conftest import WORLDS_HERE
from tests.distributed.jobs import Asked, Shares, Trained, trained
from tests.distributed.ranks import Ranks
from tests.distributed.test_gradients import alone, assert_moved_alike, joined, sequences

pytestmark = [pytest.mark.distributed, pytest.mark.layout("packed", first=True)]

#: Steps of an epoch: as many as two cores run in seconds, and an epoch of a GPU.
STEPS = {"cpu": 20, "cuda": 200}

#: Sequences of a rank in a step, on average.
BATCH = 2

TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def epoch(workbench: Workbench, ranks: Ranks) -> tuple[list[Shares], Trained, list[Trained]]:
    """The shares of each step, and what one process trains with them: in float64, and rounded in two orders of sums."""
    rng, steps = random.Random(7), STEPS[default_device()]
    # One sequence more than full steps hold: it joins the last one.
    lengths = [rng.randint(1, 70) for _ in range(steps * BATCH * ranks.world + 1)]
    examples = sequences(lengths, seed=7)
    sampler = BalancedBatchSampler(lengths, BATCH, seed=7, num_replicas=ranks.world, rank=None)
    dealt = [[examples[index] for index in batch] for batch in sampler]
    shares: list[Shares] = [
        [[batch] for batch in dealt[at : at + ranks.world]] for at in range(0, len(dealt), ranks.world)
    ]
    batches = [joined(share) for share in shares]
    orders = [batches, [batch[::-1] for batch in batches]]
    truth = alone(workbench, batches, None, torch.float64)
    return shares, truth, [alone(workbench, each, None, workbench.cell.dtype) for each in orders]


@pytest.mark.parametrize("ranks", WORLDS_HERE[:1], indirect=True)
@pytest.mark.parametrize("how", HOWS)
def test_an_epoch_on_several_ranks_ends_where_one_process_does(
    workbench: Workbench, ranks: Ranks, how: How, epoch: tuple[list[Shares], Trained, list[Trained]]
) -> None:
    shares, truth, references = epoch
    assert len(shares) == STEPS[default_device()]
    found = ranks.run(trained, Asked(workbench.cell.key, how), shares, None, timeout_s=TIMEOUT_S)
    assert_moved_alike(workbench, found, truth, references)
