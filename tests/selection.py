"""Pytest plugin: which cells a run covers, and what each cell's state makes of its test."""

import fnmatch
import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from collators import COLLATORS, collator_named
from gate.comparing import ASKED
from gate.live.command import hello_of
from gate.measure.bench import timed_cells
from gate.measure.rank import RankedCell, ranked, ranked_cells
from gate.record.cell import chosen_by
from model.attention import Backend, Device, default_device, this_machine
from model.attention.backend import ANY
from model.cells import DTYPES, Cell, all_cells
from model.decoder import DecoderConfig
from model.models import ALL_BACKENDS, PROVED_BACKENDS, any_backend_named, backends_asked
from model.workloads import Workload, workload_named
from tests.correctness.drawn import CONFIG, DRAWN, REPRESENTATIVES, VARIANTS, compiled_by_default, in_first_dtype
from tests.known_failures import KNOWN_FAILURES

#: How long the steps of a cell may be expected to take, in seconds: those of the slowest in baselines/ take 44 s.
CELL_SECONDS = 300.0

#: The value of `--require` without names.
EVERY = "every backend"

#: The folders of tests, each named as the mark of its tests.
FOLDER = Path(__file__).parent
MARKS = ("correctness", "unit", "performance", "packing", "meta", "distributed")

#: Runs only if it is asked for: it needs packages of its own.
TRAINERS = "trainers"

State = Literal["supported", "known failure", "unavailable", "undeclared"]


@dataclass(frozen=True)
class SupportStatus:
    """The state of a cell on this machine and the reasons for it."""

    state: State
    reasons: tuple[str, ...] = ()


def support_status(cell: Cell, config: DecoderConfig, device: Device, test: str = "") -> SupportStatus:
    """Return what can be expected of `cell` here, in `test` where a known failure names one."""
    case = cell.case(device, config)
    if reasons := cell.backend.undeclared_reasons(case):
        return SupportStatus("undeclared", tuple(reasons))
    if reasons := cell.backend.unavailable_reasons(case):
        return SupportStatus("unavailable", tuple(reasons))
    for failure in KNOWN_FAILURES:
        # What comes and goes passes most of the time: tests/correctness/conftest.py judges it.
        if not failure.tensors and failure.strikes(cell, device, test) and failure.present(this_machine()):
            return SupportStatus("known failure", (f"{failure.reason} ({failure.reproduction})",))
    return SupportStatus("supported")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("varlen-gate")
    group.addoption(
        "--cells",
        metavar="PATTERN",
        help="only cells whose id matches one of these globs, separated by commas, such as '*train*causal*'",
    )
    group.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="only this attention backend, also path/to/file.py:object or module:object (repeatable)",
    )
    group.addoption(
        "--collator",
        action="append",
        metavar="NAME",
        help="only this collator, with -m packing also path/to/file.py:object or module:object (repeatable)",
    )
    group.addoption(
        "--compiled",
        choices=("default", "all", "none"),
        default="default",
        help="which compiled cells run: all, none, or the default (timing: those that the workload names; "
        "correctness: one on a CPU, a few of each backend on a GPU)",
    )
    group.addoption(
        "--workload",
        metavar="NAME",
        help="the sizes that are timed: smoke (default without a GPU), article (default with one) or long",
    )
    group.addoption(
        "--lengths",
        metavar="NAME|FILE",
        help="a length distribution, or a file: text with one integer a line, .npy or .parquet. Write --lengths=FILE "
        "with the equals sign, or pytest takes the path for its rootdir",
    )
    group.addoption(
        "--require",
        nargs="?",
        const=EVERY,
        metavar="NAME,NAME",
        help="cells that are unavailable here fail instead of being skipped: all of them, or with --require=NAME,NAME "
        "those of these backends",
    )
    group.addoption("--profile-kernels", action="store_true", help="also record how long each kernel of a step takes")
    group.addoption(
        "--no-exact-costs",
        action="store_true",
        help="do not run the step that counts kernel launches and measures peak memory",
    )
    group.addoption(
        "--cell-seconds",
        type=float,
        metavar="SECONDS",
        default=CELL_SECONDS,
        help="do not time a cell if its first step shows that all its steps would take longer than this (default 300)",
    )
    group.addoption("--steps", type=int, metavar="N", help="time only the workload's first N batches")
    group.addoption(
        "--distributed",
        type=int,
        metavar="N",
        help="with -m performance: time training steps on N GPUs, or on N processes of a CPU, in DDP and FSDP2",
    )
    group.addoption(
        "--order-seed",
        type=int,
        metavar="SEED",
        help="time the cells in a random order; SEED fixes that order",
    )


