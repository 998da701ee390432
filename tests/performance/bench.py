"""Everything that the timed cells of one run share: batches, the matmul rate, and the reference outcomes."""

import functools
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from collators import Collator, Example
from collators.batch import Batch
from gate.timing import Samples, StepTimer, matmul_tflops, median
from model.attention import Device, Mode
from model.cells import Cell
from model.compilation import Compiler
from model.equivalence import differences
from model.flops import step_flops
from model.huggingface.gpt2 import Gpt2
from model.models import Model, reference_of, seeded_model
from model.reference import Outcome, outcome, padded_reference
from model.steps import eval_step, train_step
from model.tolerance import Mismatch
from model.workloads import Workload
from tests.performance.control import Control, control
from tests.performance.costs import exact_costs, heaviest, kernel_costs, requested_bytes

LEARNING_RATE = 1e-3

#: Steps before those that are timed, in cells where no batch is the first of its kind.
WARM_UP = 8


@dataclass(frozen=True)
class Shared:
    """What does not depend on the cell; computed on first use and kept for the run.

    Only the first `steps` batches of the workload are run; None means all.
    """

    workload: Workload
    device: Device
    steps: int | None = None

    @functools.cached_property
    def examples(self) -> list[list[Example]]:
        """The sequences of every batch that is run."""
        return self.workload.examples()[: self.steps]

    @functools.cached_property
    def matmul_tflops(self) -> float:
        """The rate that model FLOP utilisation is a share of."""
        return matmul_tflops(self.device, self.workload.dtype)

    @functools.cached_property
    def control(self) -> Control:
        """The work that is timed beside each cell."""
        return control(self.device, self.workload.dtype)

    @functools.cached_property
    def _batches(self) -> dict[str, Sequence[Batch]]:
        return {}

    def batches(self, collator: Collator) -> Sequence[Batch]:
        """Return the batches of `collator` on the device, made once."""
        if collator.name not in self._batches:
            self._batches[collator.name] = self.workload.batches(collator, self.device, self.examples)
        return self._batches[collator.name]

    @functools.cached_property
    def _references(self) -> dict[tuple[str, Mode, bool, torch.dtype], tuple[Outcome, Outcome]]:
        return {}

    def references(self, cell: Cell) -> tuple[Outcome, Outcome]:
        """Return the truth of the first batch, and the reference in the cell's dtype, computed once for all cells."""
        backend = reference_of(cell.backend)
        key = (backend.name, cell.mode, cell.causal, cell.dtype)
        if key not in self._references:
            case = cell.case(self.device, self.workload.config)
            wide = torch.float64 if cell.dtype == torch.float32 else torch.float32
            few = self.workload.reference_sequences
            outcomes = []
            for parameters, dtype in ((wide, wide), (torch.float32, cell.dtype)):
                model = seeded_model(self.workload.config, backend, device=self.device, dtype=parameters)
                in_dtype = replace(case, dtype=dtype)
                outcomes.append(padded_reference(model, self.examples[0], in_dtype, sequences=few, backend=backend))
            self._references[key] = (outcomes[0], outcomes[1])
        return self._references[key]


