"""torch.compile with a clean start, honest limits, and counts of what it did."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch._dynamo
from torch._dynamo.utils import calculate_time_spent, counters

#: Shapes of size 0 and 1 are compiled apart from larger ones, which makes a handful of graphs for ragged batches.
RECOMPILE_LIMIT = 64

#: How Inductor counts what it is asked to compile.
CACHE_ANSWERS = ("fxgraph_cache_hit", "fxgraph_cache_miss", "fxgraph_cache_bypass")


@dataclass(frozen=True)
class Compiler:
    """What torch.compile did since a clean start."""

    seconds_before: float

    @property
    def compilations(self) -> int:
        """Graphs compiled; forward and backward of one are counted together."""
        return counters["stats"]["unique_graphs"]

    @property
    def kernels(self) -> int:
        """Graphs made into kernels, forward and backward each, whether compiled here or found in Inductor's cache."""
        return sum(count for name, count in counters["inductor"].items() if name in CACHE_ANSWERS)

    @property
    def graph_breaks(self) -> int:
        """Places where a graph ended early."""
        return sum(counters["graph_break"].values())

    @property
    def seconds(self) -> float:
        """Wall time spent compiling, in seconds."""
        return _seconds() - self.seconds_before


def _seconds() -> float:
    return calculate_time_spent()["total_wall_time"]


@contextmanager
def fresh_compiler() -> Iterator[Compiler]:
    """Run with nothing compiled before and nothing left after; passing the recompile limit is an error.

    Past its limit torch.compile would go on in eager mode, and a compiled cell would run something else. What an
    earlier process saw to be dynamic (kept where TORCH_COMPILE_JOB_ID is set) is not used: it would spare this one
    compilations, and their number shall follow from the code alone. Floats, as the epsilon of a norm, are constants:
    with dynamic shapes torch.compile would take them for inputs first, and trace everything once more without. Inside
    DDP graphs stay whole: cut where buckets end, a block loses more in fusion than its communication gains.
    """
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(
        recompile_limit=RECOMPILE_LIMIT,
        fail_on_recompile_limit_hit=True,
        specialize_float=True,
        optimize_ddp=False,
        automatic_dynamic_local_pgo=False,
        automatic_dynamic_remote_pgo=False,
    ):
        try:
            yield Compiler(_seconds())
        finally:
            torch._dynamo.reset()
            counters.clear()
