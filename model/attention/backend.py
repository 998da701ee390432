"""The record that describes an attention backend: what it claims, what it needs, and its two functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from packaging.version import Version
from torch import Tensor

from collators.batch import Batch, Layout, PaddedBatch, PaddingSide
from model.attention.case import Case, Device, Execution, Machine, Mode, this_machine
from model.attention.oracle import Rounding

Prepare = Callable[[Any, Case], Any]


class Attend(Protocol):
    """Attention of one layer.

    `q` is (B, S, H, D), `k` and `v` are (B, S, H_kv, D) in the layout of the batch (packed: (1, T, H, D)); the
    result has q's shape. `scale` multiplies q.k and defaults to 1/sqrt(D). Where the case has sinks, a backend that
    declares them also takes `sinks`, logits (H,) in the dtype of q.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, context: Any, *, scale: float | None = None) -> Tensor:
        """Return the attention output in the shape of `q`."""


HALF: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
FLOAT: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
ANY: tuple[torch.dtype, ...] = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

#: The CPU adds in one order; on CUDA backward kernels add up the gradients of queries in any order, with atomics.
DETERMINISTIC_FORWARD: Mapping[Device, tuple[Mode, ...]] = {"cpu": ("eval", "train"), "cuda": ("eval",)}


@dataclass(frozen=True)
class Requirement:
    """A distribution that must be installed, and from which version on."""

    package: str
    minimum: str
    install: str

    def reasons(self, machine: Machine) -> list[str]:
        """Return why `machine` does not meet the requirement, or an empty list."""
        found = machine.version_of(self.package)
        if found is None:
            return [f"needs {self.package}>={self.minimum}, which is not installed ({self.install})"]
        if found < Version(self.minimum):
            return [f"needs {self.package}>={self.minimum}; {found} is installed ({self.install})"]
        return []


@dataclass(frozen=True)
class Refusal:
    """A combination that a backend does not do although it does each part: fields left None match anything."""

    reason: str
    device: Device | None = None
    mode: Mode | None = None
    causal: bool | None = None
    execution: Execution | None = None
    dtype: torch.dtype | None = None
    sinks: bool | None = None
    head_dims: tuple[int, ...] | None = None

    def matches(self, case: Case) -> bool:
        """Tell whether `case` is such a combination."""
        asked = ("device", "mode", "causal", "execution", "dtype", "sinks")
        alike = all(getattr(self, name) in (None, getattr(case, name)) for name in asked)
        return alike and (self.head_dims is None or case.head_dim in self.head_dims)


