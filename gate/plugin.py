"""The pytest plugin: mends of pytest-benchmark, a journal, progress lines, tables and the comparison.

Register it in the root conftest: `pytest_plugins = ["gate.plugin"]`.
"""

import copy
import shlex
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark import __version__

from gate.comparing import Comparing, add_options
from gate.measure import environment
from gate.record.cell import CellRecord
from gate.record.files import Journal, Record, load_content
from gate.report.answer import answer
from gate.report.markdown import WIDE
from gate.report.outcomes import FACTS, Outcomes
from gate.report.progress import Progress
from gate.report.tables import tables
from gate.report.verdicts import as_data

# Asking for any of these asks for step times.
TIMING_OPTIONS = ("compare", "save", "autosave", "json", "only")


@dataclass
class Gate:
    """What one session has timed and what it shall be compared with."""

    config: pytest.Config
    comparing: Comparing
    implied_marks: bool
    folders: list[Path] = field(default_factory=list)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    cells: dict[str, CellRecord] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)
    journal: Journal | None = None
    stock_machine_info: dict[str, Any] | None = None
    outcomes: Outcomes = field(default_factory=Outcomes)

    @property
    def benchmarks(self) -> Any:
        """pytest-benchmark's session, None when that plugin is switched off."""
        return getattr(self.config, "_benchmarksession", None)

    def set_folders(self) -> None:
        """Stores by device model, as times of two models say nothing about each other."""
        if not self.folders:
            slug = environment.device_slug()
            storage = self.benchmarks.storage
            self.benchmarks.machine_id = storage.default_machine_id = slug
            local = getattr(storage, "path", self.config.invocation_params.dir / ".benchmarks")
            self.folders = [local / slug, self.config.rootpath / "baselines" / slug]

    def add(self, entry: dict[str, Any]) -> None:
        """Keep a finished cell and put it on disk at once; ValueError if its `extra_info` is none of a cell."""
        name_parameters(entry)
        if "cell" in entry["extra_info"]:
            record = CellRecord.read(entry["extra_info"])
            self.cells[record.id] = record
        self.set_folders()
        self.entries[entry["fullname"]] = entry
        if self.journal is None:
            self.journal = Journal(self.folders[0], self._header())
        self.journal.add(entry)

    def _header(self) -> dict[str, Any]:
        hook = self.config.hook
        commit = hook.pytest_benchmark_generate_commit_info(config=self.config)
        hook.pytest_benchmark_update_commit_info(config=self.config, commit_info=commit)
        header = {"machine_info": self.benchmarks.get_machine_info(), "commit_info": commit, "version": __version__}
        summary = self.comparing.summary()
        return header | {"gate": summary} if summary else header

    def record(self) -> Record:
        """Return the cells that this session has run, as tables and the comparison take them."""
        return Record(datetime.now(UTC), environment.environment(), {}, dict(self.cells))


GATE = pytest.StashKey[Gate]()


def name_parameters(entry: dict[str, Any]) -> None:
    """Put the ids of a test's parameters in their place: a cell has no form in JSON, its repr is full of addresses."""
    if entry["params"]:
        entry["params"] = {name: getattr(value, "id", value) for name, value in entry["params"].items()}


class _NothingTimed:
    """Stands in pytest-benchmark's list when all cells are without a time, as it saves no empty list."""

    has_error = True

    def __bool__(self) -> bool:
        return False


