"""The workflow of the GPU runners: what it runs exists, and it runs no code from a fork."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gate.__main__ import COMMANDS
from model.attention import BACKENDS

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]
OWN_BRANCH = "github.event.pull_request.head.repo.full_name == github.repository"
ON_RUNNER = {"REQUIRED": "", "GITHUB_SHA": "0" * 40, "base": "HEAD~1"}


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "gpu.yml").read_text(encoding="utf8"))
    # YAML 1.1 takes the key `on` for a boolean.
    loaded["on"] = loaded.pop(True)
    return loaded


def commands(workflow: dict[str, Any], module: str) -> list[list[str]]:
    """The arguments of every `python -m MODULE` of the workflow, its variables filled in."""
    variables = ON_RUNNER | {"REQUIRED": workflow["env"]["REQUIRED"].strip()}
    found = []
    for job in workflow["jobs"].values():
        for line in "\n".join(step.get("run", "") for step in job["steps"]).splitlines():
            filled = re.sub(r"\$\{?(\w+)(?::-(\S*?)\})?", lambda m: variables.get(m[1], m[2] or ""), line)
            words = shlex.split(filled.partition(" | ")[0], comments=True)
            if words[1:3] == ["-m", module]:
                found.append(words[3:])
    return found


def of_torchrun(workflow: dict[str, Any]) -> list[list[str]]:
    """The commands that run pytest on several ranks."""
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    return [shlex.split(run) for run in steps if run.startswith(".venv/bin/torchrun ")]


def test_two_gpus_prove_steps_on_several_ranks_and_time_them(workflow) -> None:
    ((_, number, ranks, *given),) = of_torchrun(workflow)
    assert (number, ranks) == ("--nproc-per-node", "2")
    assert given[:4] == ["-m", "pytest", "-m", "distributed"]
    (timed,) = (given for given in commands(workflow, "pytest") if "--distributed" in given)
    assert timed[:4] == ["-m", "performance", "--distributed", "2"]
    assert workflow["jobs"]["ranks"]["runs-on"] == ["self-hosted", "linux", "x64", "h100x2"]


def test_its_commands_of_pytest_know_their_options(workflow, pytestconfig) -> None:
    found = commands(workflow, "pytest")
    assert len(found) == 5
    found += [words[words.index("pytest") + 1 :] for words in of_torchrun(workflow)]
    for arguments in found:
        _, unknown = pytestconfig._parser.parse_known_and_unknown_args(arguments)
        assert unknown == []


def test_its_commands_of_the_gate_know_their_options(workflow) -> None:
    found = commands(workflow, "gate")
    assert {arguments[0] for arguments in found} == {"ab"}
    for name, *arguments in found:
        parser = argparse.ArgumentParser(exit_on_error=False)
        importlib.import_module(COMMANDS[name]).add_arguments(parser)
        parser.parse_args(arguments)


def test_the_backends_that_must_be_there_are_in_the_registry(workflow, pytestconfig) -> None:
    required = workflow["env"]["REQUIRED"].strip().split(",")
    names = [backend.name for backend in BACKENDS if "cuda" in backend.dtypes]
    assert required == [name for name in names if name in required], "unknown, twice, or in another order"
    # Whoever adds a backend for GPUs decides whether runners must have it.
    assert set(names) - set(required) == {"xformers_flash", "fa4_varlen", "flashinfer_ragged"}
    assert all(f"--require={','.join(required)}" in given for given in _proving(workflow))


def _proving(workflow: dict[str, Any]) -> list[list[str]]:
    found = commands(workflow, "pytest")
    proving = [each for each in found if {"correctness", "performance"} & set(each) and "--distributed" not in each]
    assert len(proving) == 2
    return proving


def test_no_job_runs_code_from_a_fork(workflow) -> None:
    assert set(workflow["on"]) == {"push", "pull_request", "workflow_dispatch"}
    for name, job in workflow["jobs"].items():
        allowed = job["if"]
        assert OWN_BRANCH in allowed or allowed == "github.event_name != 'pull_request'", name
        assert job["environment"] == "h100"
        assert job["runs-on"][:3] == ["self-hosted", "linux", "x64"]
        assert job["runs-on"][3:] in (["h100"], ["h100x2"])


def test_jobs_have_no_more_rights_than_they_need(workflow) -> None:
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert job["permissions"] == {"contents": "read"}
        for step in job["steps"]:
            assert "secrets." not in str(step)
            # Text of a pull request in a script would be a part of the script.
            assert "${{" not in step.get("run", "")
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"]), "a tag can be moved: pin the commit"


def test_jobs_end_and_leave_what_they_measured(workflow) -> None:
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        upload = job["steps"][-1]
        assert "upload-artifact" in upload["uses"]
        assert upload["if"] == "always()"


def test_its_scripts_exist_and_are_scripts(workflow) -> None:
    scripts = {
        word
        for job in workflow["jobs"].values()
        for step in job["steps"]
        for word in step.get("run", "").split()
        if word.startswith(".ci/")
    }
    assert scripts == {".ci/gpu-is-free", ".ci/install-gpu"}
    for script in scripts:
        assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("processes", "persistence", "code", "said"),
    [
        ("", "Enabled", 0, ""),
        ("77, python, 400 MiB", "Enabled", 1, "another process is on the GPU, and would be timed too: 77, python"),
        ("", "Disabled", 1, "persistence mode is Disabled"),
    ],
)
def test_a_gpu_in_use_or_not_set_up_is_refused(
    tmp_path: Path, processes: str, persistence: str, code: int, said: str
) -> None:
    fake = tmp_path / "nvidia-smi"
    answers = f'*compute-apps*) printf "{processes}" ;; *=persistence_mode) echo {persistence} ;;'
    fake.write_text(f'#!/bin/sh\ncase "$1" in {answers} esac\n')
    fake.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    run = subprocess.run(
        ["bash", ROOT / ".ci" / "gpu-is-free"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, said in run.stdout) == (code, True), run.stdout
