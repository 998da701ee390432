"""A mutant counts where a test runs its code, and the score says how sure it is."""

import pytest

from tests.studies.mutation.population import Code, is_python
from tests.studies.mutation.score import clopper_pearson

pytestmark = pytest.mark.meta

SOURCE = """
LIMIT = 3 + 4

def inner(x: int | None = 5 - 1) -> str | None:
    'One + two.'
    y: int | None = (x
        * 2)
    try:
        if y > 1:
            return None if y else "a" + "b"
    except ValueError:
        y = y - 1

class Record:
    size: int = 4 * 4

    @property
    def double(self):
        def twice(z: int | None):
            return z * 3
        return twice(self.size) + 0
"""


def lines_at(text: str) -> list[int]:
    """Return the lines of the statement in which the first character of the only `text` stands."""
    assert SOURCE.count(text) == 1
    before = SOURCE.partition(text)[0]
    return list(Code(SOURCE).lines_at((before.count("\n") + 1, len(before.rpartition("\n")[2]))))


@pytest.mark.parametrize("text", ["+ 4", "- 1) ->", "| None = 5", "| None:\n", "* 4", "@property"])
def test_what_runs_when_a_module_is_imported_is_no_mutant(text: str) -> None:
    assert lines_at(text) == []


@pytest.mark.parametrize("text", ["| None = (x", "| None):"])
def test_an_annotation_is_no_mutant(text: str) -> None:
    assert lines_at(text) == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("x\n        *", [6, 7]),
        ("* 2)", [6, 7]),
        ("> 1", [9]),
        ('+ "b"', [10]),
        ("ValueError", [11]),
        ("y - 1", [12]),
        ("* 3", [20]),
        ("+ 0", [21]),
    ],
)
def test_a_mutant_belongs_to_the_lines_of_its_statement_without_those_within(text: str, lines: list[int]) -> None:
    assert lines_at(text) == lines


def test_what_does_not_compile_is_no_mutant() -> None:
    assert is_python("def f(*, x): return x is 1")
    assert not is_python("def f(+, x): return x")
    assert not is_python("return 1")


def test_bounds_of_a_share_are_those_of_clopper_and_pearson() -> None:
    """For none and all of 10 they are 1 - 0.025^(1/10) and 0.025^(1/10)."""
    assert clopper_pearson(0, 10) == pytest.approx((0, 1 - 0.025**0.1), abs=1e-9)
    assert clopper_pearson(10, 10) == pytest.approx((0.025**0.1, 1), abs=1e-9)
    assert clopper_pearson(8, 10) == pytest.approx((0.4439045, 0.9747893), abs=1e-6)
