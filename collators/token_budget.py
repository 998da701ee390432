"""Batches that hold as many sequences as fit a budget of tokens."""

from collections.abc import Iterable, Sequence

import numpy as np

from collators.epoch_batches import EpochBatchSampler, EpochPlan, split_to_multiple
from collators.length_draws import permutation


class TokenBudgetBatchSampler(EpochBatchSampler):
    """Batches of at most `max_tokens` tokens: their sum or, with `padded`, count times longest.

    Examples are taken in the epoch's order, and one that no longer fits starts the next batch: with `padded`,
    mixed lengths leave much of a budget to padding, and LengthBucketBatchSampler leaves less. For an equal
    number of batches on every rank the largest ones are cut in two. With `drop_last` the fewest batches at
    the end of the epoch's order are left out instead, and `dropped` has their indices; one replica drops
    none, and nor does an epoch of fewer batches than replicas, whose batches are cut.

    ValueError for an example longer than `max_tokens`, naming its index; and, without `drop_last`, for
    examples that no equal number of batches holds (nearly every one fills a budget of its own).
    """

    def __init__(
        self,
        lengths: Sequence[int],
        max_tokens: int,
        *,
        padded: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int | None = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(lengths, shuffle=shuffle, seed=seed, num_replicas=num_replicas, rank=rank, drop_last=drop_last)
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be 1 or more; got {max_tokens}. Pass a budget in tokens.")
        for index, length in enumerate(self.lengths):
            if length > max_tokens:
                raise ValueError(
                    f"lengths[{index}] must be at most max_tokens={max_tokens}; got {length}. "
                    "Raise max_tokens or split that example."
                )
        self.max_tokens = max_tokens
        self.padded = padded
        if not drop_last:
            self._check_feasible()

    def _plan(self, generator: np.random.Generator) -> EpochPlan:
        size = len(self.lengths)
        batches = self._filled(permutation(size, generator) if self.shuffle else range(size))
        if self.drop_last and len(batches) >= self.num_replicas:
            kept = len(batches) // self.num_replicas * self.num_replicas
            left_out = tuple(index for batch in batches[kept:] for index in batch)
            return EpochPlan(tuple(map(tuple, batches[:kept])), left_out)
        if len(batches) > self.most_batches:
            # So few share a batch that this order allows no equal number; the shortest first allow one.
            batches = self._shortest_first()
            if self.shuffle:
                batches = [batches[place] for place in permutation(len(batches), generator)]
        return EpochPlan(split_to_multiple(batches, self.lengths, self.num_replicas))

    def _filled(self, order: Iterable[int]) -> list[list[int]]:
        """Fill batches in `order`, each up to the budget."""
        batches: list[list[int]] = []
        tokens = longest = 0
        for index in order:
            length = self.lengths[index]
            tokens, longest = tokens + length, max(longest, length)
            cost = longest * (len(batches[-1]) + 1) if self.padded and batches else tokens
            if not batches or cost > self.max_tokens:
                batches.append([])
                tokens = longest = length
            batches[-1].append(index)
        return batches

    def _shortest_first(self) -> list[list[int]]:
        return self._filled(sorted(range(len(self.lengths)), key=self.lengths.__getitem__))

    def _check_feasible(self) -> None:
        """Refuse now what some epoch could not deal evenly, so that none fails in the middle of training."""
        fewest = len(self._shortest_first())
        in_order = fewest if self.shuffle else len(self._filled(range(len(self.lengths))))
        if min(fewest, in_order) > self.most_batches:
            raise ValueError(
                f"{self.num_replicas} replicas need an equal number of batches; got {len(self.lengths)} "
                f"examples that need {min(fewest, in_order)} batches of max_tokens={self.max_tokens}. "
                "Raise max_tokens, pass drop_last=True or a multiple of num_replicas examples."
            )