def required_backends(config: pytest.Config) -> frozenset[str]:
    """Return the names of the backends whose cells `--require` does not allow to be unavailable."""
    value = config.getoption("require")
    if value == EVERY:
        return frozenset(backend.name for backend in ALL_BACKENDS)
    return frozenset(any_backend_named(name).name for name in value.split(",")) if value is not None else frozenset()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "cells(**axes, where=, one_of_each=, distinct=, variants=): the axes of the matrix that a test covers, "
        "a condition on cells, a kind of collators of which one stands for all, whether only cells that tell a "
        "property of the decoder apart are run, and the decoder's variants",
    )
    workload = checked_workload(config)
    config.stash[ASKED] = hello_of(config.option)
    check_ranks(config)
    patterns, steps = config.getoption("cells"), config.getoption("steps")
    if not (seconds := config.getoption("cell_seconds")) > 0:
        raise pytest.UsageError(f"--cell-seconds {seconds:g} is not more than 0; give seconds, or inf for no limit.")
    if patterns is not None:
        every = candidates(config, workload.name, workload.lengths.name, [workload.dtype])
        ids = [cell.id for cell in (*candidates(config, DRAWN, DRAWN, ANY, PROVED_BACKENDS), *every)]
        if ranks := config.getoption("distributed"):
            ids += [cell.id for cell in ranked(every, ranks, named=True)]
        for pattern in patterns.split(","):
            if not fnmatch.filter(ids, pattern):
                raise pytest.UsageError(
                    f"--cells {pattern!r} matches no cell; ids look like {ids[0]!r} and {ids[-1]!r} "
                    "(see pytest --matrix)."
                )
    if steps is not None and not 1 <= steps <= workload.num_batches:
        raise pytest.UsageError(
            f"--steps {steps}: workload {workload.name} has {workload.num_batches} batches; "
            f"give 1 to {workload.num_batches}."
        )
    narrowed = any(config.getoption(option) for option in ("cells", "backend", "collator"))
    if (narrowed or asked_model(config)) and (refused := nothing_declared(config)):
        raise pytest.UsageError(refused)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the folders of other marks where `-m` asks for one mark: importing them takes as long as a dozen tests.

    Each folder of tests has one mark, its name (tests/meta/test_marks.py).
    """
    asked = config.getoption("markexpr")
    other = collection_path.parent == FOLDER and collection_path.name in MARKS and collection_path.name != asked
    if collection_path == FOLDER / TRAINERS:
        return asked != TRAINERS
    return True if asked in (*MARKS, TRAINERS) and other else None


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is timed, and which recorded documents are too long for it."""
    workload = chosen_workload(config)
    sizes, lengths = workload.config, workload.lengths
    line = (
        f"workload {workload.name}: {workload.num_batches} batches of {workload.batch_size} sequences, "
        f"{lengths.name} lengths up to {sizes.max_length}"
    )
    left_out = lengths.excluded(sizes.max_length)
    return f"{line}; {left_out} longer documents are not drawn" if left_out else line


