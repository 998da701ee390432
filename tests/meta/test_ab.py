"""`python -m gate ab` from its command line to its exit status, with the models of this checkout and slower copies."""

import json
import site
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

from gate import ROOT
from gate.__main__ import main
from gate.live import command, worktrees
from tests.studies.live import EQUAL, copied

pytestmark = pytest.mark.meta

LOOP, MASK = (f"{backend}-packed-eval-full-float32-eager-smoke" for backend in ("sdpa_loop", "sdpa_document_mask"))

#: Times are of a CPU that others use too.
COARSE = ["--workload=smoke", "--steps=2", "--threshold-percent=25"]


def ab(base: Path, head: Path, folder: Path, *options: str) -> int:
    return main(["ab", f"--base={base}", f"--head={head}", f"--folder={folder}", *COARSE, *options])


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    return {cell["cell"]: cell for cell in json.loads((folder / "report.json").read_text())["cells"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("base") / "base", EQUAL)


def test_equal_code_passes_and_finished_cells_are_not_measured_again(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    assert ab(base, ROOT, run, f"--cells={LOOP},{MASK}", "--minutes=0") == 0
    assert "NO VERDICT: 2 inconclusive; nothing was judged" in capsys.readouterr().out
    assert {cell["why"] for cell in cells(run).values()} == {"not measured: --minutes ended the run first"}
    assert main(["ab", f"--resume={run}", "--gate-strict"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "passed: 2 same"
    assert (run / "report.md").read_text() in printed
    # No time, and the same verdicts: they are of the folder.
    assert main(["ab", f"--resume={run}", "--minutes=0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "passed: 2 same"
    with pytest.raises(SystemExit):
        ab(base, ROOT, run)
    assert "already holds a run" in capsys.readouterr().err.splitlines()[-1]


def test_slowdowns_fail_and_their_causes_are_named(base: Path, tmp_path: Path):
    head = copied(tmp_path / "head", "host_sleep=10@sdpa_loop-eval-eager,prepare=60@sdpa_document_mask-*")
    assert ab(base, head, tmp_path / "run", f"--cells={LOOP},{MASK}") == 1
    found = cells(tmp_path / "run")
    assert {cell: (one["verdict"], one["cause"]) for cell, one in found.items()} == {
        LOOP: ("regressed", "host"),
        MASK: ("regressed", "preparation"),
    }
    assert found[LOOP]["cause_sentence"].startswith("host: wall ")
    assert found[MASK]["cause_sentence"].startswith("batch preparation: ")
    assert 0 < found[LOOP]["low"] < found[LOOP]["change"] < found[LOOP]["high"]
    assert [len(one["pairs"]) >= 3 for one in found.values()] == [True, True]


#: What makes the kernel `right` 10 ms slower.
SLOWER = """
import functools
import time

_right = right


@functools.wraps(_right)
def right(*given, **more):
    time.sleep(0.01)
    return _right(*given, **more)
"""


def environment_with(folder: Path, kernel: str) -> Path:
    """Return a virtual environment with the packages of this one and an outside package `theirs`."""
    package = folder / "src" / "theirs"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "kernels.py").write_text(kernel)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (places,) = (folder / "env").glob("lib/python*/site-packages")
    (places / "theirs.pth").write_text("\n".join([*site.getsitepackages(), str(package.parent)]))
    return folder / "env"


def test_another_repository_gates_its_kernel_against_its_base_branch(tmp_path: Path):
    """As docs/how-to/bring-your-own-kernel.md says: an environment for each side, and the kernel by its module."""
    kernel = Path(__file__).with_name("outside_kernels.py").read_text()
    sides = [environment_with(tmp_path / name, text) for name, text in (("base", kernel), ("head", kernel + SLOWER))]
    given = [f"--base-env={sides[0]}", f"--head-env={sides[1]}", "--backend=theirs.kernels:right"]
    run = tmp_path / "run"
    assert main(["ab", *given, "--cells=*-packed-eval-full-*-eager-smoke", f"--folder={run}", *COARSE]) == 1
    (found,) = cells(run).values()
    assert (found["cell"].partition("-")[0], found["verdict"], found["cause"]) == (
        "theirs_kernels.right",
        "regressed",
        "host",
    )


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the tags old and new, in which models do nothing."""
    folder = tmp_path / "repository"
    (folder / "model").mkdir(parents=True)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for tag in ("old", "new"):
        (folder / "model" / "__init__.py").write_text(f"TAG = {tag!r}")
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", tag], ["tag", tag]):
            subprocess.run([*git, *words], cwd=folder, check=True)
    monkeypatch.setattr(command, "ROOT", folder)
    return folder


def trees(repository: Path) -> int:
    listed = subprocess.run(["git", "worktree", "list"], cwd=repository, check=True, capture_output=True, text=True)
    return len(listed.stdout.splitlines())


def test_commits_that_the_gate_cannot_drive_are_refused_in_one_line_and_their_checkouts_go(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        main(["ab", "--base=old", "--head=new", f"--folder={tmp_path / 'run'}"])
    assert stopped.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be driven by this gate: ModuleNotFoundError: No module named 'collators'" in told
    assert trees(repository) == 1
    assert not list((tmp_path / "run" / "worktrees").iterdir())


def test_what_a_killed_run_left_is_no_obstacle(repository: Path, tmp_path: Path):
    with worktrees.checkout("old", tmp_path / "tree", repository):
        (tmp_path / "tree" / "dirt").write_text("left behind")
        with worktrees.checkout("new", tmp_path / "tree", repository) as again:
            assert not (again / "dirt").exists()
            assert "new" in (again / "model" / "__init__.py").read_text()
    assert trees(repository) == 1


def test_one_environment_shares_what_is_compiled(repository: Path, tmp_path: Path):
    def caches(*pythons: str) -> list[Path]:
        plan = command.Plan(
            ("old", "new"), (pythons[0], pythons[1]), ("old", "new"), {}, None, 20.0, 0.05, 0, 300.0, None, False
        )
        with command.sides_of(plan, tmp_path / "run") as sides:
            return [side.cache for side in sides.values()]

    base, head = caches("/env/bin/python", "/env/bin/python")
    assert base == head
    base, head = caches("/env/bin/python", "/other/bin/python")
    assert base != head


USAGE = {
    "nothing": ([], "gate ab got nothing to compare; give --base and --head"),
    "one_side": (["--base=HEAD"], "--base needs --head"),
    "one_environment": (["--head-env=/x"], "--head-env needs --base-env"),
    "no_commit": (["--base=HEAD", "--head=no-such-ref"], "'no-such-ref' is neither a commit"),
    "option_for_a_commit": (["--base=HEAD", "--head=--all"], "'--all' is neither a commit"),
    "empty_commit": (["--base=", "--head=HEAD"], "'' is neither a commit"),
    "no_environment": (["--base-env=/nowhere", "--head-env=/nowhere"], "'/nowhere' holds no executable bin/python"),
    "no_python": (["--base-env=/tmp", "--head-env=/tmp"], "'/tmp' holds no executable bin/python"),
    "alpha": (["--base=HEAD", "--head=HEAD", "--alpha=0.9"], "--alpha 0.9 is not between 1e-06 and 0.5"),
    "steps": (["--base=HEAD", "--head=HEAD", "--steps=0"], "--steps 0 is not 1 or more"),
    "no_plan": (["--resume=/nowhere"], "/nowhere/plan.json is not a plan that can be resumed"),
    "resume_and_more": (
        ["--resume=/nowhere", "--cells=*"],
        "--resume takes no other options than --minutes and --gate-strict",
    ),
    "resume_for_less": (["--resume=/nowhere", "--minutes=-3"], "--minutes -3 is not 0 or more"),
    "resume_for_nan": (["--resume=/nowhere", "--minutes=nan"], "--minutes nan is not 0 or more"),
} | {
    f"resume_{option}": (["--resume=/nowhere", f"--{option}={value}"], f"got --{option}. Leave that out")
    for option, value in {"base": "HEAD", "head-env": "/x", "alpha": 0.4, "stall-seconds": -1, "folder": "/x"}.items()
}


@pytest.mark.parametrize("case", USAGE)
def test_a_bad_command_is_told_in_one_line(
    case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options, told = USAGE[case]
    monkeypatch.chdir(ROOT if case == "empty_commit" else tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["ab", *options])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("kept", ["{", "[]", '{"schema": 99}', '{"schema": 2}'])
def test_a_broken_plan_is_told(tmp_path: Path, kept: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "plan.json").write_text(kept)
    with pytest.raises(SystemExit):
        main(["ab", f"--resume={tmp_path}"])
    assert "is not a plan that can be resumed" in capsys.readouterr().err.splitlines()[-1]
