"""Judges cells from pairs of fresh processes, base and head: which to confirm, and what the confirmation shows.

Everything is a log of head / base, one number a pair. Two families are judged, slowdowns and speedups, each with a
family-wise error of at most `alpha`: the first is the alarm, and no speedup takes from its power.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gate.baseline.noise import Component, noisier

Floats = NDArray[np.float64]

#: A slowdown in the screening of this share of the threshold is confirmed. With 2 pairs of processes that differ by
#: 0.6% a slowdown of twice the threshold (2%) is passed over in 1 of 100 runs, and 1 in 6 unchanged cells is confirmed.
FLAG_SHARE = 0.6

#: A slowdown of so many thresholds is to be seen; where noise hides it, nothing is said.
TO_BE_SEEN = 2.0

#: A sign-flip p cannot be below 2 to the power of minus this many.
FEWEST_PAIRS = 5

#: The signs are enumerated.
MOST_PAIRS = 16

#: How many degrees of freedom the noise of all cells adds to what the pairs of one cell say about its own.
PRIOR_FREEDOM = 4

#: How many degrees of freedom the screening's noise counts for in a confirmation at most: a noisy cell whose two pairs
#: happened to agree has that of the quiet ones. With 5 its interval held in 93 of 100 simulated runs, with 3 in 96.
SCREENED_FREEDOM = 3

#: The share of `alpha` for intervals of the confirmation; those of the screening, where nothing is decided, have the
#: rest, so that all of a report hold at once.
CONFIRMED_SHARE = 0.8


@dataclass(frozen=True)
class Threshold:
    """What a change must pass to matter: both this many percent and this many microseconds."""

    percent: float = 1.0
    us: float = 20.0

    def log(self, base_ms: float) -> float:
        """The threshold of a cell that takes `base_ms`, as a log-ratio."""
        return max(math.log1p(self.percent / 100), math.log1p(self.us / 1e3 / base_ms))


@dataclass(frozen=True)
class Spread:
    """The standard deviation of one pair's log-ratio, and the degrees of freedom it was estimated with.

    `apart`: the cell is noisier than the others, and nothing but its own few pairs tells how much.
    """

    sd: float
    freedom: float
    apart: bool = False


@dataclass(frozen=True)
class Shift:
    """The change of a cell: mean log-ratio, simultaneous interval, what is known of a pair's noise, and p of a slowdown
    and of a speedup (None: not tested)."""

    log_ratio: float
    low: float
    high: float
    pairs: int
    noise: Spread
    p_slower: float | None = None
    p_faster: float | None = None

    def shown(self, *, alpha: float) -> str:
        """ "slower" or "faster" where the signs of fresh pairs show it and the interval leaves out no change, else "".

        The signs need no normality, and hold the family-wise error; with it alone a cell of much noise would be called
        slower while its interval, which knows how large the noise is, still holds no change at all.
        """
        if self.p_slower is not None and self.p_slower <= alpha and self.low > 0:
            return "slower"
        return "faster" if self.p_faster is not None and self.p_faster <= alpha and self.high < 0 else ""


def spreads(screened: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """The noise of each cell: its own variance over the screening pairs, drawn towards that of all cells.

    A few pairs say little about a variance, and cells of one device are alike, but for some that are noisier by far: on
    an H100 cells that wait for the host, by ten times. Those have their own alone. Cells with fewer than two pairs get
    the common value; nothing if no cell has two.
    """
    own = {
        cell: Component(float(np.std(logs, ddof=1)), len(logs) - 1, "its own")
        for cell, logs in screened.items()
        if len(logs) > 1
    }
    apart = noisier(own)
    alike = [one for cell, one in own.items() if cell not in apart]
    freedom = sum(one.df for one in alike)
    if not freedom:
        return {}
    common = sum(one.variance * one.df for one in alike) / freedom
    prior = min(PRIOR_FREEDOM, freedom)
    found = {}
    for cell in screened:
        one = own.get(cell, Component(0.0, 0, ""))
        if cell in apart:
            found[cell] = Spread(one.sd, one.df, apart=True)
            continue
        pooled = (prior * common + one.df * one.variance) / (prior + one.df)
        # Clocks tick: no spread at all would make any shift infinitely large.
        found[cell] = Spread(max(math.sqrt(pooled), 1e-9), prior + one.df)
    return found


def flagged(log_ratio: float, threshold: float) -> bool:
    """Tell whether a screened change is worth a confirmation: towards slower sooner than towards faster."""
    return log_ratio > FLAG_SHARE * threshold or log_ratio < -threshold


def worth_confirming(logs: Sequence[float], noise: Spread, threshold: float) -> bool:
    """Tell whether the screening flags a cell, or tells next to nothing of it: its noise is its own alone."""
    return flagged(float(np.mean(logs)), threshold) or noise.apart


def visible(noise: Spread, pairs: int, threshold: float, *, share: float = FLAG_SHARE) -> float:
    """The log-ratio of a slowdown that passes `share` of the threshold four times of five; less is hidden by noise."""
    return share * threshold + float(stats.norm.ppf(0.8)) * noise.sd / math.sqrt(pairs)


def confirmed(pairs: Mapping[str, Sequence[float]], noise: Mapping[str, Spread], *, alpha: float) -> dict[str, Shift]:
    """Judge cells by fresh pairs; NaN where a pair has no valid time for a cell, at least `FEWEST_PAIRS` others.

    One row of signs flips the pairs of all cells together, so whatever cells of a process share stays as it is. Cells
    are weighed against each other by the screening's `noise` and by the squares of the fresh pairs, which no sign
    changes: neither needs to be right, but a cell whose noise the screening missed must not drown the others.
    """
    if not pairs:
        return {}
    table = np.array(list(pairs.values()), dtype=float).T
    counts = np.isfinite(table).sum(axis=0)
    if counts.min() < FEWEST_PAIRS or len(table) > MOST_PAIRS:
        raise ValueError(f"a confirmation takes {FEWEST_PAIRS} to {MOST_PAIRS} pairs; got {counts.min()} for a cell.")
    known = np.array([noise[cell].freedom for cell in pairs])
    squares = known * np.array([noise[cell].sd for cell in pairs]) ** 2 + np.nansum(table**2, axis=0)
    scaled = np.nan_to_num(table) / np.sqrt(squares / (known + counts) * counts)
    slower, faster = sign_flip_p(scaled), sign_flip_p(-scaled)
    level = alpha * CONFIRMED_SHARE / len(pairs)
    shifts = {}
    for index, (cell, column) in enumerate(zip(pairs, table.T, strict=True)):
        logs = column[np.isfinite(column)]
        shifts[cell] = _shift(logs, _updated(noise[cell], logs), level, float(slower[index]), float(faster[index]))
    return shifts


def screened_shift(logs: Sequence[float], noise: Spread, cells: int, *, alpha: float) -> Shift:
    """The change of a cell by its screening pairs, with an interval for one of `cells`."""
    return _shift(np.array(logs), noise, alpha * (1 - CONFIRMED_SHARE) / cells)


def sign_flip_p(scaled: Floats) -> Floats:
    """The p of each column for a mean above 0, adjusted for all of them: step-down max-T over all signs of the rows.

    Under the null a pair's two processes could be swapped, which flips its row; each of the 2^n ways is as likely. A
    column is compared with the largest of those columns that are not further out than itself.
    """
    rows, columns = scaled.shape
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=rows)))
    sums = signs @ scaled
    seen = sums[0]
    order = np.argsort(-seen, kind="stable")
    largest = np.maximum.accumulate(sums[:, order[::-1]], axis=1)[:, ::-1]
    # Equal sums differ by rounding.
    reached = (largest >= seen[order] - 1e-9 * (1 + np.abs(seen[order]))).mean(axis=0)
    p = np.empty(columns)
    p[order] = np.maximum.accumulate(reached)
    return p


def _updated(noise: Spread, logs: Floats) -> Spread:
    """The noise of the screening, drawn towards that of a confirmation's own pairs."""
    own, screened = len(logs) - 1, min(noise.freedom, SCREENED_FREEDOM)
    freedom = screened + own
    variance = (screened * noise.sd**2 + own * float(np.var(logs, ddof=1))) / freedom
    return Spread(math.sqrt(variance), freedom)


def _shift(
    logs: Floats, noise: Spread, level: float, slower: float | None = None, faster: float | None = None
) -> Shift:
    """A mean with a t interval that leaves out `level` of its errors."""
    half = _quantile(1 - level / 2, noise.freedom) * noise.sd / math.sqrt(len(logs))
    mean = float(logs.mean())
    return Shift(mean, mean - half, mean + half, len(logs), noise, slower, faster)


@functools.cache
def _quantile(probability: float, freedom: float) -> float:
    return float(stats.t.ppf(probability, freedom))
