"""What each rank does of a cell that is timed on several: `python -m gate.measure.rank FOLDER PARENT`.

PARENT is the id of the process that started it. The folder holds what gate/measure/ranks.py wrote into it: plan.json,
the arguments of `timed`. It gets RANK.json, and RANK.at, which says how far the rank is. The ranks of a live pair are
workers (gate/measure/worker.py), and open their cells by `opened_on_ranks` too.
"""

import functools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from glob import escape
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from collators import Example
from collators.balanced import BalancedBatchSampler
from collators.batch import Batch
from gate.measure.bench import (
    LEARNING_RATE,
    CellBench,
    Shared,
    cell_bench,
    failures_told,
    release_memory,
    settle_allocator,
    timed_cells,
)
from gate.measure.costs import no_collection
from gate.measure.environment import gpu_state
from gate.measure.timing import Samples
from gate.record.cell import NoTime, chosen_by
from gate.record.files import write_json
from model.attention import default_device
from model.cells import Cell
from model.compilation import fresh_compiler
from model.distributed import HOWS, How, accumulate, gradients_of, wrapped
from model.equivalence import differences
from model.reference import Outcome, full_precision, without_dropout
from model.tolerance import Mismatch
from model.workloads import Workload, workload_named


@dataclass(frozen=True)
class RankedCell:
    """A cell that is timed on several ranks: in a wrapper, each with a batch of its own or a balanced share of all."""

    cell: Cell
    how: How
    ranks: int
    balanced: bool

    @property
    def key(self) -> dict[str, Any]:
        """The cell as plain data, as records hold it."""
        return {**self.cell.key, "ranks": f"{self.how}-{self.ranks}{'-balanced' * self.balanced}"}

    @property
    def id(self) -> str:
        """The id of the cell, and the ranks behind it: `...-article-ddp-2`, `...-article-fsdp2-2-balanced`."""
        return f"{self.cell.id}-{self.key['ranks']}"


def ranked(cells: Iterable[Cell], ranks: int, *, named: bool) -> list[RankedCell]:
    """Return what several ranks run of cells: those of training, packed unless others are `named`, in each wrapper,
    with batches as they come and balanced."""
    return [
        RankedCell(cell, how, ranks, balanced)
        for cell in cells
        if cell.mode == "train" and (named or cell.backend.layout == "packed")
        for how in HOWS
        if how in cell.backend.wrappers
        for balanced in (False, True)
    ]


def ranked_cells(workload: Workload, ranks: int, *, cells: str | None, **selection: Any) -> list[RankedCell]:
    """Return the cells to time on several ranks, chosen as `timed_cells` chooses.

    `cells` may match their id, or that of the cell on one rank.
    """
    # Those of a pattern are any of the workload's dtype, as on one rank.
    every = timed_cells(workload, **selection, cells=None if cells is None else "*")
    named = bool(cells or selection["backends"] or selection["collators"])
    return [
        one
        for one in ranked(every, ranks, named=named)
        if any(chosen_by(each, cells or None) for each in (one.id, one.cell.id))
    ]


