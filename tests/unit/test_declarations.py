"""A backend claims at least what the project promises: support cannot shrink unseen."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

import pytest
import torch
from packaging.version import Version

from collators import COLLATORS, collator_named
from model.attention import (
    EXECUTIONS,
    MODES,
    Backend,
    Case,
    Device,
    Execution,
    Machine,
    Mode,
    Requirement,
)
from model.attention.backend import first_line
from model.models import PROVED_BACKENDS, any_backend_named

pytestmark = pytest.mark.unit

every_backend = pytest.mark.parametrize("backend", PROVED_BACKENDS, ids=lambda backend: backend.name)


@dataclass(frozen=True)
class FakeMachine(Machine):
    """A machine with this compute capability and exactly these packages."""

    packages: dict[str, str] = field(default_factory=dict)

    def version_of(self, package: str) -> Version | None:
        return Version(self.packages[package]) if package in self.packages else None


#: The least that every requirement asks for: the minimum itself is enough.
EVERY_PACKAGE = {needed.package: needed.minimum for backend in PROVED_BACKENDS for needed in backend.requires}
MACHINES: dict[Device, Machine] = {"cpu": FakeMachine(None, EVERY_PACKAGE), "cuda": FakeMachine((9, 0), EVERY_PACKAGE)}

PADDED_RIGHT = ("pad_fixed", "pad_longest", "pad_multiple")
PADDED = (*PADDED_RIGHT, "pad_left")
PACKED = ("packed", "packed_multiple")
NESTED = ("nested",)
BOTH = (False, True)
FLOAT32, HALF = (torch.float32,), (torch.bfloat16, torch.float16)
FLOAT, ANY = (*FLOAT32, *HALF), (torch.float64, *FLOAT32, *HALF)
#: Query heads and key-value heads: equal, and those of the workload `long`.
EQUAL, GROUPED = ((16, 16), (3, 3)), ((16, 16), (3, 3), (32, 8))
#: The largest is longer than any sequence.
WINDOWS, SOFTCAPS, SINKS = (None, 1, 128, 2**20), (None, 30.0), (False, True)
EAGER: tuple[Execution, ...] = ("eager",)
COMPILED: tuple[Execution, ...] = ("compiled",)


@dataclass(frozen=True)
class Declaration:
    """A backend on a device, and every combination of the axes that is meant."""

    backend: str
    collators: tuple[str, ...]
    device: Device
    dtypes: tuple[torch.dtype, ...]
    heads: tuple[tuple[int, int], ...] = GROUPED
    head_dims: tuple[int, ...] = (16, 64, 128)
    modes: tuple[Mode, ...] = MODES
    causal: tuple[bool, ...] = BOTH
    executions: tuple[Execution, ...] = EXECUTIONS
    #: The narrowest padded batch that must be taken.
    min_keys: int = 1
    #: None, which any backend takes, and others.
    windows: tuple[int | None, ...] = (None,)
    softcaps: tuple[float | None, ...] = (None,)
    sinks: tuple[bool, ...] = (False,)

    @property
    def id(self) -> str:
        return "-".join((self.backend, *self.collators, self.device))

    def cases(self) -> Iterator[Case]:
        collators = [collator_named(name) for name in self.collators]
        axes = product(collators, self.modes, self.causal, self.dtypes, self.executions, self.heads, self.head_dims)
        scores = list(product(self.windows, self.softcaps, self.sinks))
        for (collator, mode, causal, dtype, execution, (heads, kv_heads), head_dim), score in product(axes, scores):
            window, softcap, sinks = score
            case = Case(
                device=self.device,
                layout=collator.layout,
                padding_side=collator.padding_side,
                mode=mode,
                causal=causal,
                dtype=dtype,
                execution=execution,
                num_heads=heads,
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                window=window,
                softcap=softcap,
                sinks=sinks,
            )
            # As a record or another process gives it: equal words, other objects.
            yield pickle.loads(pickle.dumps(case))


#: What each backend must do, on a CPU and on an H100 with every package. Add to it; an entry goes only with a
#: line in CHANGELOG.md that says who loses what.
MINIMUM = (
    Declaration("sdpa_padded", PADDED, "cpu", ANY, head_dims=(8, 16, 20, 64, 128), windows=WINDOWS),
    Declaration("sdpa_padded", PADDED, "cuda", ANY, windows=WINDOWS),
    Declaration("sdpa_padded_math", PADDED, "cpu", ANY, head_dims=(8, 16, 20, 64, 128), windows=WINDOWS, sinks=SINKS),
    Declaration("sdpa_padded_math", PADDED, "cuda", ANY, windows=WINDOWS, sinks=SINKS),
    Declaration("sdpa_padded_efficient", PADDED, "cuda", FLOAT, heads=EQUAL, windows=WINDOWS),
    Declaration("sdpa_padded_cudnn", PADDED, "cuda", HALF, min_keys=2, windows=WINDOWS),
    Declaration("sdpa_padded_flash", PADDED_RIGHT, "cpu", FLOAT, causal=(True,)),
    Declaration("sdpa_padded_flash", PADDED_RIGHT, "cuda", HALF, causal=(True,), head_dims=(16, 64, 128, 256)),
    Declaration("sdpa_document_mask", PACKED, "cpu", ANY, head_dims=(8, 16, 20, 64, 128), windows=WINDOWS),
    Declaration("sdpa_document_mask", PACKED, "cuda", ANY, windows=WINDOWS),
    Declaration("sdpa_loop", PACKED, "cpu", ANY, executions=EAGER, head_dims=(8, 16, 20, 64, 128)),
    Declaration("sdpa_loop", PACKED, "cuda", ANY, executions=EAGER),
    Declaration("sdpa_nested", NESTED, "cpu", FLOAT, heads=EQUAL, causal=(False,), executions=EAGER),
    Declaration("sdpa_nested", NESTED, "cuda", FLOAT, heads=EQUAL),
    Declaration("torch_varlen", PACKED, "cuda", HALF, head_dims=(16, 64, 128, 256), windows=WINDOWS),
    Declaration("fa2_varlen", PACKED, "cuda", HALF, head_dims=(16, 64, 128, 256), windows=WINDOWS, softcaps=SOFTCAPS),
    Declaration("fa4_varlen", PACKED, "cuda", HALF, head_dims=(64, 96, 128, 256), windows=WINDOWS, softcaps=SOFTCAPS),
    Declaration(
        "fa4_varlen",
        PACKED,
        "cuda",
        HALF,
        head_dims=(16, 80),
        modes=("eval",),
        windows=WINDOWS,
        softcaps=SOFTCAPS,
    ),
    Declaration(
        "fast_fa4_varlen",
        PACKED,
        "cuda",
        HALF,
        head_dims=(64, 96, 128, 256),
        executions=COMPILED,
        windows=WINDOWS,
        softcaps=SOFTCAPS,
    ),
    Declaration(
        "fast_fa4_varlen",
        PACKED,
        "cuda",
        HALF,
        head_dims=(16, 80),
        modes=("eval",),
        executions=COMPILED,
        windows=WINDOWS,
        softcaps=SOFTCAPS,
    ),
    Declaration("cudnn_ragged", PACKED, "cuda", HALF, windows=WINDOWS),
    Declaration(
        "flashinfer_ragged",
        PACKED,
        "cuda",
        HALF,
        head_dims=(64, 128),
        modes=("eval",),
        executions=EAGER,
        softcaps=SOFTCAPS,
    ),
    Declaration("xformers_auto", PACKED, "cuda", FLOAT, executions=EAGER),
    Declaration("xformers_auto", PACKED, "cuda", FLOAT32, modes=("eval",), executions=COMPILED),
    Declaration("xformers_auto", PACKED, "cuda", HALF, executions=COMPILED),
    Declaration("xformers_flash", PACKED, "cuda", HALF),
    Declaration("xformers_cutlass", PACKED, "cuda", FLOAT, executions=EAGER),
    Declaration("xformers_cutlass", PACKED, "cuda", FLOAT, modes=("eval",), executions=COMPILED),
    Declaration(
        "flex_document_mask",
        PACKED,
        "cpu",
        FLOAT,
        modes=("eval",),
        executions=EAGER,
        windows=WINDOWS,
        softcaps=SOFTCAPS,
        sinks=SINKS,
    ),
    Declaration(
        "flex_document_mask",
        PACKED,
        "cuda",
        FLOAT,
        executions=COMPILED,
        windows=WINDOWS,
        softcaps=SOFTCAPS,
        sinks=SINKS,
    ),
)


@dataclass(frozen=True)
class Limit:
    """Cases that must be refused, as "undeclared" (anywhere) or "unavailable" (on that machine), and why."""

    cases: Declaration
    state: Literal["undeclared", "unavailable"]
    reason: str


#: What no backend may claim: it would be wrong, fall back to another kernel, or fail inside torch.
LIMITS = (
    Limit(
        Declaration("sdpa_padded_flash", PADDED_RIGHT, "cpu", FLOAT32, causal=(False,)), "undeclared", "is causal only"
    ),
    Limit(
        Declaration("sdpa_padded_flash", PADDED_RIGHT, "cuda", HALF, causal=(False,)), "undeclared", "is causal only"
    ),
    Limit(
        Declaration("sdpa_padded_flash", ("pad_left",), "cuda", HALF),
        "undeclared",
        "takes padding on the right; got left",
    ),
    Limit(
        Declaration("sdpa_padded_flash", ("pad_left",), "cpu", FLOAT32),
        "undeclared",
        "takes padding on the right; got left",
    ),
    Limit(
        Declaration("sdpa_loop", PACKED, "cuda", HALF, executions=COMPILED),
        "undeclared",
        "runs eager only; got compiled",
    ),
    Limit(
        Declaration("flex_document_mask", PACKED, "cuda", HALF, executions=EAGER), "undeclared", "in eager mode on CUDA"
    ),
    Limit(
        Declaration("flex_document_mask", PACKED, "cpu", FLOAT32, modes=("train",)),
        "unavailable",
        "needs a CUDA GPU: FlexAttention has no backward on the CPU",
    ),
    Limit(
        Declaration(
            "flex_document_mask", PACKED, "cpu", FLOAT32, modes=("eval",), executions=COMPILED, sinks=SINKS[1:]
        ),
        "unavailable",
        "returns no logsumexp, which sinks need",
    ),
    Limit(
        Declaration("sdpa_nested", NESTED, "cpu", FLOAT32, heads=EQUAL, causal=(True,)),
        "unavailable",
        "needs a CUDA GPU: causal SDPA on NestedTensors has no CPU kernel",
    ),
    Limit(
        Declaration("sdpa_nested", NESTED, "cuda", HALF, heads=((32, 8),)),
        "undeclared",
        "takes no grouped-query heads; got 32 heads on 8",
    ),
    Limit(
        Declaration("sdpa_padded_efficient", PADDED, "cuda", HALF, heads=((32, 8),)),
        "undeclared",
        "takes no grouped-query heads; got 32 heads on 8",
    ),
    Limit(
        Declaration("fa2_varlen", PACKED, "cuda", HALF, head_dims=(264,)), "undeclared", "head dims up to 256; got 264"
    ),
    Limit(Declaration("fa2_varlen", PACKED, "cuda", HALF, head_dims=(20,)), "undeclared", "multiples of 8; got 20"),
    Limit(Declaration("fa2_varlen", PACKED, "cuda", FLOAT32), "undeclared", "got float32"),
    Limit(
        Declaration("torch_varlen", PACKED, "cuda", FLOAT32),
        "undeclared",
        "got float32",
    ),
    Limit(
        Declaration("xformers_flash", PACKED, "cuda", FLOAT32),
        "undeclared",
        "got float32",
    ),
    Limit(
        Declaration("xformers_cutlass", PACKED, "cuda", FLOAT, modes=("train",), executions=COMPILED),
        "undeclared",
        "does not finish compiling a training step",
    ),
    Limit(
        Declaration("xformers_auto", PACKED, "cuda", FLOAT32, modes=("train",), executions=COMPILED),
        "undeclared",
        "does not finish compiling a training step",
    ),
    Limit(
        Declaration("sdpa_padded_cudnn", PADDED, "cuda", FLOAT32),
        "undeclared",
        "got float32",
    ),
    Limit(
        Declaration("flashinfer_ragged", PACKED, "cuda", HALF, modes=("train",)),
        "undeclared",
        "does eval only; got train",
    ),
    Limit(
        Declaration("flashinfer_ragged", PACKED, "cuda", HALF, modes=("eval",), executions=COMPILED),
        "undeclared",
        "runs eager only; got compiled",
    ),
    Limit(
        Declaration("flashinfer_ragged", PACKED, "cuda", HALF, head_dims=(32, 96)), "undeclared", "multiples of 64; got"
    ),
    Limit(Declaration("flashinfer_ragged", PACKED, "cuda", HALF, head_dims=(192,)), "undeclared", "up to 128; got 192"),
)


def states(backend: Backend, case: Case, machine: Machine) -> dict[str, list[str]]:
    """Return the reasons of each state; what this machine's probe would say is left out."""
    return {
        "undeclared": backend.undeclared_reasons(case),
        "unavailable": replace(backend, probe=list).unavailable_reasons(case, machine),
    }


