"""Hypothesis profiles and plugins; nothing else."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.errors import InvalidArgument

pytest_plugins = [
    "pytester",
    "gate.plugin",
    "tests.selection",
    "tests.matrix",
    "tests.workers",
    "tests.huggingface.plugin",
]

# A cell's first example builds its model, and a compiled one compiles: examples have no deadline.
settings.register_profile("ci", max_examples=20, deadline=None, derandomize=True, database=None)
settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile("deep", max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Refuses an unknown profile in one line: Hypothesis' plugin would end in a traceback."""
    name = config.getoption("--hypothesis-profile", None)
    try:
        settings.get_profile(name or "ci")
    except InvalidArgument:
        raise pytest.UsageError(f"--hypothesis-profile={name}: choose ci, dev or deep.") from None
