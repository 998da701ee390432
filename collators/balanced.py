"""Global batches that are shared out so that every rank has as much to do."""

import heapq
from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from collators.epoch_batches import EpochBatchSampler, EpochPlan
from collators.length_draws import permutation


class BalancedBatchSampler(EpochBatchSampler):
    """Each step takes the next `batch_size` x `num_replicas` examples of the epoch, and shares them out by cost.

    The dearest example goes first, and each to the rank that has the least so far. An example of L tokens costs
    L + `quadratic` x L^2: 0 balances tokens, and `fitted_cost` tells the quadratic part of a machine.

    Ranks get other numbers of examples, and no fewer than one. The examples of the last, smaller step are added to the
    step before it if they are fewer than the ranks. With `drop_last` every step is whole, and `dropped` has the
    indices that are left out.

    ValueError for a batch size below 1 and for a negative `quadratic`; with `drop_last`, for examples that make no
    step.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        quadratic: float = 0.0,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int | None = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(lengths, shuffle=shuffle, seed=seed, num_replicas=num_replicas, rank=rank, drop_last=drop_last)
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more; got {batch_size}. Pass a count.")
        if not quadratic >= 0:
            raise ValueError(f"quadratic must be 0 or more; got {quadratic}. Pass what fitted_cost returns.")
        self.examples_of_step = batch_size * num_replicas
        self.quadratic = quadratic
        if drop_last and len(self.lengths) < self.examples_of_step:
            raise ValueError(
                f"drop_last needs {self.examples_of_step} examples for a step of {num_replicas} ranks; "
                f"got {len(self.lengths)}. Lower batch_size or use drop_last=False."
            )

    def _plan(self, generator: np.random.Generator) -> EpochPlan:
        size, step = len(self.lengths), self.examples_of_step
        order = permutation(size, generator) if self.shuffle else range(size)
        starts = [*range(0, size, step)]
        rest = size - starts[-1]
        if len(starts) > 1 and (rest < self.num_replicas or (self.drop_last and rest < step)):
            starts.pop()
        ends = [*starts[1:], starts[-1] + step if self.drop_last else size]
        batches: list[tuple[int, ...]] = []
        for start, end in zip(starts, ends, strict=True):
            batches += self._shared([order[place] for place in range(start, end)])
        return EpochPlan(tuple(batches), tuple(order[place] for place in range(ends[-1], size)))

    def _shared(self, examples: Sequence[int]) -> list[tuple[int, ...]]:
        """Share the examples of a step out; a rank that is empty takes one before any takes a second."""
        costs = {index: self.lengths[index] + self.quadratic * self.lengths[index] ** 2 for index in examples}
        ranks: list[list[int]] = [[] for _ in range(self.num_replicas)]
        heap = [(0.0, rank) for rank in range(self.num_replicas)]
        for index in sorted(examples, key=lambda index: (-costs[index], index)):
            cost, rank = heapq.heappop(heap)
            ranks[rank].append(index)
            heapq.heappush(heap, (cost + costs[index], rank))
        return [tuple(rank) for rank in ranks]


def fitted_cost(lengths: Sequence[Sequence[int]], step_ms: Sequence[float]) -> tuple[float, float, float]:
    """Return what a step costs in ms: a fixed part, a part for each token, and a part for each squared length.

    `lengths` are those of the sequences of each batch, `step_ms` their measured times. No part is negative (least
    squares). `quadratic` of the sampler is the third divided by the second.

    ValueError for fewer than three batches, or another number of times.
    """
    if len(lengths) != len(step_ms) or len(lengths) < 3:
        raise ValueError(
            f"a fit needs three or more batches and a time of each; got {len(lengths)} and {len(step_ms)}."
        )
    parts = np.array([[1.0, sum(batch), sum(length**2 for length in batch)] for batch in lengths])
    scale = parts.max(axis=0)
    found, _ = nnls(parts / scale, np.asarray(step_ms, dtype=float))
    fixed, token, square = (float(part) for part in found / scale)
    return fixed, token, square


def imbalance(batches: Sequence[Sequence[int]], costs: Sequence[float], ranks: int) -> float:
    """Return how much longer the slowest rank takes than the mean, as a share of all steps.

    `batches` are those of all ranks in turn, and `costs` those of the examples by index.
    """
    sums = np.array([sum(costs[index] for index in batch) for batch in batches]).reshape(-1, ranks)
    return float(sums.max(axis=1).sum() / sums.mean(axis=1).sum() - 1)
