"""Hypothesis profiles and plugins; nothing else."""

import secrets
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import InvalidArgument

pytest_plugins = [
    "pytester",
    "gate.plugin",
    "tests.selection",
    "tests.matrix",
    "tests.workers",
    "tests.packing.plugin",
    "tests.reporting",
]

#: Every field is stated: where the variable CI is set, Hypothesis gives those that are not the values of a profile of
#: its own, whose batches are the same each time. A cell's first example builds its model, and a compiled one compiles:
#: examples have no deadline.
EVERY: dict[str, Any] = {
    "verbosity": Verbosity.normal,
    "phases": tuple(Phase),
    "stateful_step_count": 50,
    "report_multiple_bugs": False,
    "suppress_health_check": (HealthCheck.too_slow,),
    "deadline": None,
    "print_blob": False,
    "backend": "hypothesis",
}
RANDOM: dict[str, Any] = EVERY | {
    "derandomize": False,
    "database": DirectoryBasedExampleDatabase(Path(__file__).parent / ".hypothesis" / "examples"),
}
settings.register_profile("ci", max_examples=20, derandomize=True, database=None, **EVERY)
settings.register_profile("dev", max_examples=20, **RANDOM)
settings.register_profile("deep", max_examples=250, **RANDOM)
settings.load_profile("ci")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Refuse, before Hypothesis' plugin reads them, a profile or a seed that would do nothing; choose a seed."""
    name = config.getoption("--hypothesis-profile", None) or "ci"
    try:
        profile = settings.get_profile(name)
    except InvalidArgument:
        raise pytest.UsageError(
            f"--hypothesis-profile={name} is no profile of this project; choose ci, dev or deep."
        ) from None
    seed = config.getoption("--hypothesis-seed", None)
    if profile.derandomize and seed is not None:
        raise pytest.UsageError(
            f"--hypothesis-seed={seed}: profile {name} always draws the same batches; add --hypothesis-profile=dev."
        )
    if not profile.derandomize and seed is None:
        # Known, so that a red test can say how to run it again.
        config.option.hypothesis_seed = str(secrets.randbelow(2**32))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which batches are drawn, where they are not the same each time."""
    seed = config.getoption("--hypothesis-seed", None)
    return None if seed is None else f"batches are drawn at random: --hypothesis-seed={seed}"
