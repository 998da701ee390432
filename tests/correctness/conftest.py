"""The workbench of a cell, built once and shared by the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.correctness.attention_bench import AttentionBench
from tests.correctness.references import References
from tests.correctness.workbench import Workbench, open_workbench


@pytest.fixture(scope="session")
def references() -> References:
    """What is right for the batches that were drawn, shared by all cells."""
    return References()


@pytest.fixture(scope="module")
def workbench(request: pytest.FixtureRequest, references: References) -> Iterator[Workbench]:
    """The cell of this test beside the reference; compiled code is dropped after the cell's last test."""
    cell, config = request.param
    with open_workbench(cell, config, references) as bench:
        yield bench


@pytest.fixture(scope="module")
def attention(request: pytest.FixtureRequest) -> AttentionBench:
    """The attention call of this test's cell beside the oracle."""
    return AttentionBench(request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much each compiled cell compiled."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        counted = dict(report.user_properties)
        if "compilations" in counted:
            graphs, breaks = counted["compilations"], counted["graph_breaks"]
            terminalreporter.write_line(f"{report.nodeid}: {graphs} graphs compiled, {breaks} graph breaks")