@dataclass(frozen=True)
class Backend:
    """One attention implementation on one layout.

    `dtypes` lists, for each device it runs on, the dtypes it takes. `undeclared` refusals are no part of the
    backend's claim anywhere; `unavailable` ones would go away on another device or with another version.
    `min_keys` is the narrowest padded batch it takes. Some builds of its library have no heads wider than
    `sure_head_dim`, so tests try none. `probe` returns further reasons why it cannot run here (a library that does not
    load, say). `error_factor` is k of model/tolerance.py; `error_reason` says why it is not 2.

    `rounds` says what the kernel of a device keeps in a 16-bit dtype where others keep float32
    (model/attention/oracle.py). `deterministic` lists, for each device, the modes in which repeats are bitwise equal,
    gradients included. `kernels` names, for each device, the operators that may compute the attention, as regular
    expressions for the names that torch.profiler shows: one of them runs, and no kernel that only others name.
    `windows`, `softcaps` and `sinks` say which of these fields of a case it honours.
    `plans_by_shape` says that the first batch of a shape takes longer than those after it: cuDNN makes a plan for each.
    `wrappers` names those of several ranks that its model runs in (model/distributed.py).
    `spec` is what `--backend` was given for a backend from outside (model/attention/outside.py), else "".
    """

    name: str
    layout: Layout
    summary: str
    prepare: Prepare
    attend: Attend
    dtypes: Mapping[Device, tuple[torch.dtype, ...]]
    modes: tuple[Mode, ...] = ("eval", "train")
    causal: tuple[bool, ...] = (False, True)
    executions: tuple[Execution, ...] = ("eager", "compiled")
    padding_sides: tuple[PaddingSide, ...] = ("right", "left")
    max_head_dim: int | None = None
    head_dim_multiple: int = 1
    sure_head_dim: int | None = None
    min_keys: int = 1
    grouped_query: bool = False
    windows: bool = False
    softcaps: bool = False
    sinks: bool = False
    min_capability: tuple[int, int] | None = None
    requires: tuple[Requirement, ...] = ()
    undeclared: tuple[Refusal, ...] = ()
    unavailable: tuple[Refusal, ...] = ()
    probe: Callable[[], list[str]] = field(default=list)
    error_factor: float = 2.0
    error_reason: str = ""
    rounds: Mapping[Device, tuple[Rounding, ...]] = field(default_factory=dict)
    deterministic: Mapping[Device, tuple[Mode, ...]] = field(default_factory=lambda: DETERMINISTIC_FORWARD)
    kernels: Mapping[Device, tuple[str, ...]] = field(default_factory=dict)
    plans_by_shape: bool = False
    wrappers: tuple[str, ...] = ("ddp", "fsdp2")
    spec: str = ""

    def claims(self) -> dict[str, Any]:
        """Return every field of a record by name, to build one of another kind from it."""
        return {each.name: getattr(self, each.name) for each in fields(Backend)}

    @property
    def attention(self) -> str:
        """The name of the attention, in whichever model: workloads, `--backend` and known failures name it."""
        return self.name

    def undeclared_reasons(self, case: Case) -> list[str]:
        """Return why `case` is outside what the backend claims on any machine, one sentence each."""
        # On a device that it does not run on at all, its dtypes elsewhere are still a claim.
        everywhere = dict.fromkeys(dtype for dtypes in self.dtypes.values() for dtype in dtypes)
        dtypes = self.dtypes.get(case.device, tuple(everywhere))
        claims = [
            (case.layout == self.layout, f"needs a {self.layout} batch; got {case.layout}"),
            (
                case.padding_side is None or case.padding_side in self.padding_sides,
                f"takes padding on the {' or '.join(self.padding_sides)}; got {case.padding_side}",
            ),
            (case.mode in self.modes, f"does {' and '.join(self.modes)} only; got {case.mode}"),
            (
                case.causal in self.causal,
                f"is {'causal' if self.causal == (True,) else 'not causal'} only; got causal={case.causal}",
            ),
            (
                case.execution in self.executions,
                f"runs {' or '.join(self.executions)} only; got {case.execution}",
            ),
            (
                case.num_heads == case.num_kv_heads or self.grouped_query,
                f"takes no grouped-query heads; got {case.num_heads} heads on {case.num_kv_heads}",
            ),
            (
                self.max_head_dim is None or case.head_dim <= self.max_head_dim,
                f"takes head dims up to {self.max_head_dim}; got {case.head_dim}",
            ),
            (
                case.head_dim % self.head_dim_multiple == 0,
                f"takes head dims that are multiples of {self.head_dim_multiple}; got {case.head_dim}",
            ),
            (self.windows or case.window is None, f"has no sliding window; got a window of {case.window} tokens"),
            (self.softcaps or case.softcap is None, f"has no soft cap; got {case.softcap}"),
            (self.sinks or not case.sinks, "has no attention sinks; got sinks=True"),
            (case.dtype in dtypes, f"takes {', '.join(map(_short, dtypes))}; got {_short(case.dtype)}"),
        ]
        refused = [refusal.reason for refusal in self.undeclared if refusal.matches(case)]
        return [reason for holds, reason in claims if not holds] + refused

    def unavailable_reasons(self, case: Case, machine: Machine | None = None) -> list[str]:
        """Return what `machine` (this one by default) lacks for `case`, each with what would make it available."""
        machine = machine or this_machine()
        reasons = []
        if case.device not in self.dtypes:
            wanted = "a CUDA GPU" if "cuda" in self.dtypes else "the CPU"
            if self.min_capability:
                wanted += " of compute capability {}.{} or newer".format(*self.min_capability)
            reasons.append(f"needs {wanted}; this case runs on {case.device}")
        elif case.device == "cuda":
            found = machine.capability
            if found is None and not self.min_capability:
                reasons.append("needs a CUDA GPU; got none")
            elif self.min_capability and (found is None or found < self.min_capability):
                need, have = ".".join(map(str, self.min_capability)), ".".join(map(str, found or ("none",)))
                reasons.append(f"needs a GPU of compute capability {need} or newer; got {have}")
        reasons += [refusal.reason for refusal in self.unavailable if refusal.matches(case)]
        for requirement in self.requires:
            reasons += requirement.reasons(machine)
        return reasons or (self.probe() if case.device in self.dtypes else [])

    def unsupported_reasons(self, case: Case) -> list[str]:
        """Return every reason why `case` does not work here; an empty list is a promise that it does."""
        return self.undeclared_reasons(case) or self.unavailable_reasons(case)

    def batch_reasons(self, batch: Batch) -> list[str]:
        """Return why a batch of the right layout is still refused, which its shape alone decides."""
        if isinstance(batch, PaddedBatch) and (width := batch.input_ids.shape[1]) < self.min_keys:
            return [f"needs padded batches of at least {self.min_keys} columns; got {width}"]
        return []

    def prepared(self, batch: Batch, case: Case) -> Any:
        """Return the context that `attend` needs for `batch`, made once a batch; ValueError says what is refused."""
        if batch.layout != self.layout:
            raise ValueError(
                f"{self.name} needs a {self.layout} batch; got {batch.layout}. Use a collator of that layout "
                "(pytest --matrix lists them)."
            )
        if isinstance(batch, PaddedBatch) and batch.padding_side != case.padding_side:
            raise ValueError(
                f"{self.name} got a case with padding on the {case.padding_side}, but a batch padded on the "
                f"{batch.padding_side}; make the case from the collator of the batch."
            )
        if reasons := self.unsupported_reasons(case) or self.batch_reasons(batch):
            raise ValueError(f"{self.name} {'; '.join(reasons)}. See pytest --matrix for what works here.")
        return self.prepare(batch, case)


def first_line(error: Exception) -> str:
    """Return the first line of what `error` says, or its type where it says nothing, for a reason of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
