"""How fast a CPU is while a cell is timed: a block of plain torch, forward and backward, between every two steps.

Neighbours on a shared host slow a step down by its caches, memory and clocks even while it runs, for seconds or for
minutes. A step does matrix products, goes over memory and takes new memory, and only work of the same kind is slowed
down alike: in 59 stretches of six processes a training step spread by 5% to 8% over products of matrices that fit into
a core's cache, and by 2% to 4% over this block. None of this project's code is in it, so no change of it moves the
pace.
"""

import statistics
import time
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from gate.waiting import waited_ms, waits_ms, without_waiting_ms
from model.attention import Device

#: Sizes for about 5 ms on two cores of a server: long enough to be timed, short against a step.
TOKENS, WIDTH, HIDDEN, VOCABULARY = 512, 128, 512, 256
SEQUENCES, HEADS = 8, 4

#: How often every batch is timed. A neighbour comes and goes within seconds, and a CPU's cell takes about one a pass.
PASSES: dict[Device, int] = {"cuda": 1, "cpu": 3}


@dataclass
class Pace:
    """Times of the block, before each step and after the last, without what they waited for a core."""

    parameters: list[torch.Tensor] = field(default_factory=lambda: _parameters())
    times_ms: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """Time the block now: call it before each step, and after the last. The first call warms up too."""
        if not self.times_ms:
            self._block_ms()
        self.times_ms.append(self._block_ms())

    def steps_ms(self) -> list[float]:
        """Return the mean of the two blocks around each step."""
        return [statistics.mean(around) for around in zip(self.times_ms[:-1], self.times_ms[1:], strict=True)]

    def _block_ms(self) -> float:
        waits, begin = waits_ms(), time.perf_counter()
        self._block()
        wall_ms = (time.perf_counter() - begin) * 1e3
        return without_waiting_ms(wall_ms, waited_ms(waits, waits_ms()) or 0.0)

    def _block(self) -> None:
        tokens, heads, up, down, unembed = self.parameters
        hidden = F.gelu(F.layer_norm(tokens, (WIDTH,)) @ up) @ down
        attended = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        out = tokens + hidden + attended.transpose(1, 2).reshape(TOKENS, WIDTH)
        F.cross_entropy(out @ unembed, torch.zeros(TOKENS, dtype=torch.long)).backward()
        for parameter in self.parameters:
            parameter.grad = None


def _parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    heads = (SEQUENCES, HEADS, TOKENS // SEQUENCES, WIDTH // HEADS)
    shapes = ((TOKENS, WIDTH), heads, (WIDTH, HIDDEN), (HIDDEN, WIDTH), (WIDTH, VOCABULARY))
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
