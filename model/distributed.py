"""A training step on several ranks: torch's own wrappers around a model, and a loss over the targets of all ranks.

DDP and FSDP2 average gradients over ranks. A mean over each rank's own targets is then wrong, because ranks have
different numbers of them (huggingface/transformers#34242). So every rank divides by the targets of all ranks and
micro-batches, and multiplies by the number of ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from collators.batch import Batch, PackedBatch
from collators.example import IGNORE_INDEX
from model.attention.backend import HALF, Backend
from model.attention.case import Case
from model.attention.sdpa import SdpaContext, attend
from model.attention.sdpa_document_mask import document_ids
from model.models import Model
from model.steps import Result, autocast, forward, loss_of

How = Literal["ddp", "fsdp2"]

HOWS: tuple[How, ...] = ("ddp", "fsdp2")

#: Gradients lie where they are reduced: nothing copies 4 bytes a parameter out of buckets. While NCCL runs it takes SMs
#: from matmuls, and a few large messages are over sooner than many (docs/results/several-gpus.md).
DDP_OPTIONS = {"gradient_as_bucket_view": True, "bucket_cap_mb": 200}

#: What FSDP2 gathers at once, at most: its hooks keep the host busy for longer than a small block's kernels run
#: (docs/results/several-gpus.md).
GROUP_BYTES = 2**31


def bytes_of(module: nn.Module) -> int:
    """Return how many bytes the parameters of a module take."""
    return sum(one.nbytes for one in module.parameters())


def blocks_at_once(blocks: Sequence[nn.Module]) -> int:
    """Return how many blocks FSDP2 gathers at once: as many as have `GROUP_BYTES`, and at most half of all, so that
    one half's kernels run while the other half is gathered or reduced."""
    return max(1, min(GROUP_BYTES // max([1, *map(bytes_of, blocks)]), -(-len(blocks) // 2)))


def wrapped(
    model: nn.Module,
    how: How,
    device: str,
    *,
    dtype: torch.dtype | None = None,
    blocks_a_group: int | None = None,
    **options: Any,
) -> nn.Module:
    """Return `model` in DDP, or sharded by FSDP2, over all ranks of the default group.

    FSDP2 gathers and reduces `blocks_a_group` blocks at once, by default `blocks_at_once`. `dtype` is that of autocast.
    If it has 16 bits, FSDP2 on GPUs gathers blocks in it, as autocast casts matrices and biases anyway, and reduces
    gradients in float32. The weights of norms are rounded with the rest. The residual stream keeps its dtype. `options`
    are those of DistributedDataParallel or of fully_shard. After a forward without a backward, call `freed` before a
    step. ValueError for `blocks_a_group` that is not of FSDP2, or below 1.
    """
    if blocks_a_group is not None and (how == "ddp" or blocks_a_group < 1):
        raise ValueError(f"blocks_a_group is a number from 1 on, of fsdp2; got {blocks_a_group} for {how}.")
    if how == "ddp":
        ids = [torch.cuda.current_device()] if device == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, **{**DDP_OPTIONS, **options})
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device, (dist.get_world_size(),))
    blocks: list[nn.Module] = [*model.blocks]  # type: ignore[misc]
    for block in blocks:
        if block._compiled_call_impl is not None:
            # With dynamic=True torch 2.13 takes each int of a module that FSDP2 shards for a size that may change, and
            # SDPA refuses what it compares (findings/fsdp_dynamic_ints.sh). So the first shape is compiled by itself,
            # and the second for all others.
            block.compile(fullgraph=True)
    narrow: dict[str, Any] = {}
    # Autocast of a CPU does not cast norms, and these take no weights narrower than their input.
    if dtype in HALF and device == "cuda":
        narrow["mp_policy"] = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    size = blocks_a_group or blocks_at_once(blocks)
    for at in range(0, len(blocks), size):
        # The backward begins with the last group.
        kept = {"reshard_after_forward": False} if at + size >= len(blocks) else {}
        fully_shard(blocks[at : at + size], mesh=mesh, **{**narrow, **kept, **options})
    fully_shard(model, mesh=mesh, **options)
    return model


