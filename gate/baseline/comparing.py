"""The comparison of a pytest session: what with, when, and what it makes of the exit status."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from gate.baseline.baselines import Baseline, find, find_file, newest_for, process_of
from gate.baseline.confirming import timed_again
from gate.baseline.report import lines
from gate.baseline.verdicts import CellVerdict, Comparison, Rule, Verdict, fail
from gate.processes import cell_of
from gate.records import Record, cell_id, matches, workloads

#: Options that only a comparison reads, and the values that stand for not given.
ONLY_COMPARING: dict[str, Any] = {
    "gate_strict": False,
    "gate_threshold_percent": None,
    "gate_threshold_us": None,
    "gate_confirm": None,
}

CONFIRM = 3


def add_options(group: Any) -> None:
    """Add the options of a comparison to pytest's group."""
    group.addoption(
        "--gate-strict",
        action="store_true",
        default=False,
        help="Comparing: a cell that is missing or cannot be judged fails too, as does a run that compares no cell.",
    )
    group.addoption(
        "--gate-threshold-percent",
        type=float,
        metavar="P",
        help="Comparing: a smaller slowdown is none. Default: 1 on a GPU, 10 on a CPU.",
    )
    group.addoption(
        "--gate-threshold-us", type=float, metavar="US", help="Comparing: a smaller slowdown is none. Default: 20."
    )
    group.addoption(
        "--gate-confirm",
        type=int,
        metavar="N",
        help=f"Comparing: time cells that seem slower again in N fresh processes, and judge these. Default: {CONFIRM}.",
    )


