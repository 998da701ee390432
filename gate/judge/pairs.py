"""Judges live pairs: blocks of steps tell one pair's change, and fresh pairs tell whether a flagged cell changed.

Everything is a log of head / base. Blocks of one pair share the memory layout that its two processes happened to get;
so a screening flags cells, and only pairs of fresh processes call one slower or faster.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gate.judge.verdicts import Change

#: The share of values left out at each end: a host that was busy elsewhere spoils a few steps by any amount.
TRIMMED = 0.2

#: A pair runs at least so many blocks on each side, and more until the standard error of its change is at most this
#: share of the threshold, up to the most.
FEWEST_BLOCKS, MOST_BLOCKS = 12, 60
PRECISE = 1 / 3

#: A slowdown in the screening of this share of the threshold is settled by fresh pairs.
FLAG_SHARE = 0.6

#: A slowdown of so many thresholds is to be seen; where noise hides it, the cell is inconclusive.
TO_BE_SEEN = 2.0

#: Fresh pairs that settle a flagged cell, at least and at most: after each of them from the first number on its
#: interval is looked at.
FEWEST_PAIRS, MOST_PAIRS = 2, 5

#: What is not flagged tells the noise of flagged cells where it is more than this share of all: where it is less, noise
#: itself may have flagged the others, and what is left shows too little of it.
QUIET_SHARE = 0.5

#: The degrees of freedom that the noise between all pairs of the screening counts for, at most: a cell that is noisier
#: from process to process than the others shows it in its own few pairs.
SCREENED_FREEDOM = 3

#: The share of `alpha` for settled cells; the intervals of the others, of which nothing is decided, have the rest.
SETTLED_SHARE = 0.8


@dataclass(frozen=True)
class PairChange:
    """The change of a cell in one live pair, and its standard error by the scatter of the pair's blocks."""

    log: float
    error: float
    blocks: int


@dataclass(frozen=True)
class Noise:
    """The standard deviation of one pair's change between pairs of processes, and its degrees of freedom.

    `of_most` tells whether it is that of most cells, so that it holds for the flagged ones too.
    """

    sd: float
    freedom: int
    of_most: bool = True


def host_deficit_ms(ahead_ms: Sequence[float], lead_ms: Sequence[float], steps: int) -> float:
    """Return how much longer a step's launches take than the device's work, in ms; 0 where the device takes longer.

    Each block of `steps` was launched ahead of the device by `ahead_ms`, and the host had `lead_ms` left at its end: a
    loop pays for what it lost. The least of all blocks, as another program on the host only ever adds to it.
    """
    lost = np.asarray(ahead_ms, dtype=float) - np.asarray(lead_ms, dtype=float)
    return max(0.0, float(lost.min()) / steps)


def block_log(
    base_ms: Sequence[float], head_ms: Sequence[float], base_deficit_ms: float = 0.0, head_deficit_ms: float = 0.0
) -> float:
    """Return the log of head / base of one block, each step beside the step on the same batch."""
    head = np.asarray(head_ms, dtype=float) + head_deficit_ms
    logs = np.log(head / (np.asarray(base_ms, dtype=float) + base_deficit_ms))
    return float(_trimmed(np.sort(logs)).mean())


def pair_change(blocks: Sequence[float]) -> PairChange:
    """Return the trimmed mean of a pair's blocks and its standard error (Yuen's, from the winsorised variance)."""
    logs = np.sort(np.asarray(blocks, dtype=float))
    count = len(logs)
    cut = int(TRIMMED * count)
    kept = _trimmed(logs)
    if count < 2:
        return PairChange(float(kept.mean()), math.inf, count)
    winsorised = np.clip(logs, kept[0], kept[-1])
    error = float(winsorised.std(ddof=1)) * math.sqrt(count) / (count - 2 * cut)
    # Clocks tick: no scatter at all would make any change infinitely sure.
    return PairChange(float(kept.mean()), max(error, 1e-6), count)


def precise(change: PairChange, threshold: float) -> bool:
    """Tell whether a pair has run enough blocks for a threshold (a log-ratio)."""
    enough = change.blocks >= FEWEST_BLOCKS and change.error <= PRECISE * threshold
    return enough or change.blocks >= MOST_BLOCKS


def flagged(change: PairChange, threshold: float) -> bool:
    """Tell whether a screened change is to be settled: towards slower sooner than towards faster."""
    return change.log > FLAG_SHARE * threshold or change.log < -threshold


def screening_noise(unflagged: Sequence[PairChange], cells: int) -> Noise:
    """Return the noise of one pair by those of all `cells` that are not flagged: they scatter about no change."""
    logs = np.array([one.log for one in unflagged])
    sd = float(np.sqrt(np.mean(logs**2))) if len(logs) else 0.0
    return Noise(sd, len(logs), len(logs) > QUIET_SHARE * cells)


def screened(change: PairChange, noise: Noise, cells: int, *, alpha: float) -> Change:
    """Return the change of a cell that is not settled, with an interval for one of `cells`."""
    freedom = max(noise.freedom, change.blocks - 1, 1)
    half = _t(alpha * (1 - SETTLED_SHARE) / cells, freedom) * max(noise.sd, change.error)
    return Change(change.log, change.log - half, change.log + half)


def settled(pairs: Sequence[PairChange], noise: Noise, cells: int, *, alpha: float) -> Change:
    """Return the change of a flagged cell by its fresh pairs, with an interval for one of `cells` at every look.

    The scatter between the pairs counts, drawn towards the screening's noise, and no less than what blocks tell.
    """
    logs = np.array([one.log for one in pairs])
    count, known = len(logs), min(noise.freedom, SCREENED_FREEDOM) if noise.of_most else 0
    freedom = known + count - 1
    variance = (known * noise.sd**2 + float(np.sum((logs - logs.mean()) ** 2))) / freedom
    sd = max(math.sqrt(variance), float(np.mean([one.error for one in pairs])))
    looks = MOST_PAIRS - FEWEST_PAIRS + 1
    half = _t(alpha * SETTLED_SHARE / (cells * looks), freedom) * sd / math.sqrt(count)
    mean = float(logs.mean())
    return Change(mean, mean - half, mean + half)


def decided(change: Change, threshold: float) -> bool:
    """Tell whether no further pair is needed: the cell is slower, faster, or surely within the threshold."""
    shown = (change.low > 0 or change.high < 0) and abs(change.log) > threshold
    return shown or (change.high < threshold and change.low > -threshold)


def _trimmed(ordered: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    cut = int(TRIMMED * len(ordered))
    return ordered[cut : len(ordered) - cut]


def _t(level: float, freedom: float) -> float:
    # Not at the top: every session of pytest imports the gate, and scipy takes its time.
    from scipy.special import stdtrit

    return -float(stdtrit(freedom, level / 2))
