"""Cells: the units that are tested, timed and gated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from collators import COLLATORS
from collators.collator import Collator
from model.attention import BACKENDS, EXECUTIONS, MODES, Backend, Case, Device, Execution, Mode
from model.decoder import DecoderConfig

#: The dtypes of the matrix. 16-bit ones are autocast over float32 parameters.
DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Cell:
    """Backend x collator x mode x causal x dtype x execution x workload (a name and its length distribution)."""

    backend: Backend
    collator: Collator
    mode: Mode
    causal: bool
    dtype: torch.dtype
    execution: Execution
    workload: str
    lengths: str

    @property
    def key(self) -> dict[str, Any]:
        """The cell as plain data, as records hold it."""
        return {
            "backend": self.backend.name,
            "collator": self.collator.name,
            "mode": self.mode,
            "causal": self.causal,
            "dtype": str(self.dtype).removeprefix("torch."),
            "execution": self.execution,
            "workload": self.workload,
            "lengths": self.lengths,
        }

    @property
    def id(self) -> str:
        """The key as one word, without lengths that go without saying.

        `fa2_varlen-packed-train-causal-bfloat16-eager-article`, or `...-article-recorded`.
        """
        words = [word if isinstance(word, str) else ("causal" if word else "full") for word in self.key.values()]
        return "-".join(words[:-1] if self.lengths in ("uniform", self.workload) else words)

    def case(self, device: Device, config: DecoderConfig) -> Case:
        """Return what the cell asks of its backend."""
        return Case(
            device=device,
            layout=self.collator.layout,
            padding_side=self.collator.padding_side,
            mode=self.mode,
            causal=self.causal,
            dtype=self.dtype,
            execution=self.execution,
            num_heads=config.num_heads,
            num_kv_heads=config.kv_heads,
            head_dim=config.head_dim,
        )


def all_cells(
    workload: str,
    lengths: str,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    backends: Sequence[Backend] = BACKENDS,
    collators: Sequence[Collator] = COLLATORS,
) -> Iterator[Cell]:
    """Yield every combination, supported or not, in the order of the matrix."""
    axes = product(backends, collators, MODES, (False, True), dtypes, EXECUTIONS)
    return (Cell(*values, workload=workload, lengths=lengths) for values in axes)
