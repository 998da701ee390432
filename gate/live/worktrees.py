"""Checkouts of the commits that are compared, gone again afterwards."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What a folder must have to be a checkout.
MODELS = "model"


def resolved(ref: str, repository: Path) -> str:
    """The commit that `ref` names, or the path of a folder that is a checkout already; ValueError if neither."""
    folder = Path(ref)
    # An empty word is no folder, though Path("") is this one: a variable of a shell was not set.
    if ref and (folder / MODELS).is_dir():
        return str(folder.absolute())
    answer = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if answer.returncode:
        raise ValueError(
            f"{ref!r} is neither a commit of {repository} nor the folder of a checkout, which has {MODELS}/; "
            "choose a commit from git log."
        )
    return answer.stdout.strip()


@contextmanager
def checkout(commit: str, folder: Path, repository: Path) -> Iterator[Path]:
    """Have `commit` checked out at `folder` meanwhile; a commit that is a folder (`resolved`) is used as it is."""
    if Path(commit).is_dir():
        yield Path(commit)
        return
    # What a killed run left behind.
    remove(folder, repository)
    added = _git(repository, "worktree", "add", "--detach", "--force", str(folder.absolute()), commit)
    if added.returncode:
        raise ValueError(f"git worktree add {folder} {commit[:12]} failed: {added.stderr.strip()}")
    try:
        yield folder.absolute()
    finally:
        remove(folder, repository)


def remove(folder: Path, repository: Path) -> None:
    """Delete a worktree, and what git keeps about it."""
    if folder.exists():
        _git(repository, "worktree", "remove", "--force", str(folder.absolute()))
        shutil.rmtree(folder, ignore_errors=True)
    _git(repository, "worktree", "prune")


def _git(repository: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError("comparing two commits needs git; give two folders instead.") from None
