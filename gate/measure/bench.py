"""Drives one cell of the `model` and `collators` that are imported: builds it, checks it, runs and times its steps.

Of the gate, this module, costs.py, rank.py and worker.py alone know models. A live pair runs them beside
another checkout's models: they may only use what the models of older commits have too.
"""

import functools
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from collators import COLLATORS, Collator, Example
from collators.batch import Batch
from gate.measure.costs import exact_costs, heaviest, no_collection, requested_bytes
from gate.measure.timing import Samples, matmul_tflops, timed_steps
from gate.measure.trace import step_profile
from gate.record.cell import NoTime, chosen_by
from model.attention import Case, Device
from model.attention.backend import first_line
from model.cells import Cell, all_cells
from model.compilation import Compiler, fresh_compiler
from model.equivalence import differences
from model.flops import step_flops
from model.models import Model, backends_asked, reference_of, seeded_model
from model.reference import Outcome, outcome, padded_reference
from model.steps import eval_step, train_step
from model.tolerance import Mismatch
from model.workloads import Workload

LEARNING_RATE = 1e-3

#: Steps before those that are timed, in cells where no batch is the first of its kind.
WARM_UP = 8

#: DEFAULT_MMAP_THRESHOLD_MAX of 64-bit glibc, in bytes.
GLIBC_LARGEST_THRESHOLD = 32 * 2**20


def timed_cells(
    workload: Workload,
    cells: str | None = None,
    backends: Sequence[str] = (),
    collators: Sequence[str] = (),
    compiled: str = "default",
    model: str = "",
) -> list[Cell]:
    """Return the cells to time: those the workload names, or with `cells` or all compiled ones any of its dtype.

    None and empty leave nothing out. `cells` are globs between commas. `model` is the SPEC of a model from outside.
    """
    every = cells is not None or compiled == "all"
    return [
        cell
        for cell in all_cells(
            workload.name,
            workload.lengths.name,
            dtypes=[workload.dtype],
            # An older side knows no models from outside.
            backends=backends_asked(backends, model) if model else backends_asked(backends),
            collators=[one for one in COLLATORS if not collators or one.name in collators],
        )
        if (every or workload.has(cell))
        and (cell.execution == "eager" or compiled != "none")
        and chosen_by(cell.id, cells)
    ]


@dataclass(frozen=True)
class Shared:
    """What does not depend on the cell; computed on first use and kept for the run.

    Only the first `steps` batches of the workload are run; None means all. `given` are other sequences in their place.
    """

    workload: Workload
    device: Device
    steps: int | None = None
    given: Sequence[list[Example]] = ()
    _batches: dict[str, Sequence[Batch]] = field(default_factory=dict, repr=False)
    _references: dict[tuple[Any, ...], tuple[Outcome, Outcome]] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def examples(self) -> list[list[Example]]:
        """The sequences of every batch that is run."""
        return [*self.given] or self.workload.examples()[: self.steps]

    @functools.cached_property
    def matmul_tflops(self) -> float:
        """The rate that model FLOP utilisation is a share of."""
        return matmul_tflops(self.device, self.workload.dtype)

    def batches(self, collator: Collator) -> Sequence[Batch]:
        """Return the batches of `collator` on the device, made once."""
        if collator.name not in self._batches:
            self._batches[collator.name] = self.workload.batches(collator, self.device, self.examples)
        return self._batches[collator.name]

    def references(self, cell: Cell) -> tuple[Outcome, Outcome]:
        """Return the first batch's reference in a wider dtype and in the cell's, computed once for all cells."""
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

    @property
    def _case(self) -> Case:
        return self.cell.case(self.shared.device, self.shared.workload.config)

    def mismatches(self) -> list[Mismatch]:
        """Compare the first batch with the reference, the worst tensor first."""
        truth, reference = self.shared.references(self.cell)
        found = outcome(self.model, self.cell.backend, self.batches[0], self._case)
        return differences(
            found,
            truth,
            [reference],
            dtype=self.cell.dtype,
            error_factor=self.cell.backend.error_factor,
            config=self.shared.workload.config,
        )

    @functools.cached_property
    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, fused=True)

    def step(self, batch: Batch) -> object:
        """Run a step of this cell's mode."""
        if self.cell.mode == "eval":
            self.model.eval()
            return eval_step(self.model, self.cell.backend, batch, self._case)
        return train_step(self.model, self.cell.backend, batch, self._case, self._optimizer)

    def first_step_s(self, batch: Batch) -> float:
        """Run a step that is not timed, and return the seconds that it took, without those of compilation."""
        compile_s, begin = self.compiler.seconds, time.perf_counter()
        self.step(batch)
        synchronize(self.shared.device)
        return time.perf_counter() - begin - (self.compiler.seconds - compile_s)

    def warm(self, limit_s: float, passes: int = 1) -> None:
        """Run the steps before those that are timed; `NoTime` if these and `passes` over the batches would take longer
        than the limit."""
        warming = warm_up(self.batches, self.cell)
        first_s = self.first_step_s(warming[0])
        if slow := too_slow(first_s, len(warming) + passes * len(self.batches), limit_s):
            raise NoTime("too slow", slow)
        for batch in warming:
            self.step(batch)
        synchronize(self.shared.device)

    def timed(self, order: Sequence[int], *, ahead_ms: float = 0.0) -> Samples:
        """Time a step on each of the batches of these numbers; `NoTime` says how one failed."""
        with failures_told():
            batches = [self.batches[number] for number in order]
            return timed_steps(self.step, batches, self.shared.device, ahead_ms=ahead_ms)

    def prepare_ms(self) -> list[float]:
        """Time the preparation of each batch, which its step runs too, in ms."""
        times = []
        for batch in self.batches:
            synchronize(self.shared.device)
            begin = time.perf_counter()
            self.cell.backend.prepared(batch, self._case)
            synchronize(self.shared.device)
            times.append((time.perf_counter() - begin) * 1e3)
        return times

    def rates(self, samples: Samples, order: Sequence[int]) -> dict[str, Any]:
        """Return what the timed steps come to, as `CellRecord` has it: throughput and utilisation."""
        config, cell, timed = self.shared.workload.config, self.cell, [self.batches[number] for number in order]
        flops = median([step_flops(config, b.lengths, mode=cell.mode, causal=cell.causal) for b in timed])
        tokens = [batch.num_tokens for batch in timed]
        step_ms = median(samples.times_ms)
        unknown = getattr(self.model, "flops_unknown", False)
        return {
            "batches": list(order),
            "tokens": tokens,
            "device_ms": samples.device_ms or None,
            "wall_ms": samples.wall_ms,
            "host_ms": samples.host_ms or None,
            "lead_ms": samples.lead_ms or None,
            "tokens_per_s": median(tokens) / step_ms * 1e3,
            "mfu": None if unknown else flops / (step_ms * 1e9) / self.shared.matmul_tflops,
            "matmul_tflops": self.shared.matmul_tflops,
        }

    def costs(self, *, exact: bool = True, kernels: bool = False) -> dict[str, Any]:
        """Return compilations, preparation times, and what one more step costs exactly, after the timed steps.

        Without `exact` no more step is run; with `kernels` too, each kernel of a step is timed.
        """
        found: dict[str, Any] = {
            "compile_s": self.compiler.seconds,
            "compilations": self.compiler.compilations,
            "graph_breaks": self.compiler.graph_breaks,
            "prepare_ms": self.prepare_ms(),
        }
        device = self.shared.device
        if exact:
            found |= exact_costs(self.step, self.batches, device, self.base_bytes)
        if exact and kernels:
            with no_collection():
                found |= step_profile(lambda: self.step(heaviest(self.batches)), device)
        return found


