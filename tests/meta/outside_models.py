"""Models as users write them, right and wrong: a small one in the manner of Llama, with rotary positions."""

from typing import Any

import torch
from torch import Tensor, nn

NUMBER = 3


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate the pairs of `x` (B, S, heads, D) by their positions (B, S)."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = positions[..., None, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Layer(nn.Module):
    def __init__(self, config: Any, attend: Any) -> None:
        super().__init__()
        width = config.num_heads * config.head_dim
        self.attend, self.head_dim = attend, config.head_dim
        self.norm = nn.RMSNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, config.kv_heads * config.head_dim, bias=False)
        self.v = nn.Linear(width, config.kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, positions: Tensor, context: Any) -> Tensor:
        hidden = self.norm(x)
        q, k, v = (part(hidden).unflatten(-1, (-1, self.head_dim)) for part in (self.q, self.k, self.v))
        q, k = rotate(q, positions), rotate(k, positions)
        x = x + self.out(self.attend(q, k, v, context).flatten(2))
        return x + self.down(nn.functional.silu(self.up(x)))


class Llama(nn.Module):
    """Right."""

    def __init__(self, config: Any, attend: Any) -> None:
        super().__init__()
        width = config.num_heads * config.head_dim
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(Layer(config, attend) for _ in range(config.num_layers))
        self.head = nn.Linear(width, config.vocab_size, bias=False)

    def embedded(self, batch: Any) -> Tensor:
        return self.embedding(batch.input_ids)

    def positions(self, batch: Any) -> Tensor:
        return batch.position_ids

    def forward(self, batch: Any, context: Any) -> Tensor:
        x = self.embedded(batch)
        for layer in self.layers:
            x = layer(x, self.positions(batch), context)
        return self.head(x)


class ShiftsTokens(Llama):
    """Mixes each token with the one before it, over the boundaries."""

    def embedded(self, batch: Any) -> Tensor:
        x = super().embedded(batch)
        return x + nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]


class CountsPositionsOn(Llama):
    """Counts the positions of a row, not of its sequences. Rotary positions are relative, so it adds them up."""

    def embedded(self, batch: Any) -> Tensor:
        places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        return super().embedded(batch) + torch.sin(0.1 * places)[:, None].to(self.embedding.weight.dtype)


class AveragesTheRow(Llama):
    """Adds the mean of all tokens of a row."""

    def embedded(self, batch: Any) -> Tensor:
        x = super().embedded(batch)
        return x + x.mean(1, keepdim=True)


def no_module(config: Any, attend: Any) -> int:
    return NUMBER


def without_an_embedding(config: Any, attend: Any) -> nn.Module:
    return nn.Linear(2, 2)


def wants_more(config: Any, attend: Any, width: int) -> nn.Module:
    return Llama(config, attend)


class ReturnsHidden(Llama):
    def forward(self, batch: Any, context: Any) -> Tensor:
        return self.embedded(batch)
