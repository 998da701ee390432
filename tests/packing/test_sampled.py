"""What is wrong with a sampler is said, and what is right is let alone."""

import re

import pytest

from tests.packing.sampled import batches_of, counts_wrong, indices_wrong, ranks_taken, samplers_of

pytestmark = pytest.mark.packing

LENGTHS = [5] * 10


class InPairs:
    """Pairs of neighbours, dealt to ranks in turn; what is over is dropped."""

    def __init__(self, lengths, num_replicas=1, rank=0):
        count = len(lengths) // 2 // num_replicas * num_replicas
        self.batches = [[2 * number, 2 * number + 1] for number in range(count)][rank::num_replicas]
        self.dropped = tuple(range(2 * count, len(lengths)))

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def test_a_right_sampler_is_right():
    for ranks in (1, 2, 3):
        samplers = samplers_of(InPairs, LENGTHS, ranks)
        batches = [batches_of(sampler) for sampler in samplers]
        assert indices_wrong(batches, samplers[0].dropped, len(LENGTHS)) == []
        assert counts_wrong(batches, [len(sampler) for sampler in samplers]) == []
    assert (ranks_taken(InPairs, 3), ranks_taken(lambda lengths: InPairs(lengths), 3)) == (3, 1)


def test_what_is_wrong_is_said():
    pairs = batches_of(InPairs(LENGTHS))
    assert indices_wrong([pairs[1:]], (), 10) == [
        "2 of 10 indices are in no batch, and not in dropped (the first is 0)"
    ]
    assert indices_wrong([pairs[1:]], (0, 1), 10) == []
    assert indices_wrong([pairs, pairs[:1]], (), 10) == ["2 of 10 indices come more than once (the first is 0)"]
    assert indices_wrong([[*pairs, [12]]], (), 10) == ["1 of 10 indices do not exist (the first is 12)"]
    assert counts_wrong([pairs, pairs[1:]], [5, 4]) == ["ranks have 5, 4 batches"]
    assert counts_wrong([pairs], [4]) == ["rank 0 has 5 batches, and len() says 4"]


def test_a_sampler_of_single_indices_is_refused():
    with pytest.raises(
        ValueError, match=f"^{re.escape('the sampler gave 0; a batch sampler gives lists of indices')}$"
    ):
        batches_of(range(10))
