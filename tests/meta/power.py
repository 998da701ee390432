"""Simulates A/B comparisons of processes whose noise is known: false alarms, power, and coverage of the intervals.

python -m tests.meta.power
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gate.ab.pairs import Threshold, confirmed, screened_shift, spreads, worth_confirming

Floats = NDArray[np.float64]

#: Noise between fresh processes on one H100, in percent: of evaluation and of training (docs/gate.md).
EVAL, TRAIN = 0.6, 0.3


@dataclass(frozen=True)
class World:
    """How processes scatter: a standard deviation in percent for each cell, `shared` of whose variance all cells of a
    process have in common; tails of Student's t with `tails` degrees of freedom (None: a normal distribution); and what
    being second in a pair adds, in percent."""

    noise: tuple[float, ...]
    shared: float = 0.0
    tails: int | None = None
    second: float = 0.0

    def process(self, rng: np.random.Generator, count: int) -> Floats:
        """Return the deviation of each cell's log time in `count` processes."""
        draws = [self._draw(rng, (count, width)) for width in (1, len(self.noise))]
        both = math.sqrt(self.shared) * draws[0] + math.sqrt(1 - self.shared) * draws[1]
        return both * np.array(self.noise) / 100

    def _draw(self, rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        if self.tails is None:
            return rng.standard_normal(shape)
        return rng.standard_t(self.tails, shape) / math.sqrt(self.tails / (self.tails - 2))

    def pairs(self, rng: np.random.Generator, count: int, effects: Floats) -> Floats:
        """Return the log-ratios of `count` pairs in turn, with `effects` in percent on head."""
        turns = np.where((np.arange(count) + rng.integers(2)) % 2, 1.0, -1.0)[:, None]
        noise = self.process(rng, count) - self.process(rng, count)
        return noise + turns * self.second / 100 + np.log1p(effects / 100)


@dataclass(frozen=True)
class Decision:
    """What one comparison said, by number of the cell."""

    slower: frozenset[int]
    faster: frozenset[int]
    significant: frozenset[int]
    confirmed: int
    covered: bool


def decide(
    world: World, rng: np.random.Generator, effects: Floats, *, screen: int = 2, confirm: int = 6, alpha: float = 0.05
) -> Decision:
    """Compare once as `python -m gate ab` does, on cells of 50 ms."""
    threshold, true = Threshold().log(50.0), np.log1p(effects / 100)
    seen = {str(cell): logs for cell, logs in enumerate(world.pairs(rng, screen, effects).T)}
    noise = spreads(seen)
    chosen = [cell for cell, logs in seen.items() if worth_confirming(list(logs), noise[cell], threshold)]
    fresh = world.pairs(rng, confirm, effects)
    shifts = {
        cell: screened_shift(logs, noise[cell], len(seen), alpha=alpha)
        for cell, logs in seen.items()
        if cell not in chosen
    }
    judged = confirmed({cell: fresh[:, int(cell)] for cell in chosen}, noise, alpha=alpha)
    significant = {cell for cell, shift in judged.items() if shift.p_slower is not None and shift.p_slower <= alpha}
    slower = {cell for cell, shift in judged.items() if shift.shown(alpha=alpha) == "slower"}
    faster = {cell for cell, shift in judged.items() if shift.shown(alpha=alpha) == "faster"}
    return Decision(
        frozenset(int(cell) for cell in slower if judged[cell].log_ratio > threshold),
        frozenset(int(cell) for cell in faster if judged[cell].log_ratio < -threshold),
        frozenset(map(int, significant)),
        len(chosen),
        all(shift.low <= true[int(cell)] <= shift.high for cell, shift in (shifts | judged).items()),
    )


def rates(world: World, effect: float, runs: int, seed: int, **pairs: int) -> dict[str, float]:
    """Compare `runs` times, with `effect` percent on the last cell; shares of the comparisons, and cells confirmed."""
    rng, cells = np.random.default_rng(seed), len(world.noise)
    effects = np.zeros(cells)
    effects[-1] = effect
    target = frozenset([cells - 1] if effect else [])
    found = [decide(world, rng, effects, **pairs) for _ in range(runs)]
    return {
        "detected": float(np.mean([bool(one.slower & target) for one in found])),
        "false alarm": float(np.mean([bool(one.slower - target) for one in found])),
        "false alarm by signs alone": float(np.mean([bool(one.significant - target) for one in found])),
        "false speedup": float(np.mean([bool(one.faster) for one in found])),
        "confirmed cells": float(np.mean([one.confirmed for one in found])),
        "intervals hold": float(np.mean([one.covered for one in found])),
    }


def main() -> None:
    """Print the tables of docs/gate.md as Markdown."""
    core = World((TRAIN,) * 8 + (EVAL,) * 8)
    whole = World((TRAIN,) * 20 + (EVAL,) * 20)
    print(
        "| slowdown of one noisy cell of 16 | detected | false alarm elsewhere | cells confirmed |\n|---|---|---|---|"
    )
    for effect in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0):
        row = rates(core, effect, 2000, int(10 * effect))
        shown = f"{row['detected']:.1%} | {row['false alarm']:.1%} | {row['confirmed cells']:.1f}"
        print(f"| {effect:g}% | {shown} |")
    worlds = {
        "normal": whole,
        "t with 4 degrees of freedom": World(whole.noise, tails=4),
        "half of the variance shared by a process": World(whole.noise, shared=0.5),
        "the second of a pair is slower by 0.3%": World(whole.noise, second=0.3),
        "four cells scatter by 6%": World((6.0,) * 4 + whole.noise[4:]),
    }
    names = list(rates(whole, 0.0, 1, 0))[1:]
    print(f"\n| 40 cells, A/A, noise | {' | '.join(names)} | +2% detected |\n|---|{'---|' * (len(names) + 1)}")
    for name, world in worlds.items():
        row, two = rates(world, 0.0, 2000, 1), rates(world, 2.0, 1000, 2)
        shown = [f"{row[key]:.1f}" if key == "confirmed cells" else f"{row[key]:.1%}" for key in names]
        print(f"| {name} | {' | '.join(shown)} | {two['detected']:.1%} |")


if __name__ == "__main__":
    main()
