"""The evaluation step and the training step, on any backend and layout."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from collators.batch import Batch
from collators.example import IGNORE_INDEX
from model.attention.backend import Backend
from model.attention.case import Case
from model.models import Model


@dataclass(frozen=True)
class Result:
    """Logits in the batch's layout, and the loss: the mean over supervised targets, a 0-d tensor."""

    logits: Tensor
    loss: Tensor


def autocast(case: Case) -> AbstractContextManager[object]:
    """Return autocast to a 16-bit `case.dtype`; parameters of float32 and float64 compute as they are."""
    narrow = case.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(case.device, dtype=case.dtype if narrow else None, enabled=narrow)


def loss_of(batch: Batch, logits: Tensor, num_targets: int | None = None) -> Tensor:
    """Return the cross-entropy summed over the batch's targets and divided by their number.

    `num_targets` is the number in all micro-batches when gradients are accumulated, so that any split of a batch
    gives the same gradients (huggingface/transformers#34191).
    """
    flat = batch.flat(logits)
    # Autocast widens this on CUDA but not on the CPU.
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    total = cross_entropy(flat, batch.flat_targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / max(batch.num_targets if num_targets is None else num_targets, 1)


def forward(model: Model, backend: Backend, batch: Batch, case: Case, num_targets: int | None = None) -> Result:
    """Prepare the backend's context and compute logits and loss; `num_targets` as in `loss_of`."""
    with autocast(case):
        logits = model(batch, backend.prepared(batch, case))
        return Result(logits, loss_of(batch, logits, num_targets))


def eval_step(model: Model, backend: Backend, batch: Batch, case: Case) -> Result:
    """Compute logits and loss without gradients."""
    with torch.no_grad():
        return forward(model, backend, batch, case)


def train_step(model: Model, backend: Backend, batch: Batch, case: Case, optimizer: torch.optim.Optimizer) -> Result:
    """Compute the loss and its gradients, and step the optimizer; gradients are dropped after it."""
    result = forward(model, backend, batch, case)
    result.loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return result
