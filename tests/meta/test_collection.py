"""Collecting the suite reads its code and pytest's settings alone: what else a test needs is read when it runs."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.meta

#: Collects everything, and then prints what was opened or listed below the current folder: `event path`, one a line.
WATCHED = """
import os, sys
seen = set()
def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, os.PathLike)):
        seen.add((event, os.path.abspath(arguments[0])))
sys.addaudithook(watch)
import pytest
status = pytest.main(["--collect-only", "-q", "-n0", "-p", "no:cacheprovider"])
for event, path in sorted(seen):
    # An environment may lie in the checkout, as tox's does.
    if path.startswith(os.getcwd() + os.sep) and not path.startswith(sys.prefix + os.sep):
        print("watched", event, os.path.relpath(path))
sys.exit(status)
"""

#: What a checkout may lack and still be timed.
OTHER_FOLDERS = ("baselines", "docs", ".github", ".ci")

#: What pytest and tox are told.
SETTINGS = ("pyproject.toml", "tox.ini")


def is_code(path: str) -> bool:
    # Pytest looks for plugins in what a build leaves behind, too.
    return path.endswith(".py") or "__pycache__/" in path or ".egg-info/" in path


def test_no_module_reads_data_of_the_repository_while_it_is_imported(pytestconfig: pytest.Config) -> None:
    """`pytest -m performance` imports every test module, and a checkout without baselines/ and docs/ is timed too."""
    run = subprocess.run(
        [sys.executable, "-c", WATCHED], cwd=pytestconfig.rootpath, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    watched = [line.split(" ", 2)[1:] for line in run.stdout.splitlines() if line.startswith("watched ")]
    assert any("test_collection" in path for _, path in watched)
    read = [
        path
        for event, path in watched
        if path.partition("/")[0] in OTHER_FOLDERS
        or (event == "open" and not (is_code(path) or path in SETTINGS or path.startswith(".hypothesis/")))
    ]
    assert read == [], f"read while test modules were imported: {read}; read it in a fixture"