@dataclass
class Comparing:
    """A session's comparison; `value` is what --benchmark-compare was given: False, True (the newest) or a name.

    `deselected` tells whether pytest left out timed tests that it had collected, `stopped` whether the run did not get
    to its end; `interrupted` is set when that happened while suspects were timed again.
    """

    config: pytest.Config
    value: bool | str
    baselines: list[Baseline] = field(default_factory=list)
    comparison: Comparison | None = None
    verdicts: list[CellVerdict] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    deselected: bool = False
    stopped: bool = False
    told: list[str] = field(default_factory=list)
    failed: bool = False
    interrupted: bool = False

    def check_options(self) -> None:
        """ValueError for an option that is out of range, or that nothing reads."""
        given = {name: self.config.getoption(name) for name in ONLY_COMPARING}
        if not self.value:
            idle = [name for name, value in given.items() if value != ONLY_COMPARING[name]]
            if idle:
                raise ValueError(f"{_flag(idle[0])} judges a comparison; add --benchmark-compare.")
        for name in ("gate_threshold_percent", "gate_threshold_us", "gate_confirm"):
            if given[name] is not None and not (math.isfinite(given[name]) and given[name] >= 0):
                raise ValueError(f"{_flag(name)} {given[name]} is not a number of 0 or more.")

    def find(self, folders: list[Path]) -> None:
        """Read what can be compared with; ValueError if something of it cannot be read, or is not there."""
        name = self.value
        root = self.config.rootpath / "baselines"
        if isinstance(name, str):
            path = self.config.invocation_params.dir / name.partition("::")[0]
            if path.is_file() and path.suffix == ".json":
                self.baselines = [find_file(path, root)]
                return
            if path.exists():
                # argparse took the test path that followed --benchmark-compare for its value.
                given = self.config.args if self.config.args_source is pytest.Config.ArgsSource.ARGS else []
                self.config.args = [*given, name]
                self.config.args_source = pytest.Config.ArgsSource.ARGS
                self.value = name = True
        self.baselines = find(folders, root)
        if isinstance(name, str):
            self.baselines = [baseline for baseline in self.baselines if matches(baseline.path, name)][:1]
            if not self.baselines:
                looked = " or ".join(map(str, folders))
                raise ValueError(
                    f"--benchmark-compare={name}: no such record in {looked}, nor a test path; "
                    "without a value it takes the newest record."
                )

    def check_named(self, found: Iterable[tuple[str, str]]) -> None:
        """ValueError if a record was named that holds no cell of the workloads that are run, which are `found`."""
        found = set(found)
        if not isinstance(self.value, str) or not found or self.baselines[0].workloads & found:
            return
        raise ValueError(
            f"--benchmark-compare={self.value}: {self.baselines[0].path.name} is of "
            f"{_named(self.baselines[0].workloads)}, and this run times {_named(found)}; "
            "name a record of that, or none for the newest."
        )

    def check_collected(self, ids: Iterable[str]) -> None:
        """As `check_named`, by the ids of the cells that were collected; others tell nothing before they are run."""
        keys = {one: cell_of(one) for one in ids if one.count("-") >= 6}
        self.check_named((key["workload"], key["lengths"]) for one, key in keys.items() if cell_id(key) == one)

    def _chosen(self, record: Record) -> Baseline | None:
        """What was asked for by name, or else the newest that this run can be held to; says what is passed over."""
        found, cells = workloads(record), process_of(record).cells
        if isinstance(self.value, str):
            return self.baselines[0]
        strict = bool(self.config.getoption("gate_strict"))

        def needs(cell: str, info: dict[str, Any]) -> bool:
            return cell in cells or self._asked_for(info, found)

        fit = [one for one in self.baselines if one.workloads & found]
        baseline = newest_for(fit, found, needs, strict=strict)
        if baseline is None or not (strict and baseline.committed):
            newer = fit if baseline is None else fit[: fit.index(baseline)]
            self.told = [
                f"Passed over {other.path.name}: {other.doubts or 'it lacks cells, as its run was a part of one'}. "
                f"To compare with it all the same: --benchmark-compare={other.path.stem}"
                for other in newer
            ]
        return baseline

    def finish(self, record: Record, slug: str, width: int, say: Callable[[str], None] | None) -> None:
        """Judge what was timed; suspects are timed again first, which `say` announces (None: they are not)."""
        strict = bool(self.config.getoption("gate_strict"))
        if not record["benchmarks"] and not record["cells_without_time"]:
            self.told, self.failed = ["Nothing was timed, so nothing is compared."], strict
            return
        found = workloads(record)
        baseline = self._chosen(record)
        if baseline is None:
            advice = "make one: pytest -m performance --benchmark-save=NAME"
            self.told.append(f"No record of {_named(found)} on {slug} yet; {advice}")
            self.failed = strict
            return
        now = process_of(record)
        scope = [cell for cell in baseline.cell_ids if self._asked_for(baseline.infos(cell)[-1][1], found)]
        percent, us = (self.config.getoption(f"gate_threshold_{unit}") for unit in ("percent", "us"))
        rule = Rule(percent=percent) if us is None else Rule(percent=percent, microseconds=us)
        self.comparison = Comparison(now, baseline, scope, rule)
        confirm = self.config.getoption("gate_confirm")
        confirm = CONFIRM if confirm is None else confirm
        self.suspects = suspects = self.comparison.suspects()
        confirmed: dict[str, list[dict[str, Any]]] = {}
        if suspects and confirm and say:
            number = "1 cell seems" if len(suspects) == 1 else f"{len(suspects)} cells seem"
            say(f"{number} slower; timing again in {confirm} fresh process{'es' * (confirm > 1)} ...")
            try:
                confirmed, troubles = timed_again(self.config, suspects, confirm)
                self.told += troubles
            except KeyboardInterrupt:
                # What was timed before is judged and saved all the same.
                self.interrupted = True
                self.told.append("Interrupted while cells were timed again: they are judged by this run alone.")
        self.verdicts = self.comparison.judge(confirmed)
        self.failed = fail(self.verdicts, strict=strict)
        self.told += lines(self.comparison, self.verdicts, strict=strict, width=width)

    def _asked_for(self, info: dict[str, Any], found: set[tuple[str, str]]) -> bool:
        """Whether this run should have timed a cell of the baseline: no option left it out on purpose."""
        option, cell = self.config.getoption, info["cell"]
        if self._picked:
            return False
        globs = option("cells", None)
        return (
            (cell["workload"], cell["lengths"]) in found
            and (globs is None or any(fnmatch(cell_id(cell), glob) for glob in globs.split(",")))
            and cell["backend"] in (option("backend", None) or [cell["backend"]])
            and cell["collator"] in (option("collator", None) or [cell["collator"]])
            and not (option("compiled", None) == "none" and cell["execution"] == "compiled")
        )

    @property
    def partial(self) -> bool:
        """Whether this run was narrowed, or stopped, so that cells may be lacking that are there."""
        options = [self.config.getoption(name, None) for name in ("cells", "backend", "collator")]
        narrowed = any(options) or self.config.getoption("compiled", None) == "none"
        return self.stopped or narrowed or self._picked

    @property
    def _picked(self) -> bool:
        """Whether single tests were chosen or left out, by options that do not tell of cells."""
        return self.deselected or any("::" in str(arg) for arg in self.config.args)

    def summary(self) -> dict[str, Any]:
        """What a saved record tells of its run and of the comparison it was part of; empty for a whole run without."""
        found: dict[str, Any] = {"partial": True} if self.partial else {}
        if self.comparison is None:
            return found
        return found | {
            "compared_with": self.comparison.baseline.path.name,
            "regressed": [one.cell for one in self.verdicts if one.verdict == Verdict.REGRESSED],
            "unjudged": [one.cell for one in self.verdicts if self._unjudged(one)],
        }

    def _unjudged(self, one: CellVerdict) -> bool:
        """Whether a cell is missing, or seemed slower and could not be judged; without a time it is no harm, as a
        record without one lets no time pass."""
        seemed = one.cell in self.suspects and one.now_ms is not None
        return one.verdict == Verdict.MISSING or (one.verdict == Verdict.CANNOT_TELL and seemed)


def _named(found: Iterable[tuple[str, str]]) -> str:
    return ", ".join("/".join(pair) for pair in sorted(found)) or "no cell"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
