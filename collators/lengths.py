"""Length distributions by name, and the registry of them all."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from collators.length_draws import LengthDistribution, seeded, without_replacement
from collators.length_file import FileLengths, read_lengths_file

__all__ = [
    "DISTRIBUTIONS",
    "FileLengths",
    "LengthDistribution",
    "RecordedLengths",
    "SampledLengths",
    "distribution_named",
    "read_lengths_file",
]

RECORDED = Path(__file__).parent / "data" / "recorded_lengths.npy"

#: Of the lognormal, before it is cut at the maximum: the median's share of the maximum, and the spread.
LOGNORMAL_MEDIAN = 1 / 8
LOGNORMAL_SIGMA = 1.0

#: Of the bimodal: the share of short sequences; both modes are an eighth of the maximum wide.
BIMODAL_SHORT = 0.8


@dataclass(frozen=True)
class SampledLengths:
    """Lengths from a formula: `sample(generator, count, max_length)` returns them."""

    name: str
    sample: Callable[[np.random.Generator, int, int], list[int]]

    def draw(self, count: int, max_length: int, seed: int) -> list[int]:
        """Return `count` lengths in 1..max_length; ValueError for an argument out of range."""
        return self.sample(seeded(count, max_length, seed), count, max_length)

    def excluded(self, max_length: int) -> int:
        """Return 0: a formula keeps to the maximum."""
        return 0


@dataclass(frozen=True)
class RecordedLengths:
    """Lengths of real documents, without replacement, cycling; `data/README.md` says which documents.

    Documents longer than the maximum are neither cut nor drawn: only those that fit take part, and
    `excluded` counts the others. ValueError if none fits.
    """

    name: str

    def draw(self, count: int, max_length: int, seed: int) -> list[int]:
        """Return `count` lengths of documents that fit `max_length`; ValueError if none does."""
        generator = seeded(count, max_length, seed)
        recorded = recorded_lengths()
        fitting = [length for length in recorded if length <= max_length]
        if not fitting:
            raise ValueError(
                f"{self.name} lengths need a max_length of {min(recorded)} or more, the shortest document; "
                f"got {max_length}. Raise it or choose another distribution."
            )
        return without_replacement(fitting, count, generator)

    def excluded(self, max_length: int) -> int:
        """Return how many of the recorded documents are longer than `max_length`, and so never drawn."""
        return sum(length > max_length for length in recorded_lengths())


@functools.cache
def recorded_lengths() -> tuple[int, ...]:
    """Return the token counts of `data/recorded_lengths.npy` in the order they were recorded."""
    return tuple(np.load(RECORDED, allow_pickle=False).tolist())


def uniform(generator: np.random.Generator, count: int, max_length: int) -> list[int]:
    """Draw integers uniform in 1..max_length-1, as the article does; a max_length of 1 gives ones."""
    drawn: list[int] = generator.integers(1, max(2, max_length), count).tolist()
    return drawn


def lognormal(generator: np.random.Generator, count: int, max_length: int) -> list[int]:
    """Draw a long right tail: a lognormal conditioned on its being at most `max_length`, rounded up.

    Without the cut its median would be an eighth of the maximum, and 2 % of it would be over.
    """
    normal = NormalDist(math.log(LOGNORMAL_MEDIAN), LOGNORMAL_SIGMA)
    below_maximum = normal.cdf(0.0)
    shares = (1.0 - generator.random(count)) * below_maximum
    return [min(max_length, math.ceil(max_length * math.exp(normal.inv_cdf(p)))) for p in shares.tolist()]


def bimodal(generator: np.random.Generator, count: int, max_length: int) -> list[int]:
    """Draw 80 % from the shortest eighth of 1..max_length and 20 % from the longest, uniform in each."""
    width = max(1, max_length // 8)
    return [
        1 + int(position * width) + (0 if mode < BIMODAL_SHORT else max_length - width)
        for mode, position in generator.random((count, 2)).tolist()
    ]


def zipf(generator: np.random.Generator, count: int, max_length: int) -> list[int]:
    """Draw length k of 1..max_length with a probability in proportion to 1/k."""
    cumulative = np.cumsum(1.0 / np.arange(1, max_length + 1))
    below = np.searchsorted(cumulative, generator.random(count) * cumulative[-1], side="right")
    drawn: list[int] = np.minimum(below + 1, max_length).tolist()
    return drawn


def equal(generator: np.random.Generator, count: int, max_length: int) -> list[int]:
    """Return `max_length` every time: the one batch in which padding costs nothing."""
    return [max_length] * count


#: Every distribution, in the order it is listed to users. A new one is a function and a line here.
DISTRIBUTIONS: tuple[LengthDistribution, ...] = (
    SampledLengths("uniform", uniform),
    SampledLengths("lognormal", lognormal),
    SampledLengths("bimodal", bimodal),
    SampledLengths("zipf", zipf),
    SampledLengths("equal", equal),
    RecordedLengths("recorded"),
)


def distribution_named(name: str) -> LengthDistribution:
    """Return the distribution called `name`; ValueError lists the names."""
    for distribution in DISTRIBUTIONS:
        if distribution.name == name:
            return distribution
    known = ", ".join(distribution.name for distribution in DISTRIBUTIONS)
    raise ValueError(f"unknown length distribution {name!r}; choose one of: {known}.")
