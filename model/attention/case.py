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

    `dtype` is the one attention computes in (the autocast dtype, or that of the parameters).
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


@dataclass(frozen=True)
class Machine:
    """What limits a case here: compute capability (None without a GPU) and installed packages."""

    capability: tuple[int, int] | None

    def version_of(self, package: str) -> Version | None:
        """Return the installed version of a distribution, or None."""
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
