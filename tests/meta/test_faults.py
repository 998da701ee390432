"""The suite can fail: every injected fault turns red the property that the catalogue names for it."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.meta.faults import CATALOGUE, Fault
from tests.meta.faults.table import PATH, PRODUCED, document
from tests.meta.faults.upstream import BUGS, NOT_INJECTED

pytestmark = pytest.mark.meta

every_fault = pytest.mark.parametrize("fault", CATALOGUE, ids=lambda fault: fault.name)

Verdicts = dict[str, dict[str, object]]


def asked(items: list[pytest.Item]) -> set[str]:
    """Return the names of the faults that this session's tests ask about."""
    called = [item.callspec.params for item in items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    return {params["fault"].name for params in called if "fault" in params}


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> Verdicts:
    """What one run of the catalogue found, in a process that shares nothing with this one."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.studies.faults", "--json", *sorted(asked(request.session.items))],
        cwd=request.config.rootpath,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.stdout, run.stderr
    return json.loads(run.stdout)


@every_fault
def test_an_injected_fault_turns_its_property_red(verdicts: Verdicts, fault: Fault) -> None:
    assert verdicts[fault.name]["right"], verdicts[fault.name]["seen"]


def test_a_fault_has_a_name_and_a_summary_of_its_own() -> None:
    assert len(CATALOGUE) >= 40
    for values in ([fault.name for fault in CATALOGUE], [fault.summary for fault in CATALOGUE]):
        assert all(values)
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_every_upstream_bug_is_injected_or_has_a_reason() -> None:
    injected = {bug for fault in CATALOGUE for bug in fault.links}
    assert injected | NOT_INJECTED.keys() == BUGS.keys()
    assert not injected & NOT_INJECTED.keys()


def test_the_documented_table_is_that_of_the_catalogue_with_every_fault_caught() -> None:
    """`python -m tests.studies.faults --write` makes it anew."""

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith(PRODUCED)]

    everything = document(dict.fromkeys([fault.name for fault in CATALOGUE], True), PRODUCED)
    assert lines(PATH.read_text(encoding="utf-8")) == lines(everything)
