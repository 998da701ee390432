"""Noise between processes and sessions is what simulated processes were drawn with, and intervals keep their word."""

import math

import numpy as np
import pytest

from gate.baseline.noise import DEFAULT, DEFAULT_DF, PROCESS_DEFAULTS, SESSION_DEFAULTS, family_quantile, noise

pytestmark = pytest.mark.meta

GROUP = ("device", "train", "eager")


def drawn(rng, *, cells, sessions, processes, process_sd, session_sd, common=0.0):
    """Log times of `cells`; a share `common` of both variances is the same for all cells."""
    found = {}
    every_session = rng.normal(size=sessions)
    every_process = rng.normal(size=(sessions, processes))
    for cell in range(cells):
        effect = math.sqrt(common) * every_session + math.sqrt(1 - common) * rng.normal(size=sessions)
        own = math.sqrt(common) * every_process + math.sqrt(1 - common) * rng.normal(size=(sessions, processes))
        logs = cell + session_sd * effect[:, None] + process_sd * own
        found[f"cell{cell}"] = [(f"s{s}", float(logs[s, p])) for s in range(sessions) for p in range(processes)]
    return found


def test_variance_components_are_what_was_drawn():
    rng = np.random.default_rng(0)
    draws = [
        noise(GROUP, drawn(rng, cells=8, sessions=6, processes=5, process_sd=0.004, session_sd=0.01)) for _ in range(60)
    ]
    assert np.mean([one.process.variance for one in draws]) == pytest.approx(0.004**2, rel=0.05)
    assert np.mean([one.session.variance for one in draws]) == pytest.approx(0.01**2, rel=0.1)
    assert draws[0].process.source == "measured on 30 processes"
    assert draws[0].session.source == "measured on 6 sessions"


