"""torch.compile with a clean start, honest limits, and counts of what it did."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch._dynamo
from torch._dynamo.utils import counters

#: Shapes of size 0 and 1 are compiled apart from larger ones, which makes a handful of graphs for ragged batches.
RECOMPILE_LIMIT = 64


@dataclass
class CompileCounts:
    """What the compiler did so far: graphs it compiled, and graph breaks."""

    compilations: int
    graph_breaks: int


def compile_counts() -> CompileCounts:
    """Return the counts since the last `fresh_compiler`."""
    return CompileCounts(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Run with nothing compiled before and nothing left after; passing the recompile limit is an error.

    Past its limit torch.compile would go on in eager mode, and a compiled cell would time something else.
    """
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True):
        try:
            yield
        finally:
            torch._dynamo.reset()
            counters.clear()
