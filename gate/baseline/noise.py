"""How far a new process's time may lie from a baseline's without any change: noise between processes and sessions.

A cell's log time is its mean, plus a session's effect (the machine of that boot), plus a process's (memory layout,
clocks, what step and round noise leaves in the estimate). The two variances are estimated by the analysis of variance
of processes nested in sessions, pooled over the cells of a group (a mode and an execution), as a handful of processes
says little about one cell. Some cells are not like the others: those that wait for the host moved by 20 times as much
on one H100. They stay out of the pool, and are judged by what little is known of them. What a baseline has too few
processes or sessions to show comes from the defaults below.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

#: What a group's times are read from: the device's clock (*host*: of cells whose device waits for the host, as
#: `gate.host.waits_mostly` has it), the wall's, or the wall's over the pace beside it.
Kind = Literal["device", "host", "wall", "paced"]

#: A group of cells that share their noise: kind, mode, execution.
Group = tuple[Kind, str, str]

#: (session, log_ms) of one process.
Observation = tuple[str, float]


@dataclass(frozen=True)
class Component:
    """One source of noise: the standard deviation of log times, its degrees of freedom, and where it is from."""

    sd: float
    df: float
    source: str

    @property
    def variance(self) -> float:
        """The square of `sd`."""
        return self.sd**2


#: Fewer degrees of freedom than these measure no variance worth using: the default stands in. Five processes of one
#: session have 4, up to rounding, if all of their cells move together.
MIN_DF = 3.9

#: Fewer degrees of freedom than these tell nothing of one cell's own noise.
FEWEST_DF = 2

#: The probability that a cell like the others is taken for a noisier one, in a whole group of them.
OUTLIER_LEVEL = 0.01

#: Fewer cells than these have no others to be unlike.
FEWEST_CELLS = 4

#: Kind, mode -> noise between processes. The device's: 7 fresh processes on one H100, CV of the mean of 24 steps
#: (0.3% in training, 0.6% in evaluation). The wall's: 7 fresh processes of the smoke workload on two shared cores, 4%
#: to 14%; over the pace of each cell 0.4% to 4% (and 6% in one that is not like it), where a machine of another pace is
#: counted apart (`gate.estimates.PACE_SHARE_SD`). The host's: eager NestedTensors beside a calm host, 2%; beside one
#: that is not they have no time (`gate.host`).
PROCESS_DEFAULTS: dict[tuple[Kind, str], float] = {
    ("device", "train"): 0.003,
    ("device", "eval"): 0.006,
    ("host", "train"): 0.02,
    ("host", "eval"): 0.02,
    ("wall", "train"): 0.11,
    ("wall", "eval"): 0.11,
    ("paced", "train"): 0.03,
    ("paced", "eval"): 0.03,
}

#: Kind -> noise between sessions. The device's: two H100 machines on one day differed by 1.5%. The others were not
#: measured: they are guesses on the large side.
SESSION_DEFAULTS: dict[Kind, float] = {"device": 0.015, "host": 0.05, "wall": 0.05, "paced": 0.05}

#: The source of a component that was not measured.
DEFAULT = "default"

#: What the defaults count as: they were measured on few machines, and yours is another one.
DEFAULT_DF = 30.0


@dataclass(frozen=True)
class Noise:
    """The noise of a group of cells, and the within-session variance of each of them where it was measured.

    `apart` are the cells that are noisier than the group: only their own processes and sessions tell how much.
    `few_sessions` is what too few sessions show, where a default stands in for it: it is told, and not used.
    """

    process: Component
    session: Component
    cell_variances: Mapping[str, float]
    apart: Mapping[str, tuple[Component, Component]] = field(default_factory=dict)
    few_sessions: Component | None = None

    def prediction(self, cell: str, *, new: int, shares: Sequence[int], same_session: bool) -> tuple[float, float]:
        """The standard error and degrees of freedom of: mean of `new` processes - mean of a baseline's.

        `shares` is the number of the baseline's processes in each of its sessions. The new processes are of one
        session: one of these (`same_session`, then `shares` holds just that one), or another one.
        """
        total = sum(shares)
        between_processes, between_sessions = self.apart.get(cell, (self.process, self.session))
        process = max(between_processes.variance, self.cell_variances.get(cell, 0.0)) * (1 / new + 1 / total)
        session = 0.0 if same_session else between_sessions.variance * (1 + sum((n / total) ** 2 for n in shares))
        variance = process + session
        if variance == 0:
            return 0.0, math.inf
        # Satterthwaite's approximation for a sum of independent variances.
        df = variance**2 / (process**2 / between_processes.df + session**2 / between_sessions.df)
        return math.sqrt(variance), df


def noise(group: Group, observations: Mapping[str, Sequence[Observation]]) -> Noise:
    """The noise of a group from what a baseline holds of its cells; defaults where that is too little."""
    kind, mode, _ = group
    process = Component(PROCESS_DEFAULTS[kind, mode], DEFAULT_DF, DEFAULT)
    session = Component(SESSION_DEFAULTS[kind], DEFAULT_DF, DEFAULT)
    names = sorted({name for seen in observations.values() for name, _ in seen})
    processes = max((len(seen) for seen in observations.values()), default=0)
    residuals = {cell: _within(seen) for cell, seen in observations.items()}
    own = {cell: Component(_root_mean_square(*each), each[1], "its own") for cell, each in residuals.items()}
    own = {cell: one for cell, one in own.items() if one.df >= FEWEST_DF}
    apart = noisier(own)
    alike = {cell: seen for cell, seen in observations.items() if cell not in apart}
    within = _pooled({cell: residuals[cell] for cell in alike})
    variances: dict[str, float] = {}
    if within.df >= MIN_DF:
        source = f"measured on {processes} processes"
        process = Component(math.sqrt(within.variance), within.df, source)
        variances = {cell: one.variance for cell, one in own.items()}
    between = _pooled({cell: _between(seen) for cell, seen in alike.items()})
    few = None
    if between.df > 0 and within.df >= MIN_DF:
        # A session's mean holds a share of the noise between processes, which is taken off.
        each = np.mean([_processes_a_session(seen) for seen in alike.values() if len(_by_session(seen)) > 1])
        variance = max(between.variance - within.variance, 0.0) / each
        few = Component(math.sqrt(variance), between.df, f"measured on {len(names)} sessions")
        if few.df >= MIN_DF:
            session, few = few, None
    alone = {cell: (own[cell], _alone(observations[cell], own[cell], process, session)) for cell in apart}
    return Noise(process, session, variances, alone, few)


def _alone(seen: Sequence[Observation], own: Component, process: Component, session: Component) -> Component:
    """The noise between sessions of a cell that is unlike its group; `own` is its noise between processes.

    As much noisier between sessions as between processes, where it has too few sessions to show it.
    """
    means, sessions = _between(seen)
    if sessions >= FEWEST_DF:
        between = _root_mean_square(means, sessions) ** 2
        variance = max((between - own.variance) / _processes_a_session(seen), session.variance)
        return Component(math.sqrt(variance), sessions, f"measured on {sessions + 1} sessions")
    return Component(session.sd * max(own.sd / process.sd, 1.0), own.df, DEFAULT)


def noisier(own: Mapping[str, Component]) -> set[str]:
    """The cells whose own noise is no chance beside that of the cell in the middle; pooled it would hide the others."""
    # Not at the top: every session of pytest imports this module, and scipy.stats takes more than a second.
    from scipy import stats

    if len(own) < FEWEST_CELLS:
        return set()
    # The median of a variance's estimates lies below the variance.
    middle = float(np.median([one.variance / (stats.chi2.median(one.df) / one.df) for one in own.values()]))
    each = OUTLIER_LEVEL / len(own)
    return {cell for cell, one in own.items() if one.variance > middle * stats.chi2.isf(each, one.df) / one.df}


@dataclass(frozen=True)
class _Pooled:
    variance: float
    df: float


def _pooled(residuals: Mapping[str, tuple[np.ndarray, int]]) -> _Pooled:
    """The mean square of residuals over cells, and degrees of freedom that count cells which move together as one."""
    rows = [(values, df) for values, df in residuals.values() if df > 0]
    if not rows:
        return _Pooled(0.0, 0.0)
    variance = sum(float(values @ values) for values, _ in rows) / sum(df for _, df in rows)
    # A slow process is slow in all of its cells, so that n cells do not know n times as much. The cells' covariance
    # has (sum of eigenvalues)^2 / (sum of their squares) directions; from few processes it seems to have fewer.
    longest = max(len(values) for values, _ in rows)
    matrix = np.array([values for values, _ in rows if len(values) == longest])
    products = matrix @ matrix.T
    squares = float(np.sum(products**2))
    directions = float(np.trace(products)) ** 2 / squares if squares > 0 else 1.0
    return _Pooled(variance, directions * max(df for _, df in rows))


def _by_session(seen: Sequence[Observation]) -> dict[str, list[float]]:
    sessions: dict[str, list[float]] = {}
    for name, value in seen:
        sessions.setdefault(name, []).append(value)
    return sessions


def _within(seen: Sequence[Observation]) -> tuple[np.ndarray, int]:
    """What each process differs from the mean of its session, and the degrees of freedom."""
    sessions = _by_session(seen)
    means = {name: np.mean(values) for name, values in sessions.items()}
    return np.array([value - means[name] for name, value in seen]), len(seen) - len(sessions)


def _between(seen: Sequence[Observation]) -> tuple[np.ndarray, int]:
    """What each session's mean differs from the mean of all, times the root of its size; degrees of freedom."""
    sessions = _by_session(seen)
    mean = np.mean([value for _, value in seen])
    values = [math.sqrt(len(sessions[name])) * (np.mean(sessions[name]) - mean) for name in sorted(sessions)]
    return np.array(values), len(sessions) - 1


def _processes_a_session(seen: Sequence[Observation]) -> float:
    """The effective number of processes a session of an unbalanced design (n0 of the analysis of variance)."""
    sizes = np.array([len(values) for values in _by_session(seen).values()])
    return float((sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(sizes) - 1))


def _root_mean_square(values: np.ndarray, df: int) -> float:
    """The standard deviation that residuals with these degrees of freedom show; 0 with none."""
    return math.sqrt(float(values @ values) / df) if df else 0.0


def family_quantile(df: float, comparisons: int, level: float) -> float:
    """Student's t such that all of `comparisons` intervals hold at once with probability 1 - `level` (Sidak)."""
    # Not at the top: every session of pytest imports this module, and scipy.stats takes more than a second.
    from scipy import stats

    each = 1 - (1 - level) ** (1 / max(comparisons, 1))
    return float(stats.t.isf(each / 2, df))
