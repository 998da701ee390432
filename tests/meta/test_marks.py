"""Each folder of tests has one mark, its name: a test that loses it is run by nobody who asks for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.meta.sessions import Ran, collected
from tests.packing.outside_parts import PARTS
from tests.selection import MARKS

pytestmark = pytest.mark.meta

FAMILIES = "--packing-families=ci"

#: Without -m what is timed is left out; models of transformers are, where no mark may mean them.
WHATEVER_MARK = "packing or not packing"

SESSIONS: dict[str, tuple[str, ...]] = {
    "whatever mark": ("-m", WHATEVER_MARK, FAMILIES, "tests"),
    **{mark: ("-m", mark, FAMILIES, "tests") for mark in MARKS},
}

every_mark = pytest.mark.parametrize("mark", sorted(MARKS))


@pytest.fixture(scope="module")
def session() -> Callable[[str], Ran]:
    return collected(SESSIONS)


def folder_of(file: str) -> str:
    return file.split("/")[1]


@every_mark
def test_every_test_has_the_mark_of_its_folder_and_no_other(session: Callable[[str], Ran], mark: str) -> None:
    items = [item for item in session("whatever mark").items if folder_of(item.file) == mark]
    # Those of a part from outside are run where one is named.
    left_out = {part.tests for part in PARTS.values()}
    folder = Path(__file__).parents[1] / mark
    files = {f"tests/{mark}/{path.name}" for path in folder.glob("test_*.py") if path.name not in left_out}
    assert {item.file for item in items} == files
    assert [item.id for item in items if set(item.marks) != {mark}] == []


@every_mark
def test_a_run_of_a_mark_has_every_test_of_its_folder(session: Callable[[str], Ran], mark: str) -> None:
    wanted = [item.id for item in session("whatever mark").items if folder_of(item.file) == mark]
    assert wanted
    assert [item.id for item in session(mark).items] == wanted
