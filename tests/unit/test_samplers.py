"""Batch samplers: every index once an epoch over all ranks, as many batches on each, none over its budget."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch.utils.data import DataLoader

from collators.balanced import BalancedBatchSampler
from collators.epoch_batches import EpochBatchSampler, split_to_multiple
from collators.length_buckets import LengthBucketBatchSampler
from collators.token_budget import TokenBudgetBatchSampler

pytestmark = pytest.mark.unit

Batches = list[list[int]]
MakeSampler = Callable[..., EpochBatchSampler]

every_sampler = pytest.mark.parametrize(
    "make",
    [
        lambda lengths, **options: TokenBudgetBatchSampler(lengths, 64, **options),
        lambda lengths, **options: TokenBudgetBatchSampler(lengths, 64, padded=True, **options),
        lambda lengths, **options: LengthBucketBatchSampler(lengths, 4, bucket_edges=(8, 16, 32), **options),
        lambda lengths, **options: BalancedBatchSampler(lengths, 4, **options),
    ],
    ids=["token_budget", "token_budget_padded", "length_buckets", "balanced"],
)
#: At least 64 short examples: some fit into one batch, so that every number of ranks below can be served.
many_lengths = st.lists(st.integers(1, 32), min_size=64, max_size=120)
replicas = st.integers(1, 5)


def ranks_of(make: Callable[[int], EpochBatchSampler], num_replicas: int, epoch: int = 0) -> list[Batches]:
    """Return the batches of every rank, each from a sampler of its own, as in processes of their own."""
    ranks = []
    for rank in range(num_replicas):
        sampler = make(rank)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        ranks.append(batches)
    return ranks


def global_numpy_state() -> list[int]:
    key: list[int] = np.random.get_state(legacy=False)["state"]["key"].tolist()
    return key


def refusal(make: Callable[[], EpochBatchSampler]) -> str | None:
    try:
        make()
    except ValueError as error:
        return str(error)
    return None


def indices_of(ranks: list[Batches]) -> list[int]:
    return [index for batches in ranks for batch in batches for index in batch]


def cost(batch: list[int], lengths: list[int], padded: bool) -> int:
    tokens = [lengths[index] for index in batch]
    return len(tokens) * max(tokens) if padded else sum(tokens)


@every_sampler
@given(lengths=many_lengths, num_replicas=replicas, shuffle=st.booleans(), epoch=st.integers(0, 3))
def test_an_epoch_has_every_index_once_and_as_many_batches_a_rank(
    make: MakeSampler, lengths: list[int], num_replicas: int, shuffle: bool, epoch: int
) -> None:
    ranks = ranks_of(
        lambda rank: make(lengths, shuffle=shuffle, num_replicas=num_replicas, rank=rank), num_replicas, epoch
    )
    assert sorted(indices_of(ranks)) == list(range(len(lengths)))
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch for batches in ranks for batch in batches)


@every_sampler
@given(lengths=many_lengths, num_replicas=replicas, shuffle=st.booleans(), seed=st.integers(0, 2**64 - 1))
def test_drop_last_drops_what_it_says_and_nothing_else(
    make: MakeSampler, lengths: list[int], num_replicas: int, shuffle: bool, seed: int
) -> None:
    options: dict[str, Any] = {
        "shuffle": shuffle,
        "seed": seed,
        "num_replicas": num_replicas,
        "drop_last": True,
    }
    dropped = make(lengths, **options).dropped
    ranks = ranks_of(lambda rank: make(lengths, rank=rank, **options), num_replicas)
    assert sorted([*indices_of(ranks), *dropped]) == list(range(len(lengths)))
    assert len({len(batches) for batches in ranks}) == 1
    assert all(make(lengths, rank=rank, **options).dropped == dropped for rank in range(num_replicas))


@every_sampler
def test_without_drop_last_nothing_is_dropped(make: MakeSampler) -> None:
    assert make([3] * 50, num_replicas=3).dropped == ()


@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 32), min_size=1, max_size=40),
    budget=st.integers(32, 200),
    padded=st.booleans(),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_a_batch_never_passes_its_token_budget(
    data: st.DataObject, lengths: list[int], budget: int, padded: bool, shuffle: bool, drop_last: bool
) -> None:
    num_replicas = data.draw(st.integers(1, min(5, len(lengths))))
    options: dict[str, Any] = {"padded": padded, "shuffle": shuffle, "drop_last": drop_last}
    reason = refusal(lambda: TokenBudgetBatchSampler(lengths, budget, num_replicas=num_replicas, **options))
    if reason is not None:
        # Only where nearly every example is alone in its batch can no equal number be had.
        assert "need an equal number of batches" in reason
        assert not drop_last
        assert len(lengths) % num_replicas != 0
        return
    ranks = ranks_of(
        lambda rank: TokenBudgetBatchSampler(lengths, budget, num_replicas=num_replicas, rank=rank, **options),
        num_replicas,
    )
    assert all(batches for batches in ranks)
    assert all(cost(batch, lengths, padded) <= budget for batches in ranks for batch in batches)


@given(lengths=st.lists(st.integers(1, 32), min_size=1, max_size=60), padded=st.booleans())
def test_a_batch_takes_the_next_example_if_it_fits(lengths: list[int], padded: bool) -> None:
    batches = list(TokenBudgetBatchSampler(lengths, 64, padded=padded, shuffle=False))
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    for batch, following in pairwise(batches):
        assert cost([*batch, following[0]], lengths, padded) > 64


@pytest.mark.parametrize(("padded", "expected"), [(False, [[0, 1], [2, 3]]), (True, [[0, 1], [2], [3]])])
def test_a_batch_may_fill_its_budget_exactly(padded: bool, expected: Batches) -> None:
    assert list(TokenBudgetBatchSampler([4, 4, 7, 1], 8, padded=padded, shuffle=False)) == expected


@given(
    lengths=st.lists(st.integers(1, 40), min_size=30, max_size=80),
    num_replicas=st.integers(1, 3),
    batch_size=st.integers(4, 7),
    drop_last=st.booleans(),
)
def test_a_batch_stays_within_one_bucket(
    lengths: list[int], num_replicas: int, batch_size: int, drop_last: bool
) -> None:
    edges = (8, 16)
    ranks = ranks_of(
        lambda rank: LengthBucketBatchSampler(
            lengths,
            batch_size,
            bucket_edges=edges,
            num_replicas=num_replicas,
            rank=rank,
            drop_last=drop_last and num_replicas == 1,
        ),
        num_replicas,
    )
    for batch in (batch for batches in ranks for batch in batches):
        assert len({sum(lengths[index] > edge for edge in edges) for index in batch}) == 1
        assert len(batch) <= batch_size
        if drop_last and num_replicas == 1:
            assert len(batch) == batch_size


@given(
    lengths=st.lists(st.integers(1, 24), min_size=40, max_size=80),
    num_replicas=st.integers(1, 5),
    batch_size=st.integers(1, 6),
    shuffle=st.booleans(),
)
def test_drop_last_deals_as_many_full_batches_of_one_bucket_as_divide(
    lengths: list[int], num_replicas: int, batch_size: int, shuffle: bool
) -> None:
    edges = (8, 16)
    ranks = ranks_of(
        lambda rank: LengthBucketBatchSampler(
            lengths,
            batch_size,
            bucket_edges=edges,
            shuffle=shuffle,
            num_replicas=num_replicas,
            rank=rank,
            drop_last=True,
        ),
        num_replicas,
    )
    in_bucket = Counter(sum(length > edge for edge in edges) for length in lengths)
    full = sum(count // batch_size for count in in_bucket.values())
    assert [len(batches) for batches in ranks] == [full // num_replicas] * num_replicas
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)


def test_a_bucket_includes_its_edge() -> None:
    sampler = LengthBucketBatchSampler([8, 9, 1, 17, 16], 5, bucket_edges=(8, 16), shuffle=False)
    assert list(sampler) == [[0, 2], [1, 4], [3]]


def test_ranks_of_a_step_get_neighbouring_buckets() -> None:
    lengths = [length for length in (4, 12, 24, 40) for _ in range(32)]
    ranks = ranks_of(
        lambda rank: LengthBucketBatchSampler(lengths, 4, bucket_edges=(8, 16, 32), num_replicas=4, rank=rank),
        4,
    )
    for step in zip(*ranks, strict=True):
        assert len({lengths[index] for batch in step for index in batch}) == 1


@every_sampler
def test_order_follows_from_the_pair_of_seed_and_epoch(make: MakeSampler) -> None:
    lengths = np.random.Generator(np.random.PCG64(0)).integers(1, 32, 100).tolist()

    def order(seed: int, epoch: int) -> Batches:
        sampler = make(lengths, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 0) != order(0, 1)
    assert order(0, 1) != order(1, 0)


#: The batches of both ranks in epoch 3 of seed 5, and what is dropped, without `drop_last` and with it.
PINNED: dict[str, tuple[tuple[list[Batches], tuple[int, ...]], ...]] = {
    "token_budget": (
        ([[[4, 1, 8], [5], [2, 0, 6]], [[11], [9, 12, 3, 10], [7]]], ()),
        ([[[4, 1, 8], [5]], [[11], [9, 12, 3, 10]]], (2, 0, 6, 7)),
    ),
    "token_budget_padded": (
        ([[[4], [8, 11], [9], [0, 6]], [[1], [5], [12, 3, 10, 2], [7]]], ()),
        ([[[4, 1], [5], [12, 3, 10, 2]], [[8, 11], [9], [0, 6]]], (7,)),
    ),
    "length_buckets": (
        ([[[6, 3, 0], [12], [1]], [[8, 2, 10], [4, 7, 11], [5, 9]]], ()),
        ([[[8, 2, 10]], [[6, 3, 0]]], (12, 1, 5, 9, 4, 7, 11)),
    ),
}


@pytest.mark.parametrize("drop_last", [False, True], ids=["keep_last", "drop_last"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("token_budget", lambda lengths, **options: TokenBudgetBatchSampler(lengths, 32, **options)),
        (
            "token_budget_padded",
            lambda lengths, **options: TokenBudgetBatchSampler(lengths, 32, padded=True, **options),
        ),
        (
            "length_buckets",
            lambda lengths, **options: LengthBucketBatchSampler(lengths, 3, bucket_edges=(8, 16), **options),
        ),
    ],
)
def test_orders_stay_what_they_were(name: str, make: MakeSampler, drop_last: bool) -> None:
    """A run that is resumed after an update goes on where it was."""
    lengths = [3, 14, 8, 1, 9, 30, 5, 16, 7, 22, 2, 12, 6]
    options: dict[str, Any] = {"seed": 5, "num_replicas": 2, "drop_last": drop_last}
    ranks = ranks_of(lambda rank: make(lengths, rank=rank, **options), 2, epoch=3)
    sampler = make(lengths, **options)
    sampler.set_epoch(3)
    assert (ranks, sampler.dropped) == PINNED[name][drop_last]


@every_sampler
def test_a_sampler_shuffles_and_drops_nothing_unless_told_otherwise(make: MakeSampler) -> None:
    lengths = [3, 14, 8, 1, 9, 30, 5, 16, 7, 22, 2, 12, 6] * 3
    sampler = make(lengths)
    assert list(sampler) == list(make(lengths, shuffle=True, seed=0, num_replicas=1, rank=0, drop_last=False))
    assert list(sampler) != list(make(lengths, shuffle=False))
    assert sampler.dropped == ()


@every_sampler
def test_an_epoch_is_planned_once(make: MakeSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DataLoader asks for the length at every step's progress; the plan of a large data set takes seconds."""
    sampler = make([3, 14, 8, 1] * 5)
    plan, planned = sampler._plan, []
    monkeypatch.setattr(sampler, "_plan", lambda generator: planned.append(sampler.epoch) or plan(generator))
    for epoch in (1, 1, 0, 2):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
        assert sampler.dropped == ()
    assert planned == [1, 0, 2]


