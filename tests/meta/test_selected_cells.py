"""What a run selects: cells that are required, a part of the matrix that keeps its properties, what may fail."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from collators import COLLATORS, Collator, collator_named
from gate.measure.bench import timed_cells
from model.attention import BACKENDS, REFERENCE, default_device
from model.cells import Cell, all_cells
from model.models import ALL_BACKENDS
from model.workloads import workload_named
from tests import selection
from tests.correctness.drawn import CONFIG, DRAWN
from tests.known_failures import KnownFailure
from tests.meta.sessions import Item, Ran, collected
from tests.selection import SupportStatus, covers, distinct_cells, parameters

pytestmark = pytest.mark.meta

#: A backend that no CPU has, a few that it has, and those of another model.
SOME_BACKENDS = ("fa2_varlen", "sdpa_padded", "sdpa_document_mask", "sdpa_nested", "flex_document_mask")

PROVED = ("-m", "correctness", "tests/correctness")
#: In bfloat16, which kernels of GPUs take.
TIMED = ("-m", "performance", "--workload=article", "tests/performance")

SESSIONS: dict[str, tuple[str, ...]] = {
    "proved": PROVED,
    "timed": TIMED,
    "models": ("-m", "packing", "--packing-families=ci", "tests/packing"),
    "timed, narrowed": (*TIMED, "--backend=sdpa_loop", "--compiled=all"),
    "proved, required": (*PROVED, "--require"),
    "timed, required": (*TIMED, "--require"),
    "proved, fa2_varlen required": (*PROVED, "--require=fa2_varlen"),
    "timed, fa2_varlen required": (*TIMED, "--require=fa2_varlen"),
    **{f"collator {each.name}": (*PROVED, f"--collator={each.name}") for each in COLLATORS},
    **{f"backend {name}": (*PROVED, f"--backend={name}") for name in SOME_BACKENDS},
}

every_way = pytest.mark.parametrize("way", ["proved", "timed"])


@pytest.fixture(scope="module")
def session() -> Callable[[str], Ran]:
    """Give the session of a name: all of them collect on the CPU."""
    return collected(SESSIONS)


def of_cells(ran: Ran) -> list[Item]:
    return [item for item in ran.items if item.backend]


def skipped(ran: Ran) -> set[str]:
    return {item.backend for item in of_cells(ran) if item.skipped}


@every_way
def test_a_cell_that_is_required_is_skipped_nowhere(session: Callable[[str], Ran], way: str) -> None:
    """`--require` reaches every backend of either model, what is proved and what is timed, and leaves no cell out."""
    plain, required = session(way), session(f"{way}, required")
    backends = {item.backend for item in of_cells(required)}
    assert backends == {backend.name for backend in (BACKENDS if way == "proved" else ALL_BACKENDS)} & backends
    assert {"fa2_varlen", "torch_varlen", "xformers_auto"} <= skipped(plain)
    assert skipped(required) == set()
    assert [item.id for item in required.items] == [item.id for item in plain.items]


@every_way
def test_only_the_backends_that_are_required_by_name_are_skipped_nowhere(
    session: Callable[[str], Ran], way: str
) -> None:
    plain, one = session(way), session(f"{way}, fa2_varlen required")
    assert skipped(one) == skipped(plain) - {"fa2_varlen"}


def test_pytest_times_the_cells_that_a_live_comparison_would(session: Callable[[str], Ran]) -> None:
    article = workload_named("article", "cpu", None)
    chosen = timed_cells(article, backends=["sdpa_loop"], compiled="all")
    declared = {cell.id for cell in chosen if not cell.backend.undeclared_reasons(cell.case("cpu", article.config))}
    timed = {item.id.partition("[")[2].removesuffix("]") for item in of_cells(session("timed, narrowed"))}
    assert timed == declared != set()


def test_a_run_without_names_requires_the_backends_of_every_model() -> None:
    class Asked:
        def getoption(self, name: str) -> str:
            return {"require": selection.EVERY}[name]

    assert selection.required_backends(Asked()) == {backend.name for backend in ALL_BACKENDS}


#: A CPU cell of each state.
CELL = next(
    cell
    for cell in all_cells(DRAWN, DRAWN, dtypes=(torch.float32,))
    if cell.backend is REFERENCE and cell.collator.name == "pad_longest"
)
KNOWN = KnownFailure(
    tests=("test_one",),
    device=default_device(),
    matches={"backend": CELL.backend.name},
    package="torch",
    versions=">=2.10.0.dev0",
    reason="broken",
    reproduction="broken.py",
)


def marks_of(cells: list[Cell], test: str, require: tuple[str, ...] = ()) -> list[list[pytest.Mark]]:
    device = default_device()
    params = parameters(cells, CONFIG[device], device, test, require=require)
    return [[decorator.mark for decorator in param.marks] for param in params]


def test_a_known_failure_is_strict_whatever_pytest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "KNOWN_FAILURES", (KNOWN,))
    (marks,) = marks_of([CELL], "test_one")
    assert [(mark.name, mark.kwargs) for mark in marks] == [("xfail", {"reason": "broken (broken.py)", "strict": True})]
    assert marks_of([CELL], "test_other") == [[]]


def test_a_failure_that_comes_and_goes_is_no_failure_that_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strict, it would be red most of the time; not strict, it would swallow every other error."""
    monkeypatch.setattr(selection, "KNOWN_FAILURES", (replace(KNOWN, tensors="logits"),))
    assert marks_of([CELL], "test_one") == [[]]