def checked_workload(config: pytest.Config) -> Workload:
    """Return the run's workload; UsageError for an unknown backend, collator or workload, or for bad lengths."""
    try:
        required_backends(config)
    except ValueError as error:
        # pytest takes a path that follows --require for its value.
        raise pytest.UsageError(f"--require={config.getoption('require')}: {error}") from None
    try:
        for name in config.getoption("backend") or ():
            any_backend_named(name)
        for name in asked_collators(config):
            collator_named(name)
        backends_asked(config.getoption("backend"), asked_model(config))
        return chosen_workload(config)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def asked_collators(config: pytest.Config) -> list[str]:
    """Return what `--collator` names of this project; one from outside is proved by tests/packing."""
    return [name for name in config.getoption("collator") or () if ":" not in name]


def asked_model(config: pytest.Config) -> str:
    """Return what `--model` names for the matrix, "" without it; with `-m packing` it is proved by tests/packing."""
    return "" if config.getoption("markexpr") == "packing" else config.getoption("model") or ""


def chosen_workload(config: pytest.Config) -> Workload:
    """Return the workload of `--workload` and `--lengths`, or this machine's default."""
    return workload_named(config.getoption("workload"), default_device(), config.getoption("lengths"))


def candidates(
    config: pytest.Config,
    workload: str,
    lengths: str,
    dtypes: Sequence[torch.dtype] = DTYPES,
    of: Sequence[Backend] = ALL_BACKENDS,
) -> list[Cell]:
    """Return every combination that `--backend` and `--collator` leave of `of`, in the order of the matrix."""
    collators, model = config.getoption("collator"), asked_model(config)
    return list(
        all_cells(
            workload,
            lengths,
            dtypes=dtypes,
            backends=[
                one for one in backends_asked(config.getoption("backend"), model) if one in of or one.spec or model
            ],
            collators=[collator for collator in COLLATORS if not collators or collator.name in collators],
        )
    )


def timed_candidates(config: pytest.Config, workload: Workload) -> list[Cell]:
    """Return the cells to time, chosen as `python -m gate ab` chooses them."""
    return timed_cells(workload, **config.stash[ASKED]["selection"])


def ranked_candidates(config: pytest.Config, workload: Workload) -> list[RankedCell]:
    """Return the cells to time on several ranks, chosen as `python -m gate ab --distributed` chooses them."""
    return ranked_cells(workload, config.getoption("distributed"), **config.stash[ASKED]["selection"])


def check_ranks(config: pytest.Config) -> None:
    """UsageError for a `--distributed` that cannot run."""
    ranks = config.getoption("distributed")
    if ranks is None:
        return
    if ranks < 2:
        raise pytest.UsageError(f"--distributed {ranks} is no number of several ranks; give 2 or more.")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise pytest.UsageError(
            f"--distributed {ranks} starts ranks of its own; got torchrun's. Run it without torchrun."
        )
    if config.getoption("markexpr") != "performance":
        raise pytest.UsageError(
            "--distributed times steps, and needs -m performance. To prove them right: pytest -m distributed."
        )
    if default_device() == "cuda" and (found := torch.cuda.device_count()) < ranks:
        raise pytest.UsageError(f"--distributed {ranks} needs {ranks} GPUs; got {found}. Give a number up to {found}.")


def drawn_candidates(config: pytest.Config, device: Device, dtypes: Sequence[torch.dtype] = DTYPES) -> list[Cell]:
    """Return the cells to prove right: every eager one, and the compiled ones that `--compiled` asks for."""
    wanted, named = config.getoption("compiled"), bool(config.getoption("collator"))
    return [
        cell
        for cell in candidates(config, DRAWN, DRAWN, dtypes, PROVED_BACKENDS)
        if cell.execution == "eager"
        or wanted == "all"
        or (wanted == "default" and compiled_by_default(cell, device, any_collator=named))
    ]


def represented(cells: Iterable[Cell], of_each: str, config: pytest.Config) -> list[Cell]:
    """Return the cells of one collator of each kind (`REPRESENTATIVES`); of every one that `--collator` names.

    So that a run that is narrowed to one collator proves all of it.
    """
    named = config.getoption("collator")
    return [cell for cell in cells if named or cell.collator.name in REPRESENTATIVES[of_each]]