@every_sampler
def test_without_shuffling_every_epoch_is_the_same(make: MakeSampler) -> None:
    sampler = make([5, 20, 9, 31] * 10, shuffle=False, num_replicas=3)
    first = list(sampler)
    sampler.set_epoch(7)
    assert list(sampler) == first


@every_sampler
def test_neither_global_random_state_is_touched(make: MakeSampler) -> None:
    before = torch.get_rng_state(), global_numpy_state()
    list(make([3] * 50))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert global_numpy_state() == before[1]


@every_sampler
def test_a_changed_batch_does_not_change_the_next_epoch(make: MakeSampler) -> None:
    sampler = make([3] * 50)
    expected = list(sampler)
    for batch in sampler:
        batch.clear()
    assert list(sampler) == expected


@every_sampler
@pytest.mark.parametrize("convert", [np.array, torch.tensor, tuple], ids=["numpy", "torch", "tuple"])
def test_lengths_may_be_an_array_or_a_tensor(make: MakeSampler, convert: Callable[[list[int]], Any]) -> None:
    lengths = [3, 7, 30, 2, 9, 9]
    batches = list(make(convert(lengths)))
    assert batches == list(make(lengths))
    assert all(type(index) is int for batch in batches for index in batch)


@every_sampler
@given(lengths=many_lengths, num_replicas=replicas, epochs=st.lists(st.integers(0, 5), min_size=2, max_size=2))
def test_the_batches_of_all_ranks_come_in_turn(
    make: MakeSampler, lengths: list[int], num_replicas: int, epochs: list[int]
) -> None:
    everybody = make(lengths, num_replicas=num_replicas, rank=None)
    for epoch in epochs:
        everybody.set_epoch(epoch)
        ranks = ranks_of(lambda rank: make(lengths, num_replicas=num_replicas, rank=rank), num_replicas, epoch)
        assert list(everybody) == [batch for step in zip(*ranks, strict=True) for batch in step]
        assert len(everybody) == num_replicas * len(ranks[0])


