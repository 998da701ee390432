"""What each rank does of a cell that is timed on several: `python -m gate.measure.rank FOLDER PARENT`.

PARENT is the id of the process that started it. The folder holds what gate/measure/ranks.py wrote into it: plan.json,
the arguments of `timed`. It gets RANK.json, and RANK.at, which says how far the rank is.
"""

import functools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
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
    settle_allocator,
    synchronize,
    timed_cells,
    too_slow,
    warm_up,
)
from gate.measure.costs import no_collection
from gate.measure.environment import gpu_state
from gate.record.cell import NoTime
from gate.record.files import write_json
from model.attention import default_device
from model.compilation import fresh_compiler
from model.distributed import How, accumulate, gradients_of, wrapped
from model.equivalence import differences
from model.reference import Outcome, full_precision, without_dropout
from model.tolerance import Mismatch
from model.workloads import workload_named


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


def timed(
    rank: int,
    ranks: int,
    folder: Path,
    *,
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
    device = default_device()
    limit = timedelta(seconds=stall_s + 60)
    store = dist.FileStore(str(folder / "store"), ranks)  # type: ignore[attr-defined]
    options: dict[str, Any] = {}
    if device == "cuda":
        torch.cuda.set_device(rank)
        options["device_id"] = torch.device("cuda", rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=ranks, timeout=limit, **options
    )
    settle_allocator()
    chosen = workload_named(workload, device, lengths)
    chosen = replace(chosen, num_batches=ranks * (steps or chosen.num_batches))
    shares = shares_of(chosen.examples(), ranks, balanced=balanced)
    shared = Shared(chosen, device, given=[step[rank] for step in shares])
    (found,) = timed_cells(chosen, **{**selection, "cells": escape(cell)})
    order = [*range(len(shares))] * passes

    with fresh_compiler() as compiler:
        if rank:
            store.wait(["alone"], limit)
        mark("the plain model's warm-up")
        bench = cell_bench(shared, found, compiler)
        warming = warm_up(bench.batches, found)
        first_s = bench.first_step_s(warming[0])
        if slow := too_slow(first_s, len(warming) + passes * len(bench.batches), cell_seconds):
            raise NoTime("too slow", slow)
        warm(bench, warming)
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
    with fresh_compiler() as compiler:
        mark("the proof")
        joined = [example for share in shares[0] for example in share]
        truth = Shared(chosen, device, given=[joined]).references(found) if rank == 0 else None
        plain = cell_bench(shared, found, compiler)
        targets = torch.tensor([batch.num_targets for batch in plain.batches], device=device)
        dist.all_reduce(targets)
        around = wrapped(plain.model, how, device)
        bench = RankBench(**vars(plain), around=around, how=how, totals=targets.tolist(), truth=truth)
        if wrong := bench.mismatches():
            raise NoTime("wrong", str(wrong[0]))
        mark("the warm-up")
        warm(bench, warm_up(bench.batches, found))
        with no_collection():
            dist.barrier()
            mark("the steps")
            samples = bench.timed(order)
            state = gpu_state()
            mark("the costs")
            rates, costs = bench.rates(samples, order), bench.costs(exact=exact, kernels=kernels)
        dist.barrier()
    return {**rates, **costs, "own_ms": own_ms, "alone_ms": alone_ms or None, "gpu_after": state}


def warm(bench: CellBench, batches: Sequence[Batch]) -> None:
    """Run steps that are not timed."""
    for batch in batches:
        bench.step(batch)
    synchronize(bench.shared.device)


def end_with(parent: int) -> None:
    """End this process when the one that started it is gone: killed, it cannot end its ranks."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(folder: Path, parent: int) -> int:
    """Run the plan of a folder, and write what came of it there; 1 where it has no time."""
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    plan = json.loads((folder / "plan.json").read_text())
    try:
        with failures_told():
            answer = timed(rank, ranks, folder, **plan)
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