def warm_up(batches: Sequence[Batch], cell: Cell) -> Sequence[Batch]:
    """Return the batches of the steps before those that are timed.

    After them kernels are chosen, and all memory is allocated, by the heaviest first. Every batch where one may be the
    first of its kind: cuDNN plans for each shape, and a sequence of one token is compiled apart from longer ones.
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


def synchronize(device: Device) -> None:
    """Wait until the device has done what was launched."""
    if device == "cuda":
        torch.cuda.synchronize()


def release_memory(device: Device) -> None:
    """Give back what a finished cell held, so that the next one's peak is its own."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def settle_allocator() -> None:
    """Bring glibc's allocator to where it would get in the end, so that every cell finds it there.

    It maps what is larger than its threshold afresh each time, and each page then faults. The threshold grows with the
    largest mapped block that was freed, up to 32 MiB: a cell that was timed alone took up to 25% longer than the same
    one after others.
    """
    # Made and dropped at once.
    torch.empty(GLIBC_LARGEST_THRESHOLD - 2**16, dtype=torch.uint8)


def cell_bench(shared: Shared, cell: Cell, compiler: Compiler) -> CellBench:
    """Build the model of `cell`; every cell starts from the same weights."""
    # What all cells share stays on the device: made before the base is read, no cell's peak holds it.
    shared.batches(cell.collator)
    release_memory(shared.device)
    # What is left is of all cells: hundreds of thousands of objects, not least what compilers import, which three
    # collections a cell would walk again.
    gc.freeze()
    base = requested_bytes(shared.device)
    model = seeded_model(shared.workload.config, cell.backend, device=shared.device)
    if cell.execution == "compiled":
        model.compile_blocks()
    return CellBench(shared, cell, model, base, compiler)


@contextmanager
def failures_told() -> Iterator[None]:
    """Raise `NoTime` for what ends a cell within."""
    try:
        yield
    except NoTime:
        raise
    except torch.OutOfMemoryError as error:
        raise NoTime("out of memory", first_line(error)) from error
    except Exception as error:
        raise NoTime("failed", f"{type(error).__name__}: {first_line(error)}") from error


@contextmanager
def opened(shared: Shared, cell: Cell, cell_seconds: float, passes: int = 1) -> Iterator[CellBench]:
    """Build a cell, prove its first batch right and warm it up for `passes` over the batches.

    `NoTime` says why that failed, or what is done within. Python's collector is off within: a collection in a timed
    step would be that of another cell's garbage.
    """
    with failures_told(), fresh_compiler() as compiler:
        # Shared as the batches are, and made before a base is read too.
        shared.references(cell)
        bench = cell_bench(shared, cell, compiler)
        if wrong := bench.mismatches():
            raise NoTime("wrong", str(wrong[0]))
        release_memory(shared.device)
        bench.warm(cell_seconds, passes)
        with no_collection():
            yield bench
