"""What the tests of the suite itself share."""

from collections.abc import Iterator

import pytest

from gate.measure import environment
from tests.meta.timed_sessions import CONFTEST, ENVIRONMENT, SLUG, Session


@pytest.fixture(scope="session", autouse=True)
def sessions_of_their_own() -> Iterator[None]:
    """The sessions that tests start are no workers of this one: pytest-benchmark times nothing in a worker.

    What such a session imports first is forgotten after it, and numpy cannot be imported twice: so it is here first.
    """
    import scipy.stats  # noqa: F401

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)
        yield


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Runs timed pytest sessions on a simulated GPU."""
    monkeypatch.setattr(environment, "device_slug", lambda: SLUG)
    monkeypatch.setattr(environment, "environment", lambda: ENVIRONMENT)
    # Reading the CPU's features takes 0.2 s a session and proves nothing here.
    monkeypatch.setattr("pytest_benchmark.plugin.get_cpu_info", dict)
    pytester.makeconftest(CONFTEST)
    return Session(pytester)
