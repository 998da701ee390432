"""Batches made by hand out of collated ones: other padding, other positions, other targets.

A slot is a place in the batch that the model computes, padding and fillers included, in the order of `Batch.flat`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import singledispatch
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from collators import IGNORE_INDEX, Batch, Example, NestedBatch, PackedBatch, PaddedBatch
from collators.batch import offsets_of
from model.decoder import DecoderConfig
from model.models import ProvedModel

AnyBatch = TypeVar("AnyBatch", bound=Batch)

#: The fields of each layout that hold token ids and positions.
IDS = {PaddedBatch: "input_ids", PackedBatch: "input_ids", NestedBatch: "values"}
POSITIONS = {PaddedBatch: "position_ids", PackedBatch: "position_ids", NestedBatch: "position_values"}


@singledispatch
def real_slots(batch: Any) -> Tensor:
    """Return which slots hold real tokens, bool [slots]; real slots come in the order of the sequences."""
    raise TypeError(f"no slots of {type(batch).__name__} are known.")


@real_slots.register
def _(batch: PaddedBatch) -> Tensor:
    return batch.attention_mask.flatten()


@real_slots.register
def _(batch: PackedBatch) -> Tensor:
    return torch.arange(batch.num_slots, device=batch.input_ids.device) < batch.num_tokens


@real_slots.register
def _(batch: NestedBatch) -> Tensor:
    return torch.ones_like(batch.values, dtype=torch.bool)


def _placed(field: Tensor, slots: Tensor, values: Tensor) -> Tensor:
    flat = field.flatten().clone()
    flat[slots] = values.to(flat)
    return flat.view_as(field)


def with_positions(batch: AnyBatch, positions: Sequence[Tensor]) -> AnyBatch:
    """Return `batch` with other positions, one tensor a sequence; those of padding stay."""
    name = POSITIONS[type(batch)]
    changed: dict[str, Any] = {name: _placed(getattr(batch, name), real_slots(batch), torch.cat(list(positions)))}
    return replace(batch, **changed)


def with_padding_ids(batch: AnyBatch, ids: Tensor) -> AnyBatch:
    """Return `batch` with `ids` [slots] in the slots that hold no real token."""
    name, padding = IDS[type(batch)], ~real_slots(batch)
    changed: dict[str, Any] = {name: _placed(getattr(batch, name), padding, ids.to(padding.device)[padding])}
    return replace(batch, **changed)


@singledispatch
def widened(batch: Any, extra: int) -> Any:
    """Return `batch` with `extra` more slots of padding: columns of a padded batch, filler tokens of a packed one."""
    raise TypeError(f"{type(batch).__name__} has no padding.")


@widened.register
def _(batch: PaddedBatch, extra: int) -> PaddedBatch:
    sides = (0, extra) if batch.padding_side == "right" else (extra, 0)
    # The id of the new padding is 0, the pad id or not: padding is inert whatever it holds.
    return replace(
        batch,
        input_ids=pad(batch.input_ids, sides),
        targets=pad(batch.targets, sides, value=IGNORE_INDEX),
        position_ids=pad(batch.position_ids, sides),
        attention_mask=pad(batch.attention_mask, sides),
    )


@widened.register
def _(batch: PackedBatch, extra: int) -> PackedBatch:
    if not extra:
        return batch
    filler = batch.filler_length + extra
    return replace(
        batch,
        input_ids=pad(batch.input_ids, (0, extra)),
        targets=pad(batch.targets, (0, extra), value=IGNORE_INDEX),
        position_ids=pad(batch.position_ids, (0, extra)),
        cu_seqlens=offsets_of((*batch.lengths, filler), torch.int32).to(batch.cu_seqlens.device),
        max_seqlen=max(batch.max_seqlen, filler),
        filler_length=filler,
    )


def with_empty_row(batch: PaddedBatch, at: int, pad_id: int) -> PaddedBatch:
    """Return `batch` with one more row, before row `at`, that is nothing but padding: a sequence of no tokens."""

    def inserted(field: Tensor, value: int | bool) -> Tensor:
        return torch.cat([field[:at], torch.full_like(field[:1], value), field[at:]])

    return replace(
        batch,
        lengths=(*batch.lengths[:at], 0, *batch.lengths[at:]),
        input_ids=inserted(batch.input_ids, pad_id),
        targets=inserted(batch.targets, IGNORE_INDEX),
        position_ids=inserted(batch.position_ids, 0),
        attention_mask=inserted(batch.attention_mask, False),
    )


def other_tokens(example: Example, config: DecoderConfig, start: int = 0, stop: int | None = None) -> Example:
    """Return `example` with another token at every position from `start` to `stop`; no pad id arises.

    Targets from `start` to `stop` are others as well.
    """
    ids, targets = example.input_ids.clone(), example.targets.clone()
    ids[start:stop] = _next(ids[start:stop], config)
    part = targets[start:stop]
    targets[start:stop] = torch.where(part == IGNORE_INDEX, part, _next(part, config))
    return Example(ids, targets)


def _next(ids: Tensor, config: DecoderConfig) -> Tensor:
    # Counted from the pad id, ids are 1 to vocabulary - 1.
    counted = (ids - config.pad_id) % config.vocab_size
    return (counted % (config.vocab_size - 1) + 1 + config.pad_id) % config.vocab_size


def unsupervised(example: Example, start: int = 0, stop: int | None = None) -> Example:
    """Return `example` with no supervised target from `start` to `stop`."""
    targets = example.targets.clone()
    targets[start:stop] = IGNORE_INDEX
    return Example(example.input_ids, targets)


@contextmanager
def embedded(model: ProvedModel) -> Iterator[list[Tensor]]:
    """Collect what the token embedding returns, in the layout of the batch."""
    seen: list[Tensor] = []
    handle = model.tokens.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def embeddings_replaced(model: ProvedModel, slots: Tensor, values: Tensor) -> Iterator[None]:
    """Put `values` [slots, hidden] in the place of the embeddings of the chosen slots."""

    def put(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        flat = torch.where(slots[:, None], values.to(output), output.flatten(0, -2))
        return flat.view_as(output)

    handle = model.tokens.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
