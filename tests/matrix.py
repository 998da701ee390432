"""Pytest plugin: `pytest --matrix` prints every combination and its state on this machine."""

import contextlib
import json
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, TextIO

import pytest
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gate.measure.environment import PACKAGES, device_name
from gate.record.cell import chosen_by
from gate.report.markdown import WIDE
from model.attention import EXECUTIONS, MODES, Device, Execution, Mode, default_device, this_machine
from model.cells import Cell
from model.decoder import DecoderConfig
from model.models import ALL_BACKENDS
from model.workloads import WORKLOADS, Workload
from tests.correctness.drawn import DRAWN
from tests.known_failures import KNOWN_FAILURES
from tests.selection import State, SupportStatus, candidates, checked_workload, support_status

SHAPES = ("table", "json")

Entry = tuple[Cell, SupportStatus]
Column = tuple[Mode, bool, Execution]

#: How the table writes a state, and its colour. The order is that of the notes and the counts.
SYMBOLS: dict[State, tuple[str, str]] = {
    "supported": ("ok", "green"),
    "unavailable": ("n/a", "yellow"),
    "known failure": ("xfail", "red"),
    "undeclared": ("-", "dim"),
}

LEGEND = (
    "ok     supported: must pass here",
    "n/a    unavailable here: skipped (with --require, a failure)",
    "xfail  known failure of a dependency: must fail here; a pass fails the test",
    "-      undeclared: the backend does not claim it",
    "full, causal: without and with a causal mask",
)

