"""The article's decoder: pre-norm blocks, GELU MLP, learned or rotary positions, any attention backend.

Shapes: B sequences (1 when packed), S slots a row, E hidden size, H heads, H_kv key-value heads, D head dim.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from collators.batch import NestedBatch, NestedRows, PackedBatch, PaddedBatch
from model.attention.backend import Attend
from model.mlp import Mlp


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder; `num_kv_heads` None means as many as `num_heads`."""

    vocab_size: int
    max_length: int
    num_layers: int
    num_heads: int
    head_dim: int
    num_kv_heads: int | None = None
    positions: Literal["learned", "rotary"] = "learned"
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads; got {self.num_heads} and {self.num_kv_heads}."
            )
        if self.positions not in ("learned", "rotary"):
            raise ValueError(f"positions are learned or rotary; got {self.positions!r}.")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim; got {self.head_dim}.")

    @property
    def kv_heads(self) -> int:
        """Key-value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.num_heads * self.head_dim


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of `x` (B, S, heads, D) by `rotation` (B, S, D): D/2 cosines, then sines.

    Source: RoFormer, https://arxiv.org/abs/2104.09864, in the half-split form of GPT-NeoX.
    """
    cos, sin = rotation.to(x.dtype).unsqueeze(2).chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def nested(x: Tensor, rows: NestedRows | None) -> Tensor:
    """Return `x` (T, ...) as a NestedTensor of `rows`; as it is where there are none."""
    return x if rows is None else rows.nested(x)


def values(x: Tensor, rows: NestedRows | None) -> Tensor:
    """Return the values (T, ...) of what `nested` made; `x` as it is where there are no rows."""
    return x if rows is None else x.values()


class Block(nn.Module):
    """Pre-norm attention and MLP; norms have no bias, linears do."""

    def __init__(self, config: DecoderConfig, attend: Attend) -> None:
        super().__init__()
        width = config.hidden_size
        self.attend = attend
        self.heads = [config.num_heads, config.kv_heads, config.kv_heads]
        self.grouped_query = config.kv_heads != config.num_heads
        self.head_dim = config.head_dim
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, sum(self.heads) * config.head_dim)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = Mlp(width)

    def forward(
        self, x: Tensor, update: Tensor | None, context: Any, rotation: Tensor | None, rows: NestedRows | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the residual stream (B, S, E) and the update that the next block adds to it, None where it is added.

        `update` is that of the block before; `context` is the backend's for this batch. The addition is left to the
        next block so that a compiled block fuses it with its first norm.

        With `rows` the block takes and returns the values (T, E) of NestedTensors, and attends on NestedTensors of
        them. So do compiled blocks: what the host does to hand a NestedTensor to one and to its backward takes longer
        than the device's work. Their norms come before and after, as torch.compile (2.13) cannot guard on sizes that
        a norm compares, of a NestedTensor that was made inside. An eager block computes on NestedTensors throughout.
        """
        if update is not None:
            x = x + update
        # What is not named here is freed once it was used, which is what sets the peak of an evaluation step.
        heads = self.qkv(nested(self.attention_norm(x), rows)).unflatten(-1, (-1, self.head_dim))
        x = x + values(self.projection(self.attended(heads, context, rotation, rows).flatten(2)), rows)
        update = self.mlp(self.mlp_norm(x))
        return (x + update, None) if x.is_nested else (x, update)

    def attended(self, heads: Tensor, context: Any, rotation: Tensor | None, rows: NestedRows | None) -> Tensor:
        """Return what attention makes (B, S, H, D) of the heads of queries, keys and values, (B, S, H + 2 H_kv, D)."""
        # NestedTensors can be chunked, but the backward of an uneven split of one crashes (torch 2.13).
        q, k, v = heads.split(self.heads, dim=2) if self.grouped_query else heads.chunk(3, dim=2)
        if rotation is not None:
            rotation = nested(rotation, rows)
            q, k = rotated(q, rotation), rotated(k, rotation)
        return self.attend(q, k, v, context)


class Decoder(nn.Module):
    """A decoder that runs on any layout; the backend it is given must fit the batch."""

    def __init__(self, config: DecoderConfig, attend: Attend) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.tokens = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_id)
        if config.positions == "learned":
            self.positions: nn.Embedding | None = nn.Embedding(config.max_length, width)
        else:
            self.positions = None
            # In float64, as the truth is: rounded angles would differ from those of shifted positions.
            steps = torch.arange(config.max_length, dtype=torch.float64)
            exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
            angles = torch.outer(steps, 10_000.0**-exponents)
            self.register_buffer("rotations", torch.cat([angles.cos(), angles.sin()], dim=1), persistent=False)
        self.blocks = nn.ModuleList(Block(config, attend) for _ in range(config.num_layers))
        self.head = nn.Linear(width, config.vocab_size)
        self.values_between_blocks = False

    def forward(self, batch: PaddedBatch | PackedBatch | NestedBatch, context: Any) -> Tensor:
        """Return logits (B, S, vocabulary) in the layout of `batch`."""
        rows: NestedRows | None = None
        if self.values_between_blocks and isinstance(batch, NestedBatch):
            ids, positions, rows = batch.values, batch.position_values, batch.rows
        else:
            ids, positions = batch.input_ids, batch.position_ids
        x, update, rotation = self.tokens(ids), None, None
        if self.positions is None:
            rotation = nn.functional.embedding(positions, self.get_buffer("rotations"))
        elif x.is_nested:
            x = x + self.positions(positions)
        else:
            update = self.positions(positions)
        for block in self.blocks:
            x, update = block(x, update, context, rotation, rows)
        return self.head(nested(x if update is None else x + update, rows))

    def attending(self, attend: Attend) -> "Decoder":
        """Return a new decoder of these sizes, with weights of its own, that attends with `attend`."""
        return Decoder(self.config, attend)

    def compile_blocks(self) -> None:
        """Compile each block with dynamic shapes; blocks are alike, so one compilation serves them all.

        A graph break is an error: a backend that needs one does not declare `compiled`.
        """
        self.values_between_blocks = True
        for block in self.blocks:
            block.compile(dynamic=True, fullgraph=True)