@dataclass
class CellBench:
    """One cell's model and steps, ready to be checked and timed."""

    shared: Shared
    cell: Cell
    model: Model
    base_bytes: int
    compiler: Compiler

    @property
    def batches(self) -> Sequence[Batch]:
        """The batches that every cell of this collator is timed on."""
        return self.shared.batches(self.cell.collator)

    def mismatches(self) -> list[Mismatch]:
        """Compare the first batch with the reference, the worst tensor first."""
        truth, reference = self.shared.references(self.cell)
        case = self.cell.case(self.shared.device, self.model.config)
        found = outcome(self.model, self.cell.backend, self.batches[0], case)
        return differences(
            found,
            truth,
            [reference],
            dtype=self.cell.dtype,
            error_factor=self.cell.backend.error_factor,
            config=self.model.config,
        )

    def timer(self) -> StepTimer:
        """Return the timed step of this cell's mode."""
        backend, case = self.cell.backend, self.cell.case(self.shared.device, self.model.config)
        if self.cell.mode == "eval":
            self.model.eval()
            return StepTimer(lambda batch: eval_step(self.model, backend, batch, case), self.shared.device)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        return StepTimer(lambda batch: train_step(self.model, backend, batch, case, optimizer), self.shared.device)

    def first_step_s(self, timer: StepTimer, batch: Batch) -> float:
        """Run a step that is not timed, and return the seconds that it took, without those of compilation."""
        compile_s, begin = self.compiler.seconds, time.perf_counter()
        timer.step(batch)
        if self.shared.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin - (self.compiler.seconds - compile_s)

    def costs(self, samples: Samples) -> dict[str, Any]:
        """Return what the steps cost, as records hold it; raw samples are in milliseconds."""
        wall, device = median(samples.wall_ms), median(samples.device_ms) if samples.device_ms else None
        step_ms = wall if device is None else device
        config, cell, timed = self.shared.workload.config, self.cell, samples.batches
        flops = median([step_flops(config, b.lengths, mode=cell.mode, causal=cell.causal) for b in timed])
        tokens = [batch.num_tokens for batch in timed]
        return {
            "device_ms": samples.device_ms or None,
            "wall_ms": samples.wall_ms,
            "host_ms": samples.host_ms or None,
            "lead_ms": samples.lead_ms or None,
            "waited_ms": samples.waited_ms or None,
            "median_device_ms": device,
            "median_wall_ms": wall,
            "compile_s": self.compiler.seconds,
            "compilations": self.compiler.compilations,
            "graph_breaks": self.compiler.graph_breaks,
            "tokens": tokens,
            "tokens_per_s": median(tokens) / step_ms * 1e3,
            "mfu": flops / (step_ms * 1e9) / self.shared.matmul_tflops,
            "matmul_tflops": self.shared.matmul_tflops,
        } | ({"dropout": self.model.dropout} if isinstance(self.model, Gpt2) else {})

    def exact_costs(self, timer: StepTimer, *, kernels: bool = False) -> dict[str, Any]:
        """Return what one more step costs exactly, and with `kernels` what its kernels took; after the timed steps."""
        device = self.shared.device
        found = exact_costs(timer.step, self.batches, device, self.base_bytes)
        return found | kernel_costs(timer.step, self.batches, device) if kernels else found


def warm_up(batches: Sequence[Batch], cell: Cell) -> Sequence[Batch]:
    """Return the batches of the steps before those that are timed; the last is that of the timed ones.

    After them kernels are chosen, and all memory is allocated, by the heaviest first. Every batch where one may be the
    first of its kind: cuDNN plans for each shape, and a sequence of one token is compiled apart from longer ones.
    At least two: a GPU's step is timed from the end of the one before, and the last is timed with the next.
    """
    every = (cell.backend.plans_by_shape or cell.execution == "compiled") and len(batches) > 1
    return batches if every else [heaviest(batches), *batches[-WARM_UP + 1 :]]


def too_slow(step_s: float, steps: int, limit_s: float) -> str:
    """Say why a cell is not timed whose `steps` to come, each as long as its first one, would take longer than the
    limit; "" where they would not."""
    expected_s = step_s * steps
    if expected_s <= limit_s:
        return ""
    return f"{steps} steps of {step_s:.3g} s would take {expected_s:.0f} s; the limit is --cell-seconds={limit_s:g}"


def release_memory(device: Device) -> None:
    """Give back what a finished cell held, so that the next one's peak is its own."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def cell_bench(shared: Shared, cell: Cell, compiler: Compiler) -> CellBench:
    """Build the model of `cell`; every cell starts from the same weights."""
    # What all cells share stays on the device: made before the base is read, no cell's peak holds it.
    shared.references(cell)
    shared.batches(cell.collator)
    _ = shared.control
    release_memory(shared.device)
    # What is left is of all cells: hundreds of thousands of objects, not least what compilers import, which three
    # collections a cell would walk again.
    gc.freeze()
    base = requested_bytes(shared.device)
    model = seeded_model(shared.workload.config, cell.backend, device=shared.device)
    if cell.execution == "compiled":
        model.compile_blocks()
    return CellBench(shared, cell, model, base, compiler)
