"""What the batch samplers share: seeded epochs, and the same number of batches for every rank."""

import heapq
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NoReturn, Self

import numpy as np
import torch
from torch.utils.data import Sampler


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch over all ranks, and the indices that `drop_last` leaves out.

    The count of batches is a multiple of the count of ranks; rank r takes `batches[r::num_replicas]`.
    """

    batches: tuple[tuple[int, ...], ...]
    dropped: tuple[int, ...] = ()


class EpochBatchSampler(Sampler[list[int]], ABC):
    """Batches of indices for `DataLoader(batch_sampler=...)`, planned alike on every rank.

    Without communication, every rank gets the same number of batches, and every index comes once an epoch
    over all ranks, save those in `dropped`. The order follows from (seed, epoch): call `set_epoch` first.

    A loader that deals batches to the processes itself, as accelerate's and transformers' Trainer's do, needs
    `num_replicas` of them and `rank=None`: the sampler then gives the batches of all ranks in turn, and the loader's
    epochs are the sampler's. Accelerate before 1.14 needs `even_batches=False` too, and says so. To resume within
    epoch 3, call the loader's `set_epoch(3)`, then `skip_first_batches`; where Trainer does both, call the sampler's
    own `set_epoch(3)` first, as Trainer's does not reach it.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        shuffle: bool,
        seed: int,
        num_replicas: int,
        rank: int | None,
        drop_last: bool,
    ) -> None:
        self.lengths = checked_lengths(lengths)
        if num_replicas < 1:
            raise ValueError(f"num_replicas must be 1 or more; got {num_replicas}. Pass the world size.")
        if rank is not None and not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be in 0..{num_replicas - 1}; got {rank}. Pass this process's rank.")
        if len(self.lengths) < num_replicas:
            raise ValueError(
                f"{num_replicas} replicas need at least {num_replicas} examples; got {len(self.lengths)}. "
                "Pass more examples or use fewer replicas."
            )
        if seed < 0:
            raise ValueError(f"seed must be 0 or more; got {seed}. Pass a non-negative integer.")
        self.shuffle = shuffle
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.drop_last = drop_last
        self.epoch = 0
        self._planned: tuple[int, EpochPlan] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next `iter` and `len` are about; ValueError if it is negative."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more; got {epoch}. Count epochs from 0.")
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        if self.rank is None and torch.distributed.is_available() and torch.distributed.is_initialized():
            processes = torch.distributed.get_world_size()
            if processes % self.num_replicas:
                raise ValueError(
                    f"batches distributed to {processes} processes need num_replicas that divides {processes}; "
                    f"got {self.num_replicas}. Pass num_replicas=accelerator.num_processes."
                )
        batches = self._epoch_plan().batches
        return map(list, batches if self.rank is None else batches[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        count = len(self._epoch_plan().batches)
        return count if self.rank is None else count // self.num_replicas

    @property
    def _dealt_out(self) -> bool:
        """Whether the batches are those of several ranks, for a loader to deal out."""
        return self.rank is None and self.num_replicas > 1

    @property
    def sampler(self) -> Self:
        """Itself, where a loader deals out the batches: accelerate hands its epoch to the `sampler` of what it deals.

        AttributeError else: of one process accelerate sets the epoch without it, and through it accelerate 1.12 would
        set that of a resumed run back to 0 (accelerate#4071).
        """
        if self._dealt_out:
            return self
        raise AttributeError("sampler")

    @property
    def batch_size(self) -> NoReturn:
        """Batches differ in size: AttributeError, and accelerate deals them out whole.

        It asks before it deals to several processes: ValueError where the batches are not those of several.
        """
        if self._dealt_out:
            raise AttributeError("batch_size")
        raise ValueError(
            f"a loader that distributes batches needs those of all ranks; got num_replicas={self.num_replicas} and "
            f"rank={self.rank}. Pass num_replicas=accelerator.num_processes and rank=None."
        )

    @property
    def dropped(self) -> tuple[int, ...]:
        """The indices that no rank sees in the current epoch; empty without `drop_last`."""
        return self._epoch_plan().dropped

    @property
    def most_batches(self) -> int:
        """The most batches that can be dealt to the ranks evenly, one example or more in each."""
        return len(self.lengths) // self.num_replicas * self.num_replicas

    @abstractmethod
    def _plan(self, generator: np.random.Generator) -> EpochPlan:
        """Return the plan of the epoch that `generator` was seeded for."""

    def _epoch_plan(self) -> EpochPlan:
        if self._planned is None or self._planned[0] != self.epoch:
            # The pair, not the sum: epoch 1 of seed 0 is not epoch 0 of seed 1.
            generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
            self._planned = (self.epoch, self._plan(generator))
        return self._planned[1]


def checked_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    """Return `lengths` as ints; ValueError if there is none, or for the first that is no positive integer."""
    # The elements of a tensor or an array are slow to visit, and not ints.
    values = lengths.tolist() if hasattr(lengths, "tolist") else lengths
    checked = []
    for index, value in enumerate(values):
        try:
            length = operator.index(value)
        except TypeError:
            length = 0
        if length < 1:
            raise ValueError(f"lengths[{index}] must be an integer of 1 or more; got {value!r}. Pass token counts.")
        checked.append(length)
    if not checked:
        raise ValueError("a batch sampler needs the length of at least one example; got none. Pass lengths.")
    return tuple(checked)


def split_to_multiple(
    batches: Sequence[Sequence[int]], lengths: Sequence[int], multiple: int
) -> tuple[tuple[int, ...], ...]:
    """Cut the batches with most tokens in two until their count divides by `multiple`.

    The halves stay neighbours, so that they fall on ranks of the same step. Some count that is a multiple
    must be at least that of the batches and at most that of the examples.
    """
    pieces = [[tuple(batch)] for batch in batches]

    def entry(place: int, batch: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        return -sum(lengths[index] for index in batch), place, batch

    heap = [entry(place, batch) for place, (batch,) in enumerate(pieces) if len(batch) > 1]
    heapq.heapify(heap)
    for _ in range(-len(batches) % multiple):
        _, place, batch = heapq.heappop(heap)
        halves = _halves(batch, lengths)
        at = pieces[place].index(batch)
        pieces[place][at : at + 1] = halves
        for half in halves:
            if len(half) > 1:
                heapq.heappush(heap, entry(place, half))
    return tuple(piece for group in pieces for piece in group)


def _halves(batch: tuple[int, ...], lengths: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut a batch of two or more in its order, where the two sides differ least in tokens."""
    *before, total = accumulate(lengths[index] for index in batch)
    apart = [abs(total - 2 * tokens) for tokens in before]
    cut = apart.index(min(apart)) + 1
    return batch[:cut], batch[cut:]
