"""What every length distribution shares: its interface, its argument checks and its seeded draws."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class LengthDistribution(Protocol):
    """A named source of sequence lengths, in tokens.

    `draw` returns `count` lengths, each in 1..max_length, that follow from its arguments alone;
    ValueError for a count or maximum below 1, for a negative seed, or where no length can be had.
    """

    @property
    def name(self) -> str:
        """What selects it, and what results are recorded under."""
        ...

    def draw(self, count: int, max_length: int, seed: int) -> list[int]:
        """Return `count` lengths in 1..max_length."""
        ...

    def excluded(self, max_length: int) -> int:
        """Return how many lengths of the source are over `max_length`, and so never drawn."""
        ...


def seeded(count: int, max_length: int, seed: int) -> np.random.Generator:
    """Return the generator of a draw; ValueError if one of the draw's arguments is out of range."""
    if count < 1:
        raise ValueError(f"a draw needs a count of 1 or more; got {count}. Ask for at least one length.")
    if max_length < 1:
        raise ValueError(f"a draw needs a max_length of 1 or more; got {max_length}. Allow one token.")
    if seed < 0:
        raise ValueError(f"a draw needs a seed of 0 or more; got {seed}. Pass a non-negative integer.")
    return np.random.Generator(np.random.PCG64(seed))


def permutation(size: int, generator: np.random.Generator) -> list[int]:
    """Return 0..size-1 in an order drawn from `generator`.

    It sorts plain doubles: numpy keeps that stream over releases, not that of `Generator.permutation`.
    """
    order: list[int] = np.argsort(generator.random(size), kind="stable").tolist()
    return order


def without_replacement(lengths: Sequence[int], count: int, generator: np.random.Generator) -> list[int]:
    """Return `count` of `lengths`, each once before any comes again; every pass has an order of its own."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn.extend(lengths[index] for index in permutation(len(lengths), generator)[: count - len(drawn)])
    return drawn