def test_every_failure_that_is_expected_is_strict_by_its_own_mark(session: Callable[[str], Ran]) -> None:
    """With xfail_strict off in somebody's settings, what was mended would pass unseen."""
    items = [item for name in ("proved", "timed", "models") for item in session(name).items]
    expected = [item for item in items if item.xfails]
    assert [item.id for item in expected if item.strict is not True] == []
    assert expected


def test_attention_that_only_evaluates_has_the_tests_that_train_others() -> None:
    evaluates = replace(CELL, mode="eval")
    only = replace(evaluates, backend=replace(CELL.backend, modes=("eval",)))
    found = [covers(cell, "mode", ("train",), alone=alone) for cell in (evaluates, only) for alone in (False, True)]
    assert found == [False, False, False, True]
    assert not covers(only, "causal", (not only.causal,), alone=True)


def test_what_is_not_declared_is_no_test_and_what_is_unavailable_is_skipped_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = [
        SupportStatus("undeclared", ("never",)),
        SupportStatus("unavailable", ("needs more",)),
        SupportStatus("supported"),
    ]
    found = iter(states * 2)
    monkeypatch.setattr(selection, "support_status", lambda *args: next(found))
    name = CELL.backend.name
    assert [[(mark.name, mark.kwargs) for mark in marks] for marks in marks_of([CELL] * 3, "test_one")] == [
        [("skip", {"reason": f"{name} needs more"})],
        [],
    ]
    assert marks_of([CELL] * 3, "test_one", require=(name,)) == [[], []]


def test_cells_of_evaluation_are_distinct_where_they_stand_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that cannot train here is proved in evaluation, in its first dtype; others are in training alone."""
    device = default_device()
    cells = [
        cell
        for cell in all_cells(DRAWN, DRAWN, backends=(REFERENCE,))
        if cell.collator.name == "pad_longest" and cell.causal
    ]

    def chosen(unavailable: str) -> set[tuple[str, str, str]]:
        monkeypatch.setattr(
            selection,
            "support_status",
            lambda cell, *rest: SupportStatus("unavailable" if cell.mode == unavailable else "supported"),
        )
        found = distinct_cells(cells, CONFIG[device], device)
        return {(cell.mode, cell.key["dtype"], cell.execution) for cell in found}

    train = {("train", dtype, "eager") for dtype in ("float32", "bfloat16")}
    assert chosen("neither") == train
    # float64 is no dtype of the matrix, though it is the first that this backend takes.
    assert chosen("train") == train | {("eval", "float32", "eager")}


@pytest.mark.parametrize("collator", COLLATORS, ids=lambda collator: collator.name)
def test_a_run_of_one_collator_loses_no_property(session: Callable[[str], Ran], collator: Collator) -> None:
    """Each that a whole run has for a batch of its layout, but those of the reference, which one collator feeds."""
    backends: dict[str, set[str]] = {}
    wanted = set()
    for item in of_cells(session("proved")):
        backends.setdefault(item.function, set()).add(item.backend)
        if collator_named(item.collator).layout == collator.layout:
            wanted.add(item.function)
    of_reference = {function for function, names in backends.items() if names == {REFERENCE.name}}
    found = of_cells(session(f"collator {collator.name}"))
    assert {item.collator for item in found} == {collator.name}
    assert wanted - of_reference - {item.function for item in found} == set()


@pytest.mark.parametrize("collator", COLLATORS, ids=lambda collator: collator.name)
def test_a_run_of_one_collator_keeps_its_own_tests(session: Callable[[str], Ran], collator: Collator) -> None:
    def own(ran: Ran) -> set[str]:
        return {item.id for item in ran.items if not item.backend and collator.name in named(item.id)}

    wanted = own(session("proved"))
    assert len(wanted) > 10
    assert own(session(f"collator {collator.name}")) == wanted


def named(test: str) -> list[str]:
    """Return the parameters in the id of a test."""
    return test.rpartition("[")[2].removesuffix("]").split("-")


@pytest.mark.parametrize("backend", SOME_BACKENDS)
def test_a_run_of_one_backend_loses_no_test_of_it(session: Callable[[str], Ran], backend: str) -> None:
    found = of_cells(session(f"backend {backend}"))
    assert {item.backend for item in found} == {backend}
    assert {item.id for item in found} == {item.id for item in of_cells(session("proved")) if item.backend == backend}


def test_every_dtype_mode_mask_and_layout_that_a_backend_takes_is_proved(session: Callable[[str], Ran]) -> None:
    """A selection that drops an axis is green: here it is compared with what backends declare."""
    device = default_device()
    proved = {named(item.id)[0] + "-" + "-".join(named(item.id)[1:6]) for item in of_cells(session("proved"))}
    for cell in all_cells(DRAWN, DRAWN):
        if device != "cpu" or cell.execution != "eager":
            continue
        declared = not cell.backend.undeclared_reasons(cell.case("cpu", CONFIG["cpu"]))
        assert (cell.id.removesuffix(f"-{DRAWN}") in proved) == declared, cell.id
