"""What is asked of a backend, and the machine that is asked."""

import functools
import importlib.metadata
from dataclasses import dataclass
from typing import Literal

import torch
from packaging.version import Version

from collators.batch import Layout, PaddingSide

Mode = Literal["eval", "train"]
Execution = Literal["eager", "compiled"]
Device = Literal["cpu", "cuda"]

MODES: tuple[Mode, ...] = ("eval", "train")
EXECUTIONS: tuple[Execution, ...] = ("eager", "compiled")


@dataclass(frozen=True)
class Case:
    """One way to use attention: everything a backend's answer may depend on.

    `dtype` is the one attention computes in (the autocast dtype, or that of the parameters). `window`, in tokens, says
    that a query sees the last `window` tokens of its sequence, itself included; not causal, those nearer than that on
    either side. With `softcap` a score is softcap * tanh(score / softcap). `sinks` says that `attend` is given one
    logit a query head, which takes part in the softmax and has no value. ValueError for a window below one token or a
    soft cap that is not positive.
    """

    device: Device
    layout: Layout
    padding_side: PaddingSide | None
    mode: Mode
    causal: bool
    dtype: torch.dtype
    execution: Execution
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"a window must be at least 1 token, the query itself; got {self.window}. Pass None for no window."
            )
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"a soft cap must be positive; got {self.softcap}. Pass None for no cap.")


@dataclass(frozen=True)
class Machine:
    """What limits a case here: compute capability (None without a GPU) and installed packages."""

    capability: tuple[int, int] | None

    def version_of(self, package: str) -> Version | None:
        """Return the installed version of a distribution, or None."""
        return _installed(package)


@functools.cache
def _installed(package: str) -> Version | None:
    try:
        return Version(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def this_machine() -> Machine:
    """Describe the machine that runs this process; the GPU is torch's current device."""
    return Machine(torch.cuda.get_device_capability() if torch.cuda.is_available() else None)


def default_device() -> Device:
    """Return "cuda" where torch sees a GPU, else "cpu"."""
    return "cuda" if this_machine().capability else "cpu"