@every_sampler
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
@pytest.mark.parametrize("planned", [True, False])
def test_a_copy_goes_on_in_the_epoch_and_has_its_own(
    make: MakeSampler, copied: Callable[[Any], Any], planned: bool
) -> None:
    """A worker of a loader gets a copy, and so does a checkpoint."""
    sampler = make([3, 14, 8, 1] * 9, seed=2, num_replicas=2, rank=1)
    wanted = [
        ranks_of(lambda rank: make([3, 14, 8, 1] * 9, seed=2, num_replicas=2, rank=rank), 2, epoch)[1]
        for epoch in (3, 4)
    ]
    sampler.set_epoch(3)
    if planned:
        list(sampler)
    other = copied(sampler)
    assert list(other) == wanted[0]
    other.set_epoch(4)
    assert list(other) == wanted[1]
    assert list(sampler) == wanted[0]


@every_sampler
def test_a_dataloader_collates_every_example_once(make: MakeSampler) -> None:
    lengths = [1 + 7 * index % 31 for index in range(60)]
    dataset = [torch.full((length,), index) for index, length in enumerate(lengths)]
    seen: Counter[int] = Counter()
    for rank in range(3):
        loader: DataLoader[torch.Tensor] = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=make(lengths, num_replicas=3, rank=rank),
            collate_fn=torch.cat,
            num_workers=0,
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        seen.update(torch.cat(batches).tolist())
    assert seen == dict(enumerate(lengths))


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8), data=st.data())
def test_splitting_keeps_the_order_and_cuts_no_more_than_needed(sizes: list[int], data: st.DataObject) -> None:
    starts = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
    batches = [list(range(start, end)) for start, end in pairwise(starts)]
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=starts[-1], max_size=starts[-1]))
    multiple = data.draw(st.sampled_from([m for m in range(1, 7) if -(-len(sizes) // m) * m <= starts[-1]]))
    split = split_to_multiple(batches, lengths, multiple)
    assert [index for batch in split for index in batch] == list(range(starts[-1]))
    assert len(split) == -(-len(sizes) // multiple) * multiple
    assert all(split)


def test_splitting_cuts_the_batch_of_most_tokens_where_the_halves_are_nearest() -> None:
    assert split_to_multiple([[0, 1], [2, 3, 4]], [1, 1, 2, 3, 6], 3) == ((0, 1), (2, 3), (4,))
    assert split_to_multiple([[0, 1], [2, 3, 4]], [5, 5, 1, 1, 1], 3) == ((0,), (1,), (2, 3, 4))
    assert split_to_multiple([[0, 1, 2, 3], [4, 5]], [6, 6, 6, 6, 5, 5], 4) == ((0,), (1,), (2, 3), (4, 5))


@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=8))
@example(lengths=[1, 2, 3, 1, 1, 1])
def test_splitting_cuts_a_batch_where_its_halves_are_nearest_and_first_of_equals(lengths: list[int]) -> None:
    batch = tuple(range(len(lengths)))
    best = min(range(1, len(lengths)), key=lambda at: abs(sum(lengths[:at]) - sum(lengths[at:])))
    assert split_to_multiple([batch], lengths, 2) == (batch[:best], batch[best:])


@given(epoch=st.integers(0, 50))
@example(epoch=0)
def test_a_rare_pair_is_found_in_every_epoch(epoch: int) -> None:
    # Only 5 and 4 fit together. Where they are not neighbours there are 5 batches, and 2 ranks need 4.
    lengths = [9, 5, 9, 4, 9]
    ranks = ranks_of(lambda rank: TokenBudgetBatchSampler(lengths, 10, num_replicas=2, rank=rank), 2, epoch)
    assert sorted(indices_of(ranks)) == [0, 1, 2, 3, 4]
    assert [len(batches) for batches in ranks] == [2, 2]


def test_drop_last_on_one_rank_drops_no_token_budget_batch() -> None:
    assert TokenBudgetBatchSampler([5, 5, 5], 8, drop_last=True).dropped == ()


def test_drop_last_with_fewer_batches_than_replicas_cuts_them() -> None:
    ranks = ranks_of(lambda rank: TokenBudgetBatchSampler([1] * 4, 8, num_replicas=3, rank=rank, drop_last=True), 3)
    assert sorted(indices_of(ranks)) == [0, 1, 2, 3]


def test_drop_last_drops_whole_batches_at_the_end() -> None:
    sampler = TokenBudgetBatchSampler([5] * 5, 10, shuffle=False, num_replicas=2, drop_last=True)
    assert sampler.dropped == (4,)
    assert list(sampler) == [[0, 1]]


def test_drop_last_does_not_always_drop_the_longest() -> None:
    lengths = [4] * 8 + [12] * 8 + [24] * 8
    sampler = LengthBucketBatchSampler(lengths, 8, bucket_edges=(8, 16), num_replicas=2, drop_last=True)
    dropped: set[int] = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        dropped.update(lengths[index] for index in sampler.dropped)
    assert dropped == {4, 12, 24}


@every_sampler
@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, r"length of at least one example; got none\."),
        ([3, 0], {}, r"lengths\[1\] must be an integer of 1 or more; got 0\."),
        ([3, 4, -1], {}, r"lengths\[2\] must be an integer of 1 or more; got -1\."),
        ([3.5], {}, r"lengths\[0\] must be an integer of 1 or more; got 3\.5\."),
        ([3, None], {}, r"lengths\[1\] must be an integer of 1 or more; got None\."),
        ([3], {"num_replicas": 0}, r"num_replicas must be 1 or more; got 0\."),
        ([3, 3], {"num_replicas": 2, "rank": 2}, r"rank must be in 0\.\.1; got 2\."),
        ([3, 3], {"rank": -1}, r"rank must be in 0\.\.0; got -1\."),
        ([3, 3], {"num_replicas": 3}, r"3 replicas need at least 3 examples; got 2\."),
        ([3], {"seed": -1}, r"seed must be 0 or more; got -1\."),
    ],
)
def test_bad_arguments_are_refused(
    make: MakeSampler, lengths: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(lengths, **options)


@every_sampler
def test_a_negative_epoch_is_refused(make: MakeSampler) -> None:
    with pytest.raises(ValueError, match=r"epoch must be 0 or more; got -1\. Count epochs from 0\."):
        make([3]).set_epoch(-1)


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "options", "message"),
    [
        ([3], 0, {}, r"max_tokens must be 1 or more; got 0\."),
        ([3, 9, 12], 8, {}, r"lengths\[1\] must be at most max_tokens=8; got 9\. Raise max_tokens or split"),
        (
            [8, 8, 8],
            8,
            {"num_replicas": 2},
            r"2 replicas need an equal number of batches; got 3 examples that need 3",
        ),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(
    lengths: list[int], max_tokens: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenBudgetBatchSampler(lengths, max_tokens, **options)


def test_a_budget_that_every_rank_just_fills_is_kept() -> None:
    assert list(TokenBudgetBatchSampler([8] * 4, 8, shuffle=False, num_replicas=2)) == [[0], [2]]


def test_a_budget_that_only_the_given_order_keeps_is_refused_with_shuffling() -> None:
    """In order 6 + 4, 6 + 4 and 9 are three batches; 4 + 4, 6, 6 and 9 are four, and three ranks have five examples."""
    lengths = [6, 4, 6, 4, 9]
    ranks = ranks_of(
        lambda rank: TokenBudgetBatchSampler(lengths, 10, shuffle=False, num_replicas=3, rank=rank), num_replicas=3
    )
    assert ranks == [[[0, 1]], [[2, 3]], [[4]]]
    with pytest.raises(ValueError, match=r"got 5 examples that need 4 batches of max_tokens=10\. Raise"):
        TokenBudgetBatchSampler(lengths, 10, num_replicas=3)


@pytest.mark.parametrize(
    ("count", "batch_size", "options"),
    [(4, 1, {"num_replicas": 2}), (8, 4, {"num_replicas": 2, "drop_last": True}), (1, 1, {"bucket_edges": (1,)})],
)
def test_buckets_that_can_just_be_dealt_are(count: int, batch_size: int, options: dict[str, Any]) -> None:
    sampler = LengthBucketBatchSampler([3] * count, batch_size, shuffle=False, **options)
    assert list(sampler) == [list(range(at, at + batch_size)) for at in range(0, count, 2 * batch_size)]


@pytest.mark.parametrize(
    ("lengths", "batch_size", "options", "message"),
    [
        ([3], 0, {}, r"batch_size must be 1 or more; got 0\."),
        ([3], 1, {"bucket_edges": ()}, r"bucket_edges must be rising lengths of 1 or more; got \(\)\."),
        ([3], 1, {"bucket_edges": (8, 8)}, r"bucket_edges must be rising lengths of 1 or more; got \(8, 8\)\."),
        ([3], 1, {"bucket_edges": (16, 8)}, r"bucket_edges must be rising lengths of 1 or more; got \(16, 8\)\."),
        ([3], 1, {"bucket_edges": (0, 8)}, r"bucket_edges must be rising lengths of 1 or more; got \(0, 8\)\."),
        ([3, 3, 3], 1, {"num_replicas": 2}, r"equal number of batches; got 3 examples in 3 batches\. Raise"),
        (
            [3] * 7,
            4,
            {"num_replicas": 2, "drop_last": True},
            r"full batches; got 1 of batch_size=4\. Lower",
        ),
    ],
)
def test_buckets_that_cannot_be_dealt_are_refused(
    lengths: list[int], batch_size: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LengthBucketBatchSampler(lengths, batch_size, **options)


class EpochsOfAllRanks(RuleBasedStateMachine):
    """Ranks that live through epochs in any order, as after a restart, and may iterate an epoch again."""

    samplers: tuple[EpochBatchSampler, ...] = ()

    @initialize(
        lengths=st.lists(st.integers(1, 16), min_size=48, max_size=80),
        num_replicas=st.integers(1, 4),
        kind=st.sampled_from(["packed", "padded", "buckets"]),
    )
    def start(self, lengths: list[int], num_replicas: int, kind: str) -> None:
        self.lengths, self.kind = lengths, kind
        self.epoch = 0
        self.orders: dict[int, list[Batches]] = {}
        ranks = range(num_replicas)
        if kind == "buckets":
            self.samplers = tuple(
                LengthBucketBatchSampler(lengths, 5, bucket_edges=(4, 8), num_replicas=num_replicas, rank=rank)
                for rank in ranks
            )
        else:
            self.samplers = tuple(
                TokenBudgetBatchSampler(lengths, 48, padded=kind == "padded", num_replicas=num_replicas, rank=rank)
                for rank in ranks
            )

    @rule(epoch=st.integers(0, 5))
    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    @rule()
    def iterate(self) -> None:
        ranks = [list(sampler) for sampler in self.samplers]
        assert self.orders.setdefault(self.epoch, ranks) == ranks

    @rule()
    def leave_an_epoch_unfinished(self) -> None:
        for sampler in self.samplers:
            next(iter(sampler))

    @invariant()
    def ranks_have_equal_lengths(self) -> None:
        assert len({len(sampler) for sampler in self.samplers}) <= 1

    @invariant()
    def every_epoch_is_whole_within_budget_and_new(self) -> None:
        if not self.samplers:
            return
        for ranks in self.orders.values():
            assert sorted(indices_of(ranks)) == list(range(len(self.lengths)))
            assert len({len(batches) for batches in ranks}) == 1
            for batch in (batch for batches in ranks for batch in batches):
                if self.kind == "buckets":
                    assert 1 <= len(batch) <= 5
                else:
                    assert cost(batch, self.lengths, self.kind == "padded") <= 48
        assert len({str(ranks) for ranks in self.orders.values()}) == len(self.orders)


TestEpochsOfAllRanks = EpochsOfAllRanks.TestCase
TestEpochsOfAllRanks.settings = settings(stateful_step_count=12)
