"""Batches of sequences of similar length."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from collators.epoch_batches import EpochBatchSampler, EpochPlan, split_to_multiple
from collators.length_draws import permutation

#: Powers of two, so that padding to the longest at most doubles a sequence of more than 32 tokens.
DEFAULT_BUCKET_EDGES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class LengthBucketBatchSampler(EpochBatchSampler):
    """Batches of at most `batch_size` examples of one bucket; the ranks of a step get neighbouring lengths.

    A bucket ends at its edge, included, and the last has no end: edges 4, 8 part 1..4, 5..8 and 9 or more.
    Each bucket's last batch may be smaller. For an equal number of batches on every rank those with most
    tokens are cut in two. With `drop_last` every batch has `batch_size` examples: the rest of each bucket is
    left out, and then as few whole batches as make the number equal (random ones if shuffled, else the
    last, which are the longest); `dropped` has their indices.

    ValueError for a batch size below 1, edges that do not rise, and for examples that give no equal number
    of batches (nearly every one is alone in its batch; or, with `drop_last`, too few batches are full).
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        bucket_edges: Sequence[int] = DEFAULT_BUCKET_EDGES,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int | None = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(lengths, shuffle=shuffle, seed=seed, num_replicas=num_replicas, rank=rank, drop_last=drop_last)
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more; got {batch_size}. Pass a count.")
        edges = tuple(bucket_edges)
        if not edges or edges[0] < 1 or any(left >= right for left, right in pairwise(edges)):
            raise ValueError(
                f"bucket_edges must be rising lengths of 1 or more; got {edges}. Pass e.g. (64, 128, 256)."
            )
        self.most_examples = batch_size
        self.bucket_edges = edges
        self._buckets: list[list[int]] = [[] for _ in range(len(edges) + 1)]
        for index, length in enumerate(self.lengths):
            self._buckets[bisect_left(edges, length)].append(index)
        self._check_feasible()

    def _plan(self, generator: np.random.Generator) -> EpochPlan:
        batches: list[tuple[int, ...]] = []
        left_out: list[int] = []
        for bucket in self._buckets:
            order = [bucket[at] for at in permutation(len(bucket), generator)] if self.shuffle else bucket
            end = len(order) // self.most_examples * self.most_examples if self.drop_last else len(order)
            batches += [tuple(order[at : at + self.most_examples]) for at in range(0, end, self.most_examples)]
            left_out += order[end:]
        if self.drop_last:
            excess = len(batches) % self.num_replicas
            ranking = permutation(len(batches), generator) if self.shuffle else range(len(batches))
            dropped = set(ranking[len(batches) - excess :])
            left_out += [index for place in sorted(dropped) for index in batches[place]]
            batches = [batch for place, batch in enumerate(batches) if place not in dropped]
        dealt = split_to_multiple(batches, self.lengths, self.num_replicas)
        return EpochPlan(self._steps_shuffled(dealt, generator) if self.shuffle else dealt, tuple(left_out))

    def _steps_shuffled(
        self, batches: tuple[tuple[int, ...], ...], generator: np.random.Generator
    ) -> tuple[tuple[int, ...], ...]:
        """Shuffle steps, and the ranks in each: a step's batches stay neighbours, so no rank waits long."""
        ranks = self.num_replicas
        steps = [batches[at : at + ranks] for at in range(0, len(batches), ranks)]
        return tuple(
            steps[step][rank] for step in permutation(len(steps), generator) for rank in permutation(ranks, generator)
        )

    def _check_feasible(self) -> None:
        full = sum(len(bucket) // self.most_examples for bucket in self._buckets)
        if self.drop_last and full < self.num_replicas:
            raise ValueError(
                f"{self.num_replicas} replicas with drop_last need at least {self.num_replicas} full batches; "
                f"got {full} of batch_size={self.most_examples}. Lower batch_size, use fewer edges or drop_last=False."
            )
        batches = sum(-(-len(bucket) // self.most_examples) for bucket in self._buckets)
        if not self.drop_last and batches > self.most_batches:
            raise ValueError(
                f"{self.num_replicas} replicas need an equal number of batches; got {len(self.lengths)} "
                f"examples in {batches} batches. Raise batch_size, use fewer edges or pass drop_last=True."
            )
