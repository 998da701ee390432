"""The workbench of a cell, built once and shared by the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.correctness.workbench import Workbench, compiler_for, workbench_of


@pytest.fixture(scope="module")
def workbench(request: pytest.FixtureRequest) -> Iterator[Workbench]:
    """The cell of this test beside the reference; compiled code is dropped after the cell's last test."""
    cell, config = request.param
    with compiler_for(cell):
        yield workbench_of(cell, config)
