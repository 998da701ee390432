"""Batches that are shared out by cost: every example once, and no rank waits long."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collators.balanced import BalancedBatchSampler, fitted_cost, imbalance

pytestmark = pytest.mark.unit

lengths_of_an_epoch = st.lists(st.integers(1, 300), min_size=6, max_size=90)


def lognormal(count: int) -> list[int]:
    rng = np.random.Generator(np.random.PCG64(0))
    return np.clip(rng.lognormal(5, 1, count), 1, 4096).astype(int).tolist()


@given(
    lengths=lengths_of_an_epoch,
    ranks=st.integers(1, 5),
    batch_size=st.integers(1, 6),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_example_comes_once_over_all_ranks(
    lengths: list[int], ranks: int, batch_size: int, shuffle: bool, drop_last: bool, epoch: int
) -> None:
    drop_last = drop_last and len(lengths) >= ranks * batch_size
    samplers = [
        BalancedBatchSampler(
            lengths, batch_size, shuffle=shuffle, num_replicas=ranks, rank=rank, drop_last=drop_last, quadratic=0.01
        )
        for rank in range(ranks)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in samplers]
    assert len({len(each) for each in batches}) == 1
    assert all(batch for each in batches for batch in each)
    seen = sorted(index for each in batches for batch in each for index in batch)
    assert sorted([*seen, *samplers[0].dropped]) == list(range(len(lengths)))
    assert drop_last or not samplers[0].dropped
    for step in zip(*batches, strict=True):
        count = sum(map(len, step))
        assert count == ranks * batch_size if drop_last else count < ranks * (batch_size + 1)


@given(lengths=lengths_of_an_epoch, ranks=st.integers(2, 4), quadratic=st.sampled_from([0.0, 0.02]))
def test_no_rank_has_more_than_the_least_and_one_example(lengths: list[int], ranks: int, quadratic: float) -> None:
    sampler = BalancedBatchSampler(lengths, 4, num_replicas=ranks, rank=None, quadratic=quadratic)
    costs = [length + quadratic * length**2 for length in lengths]
    batches = list(sampler)
    for at in range(0, len(batches), ranks):
        sums = [sum(costs[index] for index in batch) for batch in batches[at : at + ranks]]
        most = batches[at + sums.index(max(sums))]
        assert max(sums) - min(costs[index] for index in most) <= min(sums) + 1e-9


def test_lognormal_lengths_are_balanced_better_than_as_they_come() -> None:
    lengths = lognormal(4096)
    costs = [float(length) for length in lengths]
    as_they_come = [range(at, at + 32) for at in range(0, len(lengths), 32)]
    balanced = list(BalancedBatchSampler(lengths, 32, num_replicas=8, rank=None))
    assert imbalance(as_they_come, costs, 8) > 0.2
    assert imbalance(balanced, costs, 8) < 0.005


def test_the_dearest_goes_first_and_each_to_the_rank_with_the_least() -> None:
    sampler = BalancedBatchSampler([5, 1, 4, 2, 3, 3], 3, num_replicas=2, rank=None, shuffle=False)
    assert list(sampler) == [[0, 5, 1], [2, 4, 3]]
    # Squared, the six costs twice as much as both threes.
    by_length = BalancedBatchSampler([6, 1, 3, 3], 2, num_replicas=2, rank=None, shuffle=False)
    assert list(by_length) == [[0, 1], [2, 3]]
    squared = BalancedBatchSampler([6, 1, 3, 3], 2, num_replicas=2, rank=None, shuffle=False, quadratic=1e6)
    assert list(squared) == [[0], [2, 3, 1]]


def test_a_rest_that_is_smaller_than_the_ranks_joins_the_step_before_it() -> None:
    sampler = BalancedBatchSampler([1] * 9, 2, num_replicas=4, rank=None, shuffle=False)
    assert [len(batch) for batch in sampler] == [3, 2, 2, 2]
    dropped = BalancedBatchSampler([1] * 9, 2, num_replicas=4, rank=None, shuffle=False, drop_last=True)
    assert [len(batch) for batch in dropped] == [2, 2, 2, 2]
    assert dropped.dropped == (8,)


def test_a_cost_is_fitted_from_measured_steps() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    lengths = [rng.integers(1, 1024, 32).tolist() for _ in range(24)]
    times = [3 + 0.002 * sum(batch) + 1e-6 * sum(length**2 for length in batch) for batch in lengths]
    assert fitted_cost(lengths, times) == pytest.approx((3, 0.002, 1e-6))
    # A part that noise would make negative is none.
    assert fitted_cost([[10], [20], [30]], [1.0, 1.9, 2.7])[2] == 0.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more; got 0"),
        ({"batch_size": 2, "quadratic": -1.0}, "quadratic must be 0 or more; got -1.0"),
        ({"batch_size": 2, "quadratic": float("nan")}, "quadratic must be 0 or more; got nan"),
        ({"batch_size": 9, "drop_last": True}, "drop_last needs 9 examples for a step of 1 ranks; got 4"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BalancedBatchSampler([1, 2, 3, 4], **options)  # type: ignore[arg-type]


def test_too_few_measured_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="three or more batches and a time of each; got 2 and 2"):
        fitted_cost([[1], [2]], [1.0, 2.0])