def freed(model: nn.Module) -> None:
    """Free what FSDP2 gathered: the last blocks, and what is in no group of blocks.

    A forward without a backward keeps it, and the next forward would not see a step that came between
    (findings/fsdp_stale_root.sh).
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            # `reshard` is not recursive.
            module.reshard()


@contextmanager
def reduced(model: nn.Module, *, now: bool) -> Iterator[None]:
    """Reduce gradients over ranks in the backward inside only if `now`: it is that of the last micro-batch."""
    if isinstance(model, DistributedDataParallel):
        if now:
            yield
        else:
            with model.no_sync():
                yield
        return
    model.set_requires_gradient_sync(now)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)  # type: ignore[operator]


def targets_of_all(batches: Sequence[Batch], device: str) -> int:
    """Return the number of supervised targets in the batches of all ranks."""
    count = torch.tensor(sum(batch.num_targets for batch in batches), device=device)
    dist.all_reduce(count)
    return int(count)


def accumulate(
    model: nn.Module, backend: Backend, batches: Sequence[Batch], case: Case, total: int | None = None
) -> list[Result]:
    """Compute the gradient of the mean loss over the targets of all ranks and batches; every rank has as many batches.

    The results have each batch's share of that loss: summed over batches and ranks they are the loss. A rank without
    sequences passes batches without a supervised target. `total` is the number of targets where a loop knows it
    ahead; without it the ranks count them, and the host waits for the device.
    """
    ranks = dist.get_world_size()
    total = targets_of_all(batches, case.device) if total is None else total
    results = []
    for number, batch in enumerate(batches, start=1):
        with reduced(model, now=number == len(batches)):
            # A wrapper is called as its model is.
            result = forward(model, backend, batch, case, total)  # type: ignore[arg-type]
            (result.loss * ranks).backward()
        results.append(Result(result.logits.detach(), result.loss.detach()))
    return results


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that FSDP2 shards, gathered from all ranks; another as it is."""
    gathered = getattr(tensor, "full_tensor", None)
    return tensor if gathered is None else gathered()


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter by its name in the model without its wrapper."""
    return {name.removeprefix("module."): one for name, one in model.named_parameters()}


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole gradient of every parameter."""
    return {
        name: torch.zeros_like(whole(one)) if one.grad is None else whole(one.grad).detach()
        for name, one in parameters_of(model).items()
    }


@dataclass(frozen=True)
class Shard:
    """One rank's slots of a packed row, as a model and the loss take them: (1, T / ranks) each."""

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    num_targets: int

    @property
    def flat_targets(self) -> Tensor:
        """Targets (T / ranks,)."""
        return self.targets.flatten()

    def flat(self, outputs: Tensor) -> Tensor:
        """Return outputs (1, T / ranks, ...) as (T / ranks, ...)."""
        return outputs.flatten(0, 1)


def shard_of(batch: PackedBatch, case: Case) -> tuple[Shard, SdpaContext]:
    """Return this rank's part of a packed row, and which keys of the whole row it sees: (1, 1, T / ranks, T).

    Every rank has the same number of slots, in their order. ValueError if the row cannot be cut so: a collator with
    `multiple` = ranks fills it up.
    """
    ranks, rank = dist.get_world_size(), dist.get_rank()
    if batch.num_slots % ranks:
        raise ValueError(
            f"context parallel over {ranks} ranks needs a row of a multiple of {ranks} slots; got {batch.num_slots}. "
            f"Use packed_multiple with multiple={ranks}."
        )
    size = batch.num_slots // ranks
    mine = slice(rank * size, (rank + 1) * size)
    slots = torch.arange(batch.num_slots, device=batch.input_ids.device)
    documents = document_ids(batch)
    mask = documents[mine, None] == documents[None]
    if case.causal:
        mask &= slots[mine, None] >= slots[None]
    targets = batch.targets[:, mine]
    shard = Shard(batch.input_ids[:, mine], targets, batch.position_ids[:, mine], int((targets != IGNORE_INDEX).sum()))
    return shard, SdpaContext(mask[None, None], is_causal=False)


def check_torch_context_parallel(batch: PackedBatch) -> None:
    """ValueError for a row of several sequences, which torch's own `context_parallel` cannot take.

    Up to torch 2.13 it takes causal attention over the whole row only: with a mask it fails inside, and without one
    each token attends to the sequences before its own, in silence.
    """
    if len(batch.lengths) > 1:
        raise ValueError(
            "torch's context_parallel has no document mask, and needs a row of one sequence; "
            f"got {len(batch.lengths)}. Use attend_gathered, which shares a row out with its mask."
        )


def gathered(shard: Tensor) -> Tensor:
    """Return the shards (1, T / ranks, ...) of all ranks as one tensor (1, T, ...); gradients go back to their rank."""
    from torch.distributed import _functional_collectives as collectives

    # mypy knows the group's type only where torch is typed.
    group: Any = dist.group.WORLD
    return collectives.all_gather_tensor_autograd(shard.contiguous(), 1, group)


def attend_gathered(q: Tensor, k: Tensor, v: Tensor, context: SdpaContext, *, scale: float | None = None) -> Tensor:
    """Attend with a shard's queries to the keys and values of the whole row, gathered from all ranks.

    The simple right way: memory of keys and values does not shrink with the number of ranks.
    """
    keys, values = (gathered(each) for each in (k, v))
    return attend(q, keys, values, context, scale=scale)


def accumulate_sharded(model: Model, batch: PackedBatch, case: Case) -> Result:
    """Compute the gradient of a packed row's mean loss with its slots shared out over the ranks.

    `model` attends with `attend_gathered`. Gradients are left reduced over ranks. The result has this rank's logits
    (1, T / ranks, vocabulary) and its share of the loss.
    """
    shard, context = shard_of(batch, case)
    with autocast(case):
        logits = model(shard, context)
        loss = loss_of(shard, logits, batch.num_targets)  # type: ignore[arg-type]
    loss.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
    return Result(logits.detach(), loss.detach())
