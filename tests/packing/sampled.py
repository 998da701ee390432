"""Says what is wrong with the batches of a sampler from outside, over all ranks and epochs.

`make(lengths, num_replicas=N, rank=R)` returns the batch sampler of one rank: iterating it gives lists of indices. It
may leave `num_replicas` and `rank` out, and is then asked for one rank only. A sampler may have `set_epoch`, and
`dropped`: the indices that it leaves out of this epoch.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

Batches = list[list[int]]
Make = Callable[..., Any]


def ranks_taken(make: Make, most: int) -> int:
    """Return for how many ranks a sampler is asked: `most` if it takes `num_replicas` and `rank`, otherwise 1."""
    taken = inspect.signature(make).parameters
    free = any(each.kind is each.VAR_KEYWORD for each in taken.values())
    return most if free or {"num_replicas", "rank"} <= taken.keys() else 1


def samplers_of(make: Make, lengths: Sequence[int], ranks: int) -> list[Any]:
    """Return the sampler of each rank."""
    if ranks == 1:
        return [make(lengths)]
    return [make(lengths, num_replicas=ranks, rank=rank) for rank in range(ranks)]


def batches_of(sampler: Any, epoch: int = 0) -> Batches:
    """Return the batches of an epoch; ValueError for what are no lists of indices."""
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    found = []
    for batch in sampler:
        if isinstance(batch, int | str) or not hasattr(batch, "__iter__"):
            raise ValueError(f"the sampler gave {batch!r}; a batch sampler gives lists of indices")
        found.append([int(index) for index in batch])
    return found


def indices_wrong(ranks: Sequence[Batches], dropped: Sequence[int], size: int) -> list[str]:
    """Say which indices are lost, repeated or not there, over all ranks."""
    count = Counter(index for batches in ranks for batch in batches for index in batch)
    lost = sorted(set(range(size)) - count.keys() - set(dropped))
    again = sorted(index for index, times in count.items() if times > 1)
    strange = sorted(index for index in count if not 0 <= index < size)
    told = ((lost, "are in no batch, and not in dropped"), (again, "come more than once"), (strange, "do not exist"))
    return [f"{len(which)} of {size} indices {what} (the first is {which[0]})" for which, what in told if which]


def counts_wrong(ranks: Sequence[Batches], lengths: Sequence[int]) -> list[str]:
    """Say where a rank has another number of batches than the others, or than the length of its sampler says."""
    counts = [len(batches) for batches in ranks]
    problems = [f"ranks have {', '.join(map(str, counts))} batches"] if len(set(counts)) > 1 else []
    return problems + [
        f"rank {rank} has {count} batches, and len() says {said}"
        for rank, (count, said) in enumerate(zip(counts, lengths, strict=True))
        if count != said
    ]
