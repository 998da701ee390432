"""What a backend hands to its kernel on a GPU is right, to the last argument; no GPU is needed to see it.

A stand-in takes the kernel's place, so no argument, dtype or option is taken on trust until a GPU runs.
"""

import ctypes
import importlib.metadata
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch.nn.attention.flex_attention import flex_attention

from collators import collator_named
from collators.collator import Collator
from model.attention import BACKENDS, Backend, Machine, Mode
from model.attention.xformers_loading import RUNTIME_PACKAGE, loading_problems
from model.cells import Cell
from tests.correctness.attention_bench import AttentionBench, AttentionInput
from tests.correctness.drawn import DRAWN
from tests.unit import stand_ins
from tests.unit.stand_ins import STAND_INS, Calls, Sdpa, StandIn

pytestmark = pytest.mark.unit

#: One token alone; grouped heads, a scale of their own, and slices of one tensor; a row of more than one tile; and what
#: backends declare besides, one by one and together.
GIVEN = (
    AttentionInput((1,)),
    AttentionInput((1, 1, 2), num_heads=2, num_kv_heads=1),
    AttentionInput((3, 1, 7), num_heads=4, num_kv_heads=2, head_dim=16, sharpness=2.0, form="fused"),
    AttentionInput((1, 130, 5), num_heads=3, num_kv_heads=1, head_dim=8, sharpness=0.5, form="fused"),
    # The largest and the smallest head that a backend takes.
    AttentionInput((3, 2), head_dim=512),
    AttentionInput((3, 2), head_dim=4),
    AttentionInput((5, 1, 7), window=4),
    AttentionInput((5, 1), window=1),
    AttentionInput((300, 3), num_heads=1, num_kv_heads=1, head_dim=8, window=129),
    AttentionInput((5, 1), softcap=1.5, sharpness=2.0),
    AttentionInput((5, 1), sinks=True),
    AttentionInput((3, 1, 7), num_heads=4, num_kv_heads=2, sharpness=2.0, window=3, softcap=1.5, sinks=True),
)

#: Every way to fill a layout.
FILLINGS = [collator_named(name) for name in ("pad_longest", "pad_left", "packed", "packed_multiple", "nested")]

ADAPTERS = [
    pytest.param(backend, stand_in, collator, causal, id=f"{backend.name}-{stand_in.name}-{collator.name}-{word}")
    for backend in BACKENDS
    for stand_in in STAND_INS.get(backend.name, ())
    for collator in FILLINGS
    if collator.layout == backend.layout
    and (collator.padding_side is None or collator.padding_side in backend.padding_sides)
    for causal, word in ((False, "full"), (True, "causal"))
    if causal in backend.causal
]


class Hopper(Machine):
    """A machine with a GPU and every package."""

    def version_of(self, package: str) -> Version:
        return Version("999")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let backends be available as on a GPU."""
    monkeypatch.setattr("model.attention.backend.this_machine", lambda: Hopper((9, 0)))


def test_a_backend_that_runs_on_a_gpu_has_a_stand_in_for_its_kernel() -> None:
    """A new backend must be entered in stand_ins.py."""
    assert STAND_INS.keys() == {backend.name for backend in BACKENDS if "cuda" in backend.dtypes}


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(("backend", "stand_in", "collator", "causal"), ADAPTERS)
def test_a_backend_hands_its_kernel_what_gives_each_sequence_alone(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, stand_in: StandIn, collator: Collator, causal: bool
) -> None:
    # The stand-in rounds nothing but its result, gets nothing wrong, and has all heads that are declared.
    exact = replace(backend, probe=list, rounds={}, unavailable=(), sure_head_dim=None)
    calls = Calls()
    stand_in.install(monkeypatch, calls.counted)
    first, *others = backend.dtypes["cuda"]
    # Training shows what evaluation does.
    mode: Mode = "train" if "train" in backend.modes else "eval"
    # In another dtype what is handed over differs by the dtype alone.
    for dtype, inputs in ((first, GIVEN), *((other, GIVEN[1:2]) for other in others)):
        bench = AttentionBench(Cell(exact, collator, mode, causal, dtype, "eager", DRAWN, DRAWN))
        for given in dict.fromkeys(each.fitted(exact) for each in inputs):
            if bench.refuses(given):
                continue
            run, before = bench.run(given), calls.count
            case = replace(run.case, device="cuda")
            # As the GPU is asked: one backend has no eager kernel there.
            execution = next(
                word for word in backend.executions if not exact.undeclared_reasons(replace(case, execution=word))
            )
            run = replace(run, case=replace(case, execution=execution))
            # What is not told its device has no numbers here; on a GPU it would lie on the CPU.
            with torch.device("meta"), Sdpa(stand_in.sdpa, calls):
                results = run.results()
            assert calls.count > before, f"{backend.name} does not call the kernel that it stands for"
            found = bench.differences(given, results)
            assert not found, f"{given}, {dtype}: {'; '.join(map(str, found))}"


class Importing:
    """What happens while xFormers is loaded, in its order; a finder of modules that an import asks first."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def find_spec(self, name: str, *rest: Any) -> None:
        if name == "xformers":
            self.seen.append((name, 0))