def attention_cells(cells: Iterable[Cell], config: pytest.Config) -> list[Cell]:
    """Return the cells whose attention is proved without a decoder: on one collator of each filling."""
    return represented(cells, "filling", config)


def distinct_cells(cells: Iterable[Cell], config: DecoderConfig, device: Device) -> list[Cell]:
    """Return the cells of `cells` that tell a property of the decoder apart: eager ones, and as training shows what the
    forward does, those of evaluation only where they stand otherwise than the training ones, and then in one dtype."""

    def adds(cell: Cell) -> bool:
        trained = support_status(replace(cell, mode="train"), config, device)
        other = trained.state != support_status(cell, config, device).state
        return cell.mode == "train" or (other and in_first_dtype(cell))

    return [cell for cell in cells if cell.execution == "eager" and adds(cell)]


def parameters(
    cells: Iterable[Cell | RankedCell], config: DecoderConfig, device: Device, test: str, *, require: Collection[str]
) -> list[Any]:
    """Return pytest parameters, one a cell: to run, to skip with its reasons, or strictly expected to fail.

    `require` names the backends whose unavailable cells are run all the same, and fail.
    """
    params = []
    for one in cells:
        cell = one.cell if isinstance(one, RankedCell) else one
        found = support_status(cell, config, device, test)
        reason = "; ".join(found.reasons)
        marks: list[pytest.MarkDecorator] = []
        if found.state == "undeclared":
            continue
        if found.state == "unavailable" and cell.backend.attention not in require:
            marks.append(pytest.mark.skip(reason=f"{cell.backend.name} {reason}"))
        if found.state == "known failure":
            marks.append(pytest.mark.xfail(reason=reason, strict=True))
        params.append(pytest.param(one, id=one.id, marks=marks))
    return params


def nothing_declared(config: pytest.Config) -> str | None:
    """Return why the cells asked for are all refused, or None where one is not."""
    device, workload, pattern = default_device(), chosen_workload(config), config.getoption("cells")
    asked = [
        *((cell, CONFIG[device]) for cell in candidates(config, DRAWN, DRAWN, ANY, PROVED_BACKENDS)),
        *((cell, workload.config) for cell in candidates(config, workload.name, workload.lengths.name)),
    ]
    reason = None
    for cell, sizes in asked:
        if chosen_by(cell.id, pattern):
            refused = cell.backend.undeclared_reasons(cell.case(device, sizes))
            if not refused:
                return None
            reason = reason or (
                f"every cell asked for is undeclared: {cell.backend.name} {refused[0]}. "
                "Choose cells from pytest --matrix."
            )
    return reason


def pytest_collection_finish(session: pytest.Session) -> None:
    # A worker of pytest-xdist has no way to say it.
    if not hasattr(session.config, "workerinput"):
        refuse_without_cells(session.config, [item.name for item in session.items if takes_a_cell(item)])


def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    # Where some are asked for, tests of cells are all that is left.
    refuse_without_cells(node.config, ids)


def refuse_without_cells(config: pytest.Config, names: Sequence[str]) -> None:
    """Refuse options that leave no cell to the tests that are run: pytest would skip each of these, and pass."""
    asked = [f"--{name}" for name in ("cells", "backend", "collator", "model") if config.getoption(name)]
    if asked and names and all(map(without_cell, names)):
        raise pytest.UsageError(
            f"{', '.join(asked)}: the tests that run have no such cell; choose one from pytest --matrix. "
            f"Ids of timed cells end in -{chosen_workload(config).name}, those of correctness tests in -{DRAWN}. "
            "A workload times only some cells, several ranks only training; --cells times every cell that it matches."
        )


def without_cell(name: str) -> bool:
    """Tell whether a test got no cell: pytest's id then has NOTSET, perhaps beside other parameters."""
    return "NOTSET" in name.rpartition("[")[2].removesuffix("]").split("-")


