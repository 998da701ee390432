"""FlashInfer's plans are each batch's own, and live as long as the GPU needs them; no GPU is needed to see it."""

import builtins
import gc
import shutil
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from collators import CollatorOptions, Example, collator_named
from collators.batch import PackedBatch
from model.attention import Case, flashinfer_ragged
from model.attention.flashinfer_ragged import RaggedPlans, attend, prepare, probe, readable
from tests.unit.stand_ins import Calls, Event, in_flashinfer
from tests.unit.test_cudnn_ragged import after_one_number, every_other_number, expanded, heads_first

pytestmark = pytest.mark.unit

HEADS, HEAD_DIM = 4, 64
CASE = Case(
    device="cuda",
    layout="packed",
    padding_side=None,
    mode="eval",
    causal=True,
    dtype=torch.bfloat16,
    execution="eager",
    num_heads=HEADS,
    num_kv_heads=HEADS,
    head_dim=HEAD_DIM,
)
LAYOUTS = (expanded, heads_first, every_other_number, after_one_number)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    in_flashinfer(monkeypatch, Calls().counted)


def batch_of(*lengths: int) -> PackedBatch:
    ones = [torch.ones(length, dtype=torch.int64) for length in lengths]
    batch = collator_named("packed").build(CollatorOptions(max(lengths)))([Example(ids, ids) for ids in ones])
    assert isinstance(batch, PackedBatch)
    return batch


def drawn(tokens: int) -> list[Tensor]:
    return [torch.randn(1, tokens, HEADS, HEAD_DIM, dtype=torch.bfloat16) for _ in range(3)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("at", range(3), ids="qkv")
def test_a_batch_takes_tensors_of_any_layout(layout: Callable[[Tensor], Tensor], at: int) -> None:
    context = prepare(batch_of(3, 4), CASE)
    inputs = [layout(tensor) if index == at else tensor for index, tensor in enumerate(drawn(7))]
    copied = [tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs]
    torch.testing.assert_close(attend(*inputs, context), attend(*copied, context), rtol=0, atol=0)


def test_slices_of_one_tensor_are_not_copied() -> None:
    fused = torch.randn(7, 3 * HEADS, HEAD_DIM, dtype=torch.bfloat16)
    for piece in fused.split(HEADS, dim=1):
        assert readable(piece).data_ptr() == piece.data_ptr()


def test_two_batches_that_are_prepared_run_in_either_order() -> None:
    lengths, inputs = ((3, 4), (5, 1, 2)), (drawn(7), drawn(8))
    alone = [attend(*tensors, prepare(batch_of(*each), CASE)) for each, tensors in zip(lengths, inputs, strict=True)]
    contexts = [prepare(batch_of(*each), CASE) for each in lengths]
    for at in (1, 0, 1):
        torch.testing.assert_close(attend(*inputs[at], contexts[at]), alone[at], rtol=0, atol=0)


def test_a_batch_is_planned_once_for_each_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float | None] = []
    right = flashinfer_ragged.planned

    def planned(ends: Tensor, device: torch.device, case: Case, scale: float | None) -> Any:
        made.append(scale)
        return right(ends, device, case, scale)

    monkeypatch.setattr(flashinfer_ragged, "planned", planned)
    context, inputs = prepare(batch_of(3, 4), CASE), drawn(7)
    assert made == [None]
    default, sharper, again = (attend(*inputs, context, scale=scale) for scale in (None, 1.0, None))
    attend(*inputs, context, scale=1.0)
    assert made == [None, 1.0]
    torch.testing.assert_close(again, default, rtol=0, atol=0)
    assert not torch.equal(default, sharper)


def planned_and_gone(context: RaggedPlans) -> Callable[[], object]:
    """Return what tells whether the wrapper of `context` still lives, when the context no longer does."""
    (wrapper,) = context.wrappers.values()
    return weakref.ref(wrapper)


def test_a_plan_is_kept_until_the_gpu_has_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pinned memory would else hold the next batch's plan when the GPU comes to copy it."""
    event = Event(come=False)
    monkeypatch.setattr(flashinfer_ragged, "after_now", lambda device: event)
    wrapper = planned_and_gone(prepare(batch_of(3, 4), CASE))
    prepare(batch_of(2), CASE)
    gc.collect()
    assert wrapper() is not None
    event.come = True
    prepare(batch_of(2), CASE)
    gc.collect()
    assert wrapper() is None


def test_wrappers_of_one_device_share_a_workspace() -> None:
    device = torch.device("cpu")
    assert flashinfer_ragged.workspace(device) is flashinfer_ragged.workspace(device)


def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, nvcc: bool, ninja: bool, built: bool) -> None:
    """Let a FlashInfer be installed beside these, whatever this machine has."""
    environment = types.ModuleType("flashinfer.jit.env")
    vars(environment)["FLASHINFER_AOT_DIR"] = tmp_path if built else tmp_path / "none"
    monkeypatch.setitem(sys.modules, "flashinfer.jit", types.ModuleType("flashinfer.jit"))
    monkeypatch.setitem(sys.modules, "flashinfer.jit.env", environment)
    monkeypatch.setattr(flashinfer_ragged, "has_nvcc", lambda: nvcc)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/ninja" if ninja and name == "ninja" else None)


@pytest.mark.parametrize(
    ("nvcc", "ninja", "built", "ready"),
    [(True, True, False, True), (False, False, True, True), (False, True, False, False), (True, False, False, False)],
)
def test_a_backend_without_a_compiler_or_built_kernels_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nvcc: bool, ninja: bool, built: bool, ready: bool
) -> None:
    installed(monkeypatch, tmp_path, nvcc=nvcc, ninja=ninja, built=built)
    reason = "needs nvcc and ninja to build FlashInfer's kernels; put both on PATH, or install flashinfer-jit-cache"
    assert probe() == ([] if ready else [reason])


def test_a_backend_whose_package_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    right = builtins.__import__

    def failing(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "flashinfer":
            raise OSError("libtvm_ffi.so: cannot open shared object file\nand more")
        return right(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", failing)
    assert probe() == [
        "flashinfer does not load (libtvm_ffi.so: cannot open shared object file); install flashinfer-python and what "
        "it requires"
    ]


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_nvcc_is_looked_for_where_flashinfer_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/nvcc")
    assert flashinfer_ragged.has_nvcc()
    monkeypatch.setenv(variable, str(tmp_path))
    assert not flashinfer_ragged.has_nvcc()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    assert flashinfer_ragged.has_nvcc()