@dataclass
class RankBench(CellBench):
    """A cell's steps in a wrapper on all ranks; `model` is the model within, `totals` the targets of each step."""

    around: nn.Module
    how: How
    totals: Sequence[int]
    truth: tuple[Outcome, Outcome] | None

    @functools.cached_property
    def _total_of(self) -> dict[int, int]:
        return {id(batch): total for batch, total in zip(self.batches, self.totals, strict=True)}

    @functools.cached_property
    def _optimizer(self) -> torch.optim.Optimizer:
        # torch 2.11 and 2.13: "aten._fused_sgd_ does not have a sharding strategy".
        kind = {"fused": True} if self.how == "ddp" else {"foreach": True}
        return torch.optim.SGD(self.around.parameters(), lr=LEARNING_RATE, **kind)

    def step(self, batch: Batch) -> object:
        """Train on this rank's batch of a step. How many targets all ranks have is known ahead."""
        found = accumulate(self.around, self.cell.backend, [batch], self._case, self._total_of[id(batch)])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return found

    def first_step_s(self, batch: Batch) -> float:
        """Run a step that is not timed; return the seconds of the rank that compiled the longest, as it waited the
        least for others."""
        taken = torch.tensor(super().first_step_s(batch), device=self.shared.device)
        dist.all_reduce(taken, dist.ReduceOp.MIN)
        return taken.item()

    def timed(self, order: Sequence[int], *, ahead_ms: float = 0.0) -> Samples:
        """Time steps that all ranks begin at once."""
        with failures_told():
            dist.barrier()
        return super().timed(order, ahead_ms=ahead_ms)

    def mismatches(self) -> list[Mismatch]:
        """Compare the first step's loss and gradients of all ranks, and rank 0's logits, with those of one process.

        Rank 0 compares, the others find nothing.
        """
        batch = self.batches[0]
        with full_precision(), without_dropout(self.model):
            (result,) = accumulate(self.around, self.cell.backend, [batch], self._case, self.totals[0])
        dist.all_reduce(result.loss)
        gradients = gradients_of(self.around)
        self._optimizer.zero_grad(set_to_none=True)
        if self.truth is None:
            return []
        # The sequences of rank 0 come first.
        logits = batch.split(result.logits)
        truth, reference = (replace(one, logits=one.logits[: len(logits)]) for one in self.truth)
        return differences(
            Outcome(logits, result.loss, gradients),
            truth,
            [reference],
            dtype=self.cell.dtype,
            error_factor=self.cell.backend.error_factor,
            config=self.shared.workload.config,
        )


def shares_of(examples: Sequence[Sequence[Example]], ranks: int, *, balanced: bool) -> list[list[list[Example]]]:
    """Return the sequences by step and rank: of `examples`, the batches of all ranks in turn.

    As they come, or shared out anew so that ranks of a step have as many tokens.
    """
    steps = [[list(batch) for batch in examples[at : at + ranks]] for at in range(0, len(examples), ranks)]
    if not balanced:
        return steps
    every = [example for batch in examples for example in batch]
    lengths = [len(example.input_ids) for example in every]
    dealt = iter(BalancedBatchSampler(lengths, len(examples[0]), shuffle=False, num_replicas=ranks, rank=None))
    return [[[every[index] for index in next(dealt)] for _ in range(ranks)] for _ in steps]


def start_group(gpu: int, limit: timedelta, **meeting: Any) -> None:
    """Start the default group: NCCL with this rank on a GPU of its own, or gloo; a collective takes up to `limit`.

    `meeting` is how the ranks meet, as init_process_group takes it; torchrun needs none.
    """
    backend = "gloo"
    if default_device() == "cuda":
        backend, device = "nccl", torch.device("cuda", gpu)
        torch.cuda.set_device(device)
        meeting["device_id"] = device
    dist.init_process_group(backend, timeout=limit, **meeting)


def join(rank: int, ranks: int, path: Path, stall_s: float) -> tuple[Any, timedelta]:
    """Join the default group, which meets in a file, each rank on a GPU of its own; return its store, and how long a
    rank waits for the others."""
    limit = timedelta(seconds=stall_s + 60)
    store = dist.FileStore(str(path), ranks)  # type: ignore[attr-defined]
    start_group(rank, limit, store=store, rank=rank, world_size=ranks)
    return store, limit


def shares(workload: Workload, steps: int | None, *, balanced: bool) -> tuple[Shared, Shared]:
    """Return what this rank runs, and the sequences of all ranks in the first step; `steps` None are as many as the
    workload has batches."""
    rank, ranks, device = dist.get_rank(), dist.get_world_size(), default_device()
    drawn = replace(workload, num_batches=ranks * (steps or workload.num_batches))
    dealt = shares_of(drawn.examples(), ranks, balanced=balanced)
    first = [example for share in dealt[0] for example in share]
    return Shared(drawn, device, given=[step[rank] for step in dealt]), Shared(drawn, device, given=[first])