def test_sessions_of_different_sizes_keep_the_components_apart():
    rng = np.random.default_rng(1)
    variances = []
    for _ in range(100):
        seen = drawn(rng, cells=8, sessions=5, processes=5, process_sd=0.004, session_sd=0.01)
        uneven = {cell: [pair for n, pair in enumerate(pairs) if n % 5 <= n // 5] for cell, pairs in seen.items()}
        variances.append(noise(GROUP, uneven).session.variance)
    assert np.mean(variances) == pytest.approx(0.01**2, rel=0.15)


@pytest.mark.parametrize(("sessions", "processes"), [(1, 1), (1, 2), (2, 1), (4, 1)])
def test_too_few_processes_take_the_defaults(sessions, processes):
    rng = np.random.default_rng(2)
    seen = drawn(rng, cells=1, sessions=sessions, processes=processes, process_sd=0.5, session_sd=0.5)
    found = noise(GROUP, seen)
    assert (found.process.sd, found.process.df) == (PROCESS_DEFAULTS["device", "train"], DEFAULT_DF)
    assert found.session.sd == SESSION_DEFAULTS["device"]
    assert found.process.source == found.session.source == "default"


def test_what_too_few_sessions_show_is_told_and_not_used():
    rng = np.random.default_rng(11)
    draws = [
        noise(GROUP, drawn(rng, cells=8, sessions=2, processes=6, process_sd=0.003, session_sd=0.01))
        for _ in range(200)
    ]
    assert {one.session.source for one in draws} == {"default"}
    assert np.mean([one.few_sessions.variance for one in draws]) == pytest.approx(0.01**2, rel=0.15)
    alone = noise(GROUP, drawn(rng, cells=8, sessions=1, processes=6, process_sd=0.003, session_sd=0.01))
    many = noise(GROUP, drawn(rng, cells=8, sessions=8, processes=3, process_sd=0.003, session_sd=0.01))
    assert alone.few_sessions is many.few_sessions is None


def test_one_session_measures_processes_and_takes_sessions_from_the_defaults():
    seen = drawn(np.random.default_rng(3), cells=8, sessions=1, processes=5, process_sd=0.004, session_sd=0.0)
    found = noise(GROUP, seen)
    assert found.process.source == "measured on 5 processes"
    assert found.session.source == "default"


def test_cells_that_move_together_do_not_count_as_many():
    rng = np.random.default_rng(4)
    shape = {"cells": 20, "sessions": 1, "processes": 5, "process_sd": 0.004, "session_sd": 0.0}
    together, apart = (noise(GROUP, drawn(rng, **shape, common=common)).process.df for common in (1.0, 0.0))
    assert together == pytest.approx(4)
    assert 10 < apart <= 16


def test_a_noisy_cell_is_judged_by_its_own_noise():
    rng = np.random.default_rng(5)
    seen = drawn(rng, cells=8, sessions=1, processes=6, process_sd=0.002, session_sd=0.0)
    seen["loud"] = [("s0", float(value)) for value in rng.normal(0, 0.05, 6)]
    found = noise(GROUP, seen)
    loud, quiet = (found.prediction(cell, new=1, shares=[6], same_session=True)[0] for cell in ("loud", "cell0"))
    assert loud > 2 * quiet


@pytest.mark.parametrize("processes", [3, 6])
def test_a_noisy_cell_takes_nothing_from_the_others(processes):
    rng = np.random.default_rng(6)
    seen = drawn(rng, cells=8, sessions=1, processes=processes, process_sd=0.002, session_sd=0.0)
    loud = [("s0", float(value)) for value in rng.normal(0, 0.1, processes)]
    found, without = noise(GROUP, seen | {"loud": loud}), noise(GROUP, seen)
    asked = {"new": 1, "shares": [processes], "same_session": True}
    assert found.prediction("cell0", **asked) == without.prediction("cell0", **asked)
    deviation, df = found.prediction("loud", **asked)
    assert deviation > 0.03
    assert df == processes - 1


def test_a_noisy_cell_is_noisy_between_sessions_too():
    rng = np.random.default_rng(9)
    found = []
    for _ in range(40):
        seen = drawn(rng, cells=8, sessions=7, processes=3, process_sd=0.002, session_sd=0.0)
        levels = rng.normal(0, 0.1, 7)
        seen["loud"] = [(f"s{s}", float(levels[s] + rng.normal(0, 0.03))) for s in range(7) for _ in range(3)]
        deviation, df = noise(GROUP, seen).prediction("loud", new=1, shares=[3] * 7, same_session=False)
        found.append(deviation**2)
        assert df < 20
    true = 0.1**2 * (1 + 1 / 7) + 0.03**2 * (1 + 1 / 21)
    assert np.mean(found) == pytest.approx(true, rel=0.25)
    # Of one session nothing tells: it is taken to be as much noisier as between processes.
    one = drawn(rng, cells=8, sessions=1, processes=6, process_sd=0.002, session_sd=0.0)
    one["loud"] = [("s0", float(value)) for value in rng.normal(0, 0.1, 6)]
    told = noise(GROUP, one)
    loud, quiet = (told.prediction(c, new=1, shares=[6], same_session=False)[0] for c in ("loud", "cell0"))
    assert loud > 10 * quiet


def test_cells_that_are_alike_are_seldom_taken_for_noisier_ones():
    rng = np.random.default_rng(7)
    groups = [
        noise(GROUP, drawn(rng, cells=12, sessions=1, processes=5, process_sd=0.004, session_sd=0.0))
        for _ in range(300)
    ]
    assert sum(bool(group.apart) for group in groups) <= 12


def test_a_new_session_costs_precision_and_more_processes_gain_it():
    found = noise(GROUP, {"cell": [("s0", 0.0)]})
    same = found.prediction("cell", new=1, shares=[5], same_session=True)
    other = found.prediction("cell", new=1, shares=[5], same_session=False)
    assert same[0] == pytest.approx(0.003 * math.sqrt(1.2))
    assert other[0] == pytest.approx(math.sqrt(0.003**2 * 1.2 + 0.015**2 * 2))
    assert found.prediction("cell", new=3, shares=[5], same_session=True)[0] < same[0]
    assert found.prediction("cell", new=1, shares=[3, 2], same_session=False)[0] < other[0]


@pytest.mark.parametrize(("sessions", "measured"), [(4, False), (5, True)])
def test_five_sessions_are_enough_where_all_cells_move_together(sessions, measured):
    rng = np.random.default_rng(9)
    sizes = {"process_sd": 0.003, "session_sd": 0.01, "common": 1.0}
    draws = [noise(GROUP, drawn(rng, cells=16, sessions=sessions, processes=2, **sizes)) for _ in range(20)]
    assert {found.session.source != DEFAULT for found in draws} == {measured}


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("sessions", "processes"), [(1, 5), (3, 5)])
def test_intervals_hold_for_all_cells_at_once(sessions, processes, common):
    rng = np.random.default_rng(6)
    sizes = {"process_sd": 0.003, "session_sd": SESSION_DEFAULTS["device"]}
    cells, outside, draws = 24, 0, 200
    for _ in range(draws):
        # The last session is that of the new process.
        shape = {"cells": cells, "sessions": sessions + 1, "processes": processes}
        seen = drawn(rng, **shape, **sizes, common=common)
        olds = {cell: pairs[:-processes] for cell, pairs in seen.items()}
        found = noise(GROUP, olds)
        far = []
        for cell, pairs in seen.items():
            deviation, df = found.prediction(cell, new=1, shares=[processes] * sessions, same_session=False)
            change = pairs[-1][1] - np.mean([value for _, value in olds[cell]])
            far.append(abs(change) > deviation * family_quantile(df, cells, 0.05))
        outside += any(far)
    # Three standard errors of a share of 5% in 200 draws.
    assert outside / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_the_family_quantile_grows_with_the_family():
    assert family_quantile(math.inf, 1, 0.05) == pytest.approx(1.96, abs=0.001)
    assert family_quantile(30, 24, 0.05) > family_quantile(30, 2, 0.05) > family_quantile(300, 2, 0.05)