@pytest.fixture
def record_cell(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """Call it with a cell's `extra_info` when the cell gets no time: out of memory, too slow, wrong.

    Use it instead of the `benchmark` fixture's timer (also after that one raised); the cell is then in the
    journal, in the saved record, in the tables and in the comparison.
    """

    def record(extra_info: dict[str, Any]) -> None:
        if "cell" not in extra_info:
            raise ValueError('record_cell needs the cell; got an extra_info without the key "cell".')
        node = request.node
        callspec = getattr(node, "callspec", None)
        entry = {"group": None, "name": node.name, "fullname": node.nodeid, "extra_info": extra_info}
        entry |= {"params": callspec and callspec.params, "param": callspec and callspec.id}
        request.config.stash[GATE].add(entry)
        benchmark = node.funcargs.get("benchmark")
        if benchmark is not None:
            # pytest-benchmark warns about a fixture that timed nothing, and would save what it timed before.
            benchmark._mode = benchmark._mode or "record_cell"
            benchmark.has_error = True

    return record


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --benchmark-stock-table beside pytest-benchmark's own options, and those of the comparison."""
    group = parser.getgroup("benchmark")
    add_options(group)
    stock = "Print pytest-benchmark's own table too. Default: only the tables by backend and collator."
    group.addoption("--benchmark-stock-table", action="store_true", help=stock)
    group.addoption(
        "--report",
        type=Path,
        metavar="DIR",
        help="write what was found as one page: DIR/report.html, and the same as report.md and report.json",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Sets the options that pytest-benchmark reads when its own, later pytest_configure makes its session."""
    option = config.option
    arguments = config.invocation_params.args
    explicit = option.markexpr or any(str(arg).startswith("-m") for arg in arguments)
    timing = any(getattr(option, f"benchmark_{name}", None) for name in TIMING_OPTIONS)
    if not explicit:
        option.markexpr = "performance" if timing else "not performance"
    comparing = Comparing(config, getattr(option, "benchmark_compare", None) or False)
    gate = Gate(config, comparing, not explicit)
    config.stash[GATE] = gate
    option.benchmark_save_data = True
    # pytest-benchmark would look in the wrong folder and dump both machine_infos in a warning: see
    # pytest_sessionstart, which finds the record, and pytest_sessionfinish, which hands it over.
    option.benchmark_compare = []
    config.pluginmanager.register(Progress(config, gate.entries), "varlen-gate-progress")
    if option.report:
        config.pluginmanager.register(gate.outcomes, "varlen-gate-outcomes")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Reads the records to compare with before anything is timed; an unreadable one is a usage error."""
    config = session.config
    gate = config.stash[GATE]
    if gate.benchmarks is None:
        return
    stock = ("stock_table", "histogram", "cprofile")
    if not any(config.getoption(f"benchmark_{name}") for name in stock):
        gate.benchmarks.quiet = True
    try:
        gate.comparing.check_options()
        if gate.comparing.value:
            gate.set_folders()
            gate.comparing.find(gate.folders)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header(config: pytest.Config) -> str | None:
    """Says which marks were chosen for the user."""
    chosen = f"without -m, this runs -m '{config.option.markexpr}' (for step times: pytest -m performance)"
    return f"varlen-gate: {chosen}" if config.stash[GATE].implied_marks else None


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Notes that timed tests were left out, by whatever option: -k, -m, --deselect, --last-failed."""
    for item in items:
        if item.get_closest_marker("performance"):
            item.config.stash[GATE].comparing.deselected = True


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuses a named record of another workload before anything is timed."""
    timed = [item for item in session.items if item.get_closest_marker("performance") and hasattr(item, "callspec")]
    try:
        session.config.stash[GATE].comparing.check_collected(item.callspec.id for item in timed)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps the entry of a benchmark that has just been timed."""
    report = yield
    stats = getattr(getattr(item, "funcargs", {}).get("benchmark"), "stats", None)
    if call.when == "call" and stats and not stats.has_error:
        item.config.stash[GATE].add(stats.as_dict(include_data=True))
    return report


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any] | None:
    """Keeps what pytest-benchmark found the first time: to ask for the processor takes it a second."""
    return copy.deepcopy(config.stash[GATE].stock_machine_info)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Adds the environment, drops what names one host or its kernel: records are committed to a public repository."""
    config.stash[GATE].stock_machine_info = copy.deepcopy(machine_info)
    for key in ("node", "release"):
        machine_info.pop(key, None)
    if isinstance(cpu := machine_info.get("cpu"), dict):
        # The processor's flags alone would be longer than most records.
        machine_info["cpu"] = {key: cpu[key] for key in ("brand_raw", "arch", "count") if key in cpu}
    machine_info.update(environment.environment())


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Keeps commit, time and dirtiness; branch, folder and error texts may name people or machines."""
    for key in commit_info.keys() - {"id", "time", "dirty"}:
        del commit_info[key]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Adds the cells without a time, and notes what a save holds."""
    gate = config.stash[GATE]
    for entry in output_json["benchmarks"]:
        name_parameters(entry)
    output_json["cells_without_time"] = [entry for entry in gate.entries.values() if "stats" not in entry]
    if summary := gate.comparing.summary():
        output_json["gate"] = summary
    gate.saved = {entry["fullname"] for entry in output_json["benchmarks"] + output_json["cells_without_time"]}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Judges what was timed, and hands pytest-benchmark its folder before its own wrapper saves."""
    gate = session.config.stash[GATE]
    benchmarks = gate.benchmarks
    whole = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    gate.comparing.stopped = not whole or bool(session.shouldstop or session.shouldfail)
    refused = session.exitstatus == pytest.ExitCode.USAGE_ERROR or session.config.option.collectonly
    if benchmarks is not None and gate.comparing.value and not refused:
        _compare(gate, session, whole=whole)
    if benchmarks is not None and (benchmarks.benchmarks or gate.entries):
        gate.set_folders()
        if not benchmarks.benchmarks:
            benchmarks.benchmarks.append(_NothingTimed())
    yield


def _compare(gate: Gate, session: pytest.Session, *, whole: bool) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")

    def say(line: str) -> None:
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(line)

    # Who interrupts a run does not want to wait for more of it.
    gate.comparing.finish(gate.record(), gate.folders[0].name, _width(reporter), say if whole else None)
    if (compared := gate.comparing.baseline) is not None and not compared.committed:
        # For pytest-benchmark's own table, and its --benchmark-compare-fail.
        entries = load_content(compared.path)["benchmarks"]
        gate.benchmarks.compared_mapping = {Path(compared.path.name): {each["fullname"]: each for each in entries}}
    if gate.comparing.interrupted:
        session.exitstatus = pytest.ExitCode.INTERRUPTED
    elif gate.comparing.failed and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _write_page(
    gate: Gate, config: pytest.Config, record: Record, facts: dict[str, Any], folder: Path, exitstatus: int
) -> Path:
    # Not at the top: few sessions write a page.
    from gate.report.page import Page, write_page

    comparing = gate.comparing
    page = Page(
        command=shlex.join(["pytest", *map(str, config.invocation_params.args)]),
        passed=exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED),
        machine=record.machine,
        outcomes=gate.outcomes.cells,
        other_failures=gate.outcomes.others,
        times=[*record.cells.values()],
        comparison=[as_data(one) for one in comparing.verdicts],
        compared=str(comparing.baseline or ""),
        **facts,
    )
    return write_page(page, folder)


def _width(reporter: Any) -> int:
    # isatty is not called: a plain bool up to pytest 8, a bool that can be called since.
    return reporter._tw.fullwidth if reporter is not None and reporter.isatty else WIDE


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """Prints the tables, the answer, the comparison, and where the report and the journal are."""
    gate = config.stash[GATE]
    # A worker of pytest-xdist has seen only its own tests.
    folder = None if hasattr(config, "workerinput") else config.getoption("report")
    shown = gate.cells and not config.getoption("benchmark_quiet")
    if shown or folder:
        record, facts = gate.record(), config.stash.get(FACTS, dict)()
    if shown:
        terminalreporter.section("step times")
        terminalreporter.write_line(tables(record, _width(terminalreporter)))
        if lines := answer(record.cells.values(), record.machine, facts.get("padding")):
            terminalreporter.write_line("\n" + "\n".join(lines))
    if gate.comparing.told:
        terminalreporter.section("comparison")
        terminalreporter.write_line("\n".join(gate.comparing.told))
    if folder:
        page = _write_page(gate, config, record, facts, folder, exitstatus)
        terminalreporter.write_line(f"report: {page}")
    # Saving comes before the summary, and one that failed lets no summary happen.
    if gate.journal is not None and gate.saved >= gate.entries.keys():
        gate.journal.path.unlink()
    elif gate.journal is not None:
        count = len(gate.entries)
        cells = f"{count} cell{'s' * (count != 1)}"
        told = f"No record was saved. The step times of {cells} are in {gate.journal.path}"
        terminalreporter.write_line(told)
