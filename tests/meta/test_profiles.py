"""What Hypothesis draws is what the profile says, on a machine whose variable CI is set too."""

import inspect
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import Phase, settings

from conftest import RANDOM

pytestmark = pytest.mark.meta

PROFILES = ("ci", "dev", "deep")

#: Every field of a profile, which no settings print.
NAMES = tuple(name for name in inspect.signature(settings.__init__).parameters if name not in ("self", "parent"))

#: Prints the fields of every profile, and of the settings that a test makes while it is loaded.
FIELDS = f"""
import json
import conftest
from hypothesis import settings
found = {{}}
for name in {PROFILES}:
    settings.load_profile(name)
    for of, each in (("profile", settings.get_profile(name)), ("test", settings(max_examples=7))):
        found[f"{{of}} {{name}}"] = {{field: repr(getattr(each, field)) for field in {NAMES}}}
print(json.dumps(found))
"""


def fields(root: Any, **variables: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | variables
    command = [sys.executable, "-c", FIELDS]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, encoding="utf-8", check=True)
    return json.loads(run.stdout)


def test_every_profile_is_the_same_where_ci_is_set(pytestconfig: pytest.Config) -> None:
    """Hypothesis has a profile of its own there, whose fields others inherit: a nightly run would draw the same."""
    here = fields(pytestconfig.rootpath)
    assert here == fields(pytestconfig.rootpath, CI="true")
    assert here == fields(pytestconfig.rootpath, CI="")
    assert [here[f"test {name}"]["derandomize"] for name in PROFILES] == ["True", "False", "False"]
    assert [here[f"test {name}"]["database"] == "None" for name in PROFILES] == [True, False, False]
    assert [here[f"profile {name}"]["max_examples"] for name in PROFILES] == ["20", "20", "250"]


def test_every_field_of_a_profile_is_stated() -> None:
    """One that a later Hypothesis adds would be that of its own profile where CI is set."""
    assert set(NAMES) == {*RANDOM, "max_examples"}


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_runs_every_phase(name: str) -> None:
    """Without one of them, the examples that tests name, say, would be left out in silence."""
    assert settings.get_profile(name).phases == tuple(Phase)