@contextmanager
def opened_on_ranks(
    shared: Shared,
    first: Shared,
    cell: RankedCell,
    cell_seconds: float,
    passes: int = 1,
    mark: Callable[[str], object] = lambda stage: None,
) -> Iterator[RankBench]:
    """Build a cell in its wrapper, prove its first step right on all ranks and warm it up for `passes`, as `opened`
    does on one; `mark` is told how far it is.

    `shared` and `first` are those of `shares`. A cell that is wrong or too slow is so on all ranks: none waits for one
    that gave up.
    """
    with failures_told(), fresh_compiler() as compiler:
        mark("the proof")
        truth = first.references(cell.cell) if dist.get_rank() == 0 else None
        plain = cell_bench(shared, cell.cell, compiler)
        targets = torch.tensor([batch.num_targets for batch in plain.batches], device=shared.device)
        dist.all_reduce(targets)
        around = wrapped(plain.model, cell.how, shared.device, dtype=cell.cell.dtype)
        bench = RankBench(**vars(plain), around=around, how=cell.how, totals=targets.tolist(), truth=truth)
        wrong = [[str(each) for each in bench.mismatches()]]
        dist.broadcast_object_list(wrong)
        if wrong[0]:
            raise NoTime("wrong", wrong[0][0])
        release_memory(shared.device)
        mark("the warm-up")
        bench.warm(cell_seconds, passes)
        with no_collection():
            yield bench


def timed(
    rank: int,
    folder: Path,
    *,
    ranks: int,
    workload: str | None,
    lengths: str | None,
    steps: int | None,
    cell_seconds: float,
    selection: Mapping[str, Any],
    cell: str,
    how: How,
    balanced: bool,
    passes: int,
    exact: bool,
    kernels: bool,
    stall_s: float,
) -> dict[str, Any]:
    """Prove a cell right on all ranks and time it; return what this rank measured, `NoTime` where it has no time.

    `cell` is the id of what runs on one rank, `steps` are those of all ranks together. Rank 0 times the plain model
    alone first (`alone_ms`), then all ranks at once do, without communication (`own_ms`), then in the wrapper.
    """

    def mark(stage: str) -> None:
        (folder / f"{rank}.at").write_text(stage)

    mark("the start")
    store, limit = join(rank, ranks, folder / "store", stall_s)
    settle_allocator()
    chosen = workload_named(workload, default_device(), lengths)
    shared, first = shares(chosen, steps, balanced=balanced)
    (found,) = timed_cells(chosen, **{**selection, "cells": escape(cell)})
    order = [*range(len(shared.examples))] * passes

    with fresh_compiler() as compiler:
        if rank:
            store.wait(["alone"], limit)
        mark("the plain model's warm-up")
        bench = cell_bench(shared, found, compiler)
        bench.warm(cell_seconds, passes)
        alone_ms = []
        with no_collection():
            if rank == 0:
                mark("the plain model's steps alone")
                alone_ms = bench.timed(order).times_ms
                store.set("alone", "timed")
            dist.barrier()
            mark("the plain model's steps")
            own_ms = bench.timed(order).times_ms
        del bench
    # Compiled anew: inside DDP torch.compile cuts graphs where its buckets end.
    several = RankedCell(found, how, ranks, balanced)
    with opened_on_ranks(shared, first, several, cell_seconds, passes, mark) as bench:
        mark("the steps")
        samples = bench.timed(order)
        state = gpu_state()
        mark("the costs")
        rates, costs = bench.rates(samples, order), bench.costs(exact=exact, kernels=kernels)
        dist.barrier()
    return {**rates, **costs, "own_ms": own_ms, "alone_ms": alone_ms or None, "gpu_after": state}


def end_with(parent: int) -> None:
    """End this process when the one that started it is gone: killed, it cannot end its ranks."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(folder: Path, parent: int) -> int:
    """Run the plan of a folder, and write what came of it there; 1 where it has no time."""
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    rank = int(os.environ["RANK"])
    plan = json.loads((folder / "plan.json").read_text())
    try:
        with failures_told():
            answer = timed(rank, folder, **plan)
    except NoTime as error:
        answer = {"verdict": error.verdict, "reason": error.reason, "traceback": traceback.format_exc()}
    write_json(folder / f"{rank}.json", {"at": time.time(), **answer})
    return int("verdict" in answer)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    # To take all modules and NCCL apart takes seconds.
    os._exit(code)
