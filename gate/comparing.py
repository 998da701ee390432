"""The comparison of a pytest session: what with, which cells, and what it makes of the exit status."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gate.baseline.screen import Screening
from gate.baseline.store import Baseline, find, newest_for
from gate.judge.compatible import same_packages
from gate.judge.verdicts import PERCENT, CellVerdict, Threshold, Verdict, device_of, fail
from gate.record.cell import CellRecord, cell_id, cell_of, chosen_by, work_of
from gate.record.files import Record, matches
from gate.report.verdicts import verdict_lines

#: What the run shall time, in the words of a live pair's worker (`Worker.hello`): the plugin that has options for that
#: leaves it here.
ASKED = pytest.StashKey[Mapping[str, Any]]()

#: Options that only a comparison reads.
ONLY_COMPARING = ("gate_strict", "gate_threshold_percent", "gate_threshold_us", "gate_no_settle")

#: Shown where they differ, and no obstacle to a comparison: the change that is judged may be just that.
SHOWN = ("device", "driver", "cuda_runtime", "python", "power_limit_w", "max_sm_clock_mhz", "max_memory_clock_mhz")


def add_options(group: Any) -> None:
    """Add the options of a comparison to pytest's group."""
    percent = f"{PERCENT['cuda']:g} on a GPU, {PERCENT['cpu']:g} on a CPU"
    strict = "With --benchmark-compare: fail for inconclusive and missing cells too, and if no cell is compared."
    beyond = "With --benchmark-compare: a cell is slower only beyond this many"
    no_settle = "With --benchmark-compare: run no live pair to settle cells that seem slower."
    group.addoption("--gate-strict", action="store_true", help=strict)
    group.addoption("--gate-threshold-percent", type=float, metavar="P", help=f"{beyond} percent. Default: {percent}.")
    us = f"{beyond} microseconds a step, too. Default: {Threshold.us:g}."
    group.addoption("--gate-threshold-us", type=float, metavar="US", help=us)
    group.addoption("--gate-no-settle", action="store_true", help=no_settle)