NOTES: dict[State, str] = {
    "unavailable": "Unavailable here (n/a), and what it needs:",
    "known failure": "Known failures (xfail):",
    "undeclared": "Undeclared (-):",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    # Without argparse's choices: their error is five lines, and a test path that follows is taken for the value.
    parser.getgroup("varlen-gate").addoption(
        "--matrix",
        nargs="?",
        const="table",
        metavar="table|json",
        help="print the support status of every cell on this machine, or with --matrix=json as JSON; run no tests. "
        "--backend, --collator and --cells choose the cells, --workload and --lengths the sizes",
    )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Print the matrix in place of a test session; pytest is not configured, so that nothing is written."""
    shape = config.getoption("matrix")
    if shape is None or config.option.help:
        return None
    paths = config.args if config.args_source is pytest.Config.ArgsSource.ARGS else []
    for given in [shape, *paths] if shape not in SHAPES else paths:
        raise pytest.UsageError(
            f"--matrix takes table (the default) or json, and no test paths; got {given!r}. "
            "Choose combinations with --backend, --collator or --cells."
        )
    workload, device = checked_workload(config), default_device()
    # A kernel's library may print when it is first imported.
    with contextlib.redirect_stdout(sys.stderr):
        entries = [(cell, overall(cell, workload.config, device)) for cell in chosen(config, workload)]
        machine = machine_facts(device)
    if shape == "json":
        json.dump(as_json(entries, machine), sys.stdout, indent=2)
        print()
    else:
        print_table(entries, machine, workload, sys.stdout, color=config.getoption("color") != "no")
    return 0


def chosen(config: pytest.Config, workload: Workload) -> list[Cell]:
    """Return the cells that the options leave; `--cells` may match the id of a timed or of a proved cell."""
    cells = candidates(config, workload.name, workload.lengths.name)
    pattern = config.getoption("cells")
    if pattern is None:
        return cells
    matched = [
        cell
        for cell in cells
        if chosen_by(cell.id, pattern) or chosen_by(replace(cell, workload=DRAWN, lengths=DRAWN).id, pattern)
    ]
    if not matched:
        raise pytest.UsageError(
            f"--cells {pattern!r} matches no cell; ids look like {cells[0].id!r}. --matrix=json lists them all."
        )
    return matched


def overall(cell: Cell, config: DecoderConfig, device: Device) -> SupportStatus:
    """Return the support_status of `cell` over all tests: a failure that is known in one of them counts."""
    found = support_status(cell, config, device)
    if found.state != "supported":
        return found
    tests = dict.fromkeys(test for failure in KNOWN_FAILURES for test in failure.tests)
    in_tests = [support_status(cell, config, device, test) for test in tests]
    reasons = [reason for struck in in_tests if struck.state == "known failure" for reason in struck.reasons]
    return SupportStatus("known failure", tuple(dict.fromkeys(reasons))) if reasons else found


def machine_facts(device: Device) -> dict[str, Any]:
    """Return what states depend on: device, compute capability, and the versions of packages (None: missing)."""
    machine = this_machine()
    required = [requirement.package for backend in ALL_BACKENDS for requirement in backend.requires]
    versions = {name: machine.version_of(name) for name in dict.fromkeys((*PACKAGES, *required))}
    packages = {name: version and str(version) for name, version in versions.items()}
    return {
        "device": device,
        "device_name": device_name(),
        "capability": machine.capability and "{}.{}".format(*machine.capability),
        "python": platform.python_version(),
        "torch": packages.pop("torch"),
        "packages": packages,
    }


def counts(entries: Iterable[Entry]) -> dict[State, int]:
    """Return how many cells are in each state, in the order of the notes."""
    counted = Counter(found.state for _, found in entries)
    return {state: counted[state] for state in SYMBOLS}


def as_json(entries: Sequence[Entry], machine: dict[str, Any]) -> dict[str, Any]:
    """Return the matrix as plain data."""
    cells = [
        {**cell.key, "id": cell.id, "state": found.state, "reasons": list(found.reasons)} for cell, found in entries
    ]
    return {"machine": machine, "counts": counts(entries), "cells": cells}


def print_table(
    entries: Sequence[Entry], machine: dict[str, Any], workload: Workload, file: TextIO, *, color: bool = True
) -> None:
    """Print a row for each backend and collator of one layout, then each reason once, then the counts.

    Where dtypes differ a row has a line for each. On a terminal too narrow for the table there is one table a
    mode; an id is never cut.
    """
    # Rich falls back to ASCII lines where the encoding has no others, and would cut what is wider than its console.
    wide = Console(file=file, width=WIDE, no_color=not color, markup=False, highlight=False, emoji=False)
    console = Console(file=file, highlight=False, markup=False, emoji=False) if file.isatty() else wide
    shown = [(cell, found) for cell, found in entries if cell.backend.layout == cell.collator.layout]
    notes = numbered(shown)
    for line in (*heading(machine, workload), ""):
        console.print(line)
    if shown:
        console.print("\n".join(LEGEND) + "\n")
        tables = [table(shown, notes, MODES)]
        if wide.measure(tables[0]).maximum > console.width:
            tables = [table(shown, notes, (mode,)) for mode in MODES]
        for each in tables:
            wide.print(each)
            wide.print()
    for state, title in NOTES.items():
        held = {reason: number for (of, reason), number in notes.items() if of == state}
        if held:
            console.print(title)
            for reason, number in held.items():
                cells = sum(found.state == state and reason in found.reasons for _, found in shown)
                console.print(f" [{number}] {reason}: {plural(cells, 'combination')}")
            console.print()
    for line in closing(entries, len(entries) - len(shown)):
        console.print(line)


def heading(machine: dict[str, Any], workload: Workload) -> list[str]:
    """Return what the states below hold for: this machine and the sizes of one workload."""
    sizes, packages = workload.config, machine["packages"]
    capability = f", compute capability {machine['capability']}" if machine["capability"] else ""
    versions = {"Python": machine["python"], "torch": machine["torch"], **packages}
    installed = [f"{name} {version}" for name, version in versions.items() if version]
    missing = [name for name, version in packages.items() if not version]
    others = ", ".join(each.name for each in WORKLOADS if each.name != workload.name)
    return [
        f"Device     {machine['device']}: {machine['device_name']}{capability}",
        f"Installed  {', '.join(installed)}",
        f"Missing    {', '.join(missing) or 'nothing'}",
        f"Workload   {workload.name}: {sizes.num_heads} heads of {sizes.head_dim}, {sizes.kv_heads} key-value heads "
        f"(--workload for others: {others})",
    ]


def closing(entries: Sequence[Entry], hidden: int) -> list[str]:
    """Return the lines below the notes: what the table leaves out, the counts, and how to run a row."""
    count = counts(entries)
    failures = plural(count["known failure"], "known failure")
    lines = []
    if hidden:
        lines.append(
            f"Not in the table: {plural(hidden, 'combination')} of a backend with a collator of another layout. "
            "A backend takes one layout: padded, packed or nested. --matrix=json lists them."
        )
    if count["supported"]:
        cell = next(cell for cell, found in entries if found.state == "supported")
        lines.append(
            f"Run a row: pytest -m correctness --cells '{cell.backend.name}-{cell.collator.name}-*' "
            "(step times: -m performance; every compiled cell too: --compiled all)."
        )
    lines.append(
        f"{plural(len(entries), 'combination')}: {count['supported']} supported, {count['unavailable']} unavailable "
        f"here, {failures}, {count['undeclared']} undeclared."
    )
    return lines


def numbered(entries: Iterable[Entry]) -> dict[tuple[State, str], int]:
    """Return a number for each distinct reason, from 1: those of unavailable cells first."""
    keys = dict.fromkeys((found.state, reason) for _, found in entries for reason in found.reasons)
    states = list(SYMBOLS)
    return {key: number for number, key in enumerate(sorted(keys, key=lambda key: states.index(key[0])), start=1)}


def table(entries: Iterable[Entry], notes: dict[tuple[State, str], int], modes: Sequence[Mode]) -> Table:
    """Return the states of `modes`, with the numbers of their notes."""
    rows: dict[tuple[str, str], dict[str, dict[Column, Text]]] = {}
    for cell, found in entries:
        lines = rows.setdefault((cell.backend.name, cell.collator.name), {})
        line = lines.setdefault(cell.key["dtype"], {})
        line[cell.mode, cell.causal, cell.execution] = state_text(found, notes)
    columns = [
        column
        for column in product(modes, (False, True), EXECUTIONS)
        if any(column in line for lines in rows.values() for line in lines.values())
    ]
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("backend", "collator", "dtype"):
        drawn.add_column(name, no_wrap=True)
    for mode, causal, execution in columns:
        drawn.add_column(f"{mode}\n{'causal' if causal else 'full'}\n{execution}", no_wrap=True)
    previous = None
    for (backend, collator), lines in rows.items():
        if backend != previous:
            drawn.add_section()
        previous = backend
        first, *others = lines.values()
        same = others and all(line == first for line in others)
        for dtype, line in ({"all": first} if same else lines).items():
            drawn.add_row(backend, collator, dtype, *(line.get(column, "") for column in columns))
    return drawn


def state_text(found: SupportStatus, notes: dict[tuple[State, str], int]) -> Text:
    """Return `ok`, or a symbol with the numbers of its notes: `n/a [1,2]`."""
    symbol, style = SYMBOLS[found.state]
    numbers = ",".join(map(str, sorted(notes[found.state, reason] for reason in found.reasons)))
    return Text(f"{symbol} [{numbers}]" if numbers else symbol, style)


def plural(number: int, word: str) -> str:
    """Return `1 combination`, `2 combinations`."""
    return f"{number} {word}{'s' * (number != 1)}"
