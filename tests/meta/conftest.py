"""What the tests of the suite itself share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def sessions_of_their_own() -> Iterator[None]:
    """The sessions that tests start are no workers of this one: pytest-benchmark times nothing in a worker.

    What such a session imports first is forgotten after it, and numpy cannot be imported twice: so it is here first.
    """
    import scipy.stats  # noqa: F401

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)
        yield