@dataclass
class Comparing:
    """A session's comparison; `value` is what --benchmark-compare was given: False, True (the newest) or a name.

    `deselected` tells whether pytest left out timed tests that it had collected, `stopped` whether the run did not get
    to its end; `interrupted` is set when that happened while suspects were settled.
    """

    config: pytest.Config
    value: bool | str
    baselines: list[Baseline] = field(default_factory=list)
    baseline: Baseline | None = None
    verdicts: list[CellVerdict] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    deselected: bool = False
    stopped: bool = False
    told: list[str] = field(default_factory=list)
    failed: bool = False
    interrupted: bool = False

    def check_options(self) -> None:
        """ValueError for an option that is out of range, or that nothing reads."""
        for name in ONLY_COMPARING:
            flag, value = f"--{name.replace('_', '-')}", self.config.getoption(name)
            if not self.value and value is not None and value is not False:
                raise ValueError(f"{flag} needs a comparison; add --benchmark-compare.")
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{flag} {value} is not a number of 0 or more.")

    def find(self, folders: list[Path]) -> None:
        """Read what can be compared with; ValueError if something of it cannot be read, or is not there."""
        name = self.value
        root = self.config.rootpath / "baselines"
        path = self.config.invocation_params.dir / str(name).partition("::")[0]
        if isinstance(name, str) and path.is_file() and path.suffix in (".json", ".jsonl"):
            self.baselines = find([path], root)
            return
        if isinstance(name, str) and path.exists():
            # argparse took the test path that followed --benchmark-compare for its value.
            given = self.config.args if self.config.args_source is pytest.Config.ArgsSource.ARGS else []
            self.config.args = [*given, name]
            self.config.args_source = pytest.Config.ArgsSource.ARGS
            self.value = name = True
        self.baselines = find(folders, root)
        if isinstance(name, str):
            self.baselines = [baseline for baseline in self.baselines if matches(baseline.path, name)][:1]
            if not self.baselines:
                raise ValueError(
                    f"--benchmark-compare={name} names no record in {' or '.join(map(str, folders))} and no test path; "
                    "name a record, or leave the name out to take the newest."
                )

    def check_collected(self, ids: Iterable[str]) -> None:
        """ValueError if a record was named that holds no cell of a workload that is run; ids of cells tell it."""
        keys = {one: cell_of(one) for one in ids if one.count("-") >= 6}
        found = {work_of(key) for one, key in keys.items() if cell_id(key) == one}
        if isinstance(self.value, str) and found and not self.baselines[0].workloads & found:
            raise ValueError(
                f"--benchmark-compare={self.value}: {self.baselines[0].path.name} holds cells of "
                f"{_named(self.baselines[0].workloads)}, but this run times {_named(found)}; "
                "name a record of that workload, or leave the name out to take the newest."
            )

    def _choose(self, head: Record) -> Baseline | None:
        """Return what was named, or else the newest that this run can be held to; say what is passed over."""
        if isinstance(self.value, str):
            return self.baselines[0]

        def needs(cell: str, record: CellRecord) -> bool:
            return cell in head.cells or self._asked_for(record, head)

        fit = [one for one in self.baselines if one.workloads & head.workloads]
        if self._strict and (committed := [one for one in fit if one.committed]):
            return committed[0]
        baseline = newest_for(fit, needs)
        for other in fit if baseline is None else fit[: fit.index(baseline)]:
            why = other.doubts or "it lacks cells, because its run timed only some"
            again = f"--benchmark-compare={other.path.stem}"
            self.told.append(f"Passed over {other.path.name}: {why}. To compare with it anyway: {again}")
        return baseline

    def finish(self, head: Record, slug: str, width: int, say: Callable[[str], None] | None) -> None:
        """Judge what was timed; suspects are settled first, which `say` announces (None: they are not)."""
        if not head.cells:
            self.told, self.failed = ["Nothing was timed, so nothing is compared."], self._strict
            return
        self.baseline = self._choose(head)
        if self.baseline is None:
            advice = "save one: pytest -m performance --benchmark-save=NAME"
            self.told.append(f"{slug} has no record of {_named(head.workloads)} yet; {advice}")
            self.failed = self._strict
            return
        scope = [cell for cell in self.baseline.cell_ids if self._asked_for(self.baseline.records(cell)[-1], head)]
        percent, us = (self.config.getoption(f"gate_threshold_{unit}") for unit in ("percent", "us"))
        percent = PERCENT[device_of(slug)] if percent is None else percent
        threshold = Threshold(percent, Threshold.us if us is None else us)
        screening = Screening(head, self.baseline, scope, threshold)
        self.suspects = screening.suspects
        settled, why_not = self._settle(head, threshold, say)
        self.verdicts = screening.verdicts(settled, why_not)
        self.failed = fail(self.verdicts, strict=self._strict)
        held = [cell for cell in self.baseline.cell_ids if cell in head.cells]
        changed = [line for base, _ in self._by_process(held) for line in changes(base.machine, head.machine)]
        self.told += [f"Against {self.baseline}.", *dict.fromkeys(changed)]
        self.told += verdict_lines(self.verdicts, strict=self._strict, width=width)

    def _settle(
        self, head: Record, threshold: Threshold, say: Callable[[str], None] | None
    ) -> tuple[dict[str, CellVerdict], dict[str, str]]:
        """Return what the suspects are, run live beside the commit of their records, and why others are not settled."""
        if not self.suspects:
            return {}, {}
        if self.config.getoption("gate_no_settle"):
            return {}, dict.fromkeys(self.suspects, "--gate-no-settle")
        if say is None:
            return {}, dict.fromkeys(self.suspects, "the run did not get to its end")
        # Not at the top: only a slowdown needs it.
        from gate.live.settle import settle

        count = f"{len(self.suspects)} cell{'s seem' if len(self.suspects) > 1 else ' seems'}"
        say(f"{count} slower; live pairs now compare this checkout with the code of {self.baseline} ...")
        folder = self.config.invocation_params.dir / ".benchmarks" / "settled" / f"{datetime.now():%Y%m%d-%H%M%S}"
        settled: dict[str, CellVerdict] = {}
        why_not = dict.fromkeys(self.suspects, "interrupted")
        try:
            for number, (base, cells) in enumerate(self._by_process(self.suspects)):
                found, why = settle(
                    commit=base.commit,
                    machines={"base": base.machine, "head": head.machine},
                    head=self.config.rootpath,
                    ids=cells,
                    hello=self.config.stash[ASKED],
                    folder=folder / str(number),
                    threshold=threshold,
                    say=say,
                )
                settled |= found
                why_not |= dict.fromkeys(cells, why)
        except KeyboardInterrupt:
            # What was timed before is judged and saved all the same.
            self.interrupted = True
        return settled, why_not

    def _by_process(self, cells: Iterable[str]) -> list[tuple[Record, list[str]]]:
        """Return cells by the newest process that timed them: those of a backend may have been added later."""
        assert self.baseline is not None
        groups: dict[datetime, tuple[Record, list[str]]] = {}
        for cell in cells:
            base = self.baseline.newest_of(cell)
            groups.setdefault(base.at, (base, []))[1].append(cell)
        return [*groups.values()]

    @property
    def _strict(self) -> bool:
        return bool(self.config.getoption("gate_strict"))

    @property
    def _selection(self) -> Any:
        """What narrows the run: `cells` (globs between commas), `backends`, `collators`, `compiled`."""
        return self.config.stash.get(ASKED, {}).get("selection", {})

    def _asked_for(self, base: CellRecord, head: Record) -> bool:
        """Tell whether this run should have timed a cell of the baseline: no option left it out on purpose."""
        chosen, cell = self._selection, base.cell
        # --cells may name what runs on one rank too.
        ids = (base.id, cell_id({key: value for key, value in cell.items() if key != "ranks"}))
        if self._picked:
            return False
        if chosen.get("model") and cell["backend"] not in {one.cell["backend"] for one in head.cells.values()}:
            return False
        return (
            work_of(cell) in head.workloads
            and any(chosen_by(one, chosen.get("cells") or None) for one in ids)
            and cell["backend"] in (chosen.get("backends") or [cell["backend"]])
            and cell["collator"] in (chosen.get("collators") or [cell["collator"]])
            and not (chosen.get("compiled") == "none" and cell["execution"] == "compiled")
        )

    @property
    def partial(self) -> bool:
        """Whether this run was narrowed, or stopped, so that cells may be lacking that are there."""
        chosen = self._selection
        narrowed = any(chosen.get(name) for name in ("cells", "backends", "collators", "model"))
        return self.stopped or narrowed or chosen.get("compiled") == "none" or self._picked

    @property
    def _picked(self) -> bool:
        """Whether single tests were chosen or left out, by options that do not tell of cells."""
        return self.deselected or any("::" in str(arg) for arg in self.config.args)

    def summary(self) -> dict[str, Any]:
        """Return what a saved record tells of its run and its comparison; empty for a whole run without one.

        `unjudged` are the cells that are missing, or seemed slower and are inconclusive.
        """
        found: dict[str, Any] = {"partial": True} if self.partial else {}
        if self.baseline is None:
            return found
        unclear = [one for one in self.verdicts if one.verdict == Verdict.INCONCLUSIVE and one.cell in self.suspects]
        missing = [one for one in self.verdicts if one.verdict == Verdict.MISSING]
        return found | {
            "compared_with": self.baseline.path.name,
            "regressed": [one.cell for one in self.verdicts if one.verdict == Verdict.REGRESSED],
            "unjudged": [one.cell for one in missing + unclear],
        }


def changes(base: Mapping[str, Any], head: Mapping[str, Any]) -> list[str]:
    """Say what differs between two machines besides the code, a line each."""
    versions = [machine.get("versions") or {} for machine in (base, head)]
    pairs = [(key, *(each.get(key) for each in versions)) for key in {**versions[1], **versions[0]}]
    pairs += [(key, base.get(key), head.get(key)) for key in SHOWN]
    told = [f"changed: {key} is {two[1]} on head, {two[0]} on base" for key, *two in pairs if two[0] != two[1]]
    if not same_packages(head, base):
        told.append(
            "The packages differ, and exact costs (memory, launches, compilations) with them: only times are judged."
        )
    return told


def _named(found: Iterable[tuple[str, ...]]) -> str:
    return ", ".join("/".join(pair) for pair in sorted(found)) or "no cell"
