"""The statistics of pairs: signs flipped as by hand, no more false alarms than promised, and slowdowns seen."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from gate.ab.pairs import (
    Spread,
    Threshold,
    confirmed,
    flagged,
    screened_shift,
    sign_flip_p,
    spreads,
    visible,
    worth_confirming,
)
from tests.meta.power import EVAL, TRAIN, World, rates

pytestmark = pytest.mark.meta

CORE = World((TRAIN,) * 8 + (EVAL,) * 8)
WHOLE = World((TRAIN,) * 20 + (EVAL,) * 20)
ONE = {"cell": Spread(0.01, 4)}


def at_most(share: float, runs: int) -> float:
    """The largest share of `runs` that a true share would show in 999 of 1000 tries."""
    return float(stats.binom.ppf(0.999, runs, share)) / runs


def by_hand(scaled: np.ndarray) -> list[float]:
    """Step-down max-T as the textbook has it, one set of cells after another."""
    sums = [np.array(signs) @ scaled for signs in itertools.product((1, -1), repeat=len(scaled))]
    left, p, worst = list(range(scaled.shape[1])), {}, 0.0
    while left:
        top = max(left, key=lambda cell: sums[0][cell])
        worst = max(worst, float(np.mean([max(one[left]) >= sums[0][top] - 1e-9 for one in sums])))
        p[top] = worst
        left.remove(top)
    return [p[cell] for cell in sorted(p)]


@pytest.mark.parametrize(("rows", "columns"), [(5, 1), (5, 4), (6, 3), (7, 2)])
def test_p_is_that_of_every_sign_flip(rows: int, columns: int):
    scaled = np.random.default_rng(rows * columns).standard_normal((rows, columns)) + np.linspace(0, 1, columns)
    assert sign_flip_p(scaled) == pytest.approx(by_hand(scaled))


@pytest.mark.parametrize("rows", [5, 6, 8])
def test_p_cannot_be_smaller_than_the_signs_allow(rows: int):
    assert sign_flip_p(np.ones((rows, 1))) == pytest.approx([2.0**-rows])
    assert sign_flip_p(np.arange(1.0, rows + 1)[:, None]) == pytest.approx([2.0**-rows])


def test_ties_count_against_a_difference():
    assert sign_flip_p(np.zeros((6, 2))) == pytest.approx([1.0, 1.0])
    # One pair without any difference: its sign makes no difference either.
    assert sign_flip_p(np.array([[0.0], [1], [1], [1], [1], [1]])) == pytest.approx([2 / 64])
    # Rounded otherwise, and equal for all that.
    assert sign_flip_p(np.array([[0.1], [0.2], [0.3], [-0.3], [-0.2], [-0.1]]))[0] >= 0.5


def test_a_quiet_cell_pays_for_the_noise_of_another():
    quiet, noisy = [0.02, 0.021, 0.019, 0.02, 0.02, -0.001], [0.2, -0.1, 0.3, -0.2, 0.15, -0.3]
    alone = confirmed({"quiet": quiet}, {"quiet": Spread(0.005, 4)}, alpha=0.05)["quiet"]
    noise = {"quiet": Spread(0.005, 4), "noisy": Spread(0.005, 4)}
    beside = confirmed({"quiet": quiet, "noisy": noisy}, noise, alpha=0.05)["quiet"]
    assert beside.p_slower > alone.p_slower


def test_slowdowns_and_speedups_mirror_each_other():
    logs = [0.02, 0.01, 0.03, -0.001, 0.02, 0.02]
    slower = confirmed({"cell": logs}, ONE, alpha=0.05)["cell"]
    faster = confirmed({"cell": [-log for log in logs]}, ONE, alpha=0.05)["cell"]
    assert (slower.p_slower, slower.log_ratio, slower.high) == pytest.approx(
        (faster.p_faster, -faster.log_ratio, -faster.low)
    )
    assert slower.p_slower < 0.05 < slower.p_faster


def test_a_pair_without_a_time_is_left_out_of_its_cell_alone():
    whole = [0.02, 0.018, 0.022, 0.021, 0.019]
    found = confirmed({"cell": [*whole, math.nan]}, ONE, alpha=0.05)["cell"]
    assert (found.pairs, found.log_ratio) == (5, pytest.approx(0.02))
    # The sign of the missing pair cannot matter: 2 of 64 flips are as extreme.
    assert found.p_slower == pytest.approx(2 / 64)
    both = confirmed({"cell": [*whole, math.nan], "other": [0.0] * 6}, ONE | {"other": ONE["cell"]}, alpha=0.05)
    assert both["other"].pairs == 6


@pytest.mark.parametrize("logs", [[0.02] * 4, [0.02] * 4 + [math.nan] * 2, [0.02] * 17])
def test_too_few_or_too_many_pairs_are_refused(logs: list[float]):
    with pytest.raises(ValueError, match="a confirmation takes 5 to 16 pairs"):
        confirmed({"cell": logs}, ONE, alpha=0.05)


def test_nothing_flagged_is_nothing_judged():
    assert confirmed({}, {}, alpha=0.05) == {}


def test_noise_of_few_pairs_is_drawn_towards_that_of_all_cells():
    found = spreads({"quiet": [0.0, 0.0], "noisy": [-0.01, 0.01], "one pair": [0.5]})
    common = math.sqrt((0.0 + 0.0002) / 2)
    assert 0 < found["quiet"].sd < common < found["noisy"].sd < math.sqrt(0.0002)
    assert found["one pair"].sd == pytest.approx(common)
    assert spreads({"one pair": [0.5]}) == {}


def test_a_cell_that_is_noisier_than_the_others_hides_none_of_them():
    quiet = {f"cell {number}": [0.004, -0.003 + 0.0005 * number] for number in range(8)}
    found = spreads(quiet | {"noisy": [-0.12, 0.01], "one pair": [0.5]})
    assert {cell for cell, noise in found.items() if noise.apart} == {"noisy"}
    assert found["noisy"].sd == pytest.approx(np.std([-0.12, 0.01], ddof=1))
    assert max(found[cell].sd for cell in [*quiet, "one pair"]) < 0.01
    # Its two pairs tell nothing, so it has others, whatever the threshold.
    assert worth_confirming([-0.06, 0.06], found["noisy"], 0.01)
    assert worth_confirming([-0.06, 0.06], found["noisy"], 0.2)
    assert not worth_confirming([-0.003, 0.003], found["cell 1"], 0.01)


def test_fresh_pairs_tell_how_noisy_a_cell_is():
    fresh = [0.002, -0.001, 0.001, 0.0, -0.002, 0.001]
    found = confirmed({"cell": fresh}, {"cell": Spread(0.08, 1, apart=True)}, alpha=0.05)["cell"]
    assert found.noise.sd < 0.04
    assert confirmed({"cell": fresh}, {"cell": Spread(0.08, 4)}, alpha=0.05)["cell"].noise.sd > 0.04
    # Nor does a screening that happened to be quiet narrow the interval of a noisy one much.
    noisy = confirmed({"cell": [0.1, -0.08, 0.05, -0.1, 0.02, 0.03]}, {"cell": Spread(0.005, 5)}, alpha=0.05)["cell"]
    assert noisy.noise.sd > 0.06


def test_a_slowdown_beside_cells_that_jump_is_found():
    found = rates(World((6.0, 4.0, *CORE.noise[2:])), 2.0, 2000, 6)
    assert found["detected"] >= 0.95
    assert found["false alarm"] <= at_most(0.05, 2000)
    assert found["intervals hold"] >= 1 - at_most(0.05, 2000)


def test_equal_times_have_no_infinite_weight():
    found = spreads({"a": [0.01, 0.01], "b": [0.01, 0.01]})
    assert all(spread.sd > 0 for spread in found.values())


def test_a_change_must_pass_both_thresholds():
    assert Threshold(1, 20).log(50.0) == pytest.approx(math.log(1.01))
    assert Threshold(1, 20).log(0.5) == pytest.approx(math.log(1.04))


def test_slowdowns_are_flagged_sooner_than_speedups():
    assert flagged(0.007, 0.01)
    assert not flagged(-0.007, 0.01)
    assert flagged(-0.011, 0.01)
    assert not flagged(0.005, 0.01)


def test_more_pairs_show_smaller_slowdowns():
    assert visible(Spread(0.0085, 4), 6, 0.01) < visible(Spread(0.0085, 4), 2, 0.01) < 0.02
    assert visible(Spread(0.03, 4), 2, 0.01) > 0.02


def test_an_interval_for_more_cells_is_wider():
    few, many = (screened_shift([0.01, 0.02], Spread(0.01, 4), cells, alpha=0.05) for cells in (1, 40))
    assert few.low < few.log_ratio < few.high
    assert many.low < few.low
    assert many.high > few.high


def test_signs_alone_keep_the_family_wise_error():
    # All 40 cells are confirmed and no threshold helps: the promise itself.
    runs, rng, alarms = 600, np.random.default_rng(3), 0
    noise = {str(cell): Spread(0.01, 4) for cell in range(40)}
    for _ in range(runs):
        logs = World(WHOLE.noise, shared=0.3, tails=4).pairs(rng, 6, np.zeros(40))
        found = confirmed({str(cell): column for cell, column in enumerate(logs.T)}, noise, alpha=0.05)
        alarms += any(shift.p_slower <= 0.05 for shift in found.values())
    assert 0 < alarms / runs <= at_most(0.05, runs)


@pytest.mark.parametrize(
    "world",
    [WHOLE, World(WHOLE.noise, tails=4), World(WHOLE.noise, shared=0.5), World(WHOLE.noise, second=0.3)],
    ids=["normal", "heavy tails", "shared", "order"],
)
def test_unchanged_code_raises_an_alarm_in_fewer_than_5_percent(world: World):
    runs = 400
    found = rates(world, 0.0, runs, 1)
    assert found["false alarm by signs alone"] <= at_most(0.05, runs)
    assert found["false alarm"] <= at_most(0.01, runs)
    assert found["false speedup"] <= at_most(0.01, runs)
    assert found["intervals hold"] >= 1 - at_most(0.05, runs)


def test_2_percent_in_one_noisy_cell_are_found():
    found = rates(CORE, 2.0, 400, 2)
    assert found["detected"] >= 0.96
    assert found["false alarm"] <= at_most(0.01, 400)


def test_an_interval_that_holds_no_change_shows_none():
    logs = [0.05, 0.001, 0.04, 0.002, 0.06, 0.001]
    found = confirmed({"cell": logs}, {"cell": Spread(0.05, 5)}, alpha=0.05)["cell"]
    assert found.p_slower <= 0.05
    assert found.low < 0
    assert found.shown(alpha=0.05) == ""
    quiet = confirmed({"cell": logs}, {"cell": Spread(0.001, 50)}, alpha=0.05)["cell"]
    assert quiet.shown(alpha=0.05) == "slower"
    faster = confirmed({"cell": [-log for log in logs]}, {"cell": Spread(0.001, 50)}, alpha=0.05)["cell"]
    assert faster.shown(alpha=0.05) == "faster"
    assert faster.shown(alpha=0.01) == ""


def test_noise_of_3_percent_raises_no_more_alarms():
    assert rates(World((3.0,) * 12), 0.0, 400, 4)["false alarm"] <= at_most(0.01, 400)


def test_half_of_the_threshold_is_not_reported():
    assert rates(CORE, 0.5, 300, 3)["detected"] <= 0.1
