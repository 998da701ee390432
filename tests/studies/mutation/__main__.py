"""Draws a seeded sample of mutants, runs the tests on each in a copy of the repository, and prints the score."""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.commands import init
from cosmic_ray.modules import find_modules
from cosmic_ray.mutating import mutate_code, use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.util import read_python_source
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult
from coverage import CoverageData

from tests.studies.mutation import fork_server
from tests.studies.mutation.fork_server import Ended
from tests.studies.mutation.population import Code, is_python
from tests.studies.mutation.score import clopper_pearson

ROOT = Path(__file__).parents[3]
PACKAGES = ("collators", "model")

#: Groups of test files, each run in one process, the cheapest and most searching first, and pytest's -k for them.
#: FlexAttention takes ten times as long on the CPU as any other backend: what it shares with them is tried on them.
STAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "formulas": (
        ("test_bounds", "test_decoder", "test_workloads", "test_timing", "test_oracle", "test_block_mask"),
        "",
    ),
    "claims": (("test_declarations", "test_bad_batches"), ""),
    "collators": (("test_collators",), ""),
    "samplers": (("test_samplers", "test_prepared_loaders"), ""),
    "lengths": (("test_lengths",), ""),
    "reference": (("test_reference", "test_tolerance"), ""),
    "attention": (
        ("test_attention", "test_heads", "test_edges", "test_kernels"),
        "not (flex_document_mask and float16)",
    ),
    "decoder": (
        (
            "test_decoder_variants",
            "test_positions",
            "test_optimizer_step",
            "test_splitting",
            "test_padding",
            "test_isolation",
            "test_permutation",
            "test_causality",
            "test_determinism",
            "test_inputs",
        ),
        "not flex_document_mask and not float16",
    ),
    "equivalence": (("test_equivalence",), "not flex_document_mask and not float16"),
    "matrix": (("test_matrix",), ""),
}

#: Seconds of a processor that a stage may take beyond three times its own on the code as it is.
GRACE = 30.0


class Stage(NamedTuple):
    """Arguments of pytest, the seconds of a processor it may take, and the lines of each module that its tests run."""

    name: str
    arguments: list[str]
    limit: float
    lines: dict[str, frozenset[int]]

    def reaches(self, module: str, lines: range) -> bool:
        """Tell whether the tests run any of `lines`."""
        return not self.lines.get(module, frozenset()).isdisjoint(lines)


class Mutant(NamedTuple):
    """One of Cosmic Ray's mutants, and the stages that run its code: the others cannot tell."""

    item: WorkItem
    stages: list[Stage]


