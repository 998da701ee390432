"""The attention implementations that families are checked with: transformers' own, and this project's backends."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from model.attention import BACKENDS, Backend, Case, Device, Mode
from model.huggingface.inputs import FLATTENED, WAYS, Way
from model.huggingface.sizes import HEAD_DIM, HEADS

#: What is checked where nobody chooses, on a CPU: a second of this project's backends would say the same.
ON_CPU = ("eager", "sdpa", "sdpa_document_mask")


@dataclass(frozen=True)
class Implementation:
    """`built` is the `attn_implementation` that a model is built with; `backend` attends in its stead where given.

    `dtype` is what it is checked in, `missing` why it cannot run here (None: it can). What transformers compiles by
    itself runs without: it would be compiled for every shape of every family, to no other end.
    """

    name: str
    built: str
    dtype: torch.dtype
    missing: str | None = None
    backend: Backend | None = None

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways to hand sequences over that it is for: this project's backends take flattened rows."""
        return WAYS if self.backend is None else FLATTENED

    @contextmanager
    def attending(self, model: nn.Module) -> Iterator[None]:
        """Let a model built with `built` attend as this implementation does."""
        if self.backend is None:
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            from model.huggingface.attention import attending

            with attending(model, self.backend):
                yield


def implementations(device: Device) -> tuple[Implementation, ...]:
    """Return every implementation that `device` could run, the project's packed backends last."""
    native = [Implementation("eager", "eager", torch.float32), Implementation("sdpa", "sdpa", torch.float32)]
    if device == "cuda":
        native.append(Implementation("flex_attention", "flex_attention", torch.float32))
        missing = None if find_spec("flash_attn") else "flash-attn is not installed"
        native.append(Implementation("flash_attention_2", "flash_attention_2", torch.bfloat16, missing))
    return (*native, *(own(backend, device) for backend in BACKENDS if backend.layout == "packed"))


def own(backend: Backend, device: Device) -> Implementation:
    """Return a backend of this project as an implementation, in the widest dtype that it has on `device`."""
    dtypes = backend.dtypes.get(device, ())
    dtype = torch.float32 if torch.float32 in dtypes else torch.bfloat16
    mode: Mode = "train" if "train" in backend.modes else "eval"
    case = Case(
        device=device,
        layout="packed",
        padding_side=None,
        mode=mode,
        causal=True,
        dtype=dtype,
        execution="eager",
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
    )
    # Every family can be built with eager attention; what attends is the backend.
    return Implementation(backend.name, "eager", dtype, "; ".join(backend.unsupported_reasons(case)) or None, backend)


def default_implementations(device: Device) -> tuple[Implementation, ...]:
    """Return what is checked where nobody chooses: on a GPU everything that runs there."""
    every = implementations(device)
    return tuple(each for each in every if each.missing is None and (device == "cuda" or each.name in ON_CPU))


def implementation_named(name: str, device: Device) -> Implementation:
    """Return the implementation of that name; ValueError lists all."""
    known = implementations(device)
    for implementation in known:
        if implementation.name == name:
            return implementation
    raise ValueError(f"unknown implementation {name!r} on {device}; choose one of: {', '.join(i.name for i in known)}.")
