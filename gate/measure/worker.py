"""The worker of one side of a live pair: it holds one cell at a time and runs what the coordinator asks.

The coordinator starts it with `START`, writes one JSON object a line to its standard input, and reads one a line from
its standard output. What libraries print goes to standard error. A side on several ranks has a worker a rank, with
RANK in its environment; all get the same requests.
"""

import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from gate.measure.ranks import stall_of
from gate.record.cell import NoTime

#: Python's `-c` for a worker. `gate` is head's, `model` and `collators` are those of the side: sys.path says first the
#: one and then the other.
START = (
    "import sys; sys.path[0] = sys.argv[1]; import gate.measure.worker as worker; "
    "sys.path[0] = sys.argv[2]; worker.main()"
)

Reply = dict[str, Any]


class Worker:
    """Answers the coordinator's requests; `request["do"]` names the method."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def hello(
        self,
        workload: str | None,
        lengths: str | None,
        steps: int | None,
        cell_seconds: float,
        selection: Mapping[str, Any],
        ranks: int = 1,
        store: str = "",
    ) -> Reply:
        """Import the side's models, and return the machine, and every cell that is selected with its state.

        Several ranks meet in the file `store`.
        """
        import torch

        from gate.measure import bench
        from gate.measure.environment import environment
        from model.attention import default_device
        from model.workloads import workload_named

        self.device = default_device()
        if self.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            # With a thread a core, whatever else runs holds up every step: each thread waits for the slowest.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
        chosen = workload_named(workload, self.device, lengths)
        bench.settle_allocator()
        self.ranks = ranks
        self.cells: dict[str, Any]
        self.opened: Callable[[Any], AbstractContextManager[Any]]
        if ranks > 1:
            rank = on_ranks(ranks, self.device)
            self.cells = {cell.id: cell for cell in rank.ranked_cells(chosen, ranks, **selection)}
            rank.join(int(os.environ["RANK"]), ranks, Path(store), stall_of(cell_seconds))
            shares = {balanced: rank.shares(chosen, steps, balanced=balanced) for balanced in (False, True)}
            self.opened = lambda cell: rank.opened_on_ranks(*shares[cell.balanced], cell, cell_seconds)
        else:
            shared = bench.Shared(chosen, self.device, steps)
            self.cells = {cell.id: cell for cell in bench.timed_cells(chosen, **selection)}
            self.opened = lambda cell: bench.opened(shared, cell, cell_seconds)
        found = []
        for each in self.cells.values():
            cell = each.cell if ranks > 1 else each
            case = cell.case(self.device, chosen.config)
            if not cell.backend.undeclared_reasons(case):
                why = cell.backend.unavailable_reasons(case)
                found.append({"id": each.id, "cell": each.key, "unavailable": "; ".join(why)})
        return {"machine": environment(), "device": self.device, "cells": found}

    def open(self, cell: str) -> Reply:
        """Build the cell, prove its first batch right and warm it up; return its batches' tokens."""
        from gate.measure.environment import gpu_state

        self.close()
        state = gpu_state()
        try:
            self.bench = self.stack.enter_context(self.opened(self.cells[cell]))
        except NoTime:
            self.close()
            raise
        return {"verdict": "ready", "gpu": state, "tokens": [batch.num_tokens for batch in self.bench.batches]}

    def block(self, order: list[int], ahead_ms: float) -> Reply:
        """Time a step on each of these batches, launched `ahead_ms` before the device runs it; return times in ms."""
        return {"verdict": "timed", **vars(self.bench.timed(order, ahead_ms=ahead_ms))}

    def state(self) -> Reply:
        """Return the GPU's clocks, throttling and other processes now."""
        from gate.measure.environment import gpu_state

        return {"gpu": gpu_state()}

    def costs(self, kernels: bool) -> Reply:
        """Return compilations, preparation times and the exact costs, and with `kernels` what each kernel took."""
        try:
            return self.bench.costs(kernels=kernels)
        except Exception as error:
            if self.ranks > 1:
                # The others may wait for this rank.
                raise
            traceback.print_exc()
            return {"unmeasured": f"{type(error).__name__}: {error}".splitlines()[0]}

    def close(self) -> Reply:
        """Give back what the cell held."""
        from gate.measure.bench import release_memory

        self.__dict__.pop("bench", None)
        self.stack.close()
        release_memory(self.device)
        return {}


def on_ranks(ranks: int, device: str) -> Any:
    """Return the module that drives several ranks; ValueError where the side's models or GPUs do not."""
    import torch

    try:
        from gate.measure import rank
        from model.distributed import accumulate

        if "total" not in inspect.signature(accumulate).parameters:
            raise ImportError("accumulate takes no total")
    except ImportError:
        raise ValueError("its models have no step on several ranks that can be timed") from None
    if device == "cuda" and (found := torch.cuda.device_count()) < ranks:
        raise ValueError(f"--distributed {ranks} needs {ranks} GPUs; got {found}")
    return rank


def main() -> None:
    """Answer requests until the coordinator closes its end."""
    # What is printed by libraries, and by what they start, goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.argv[1:] = []
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(worker, request.pop("do"))(**request)
        except NoTime as error:
            traceback.print_exc()
            reply = {"verdict": error.verdict, "reason": error.reason}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(reply), file=answers, flush=True)
    # To take all modules apart takes seconds.
    os._exit(0)
