"""`pytest --matrix` shows every combination once, in one of four states, with the reasons."""

import fnmatch
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from collators import COLLATORS
from model.attention import EXECUTIONS, MODES, default_device
from model.cells import DTYPES, Cell, all_cells
from model.models import ALL_BACKENDS
from model.workloads import workload_named
from tests import matrix, selection
from tests.known_failures import KnownFailure
from tests.matrix import Entry, counts, machine_facts, overall, print_table
from tests.selection import SupportStatus

pytestmark = pytest.mark.meta

DEVICE = default_device()
WORKLOAD = workload_named(None, DEVICE)


def run_pytest(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return subprocess.run(
        [sys.executable, "-B", "-m", "pytest", *options],
        cwd=root,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a session could write is to be found here."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def as_json(pytestconfig: pytest.Config, written: Path) -> subprocess.CompletedProcess[str]:
    places = (f"--basetemp={written}/tmp", f"--benchmark-storage=file://{written}/times")
    return run_pytest(pytestconfig.rootpath, "--matrix=json", "-o", f"cache_dir={written}/cache", *places)


@pytest.fixture(scope="module")
def as_table(pytestconfig: pytest.Config) -> subprocess.CompletedProcess[str]:
    options = ("--collator", "nested", "--backend", "sdpa_nested", "--backend", "sdpa_loop")
    return run_pytest(pytestconfig.rootpath, "-p", "no:cacheprovider", "--matrix", *options)


@pytest.fixture
def data(as_json: subprocess.CompletedProcess[str]) -> dict:
    return json.loads(as_json.stdout)


def cells_of(pattern: str) -> list[Cell]:
    every = all_cells(WORKLOAD.name, WORKLOAD.lengths.name, backends=ALL_BACKENDS)
    return [cell for cell in every if fnmatch.fnmatch(cell.id, pattern)]


def printed(entries: list[Entry], file: io.TextIOBase | None = None) -> str:
    file = file or io.StringIO()
    print_table(entries, machine_facts(DEVICE), WORKLOAD, file)
    file.seek(0)
    return file.read()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_is_all_that_a_run_prints_and_it_writes_no_file(
    as_json: subprocess.CompletedProcess[str], written: Path
) -> None:
    assert as_json.returncode == 0, as_json.stderr
    assert set(json.loads(as_json.stdout)) == {"machine", "counts", "cells"}
    assert list(written.iterdir()) == []


def test_every_combination_is_in_the_json_once(data: dict) -> None:
    ids = [cell["id"] for cell in data["cells"]]
    axes = (ALL_BACKENDS, COLLATORS, MODES, (False, True), DTYPES, EXECUTIONS)
    assert len(ids) == len(set(ids)) == math.prod(len(axis) for axis in axes)
    assert {cell["backend"] for cell in data["cells"]} == {backend.name for backend in ALL_BACKENDS}
    assert {cell["collator"] for cell in data["cells"]} == {collator.name for collator in COLLATORS}


def test_every_combination_has_one_of_four_states_and_they_sum_up(data: dict) -> None:
    states = [cell["state"] for cell in data["cells"]]
    assert list(data["counts"]) == ["supported", "unavailable", "known failure", "undeclared"]
    assert data["counts"] == {state: states.count(state) for state in data["counts"]}
    assert sum(data["counts"].values()) == len(states)


def test_what_a_backend_takes_here_is_supported_or_a_known_failure(data: dict) -> None:
    states = {cell["id"]: cell["state"] for cell in data["cells"]}
    for cell in cells_of("*"):
        case = cell.case(DEVICE, WORKLOAD.config)
        works = not cell.backend.unsupported_reasons(case)
        assert (states[cell.id] in ("supported", "known failure")) == works, cell.id
        assert (states[cell.id] == "undeclared") == bool(cell.backend.undeclared_reasons(case)), cell.id


def test_every_refusal_has_a_reason_and_unavailable_cells_say_what_is_needed(data: dict) -> None:
    for cell in data["cells"]:
        assert bool(cell["reasons"]) == (cell["state"] != "supported"), cell["id"]
        assert all(reason and "\n" not in reason for reason in cell["reasons"]), cell["id"]
        if cell["state"] == "unavailable":
            assert all("needs " in reason or "install" in reason for reason in cell["reasons"]), cell


def test_the_machine_is_named_with_its_versions(data: dict) -> None:
    machine = data["machine"]
    assert machine["device"] == DEVICE
    assert (machine["capability"] is None) == (DEVICE == "cpu")
    assert machine["python"] == "{}.{}.{}".format(*sys.version_info)
    assert machine["torch"]
    assert {"flash-attn", "xformers", "transformers"} <= set(machine["packages"])


def test_the_table_holds_what_the_options_leave(as_table: subprocess.CompletedProcess[str]) -> None:
    assert as_table.returncode == 0, as_table.stderr
    lines = as_table.stdout.splitlines()
    rows = {tuple(line.split()[:2]) for line in lines if line.startswith(tuple(b.name for b in ALL_BACKENDS))}
    assert rows == {("sdpa_nested", "nested")}
    assert any(line.startswith("Not in the table: 16 combinations ") for line in lines)
    assert lines[-1].startswith("32 combinations: ")
    assert "Traceback" not in as_table.stdout + as_table.stderr


def test_the_table_has_every_backend_on_every_collator_of_its_layout() -> None:
    entries = [(cell, overall(cell, WORKLOAD.config, DEVICE)) for cell in cells_of("*")]
    text = printed(entries)
    rows = {tuple(line.split()[:2]) for line in text.splitlines()}
    for backend in ALL_BACKENDS:
        for collator in COLLATORS:
            assert ((backend.name, collator.name) in rows) == (backend.layout == collator.layout)
    for cell, found in entries:
        if cell.backend.layout == cell.collator.layout:
            assert all(f"] {reason}: " in text for reason in found.reasons)
    count = counts(entries)
    assert f"{count['supported']} supported, {count['unavailable']} unavailable here" in text.splitlines()[-1]


def test_the_table_tells_four_states_apart_and_notes_each_reason_once() -> None:
    states = [
        SupportStatus("supported"),
        SupportStatus("undeclared", ("does so only",)),
        SupportStatus("unavailable", ("needs a better machine", "needs a package")),
        SupportStatus("known failure", ("is broken upstream",)),
        SupportStatus("unavailable", ("needs a better machine",)),
    ]
    # One dtype, so that the five stand in one line.
    cells = cells_of("sdpa_padded-pad_longest-*-float32-*")
    text = printed(list(zip(cells, states, strict=False)))
    (row,) = [line.split() for line in text.splitlines() if line.startswith("sdpa_padded ")]
    assert row[3:] == ["ok", "-", "[4]", "n/a", "[1,2]", "xfail", "[3]", "n/a", "[1]"]
    for note in ("[1] needs a better machine: 2 combinations", "[2] needs a package: 1 combination"):
        assert text.count(f"{note}\n") == 1
    for note in ("[3] is broken upstream: 1 combination", "[4] does so only: 1 combination"):
        assert text.count(f"{note}\n") == 1
    assert text.endswith("5 combinations: 1 supported, 2 unavailable here, 1 known failure, 1 undeclared.\n")


def test_dtypes_that_differ_have_a_line_each() -> None:
    cells = cells_of("sdpa_padded-pad_longest-eval-full-*-eager-*")
    same = [SupportStatus("supported"), SupportStatus("supported")]
    other = [SupportStatus("supported"), SupportStatus("unavailable", ("needs a package",))]
    lines = {
        len(standings[1].reasons): [
            line.split()[2:]
            for line in printed(list(zip(cells, standings, strict=True))).splitlines()
            if line.startswith("sdpa_padded ")
        ]
        for standings in (same, other)
    }
    assert lines == {0: [["all", "ok"]], 1: [["float32", "ok"], ["bfloat16", "n/a", "[1]"]]}


def test_a_narrow_terminal_cuts_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    entries = [(cell, SupportStatus("supported")) for cell in cells_of("*")]
    text = printed(entries, Terminal())
    assert "…" not in text
    for backend in ALL_BACKENDS:
        collators = [collator for collator in COLLATORS if collator.layout == backend.layout]
        # A table a mode.
        assert sum(f"{backend.name} " in line for line in text.splitlines()) >= len(MODES) * len(collators)


def test_an_ascii_terminal_gets_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    entries = [(cell, SupportStatus("supported")) for cell in cells_of("sdpa_padded-*")]
    assert "sdpa_padded " in printed(entries, file)


def test_a_failure_known_in_any_test_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cells_of("sdpa_padded-pad_longest-eval-full-float32-eager-*")[0]
    assert overall(cell, WORKLOAD.config, DEVICE) == SupportStatus("supported")
    known = KnownFailure(
        tests=("test_one", "test_other"),
        device=DEVICE,
        matches={"backend": "sdpa_padded"},
        package="torch",
        versions=">=2.10.0.dev0",
        reason="broken",
        reproduction="broken.py",
    )
    for module in (matrix, selection):
        monkeypatch.setattr(module, "KNOWN_FAILURES", (known,))
    found = overall(cell, WORKLOAD.config, DEVICE)
    assert found == SupportStatus("known failure", ("broken (broken.py)",))
