"""What each rank runs: steps of one cell on its own sequences."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from collators import CollatorOptions, Example, collator_named
from collators.batch import Batch, PackedBatch
from collators.example import IGNORE_INDEX
from model.attention import Case, default_device
from model.cells import Cell
from model.compilation import fresh_compiler
from model.decoder import DecoderConfig
from model.distributed import (
    How,
    accumulate,
    accumulate_sharded,
    attend_gathered,
    freed,
    gradients_of,
    parameters_of,
    whole,
    wrapped,
)
from model.models import any_backend_named
from model.reference import full_precision, with_backend, without_dropout
from model.steps import Result, forward
from tests.correctness.drawn import CONFIG
from tests.correctness.references import decoder, weight_dtype

#: Sequences by rank and micro-batch.
Shares = Sequence[Sequence[Sequence[Example]]]

RATE = 0.1


@dataclass(frozen=True)
class Asked:
    """A cell as its key, and the wrapper of its model with its options: what can be pickled."""

    key: dict[str, Any]
    how: How
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> Cell:
        """The cell."""
        key = self.key | {
            "backend": any_backend_named(self.key["backend"]),
            "collator": collator_named(self.key["collator"]),
            "dtype": getattr(torch, self.key["dtype"]),
        }
        return Cell(**key)

    @property
    def case(self) -> Case:
        """What the cell asks of its backend here."""
        return self.cell.case(default_device(), config_here())


def summed(results: Sequence[Result]) -> Tensor:
    """Return this rank's share of the loss, over its micro-batches."""
    return torch.stack([result.loss for result in results]).sum()


@dataclass(frozen=True)
class Step:
    """What a rank computed: logits of each of its sequences, its share of the loss, the gradients of all ranks."""

    logits: list[Tensor]
    loss: Tensor
    gradients: dict[str, Tensor]


def config_here() -> DecoderConfig:
    """Return the sizes of the model on this device."""
    return CONFIG[default_device()]


def model_of(asked: Asked) -> nn.Module:
    """Return the cell's model in its wrapper: the same weights on every rank."""
    model = decoder(config_here(), asked.cell.backend, weight_dtype(asked.cell.dtype))
    if asked.cell.execution == "compiled":
        model.compile_blocks()
    return wrapped(model, asked.how, default_device(), dtype=asked.cell.dtype, **asked.options)


def batches_of(cell: Cell, mine: Sequence[Sequence[Example]], multiple: int = 64) -> list[Batch]:
    """Collate a rank's micro-batches; one without sequences becomes the fewest tokens, which no loss counts."""
    config = config_here()
    collate = cell.collator.build(CollatorOptions(config.max_length, config.pad_id, multiple))
    fewest = cell.backend.min_keys
    nothing = [Example(torch.ones(fewest, dtype=torch.int64), torch.full((fewest,), IGNORE_INDEX))]
    return [collate(each or nothing).to(default_device()) for each in mine]


def step(asked: Asked, shares: Shares) -> Step:
    """Compute one gradient: `shares` are the sequences by rank and micro-batch."""
    cell, case = asked.cell, asked.case
    model = model_of(asked)
    mine = shares[dist.get_rank()]
    batches = batches_of(cell, mine)
    with fresh_compiler(), full_precision(), without_dropout(model):
        results = accumulate(model, cell.backend, batches, case)
    logits = [
        piece.cpu()
        for batch, result, given in zip(batches, results, mine, strict=True)
        if given
        for piece in batch.split(result.logits)
    ]
    loss = summed(results).cpu()
    return Step(logits, loss, {name: one.cpu() for name, one in gradients_of(model).items()})


def sharded_step(asked: Asked, examples: Sequence[Example]) -> Step:
    """Compute one gradient with a packed row shared out over the ranks; rank 0 has the logits of all of it."""
    cell, case = asked.cell, asked.case
    weights = weight_dtype(case.dtype)
    gathering = replace(cell.backend, attend=attend_gathered)
    model = with_backend(decoder(config_here(), cell.backend, weights), gathering, weights)
    (batch,) = batches_of(cell, [examples], multiple=dist.get_world_size())
    assert isinstance(batch, PackedBatch)
    with full_precision():
        result = accumulate_sharded(model, batch, case)
    parts = [torch.empty_like(result.logits) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, result.logits)
    logits = [piece.cpu() for piece in batch.split(torch.cat(parts, dim=1))] if dist.get_rank() == 0 else []
    return Step(logits, result.loss.cpu(), {name: one.cpu() for name, one in gradients_of(model).items()})


@dataclass(frozen=True)
class Trained:
    """Parameters after steps of an optimiser, and this rank's share of the loss of each step: (steps,)."""

    parameters: dict[str, Tensor]
    losses: Tensor


def trained(asked: Asked, steps: Sequence[Shares], clip: float | None) -> Trained:
    """Take optimiser steps, with gradients clipped to a global norm unless it is None."""
    cell, case = asked.cell, asked.case
    model = model_of(asked)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for shares in steps:
        with full_precision(), without_dropout(model):
            results = accumulate(model, cell.backend, batches_of(cell, shares[dist.get_rank()]), case)
        losses.append(summed(results))
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    parameters = {name: whole(one.detach()).cpu() for name, one in parameters_of(model).items()}
    return Trained(parameters, torch.stack(losses).cpu())


def evaluated_before_a_step(asked: Asked, shares: Shares) -> float:
    """Return the loss of all ranks after a step that comes after a forward without a backward."""
    cell, case = asked.cell, asked.case
    model = model_of(asked)
    batches = batches_of(cell, shares[dist.get_rank()])
    accumulate(model, cell.backend, batches, case)
    with torch.no_grad():
        forward(model, cell.backend, batches[0], case)
    freed(model)
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    loss = summed(accumulate(model, cell.backend, batches, case))
    dist.all_reduce(loss)
    return loss.item()


def raises_on_last() -> int:
    """Raise on the last rank; the others wait for it."""
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("this rank has no batch")
    dist.barrier()
    return 0


def hangs_on_last() -> int:
    """Hang on the last rank; the others wait for it."""
    if dist.get_rank() == dist.get_world_size() - 1:
        while True:
            pass
    dist.barrier()
    return 0


def groups_of_fsdp2(asked: Asked) -> int:
    """Return into how many groups FSDP2 shards the cell's model."""
    model = model_of(asked)
    return len({id(module._get_fsdp_state()) for module in model.modules() if isinstance(module, FSDPModule)})


def raises_on_all() -> int:
    """Raise on every rank, on the last one later."""
    if dist.get_rank() == dist.get_world_size() - 1:
        time.sleep(1.5)
    raise ValueError("no rank can run this")


def is_late_on_last() -> int:
    """Hang on the last rank, for which the others do not wait."""
    if dist.get_rank() == dist.get_world_size() - 1:
        time.sleep(60)
    return 0


def ends_on_last() -> int:
    """End the last rank's process."""
    if dist.get_rank() == dist.get_world_size() - 1:
        os._exit(3)
    dist.barrier()
    return 0


def rank_here() -> int:
    """Return this rank."""
    return dist.get_rank()
