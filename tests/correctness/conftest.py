"""The workbench of a cell, built once and shared by the tests of a file, and the report of a test that fails."""

import shlex
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.attention import default_device, this_machine
from model.cells import Cell
from model.compilation import fresh_compiler
from model.models import backends_asked, reference_of
from tests.correctness.attention_bench import AttentionBench
from tests.correctness.references import References
from tests.correctness.report import Failure, Found, Hunt, Red, block
from tests.correctness.workbench import Workbench, open_workbench
from tests.known_failures import KNOWN_FAILURES
from tests.selection import EVERY, asked_model


@pytest.fixture(scope="session")
def references(request: pytest.FixtureRequest) -> References:
    """What is right for the batches that were drawn, shared by all cells."""
    return References(backend=reference_of(backends_asked(None, asked_model(request.config))[0]))


@pytest.fixture(scope="module")
def workbench(request: pytest.FixtureRequest, references: References) -> Iterator[Workbench]:
    """The cell of this test beside the reference; compiled code is dropped after the cell's last test."""
    cell, config = request.param
    with open_workbench(cell, config, references) as bench:
        yield bench


@pytest.fixture(scope="module")
def attention(request: pytest.FixtureRequest) -> Iterator[AttentionBench]:
    """The attention call of this test's cell beside the oracle, compiled by itself where the cell is compiled."""
    cell = request.param
    if cell.execution == "eager":
        yield AttentionBench(cell)
        return
    with fresh_compiler():
        compiled = torch.compile(cell.backend.attend, dynamic=True, fullgraph=True)

        def attend(*inputs: torch.Tensor, **options: Any) -> torch.Tensor:
            # A model knows its heads: in a block they are constants.
            for tensor in inputs[:3]:
                torch._dynamo.mark_static(tensor, [2, 3])
            return compiled(*inputs, **options)

        yield AttentionBench(replace(cell, backend=replace(cell.backend, attend=attend)))


def cell_of(item: pytest.Function) -> Cell | None:
    """Return the cell that a test is about, None where it is about none."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params["workbench"][0] if "workbench" in params else params.get("attention")


def again(item: pytest.Function) -> str:
    """Return the command that runs `item` again on the same batches."""
    config = item.config
    words = ["pytest", item.nodeid]
    if config.getoption("compiled") != "default":
        words.append(f"--compiled={config.getoption('compiled')}")
    # A backend from outside has no cell unless it is named.
    words += [f"--backend={name}" for name in config.getoption("backend") or () if ":" in name]
    words += [f"--model={config.getoption('model')}"] if asked_model(config) else []
    # Without its collator's name a test may have no cell, and an unavailable one is skipped where it is not required.
    words += [f"--collator={name}" for name in config.getoption("collator") or ()]
    if (required := config.getoption("require")) is not None:
        words.append("--require" if required == EVERY else f"--require={required}")
    for option in ("hypothesis_profile", "hypothesis_seed"):
        if (value := config.getoption(option, None)) is not None:
            words.append(f"--{option.replace('_', '-')}={value}")
    return shlex.join(words)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Say in one block what failed, instead of what Hypothesis and pytest print of it."""
    cell, device, name = cell_of(pyfuncitem), default_device(), pyfuncitem.originalname
    machine = this_machine()
    sometimes = [
        each
        for each in KNOWN_FAILURES
        if each.tensors and cell and each.strikes(cell, device, name) and each.present(machine)
    ]
    hunt = Hunt(sometimes)
    # None of a test that draws nothing.
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    test = handle.inner_test if handle else None
    if handle:
        handle.inner_test = hunt.guarded(test)
    try:
        result = yield
    except (Exception, pytest.fail.Exception, Found, BaseExceptionGroup) as error:
        failure = hunt.smallest() or Failure({}, (error.__cause__ or error if isinstance(error, Found) else error,))
        label = cell.id if cell else pyfuncitem.name
        raise Red(block(label, failure, again(pyfuncitem)), failure.errors[0]) from None
    finally:
        if handle:
            handle.inner_test = test
    if hunt.known:
        known, failure = hunt.known[0]
        count = len(failure.errors)
        pytest.xfail(
            f"{known.reason} ({known.reproduction}): {failure.errors[0]}; {count} of "
            f"{len(failure.runs)} runs, {len(hunt.known)} batches"
        )
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much each compiled cell compiled."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        counted = dict(report.user_properties)
        if "compilations" in counted:
            graphs, breaks = counted["compilations"], counted["graph_breaks"]
            terminalreporter.write_line(f"{report.nodeid}: {graphs} graphs compiled, {breaks} graph breaks")