@pytest.mark.parametrize(("cuda", "loaded"), [("13.0", True), ("12.8", False), (None, False)])
def test_xformers_finds_the_runtime_that_it_links_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None, loaded: bool
) -> None:
    """For all that is loaded later, or the extension does not find it: RTLD_GLOBAL. Its problems are one line each."""
    importing = Importing()
    monkeypatch.setattr(torch.version, "cuda", cuda)
    # A package whose import fails, whether this machine has the real one or not.
    for name in [name for name in sys.modules if name.partition(".")[0] == "xformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [importing])
    monkeypatch.setattr(
        importlib.metadata,
        "distribution",
        lambda name: types.SimpleNamespace(locate_file=lambda path: Path(name, path)),
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode=ctypes.DEFAULT_MODE: importing.seen.append((path, mode)))
    (problem,) = inspect.unwrap(loading_problems)()
    library = f"{RUNTIME_PACKAGE}/nvidia/cuda_runtime/lib/libcudart.so.12"
    assert importing.seen == [*([(library, ctypes.RTLD_GLOBAL)] if loaded else []), ("xformers", 0)]
    assert problem.startswith("xformers does not import (")


def test_an_extension_of_xformers_that_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    failure = OSError("undefined symbol\nand more")
    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    vars(package).update(ops=ops, _cpp_lib=types.SimpleNamespace(_cpp_library_load_exception=failure))
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    assert inspect.unwrap(loading_problems)() == [
        "xformers' extension does not load (undefined symbol); install the build for this torch"
    ]


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ]


def real_flash_attn() -> Callable[..., Any]:
    return pytest.importorskip("flash_attn").flash_attn_varlen_func


def real_xformers() -> Callable[..., Any]:
    return pytest.importorskip("xformers.ops").memory_efficient_attention


def real_varlen() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


TORCH = Version(torch.__version__).release
OF_THIS_TORCH = stand_ins.varlen_attn_2_12 if TORCH >= (2, 12) else stand_ins.varlen_attn_2_11
OLD_TORCH = pytest.mark.skipif(TORCH < (2, 11), reason="torch_varlen needs torch>=2.11 (upgrade torch)")


@pytest.mark.parametrize(
    ("stand_in", "real"),
    [
        pytest.param(OF_THIS_TORCH, real_varlen, id="torch", marks=OLD_TORCH),
        pytest.param(stand_ins.flex_attention, lambda: flex_attention, id="flex"),
        pytest.param(stand_ins.flash_attn_varlen_func, real_flash_attn, id="flash_attn"),
        pytest.param(stand_ins.memory_efficient_attention, real_xformers, id="xformers"),
    ],
)
def test_a_stand_in_has_the_parameters_of_the_function_it_stands_for(
    stand_in: Callable[..., Any], real: Callable[[], Callable[..., Any]]
) -> None:
    """Where the package is here; a newer one may have more of them behind."""
    own = [parameter for parameter in parameters(stand_in) if parameter.name != "wanted"]
    assert parameters(real())[: len(own)] == own
