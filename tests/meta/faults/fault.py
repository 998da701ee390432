"""What an injected fault is, and the ways to inject one that pytest's MonkeyPatch takes back."""

import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import Tensor

from collators import Batch
from model.attention import Case, backend_named
from model.attention.backend import Attend, Prepare

Room = Literal[
    "collators",
    "samplers",
    "attention",
    "adapters",
    "model",
    "steps",
    "fast",
    "huggingface",
    "checks",
    "gate",
    "ranks",
]
Apply = Callable[[pytest.MonkeyPatch], None]

#: What a faulty `attend` is given: the right one, and its arguments.
FaultyAttend = Callable[[Attend, Tensor, Tensor, Tensor, Any, float | None], Tensor]
FaultyPrepare = Callable[[Prepare, Any, Case], Any]


ROOT = Path(__file__).parents[3]

#: Where the tests are that faults turn red: properties, then tests of what computes and judges.
FOLDERS = ("tests/correctness", "tests/unit", "tests/packing", "tests/meta", "tests/distributed")


@dataclass(frozen=True)
class Selection:
    """A test function under one of `FOLDERS`, and the cells it is run on: a glob, or "" for a test without cells."""

    test: str
    cells: str = ""

    @cached_property
    def path(self) -> str:
        """The test as pytest takes it, from the folder whose file of this name has it."""
        file, _, name = self.test.partition("::")
        for folder in FOLDERS:
            path = ROOT / folder / file
            if path.is_file() and re.search(rf"\b{name}\b", path.read_text(encoding="utf-8")):
                return f"{folder}/{self.test}"
        raise ValueError(f"no {file} under {', '.join(FOLDERS)} has {name}; correct the fault's test.")

    @property
    def name(self) -> str:
        """The selection in words, as a row of a table has it."""
        return f"{self.test} on {self.cells}" if self.cells else self.test

    @property
    def compiled(self) -> bool:
        """Whether the cells are compiled ones."""
        return "-compiled-" in self.cells

    @property
    def options(self) -> list[str]:
        """Options for pytest. A compiled cell is run only where the glob names it."""
        compiled = "default" if self.compiled else "none"
        cells = [f"--cells={self.cells}"] if self.cells else []
        return [self.path, f"--compiled={compiled}", *cells]


@dataclass(frozen=True)
class Fault:
    """A patch of the code under test, and the property that must turn red for it.

    It is caught where the property fails by an assertion, or by one of `errors` raised outside the patch. `links` are
    the real bugs that it is drawn from, of upstream.py.
    """

    name: str
    room: Room
    summary: str
    apply: Apply
    selection: Selection
    links: tuple[str, ...] = ()
    errors: tuple[type[BaseException], ...] = ()


@dataclass(frozen=True)
class Faults:
    """The faults of one room, in the order in which they are written."""

    room: Room
    injected: list[Fault] = field(default_factory=list)

    def inject(
        self, test: str, cells: str = "", *, links: tuple[str, ...] = (), errors: tuple[type[BaseException], ...] = ()
    ) -> Callable[[Apply], Apply]:
        """Add a patch: its name is the fault's, its docstring says what is wrong."""

        def add(apply: Apply) -> Apply:
            summary = " ".join((apply.__doc__ or "").split())
            selection = Selection(test, cells)
            self.injected.append(Fault(apply.__name__, self.room, summary, apply, selection, links, errors))
            return apply

        return add


def attends(patch: pytest.MonkeyPatch, backend: str, faulty: FaultyAttend) -> None:
    """Put `faulty` in the place of the backend's `attend`; records are frozen, their dictionaries are not."""
    record = backend_named(backend)
    right = record.attend

    def attend(q: Tensor, k: Tensor, v: Tensor, context: Any, *, scale: float | None = None, **sinks: Any) -> Tensor:
        return faulty(functools.partial(right, **sinks) if sinks else right, q, k, v, context, scale)

    patch.setitem(vars(record), "attend", attend)


def prepares(patch: pytest.MonkeyPatch, backend: str, faulty: FaultyPrepare) -> None:
    """Put `faulty` in the place of the backend's `prepare`."""
    record = backend_named(backend)
    right = record.prepare
    patch.setitem(vars(record), "prepare", lambda batch, case: faulty(right, batch, case))


def makes(patch: pytest.MonkeyPatch, collator: type, faulty: Callable[[Any, list[Any], Any], Batch]) -> None:
    """Let the collator return what `faulty` makes of its options, its examples and the right batch."""
    right = collator.__call__

    def call(self: Any, examples: Any) -> Batch:
        return faulty(self.options, examples, right(self, examples))

    patch.setattr(collator, "__call__", call)


def unchecked(patch: pytest.MonkeyPatch, *kinds: type[Batch]) -> None:
    """Let batches of these kinds be made whatever they hold, so that a property meets them and not their refusal."""
    for kind in kinds:
        patch.setattr(kind, "__post_init__", lambda batch: None)


def everywhere(patch: pytest.MonkeyPatch, right: Any, faulty: Any) -> None:
    """Put `faulty` in the place of `right` in every module that imported it."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("collators", "gate", "model", "tests"):
            for attribute, value in list(vars(module).items()):
                if value is right:
                    patch.setattr(module, attribute, faulty)