@pytest.mark.parametrize("declaration", MINIMUM, ids=lambda declaration: declaration.id)
def test_a_backend_supports_what_is_declared_for_it(declaration: Declaration) -> None:
    backend = any_backend_named(declaration.backend)
    assert backend.min_keys <= declaration.min_keys
    for case in declaration.cases():
        found = states(backend, case, MACHINES[declaration.device])
        assert found == {"undeclared": [], "unavailable": []}, case


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: f"{limit.cases.id}-{limit.reason}".replace(" ", "_"))
def test_a_backend_refuses_what_it_cannot_do(limit: Limit) -> None:
    backend = any_backend_named(limit.cases.backend)
    for case in limit.cases.cases():
        reasons = states(backend, case, MACHINES[limit.cases.device])[limit.state]
        assert any(limit.reason in reason for reason in reasons), case


@every_backend
def test_a_backend_is_declared_on_every_device_with_every_dtype_it_lists(backend: Backend) -> None:
    """A new backend must be entered above, and so must a device or a dtype it gains."""
    declared = {(entry.device, dtype) for entry in MINIMUM if entry.backend == backend.name for dtype in entry.dtypes}
    listed = [(device, dtype) for device, dtypes in backend.dtypes.items() for dtype in dtypes]
    assert declared == set(listed)
    assert len(listed) == len(set(listed))


