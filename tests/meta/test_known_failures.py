"""The list of known failures holds no stale entry: each names cells, tests and a script that exist."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.version import Version

from model.cells import all_cells
from tests.correctness.drawn import DRAWN
from tests.known_failures import IGNORED_WINDOWS, KNOWN_FAILURES, KNOWN_LEAKS, KnownFailure

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]

every_failure = pytest.mark.parametrize(
    "failure", KNOWN_FAILURES, ids=lambda failure: f"{failure.reproduction}-{failure.tests[0]}"
)


def functions() -> set[str]:
    files = [*(ROOT / "tests").glob("correctness/test_*.py"), *(ROOT / "tests").glob("performance/test_*.py")]
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}


class Torch:
    """A machine that has torch."""

    def __init__(self, version: str, capability: tuple[int, int] | None) -> None:
        self.capability = capability
        self.version = Version(version)

    def version_of(self, package: str) -> Version | None:
        return self.version if package == "torch" else None


@every_failure
def test_a_known_failure_strikes_a_cell_in_tests_that_exist(failure: KnownFailure) -> None:
    assert set(failure.tests) <= functions()
    for test in failure.tests:
        assert any(failure.strikes(cell, failure.device, test) for cell in all_cells(DRAWN, DRAWN))


@every_failure
def test_a_known_failure_has_a_script_that_shows_it(failure: KnownFailure) -> None:
    assert (ROOT / failure.reproduction.split()[0]).is_file()


def test_a_known_leak_has_a_script_that_shows_it() -> None:
    scripts = [known.reproduction for known in (*KNOWN_LEAKS, *IGNORED_WINDOWS)]
    assert all((ROOT / script).is_file() for script in scripts)


FAILURE = KnownFailure(
    tests=("test_one",),
    device="cuda",
    matches={"backend": ("sdpa_padded", "sdpa_loop"), "mode": "train"},
    package="torch",
    versions="==2.11.*",
    reason="broken",
    reproduction="broken.py",
    min_capability=(9, 0),
)


def test_a_known_failure_strikes_any_of_several_values_on_its_device_in_its_tests() -> None:
    cells = list(all_cells(DRAWN, DRAWN))
    struck = {(cell.backend.name, cell.mode) for cell in cells if FAILURE.strikes(cell, "cuda", "test_one")}
    assert struck == {("sdpa_padded", "train"), ("sdpa_loop", "train")}
    # One name may begin another.
    for backend in {cell.backend.name for cell in cells}:
        alone = replace(FAILURE, matches={"backend": backend})
        assert {cell.backend.name for cell in cells if alone.strikes(cell, "cuda", "test_one")} == {backend}
    assert not any(FAILURE.strikes(cell, "cpu", "test_one") for cell in cells)
    assert not any(FAILURE.strikes(cell, "cuda", "test_other") for cell in cells)


def test_a_known_failure_is_present_in_its_versions_and_on_its_gpus() -> None:
    anywhere = replace(FAILURE, min_capability=None)
    for version, capability, there, without in (
        ("2.11.0", (9, 0), True, True),
        ("2.11.1", (10, 0), True, True),
        ("2.11.0", (8, 9), False, True),
        ("2.11.0", None, False, True),
        ("2.12.0", (9, 0), False, False),
    ):
        machine = Torch(version, capability)
        assert (FAILURE.present(machine), anywhere.present(machine)) == (there, without), (version, capability)