def main() -> int:
    """Run what the command line asks for; 1 where the code as it is does not pass."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.mutation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--size", type=int, default=200, help="mutants in the sample")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop before a mutant once these have passed")
    parser.add_argument("--workers", type=int, default=1, help="mutants tried at once, each in a copy of its own")
    parser.add_argument("--session", type=Path, default=Path("mutation.sqlite"), help="where Cosmic Ray's session goes")
    parser.add_argument("--survivors-of", type=Path, help="instead of a sample: those that survived in this session")
    options = parser.parse_args()
    started = time.monotonic()
    session = options.session.resolve()
    earlier = survivors(options.survivors_of.resolve()) if options.survivors_of else None
    session.unlink(missing_ok=True)
    fork_server.preload()
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        place = Path(name).resolve()
        copy = place / "repository"
        copy_repository(copy)
        # Cosmic Ray names modules by where they are from here.
        with contextlib.chdir(copy), use_db(session, WorkDB.Mode.create) as database:
            mutants = population(database, baseline(copy, place))
            if earlier is None:
                chosen = drawn(mutants, options.seed, options.size)
            else:
                chosen = [mutant for mutant in mutants if place_of(mutant.item) in earlier]
            database.clear()
            database.add_work_items(mutant.item for mutant in chosen)
            deadline = started + options.minutes * 60
            with ProcessPoolExecutor(options.workers, multiprocessing.get_context("fork")) as workers:
                tries = workers.map(tried, chosen, [copy] * len(chosen), [deadline] * len(chosen))
                for number, ((item, _), result) in enumerate(zip(chosen, tries, strict=True), 1):
                    if result is None:
                        show(f"{number}/{len(chosen)} {place_of(item)}: not tried, out of time")
                        continue
                    database.set_result(item.job_id, result)
                    show(f"{number}/{len(chosen)} {place_of(item)}: {first_line(result.output)}")
            show(summary([result for _, result in database.results]))
    return 0


def show(text: str) -> None:
    """Print a line at once: a run takes most of an hour."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def copy_repository(copy: Path) -> None:
    """Copy what git tracks, and what it would, to `copy`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)


def baseline(copy: Path, place: Path) -> list[Stage]:
    """Run the tests on the code as it is, in their stages."""
    stages = []
    for name, (stems, keywords) in STAGES.items():
        arguments = ["-k", keywords] if keywords else []
        arguments += [
            path.relative_to(copy).as_posix() for stem in stems for path in (copy / "tests").rglob(f"{stem}.py")
        ]
        data = place / f"coverage-{name}"
        ended = fork_server.run_pytest(copy, arguments, place / "log", limit=math.inf, coverage_data=data)
        if ended.status:
            raise SystemExit(f"{ended.output}\nstage {name} fails on the code as it is (status {ended.status}).")
        show(f"stage {name}: {ended.seconds:.0f} s with coverage; {ended.output.splitlines()[-1]}")
        measured = CoverageData(str(data))
        measured.read()
        lines = {
            Path(file).relative_to(copy).as_posix(): frozenset(measured.lines(file) or ())
            for file in measured.measured_files()
        }
        stages.append(Stage(name, arguments, 3 * ended.seconds + GRACE, lines))
    # Those of the tests stay, as compiling them is a good part of what a mutant costs.
    for cache in [cache for package in PACKAGES for cache in (copy / package).rglob("__pycache__")]:
        shutil.rmtree(cache)
    return stages


def population(database: WorkDB, stages: Sequence[Stage]) -> list[Mutant]:
    """Return the mutants of code that a stage runs, in the order of the source."""
    modules = sorted(find_modules([Path(package) for package in PACKAGES]))
    init(modules, database, {})
    codes = {module: Code(read_python_source(module)) for module in modules}
    every = sorted(database.work_items, key=place_of)
    mutants = []
    in_functions = 0
    for item in every:
        (mutation,) = item.mutations
        lines = codes[mutation.module_path].lines_at(mutation.start_pos)
        in_functions += bool(lines)
        reached = [stage for stage in stages if stage.reaches(mutation.module_path.as_posix(), lines)]
        if reached:
            mutants.append(Mutant(item, reached))
    show(f"{len(every)} mutants, {in_functions} in the bodies of functions, {len(mutants)} of code that a test runs")
    return mutants


def drawn(mutants: Sequence[Mutant], seed: int, size: int) -> list[Mutant]:
    """Return a random sample of `size` mutants; what is no Python, or what Cosmic Ray cannot make, is passed over."""
    chosen: list[Mutant] = []
    passed_over = 0
    for mutant in random.Random(seed).sample(mutants, len(mutants)):
        if len(chosen) == size:
            break
        (mutation,) = mutant.item.mutations
        try:
            operator = get_operator(mutation.operator_name)()
            made = mutate_code(read_python_source(mutation.module_path), operator, mutation.occurrence)
        except AttributeError:
            # Cosmic Ray 8.7.0 on "except package.Error": its ExceptionReplacer knows plain names only.
            made = None
        if made and is_python(made):
            chosen.append(mutant)
        else:
            passed_over += 1
    show(f"{len(chosen)} of {len(mutants)} mutants drawn; {passed_over} passed over, as they are no Python")
    return chosen


def place_of(item: WorkItem) -> tuple[str, int, int, str, int]:
    """Return what names a mutant on the same code: module, line, column, operator and occurrence."""
    (mutation,) = item.mutations
    return (
        mutation.module_path.as_posix(),
        *mutation.start_pos,
        mutation.operator_name.removeprefix("core/"),
        mutation.occurrence,
    )


def tried(mutant: Mutant, copy: Path, deadline: float) -> WorkResult | None:
    """Run the stages on a mutant until one fails, in this process's own copy of the repository at `copy`.

    The first line of the output says how it ended. None past `deadline`, which is one of `time.monotonic`.
    """
    if time.monotonic() > deadline:
        return None
    mine = copy.with_name(f"worker-{os.getpid()}")
    if not mine.exists():
        shutil.copytree(copy, mine)
    (mutation,) = mutant.item.mutations
    operator = get_operator(mutation.operator_name)()
    with contextlib.chdir(mine), use_mutation(mutation.module_path, operator, mutation.occurrence) as (before, after):
        difference = _difference(mutation, before, after)
        for stage in mutant.stages:
            ended = fork_server.run_pytest(mine, stage.arguments, mine.with_suffix(".log"), limit=stage.limit)
            if ended.status or ended.late:
                return _result(TestOutcome.KILLED, difference, f"{_manner(ended)} in {stage.name}\n{ended.output}")
    return _result(TestOutcome.SURVIVED, difference, "survived")


def _result(outcome: TestOutcome, difference: str, output: str) -> WorkResult:
    return WorkResult(WorkerOutcome.NORMAL, output, outcome, difference)


def _manner(ended: Ended) -> str:
    if ended.late:
        return f"timeout ({ended.late} too long, {ended.seconds:.0f} s of a processor)"
    failed = [line for line in ended.output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return f"killed ({ended.seconds:.0f} s, status {ended.status}, {failed[0] if failed else 'no test failed'})"


def _difference(mutation: MutationSpec, before: str, after: str) -> str:
    changed = [
        f"-{old}\n+{new}" for old, new in zip(before.splitlines(), after.splitlines(), strict=False) if old != new
    ]
    return f"{mutation.module_path}:{mutation.start_pos[0]}\n" + "\n".join(changed)


def survivors(session: Path) -> set[tuple[str, int, int, str, int]]:
    """Return what survived in an earlier session."""
    with use_db(session, WorkDB.Mode.open) as database:
        alive = {job for job, result in database.results if result.test_outcome == TestOutcome.SURVIVED}
        return {place_of(item) for item in database.work_items if item.job_id in alive}


def first_line(output: str | None) -> str:
    """Return how a mutant ended, without the output of its tests."""
    return (output or "").partition("\n")[0]


def summary(results: Sequence[WorkResult]) -> str:
    """Return the score, with its exact bounds at 95% confidence, and what survived."""
    alive = [result for result in results if result.test_outcome == TestOutcome.SURVIVED]
    late = sum(first_line(result.output).startswith("timeout") for result in results)
    total, killed = len(results), len(results) - len(alive)
    if not total:
        return "no mutant was run"
    low, high = clopper_pearson(killed, total)
    figures = {"mutants": total, "failed a test": killed - late, "timed out": late, "survived": len(alive)}
    score = f"score {killed / total:.1%}, 95% confidence {low:.1%} to {high:.1%}"
    return "\n".join([json.dumps(figures), score, *(f"{result.diff}" for result in alive)])


if __name__ == "__main__":
    sys.exit(main())