def covers(cell: Cell, axis: str, values: Collection[Any], *, alone: bool) -> bool:
    """Tell whether a test of these `values` of an axis covers the cell; `alone` says that it runs attention alone.

    Attention alone has the same output in evaluation. Where a backend only evaluates, a test of training takes that.
    """
    only_evaluates = alone and axis == "mode" and cell.backend.modes == ("eval",)
    return only_evaluates or getattr(cell, axis) in values


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("cells")
    if marker is None:
        return
    config, device, test = metafunc.config, default_device(), metafunc.function.__name__
    axes = dict(marker.kwargs)
    variants, distinct = axes.pop("variants", ("plain",)), axes.pop("distinct", False)
    where, of_each = axes.pop("where", lambda cell: True), axes.pop("one_of_each", None)
    pattern, require = config.getoption("cells"), required_backends(config)
    attention = "attention" in metafunc.fixturenames

    def chosen(cells: list[Cell]) -> list[Cell]:
        return [
            cell
            for cell in (represented(cells, of_each, config) if of_each else cells)
            if all(covers(cell, axis, values, alone=attention) for axis, values in axes.items())
            and where(cell)
            and chosen_by(cell.id, pattern)
        ]

    if metafunc.definition.get_closest_marker("performance"):
        workload = chosen_workload(config)
        several = config.getoption("distributed")
        timed = ranked_candidates(config, workload) if several else chosen(timed_candidates(config, workload))
        metafunc.parametrize("cell", parameters(timed, workload.config, device, test, require=require))
        return
    cells = chosen(drawn_candidates(config, device, axes.get("dtype", DTYPES)))
    if attention:
        # Eager, unless a test asks for compiled ones: each is compiled for many shapes.
        cells = [cell for cell in cells if "execution" in axes or cell.execution == "eager"]
        params = parameters(attention_cells(cells, config), CONFIG[device], device, test, require=require)
        metafunc.parametrize("attention", params, indirect=True, scope="module")
        return
    if distinct:
        cells = distinct_cells(represented(cells, "filling", config), CONFIG[device], device)
    values = []
    # Positions are the model's own.
    for variant in [each for each in variants if not (asked_model(config) and each == "rotary")]:
        sizes = VARIANTS[variant][device]
        for param in parameters(cells, sizes, device, test, require=require):
            name = param.id if variant == "plain" else f"{param.id}-{variant}"
            values.append(pytest.param((*param.values, sizes), id=name, marks=param.marks))
    # The scope keeps the tests of one cell together, so that its models are built once.
    metafunc.parametrize("workbench", values, indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave only tests of what is asked for, and put them in the order of `--order-seed`."""
    seed = config.getoption("order_seed")
    if seed is not None:
        # By a digest of each: two cells keep their order whatever else is run.
        items.sort(key=lambda item: hashlib.sha256(f"{seed} {item.name}".encode()).digest())
    model = asked_model(config)
    if not (config.getoption("cells") or config.getoption("backend") or asked_collators(config) or model):
        return
    kept = [item for item in items if takes_a_cell(item) or is_of_a_part(item)]
    if model:
        # An attention call by itself meets no model.
        kept = [item for item in kept if takes_a_cell(item) and "attention" not in getattr(item, "fixturenames", ())]
    # If no test has a cell, they stay, and refuse_without_cells says so.
    kept = [item for item in kept if not without_cell(item.name)] or kept
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def takes_a_cell(item: pytest.Item) -> bool:
    """Tell whether a test is given cells, here or by the distributed tests."""
    return item.get_closest_marker("cells") is not None or "workbench" in getattr(item, "fixturenames", ())


def is_of_a_part(item: pytest.Item) -> bool:
    """Tell whether a test without cells has a backend or a collator as a parameter, and `--backend` or `--collator`
    name it."""
    callspec = getattr(item, "callspec", None)
    return callspec is not None and any(
        getattr(callspec.params.get(part), "name", None) in (item.config.getoption(part) or ())
        for part in ("backend", "collator")
    )