def test_a_collator_is_declared_for_every_backend_of_its_layout() -> None:
    """A new collator must be entered above. Padding sides that a backend does not take are its own limits."""
    for collator in COLLATORS:
        wanted = {
            backend.name
            for backend in PROVED_BACKENDS
            if backend.layout == collator.layout
            and (collator.padding_side is None or collator.padding_side in backend.padding_sides)
        }
        declared = {entry.backend for entry in MINIMUM if collator.name in entry.collators}
        assert declared == wanted, collator.name


def test_a_backend_has_a_name_of_its_own() -> None:
    assert len({backend.name for backend in PROVED_BACKENDS}) == len(PROVED_BACKENDS)


@every_backend
def test_a_backend_declares_the_windows_soft_caps_and_sinks_above_and_refuses_others(backend: Backend) -> None:
    entries = [entry for entry in MINIMUM if entry.backend == backend.name]
    asked = (
        ("windows", {"window": 4}, "has no sliding window; got a window of 4 tokens"),
        ("softcaps", {"softcap": 30.0}, "has no soft cap; got 30.0"),
        ("sinks", {"sinks": True}, "has no attention sinks; got sinks=True"),
    )
    for name, fields, reason in asked:
        declared = {len(getattr(entry, name)) > 1 for entry in entries}
        assert declared == {getattr(backend, name)}, f"{backend.name}.{name}"
        for entry in entries:
            case = replace(next(entry.cases()), **fields)
            assert backend.undeclared_reasons(case) == ([] if getattr(backend, name) else [reason])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"window": 0}, "at least 1 token, the query itself; got 0"),
        ({"softcap": 0.0}, "positive; got 0.0"),
        ({"softcap": -1.0}, "got -1.0"),
    ],
    ids=["no_window", "no_cap", "negative_cap"],
)
def test_a_case_with_an_empty_window_or_no_positive_cap_is_refused(fields: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(next(MINIMUM[0].cases()), **fields)


@every_backend
def test_a_backend_refuses_a_dtype_that_it_does_not_list(backend: Backend) -> None:
    for entry in (entry for entry in MINIMUM if entry.backend == backend.name):
        for dtype in set(ANY) - set(backend.dtypes[entry.device]):
            for case in replace(entry, dtypes=(dtype,)).cases():
                reasons = backend.undeclared_reasons(case)
                assert any(str(dtype).removeprefix("torch.") in reason for reason in reasons), case


@pytest.mark.parametrize(
    "backend", [backend for backend in PROVED_BACKENDS if "cpu" not in backend.dtypes], ids=lambda backend: backend.name
)
def test_a_backend_that_needs_a_gpu_is_unavailable_on_the_cpu(backend: Backend) -> None:
    """It is not refused there: the claim is the same on any machine."""
    for entry in (entry for entry in MINIMUM if entry.backend == backend.name):
        for case in replace(entry, device="cpu").cases():
            found = states(backend, case, MACHINES["cpu"])
            assert found["undeclared"] == [], case
            capability = backend.min_capability
            least = " of compute capability {}.{} or newer".format(*capability) if capability else ""
            assert f"needs a CUDA GPU{least}; this case runs on cpu" in found["unavailable"], case


@every_backend
def test_a_backend_that_ran_on_one_device_only_would_say_which(backend: Backend) -> None:
    dtype = next(iter(backend.dtypes.values()))[:1]
    entry = next(entry for entry in MINIMUM if entry.backend == backend.name)
    devices: tuple[tuple[Device, Device, str], ...] = (("cpu", "cuda", "the CPU"), ("cuda", "cpu", "a CUDA GPU"))
    for own, other, wanted in devices:
        narrowed = replace(backend, dtypes={own: dtype}, min_capability=None, requires=(), unavailable=())
        case = replace(next(entry.cases()), device=other)
        assert states(narrowed, case, MACHINES[other])["unavailable"] == [f"needs {wanted}; this case runs on {other}"]


@every_backend
def test_a_backend_takes_any_equal_number_of_heads(backend: Backend) -> None:
    entry = next(entry for entry in MINIMUM if entry.backend == backend.name)
    for case in replace(entry, heads=((1, 1), (1024, 1024)), head_dims=(64,)).cases():
        assert backend.undeclared_reasons(case) == [], case


@pytest.mark.parametrize(
    "backend", [backend for backend in PROVED_BACKENDS if backend.min_capability], ids=lambda backend: backend.name
)
def test_a_backend_says_which_compute_capability_it_needs(backend: Backend) -> None:
    assert backend.min_capability
    need = "{}.{}".format(*backend.min_capability)
    for entry in (entry for entry in MINIMUM if entry.backend == backend.name and entry.device == "cuda"):
        case = next(entry.cases())
        for capability, have in (((7, 5), "7.5"), (None, "none")):
            reasons = states(backend, case, FakeMachine(capability, EVERY_PACKAGE))["unavailable"]
            assert reasons == [f"needs a GPU of compute capability {need} or newer; got {have}"]
        # The least is enough, and capabilities are numbers: 10.0 is newer than 8.0.
        for enough in (backend.min_capability, (9, 0), (10, 0), (12, 1)):
            assert states(backend, case, FakeMachine(enough, EVERY_PACKAGE))["unavailable"] == [], enough


@pytest.mark.parametrize(
    ("mode", "head_dim", "wrong"), [("train", 80, True), ("eval", 80, False), ("train", 96, False)]
)
def test_fa4_trains_no_heads_that_it_has_wrong_gradients_for(mode: Mode, head_dim: int, wrong: bool) -> None:
    declared = next(entry for entry in MINIMUM if entry.backend == "fa4_varlen")
    asked = replace(next(declared.cases()), mode=mode, head_dim=head_dim)
    for name in ("fa4_varlen", "fast_fa4_varlen", "gpt2_fa4_varlen"):
        reasons = any_backend_named(name).unavailable_reasons(asked, FakeMachine((9, 0), EVERY_PACKAGE))
        assert any("wrong gradients for heads of" in reason for reason in reasons) is wrong, name


def test_a_backend_is_unavailable_while_its_probe_says_why() -> None:
    for backend in PROVED_BACKENDS:
        broken = replace(backend, probe=lambda: ["its library does not load"])
        for entry in (entry for entry in MINIMUM if entry.backend == backend.name):
            reasons = broken.unavailable_reasons(next(entry.cases()), MACHINES[entry.device])
            assert reasons == ["its library does not load"], entry.id


REQUIREMENTS = [(backend, needed) for backend in PROVED_BACKENDS for needed in backend.requires]


@pytest.mark.parametrize(
    ("backend", "needed"), REQUIREMENTS, ids=[f"{backend.name}-{needed.package}" for backend, needed in REQUIREMENTS]
)
def test_a_backend_names_the_package_it_misses_and_how_to_install_it(backend: Backend, needed: Requirement) -> None:
    case = next(case for entry in MINIMUM if entry.backend == backend.name for case in entry.cases())
    others = {name: version for name, version in EVERY_PACKAGE.items() if name != needed.package}
    start, end = f"needs {needed.package}>={needed.minimum}", f"({needed.install})"
    assert needed.install
    for packages, found in ((others, "which is not installed"), ({**others, needed.package: "0.0.1"}, "0.0.1")):
        (reason,) = states(backend, case, FakeMachine((9, 0), packages))["unavailable"]
        assert reason.startswith(start)
        assert reason.endswith(end)
        assert found in reason
    newer = {**others, needed.package: "999.0"}
    assert states(backend, case, FakeMachine((9, 0), newer))["unavailable"] == []


@pytest.mark.parametrize(
    ("minimum", "found", "enough"),
    [("2.7.4", "2.10.0", True), ("2.7.4", "2.8.3.post2", True), ("2.11", "2.9.1", False), ("0.0.33", "0.0.4", False)],
)
def test_a_backend_takes_versions_for_numbers_and_not_for_words(minimum: str, found: str, enough: bool) -> None:
    reasons = Requirement("kernels", minimum, "pip install kernels").reasons(FakeMachine(None, {"kernels": found}))
    assert (reasons == []) == enough


@every_backend
def test_a_backend_with_an_error_factor_of_its_own_says_why(backend: Backend) -> None:
    assert 0 < backend.error_factor <= 4
    assert backend.error_factor == Backend.error_factor or backend.error_reason


@every_backend
def test_a_backend_that_trained_no_more_would_refuse_training(backend: Backend) -> None:
    """Most backends list both modes, so the claim is narrowed here."""
    entry = next(entry for entry in MINIMUM if entry.backend == backend.name)
    narrowed = replace(backend, modes=("eval",))
    for case in replace(entry, modes=MODES).cases():
        refused = [reason for reason in narrowed.undeclared_reasons(case) if reason == "does eval only; got train"]
        assert bool(refused) == (case.mode == "train"), case


@every_backend
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_backend_that_did_one_mask_only_would_say_which(backend: Backend, causal: bool) -> None:
    entry = next(entry for entry in MINIMUM if entry.backend == backend.name)
    narrowed = replace(backend, causal=(causal,))
    wanted = f"is {'causal' if causal else 'not causal'} only; got causal={not causal}"
    for case in replace(entry, causal=BOTH, heads=entry.heads[:1], head_dims=(64,)).cases():
        assert (wanted in narrowed.undeclared_reasons(case)) == (case.causal != causal), case


def test_a_backend_that_does_not_load_says_why_in_one_line() -> None:
    assert first_line(OSError("libcudart.so.12: cannot open shared object file\nNo such file")) == (
        "libcudart.so.12: cannot open shared object file"
    )
    assert first_line(ImportError()) == "ImportError"


@every_backend
def test_a_backend_supports_no_gpu_case_without_a_gpu(backend: Backend) -> None:
    for entry in (entry for entry in MINIMUM if entry.backend == backend.name and entry.device == "cuda"):
        reasons = states(backend, next(entry.cases()), FakeMachine(None, EVERY_PACKAGE))["unavailable"]
        assert any(reason.startswith("needs a ") and reason.endswith("; got none") for reason in reasons)
