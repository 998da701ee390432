"""Runs a collated batch through a family of transformers: does it compute what each sequence alone gives?"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from collators.example import IGNORE_INDEX
from model.attention import default_device
from model.huggingface.families import CannotBuild, Family, build, offline
from model.huggingface.implementations import Implementation
from model.huggingface.inputs import LENGTHS, Inputs
from model.reference import full_precision
from tests.packing.checks import Bench, Errors, allowance, bench_of, errors_of, run
from tests.packing.collated import Collate, collated, features_of

Batch = dict[str, Any]

RIGHT, WRONG = "right", "wrong"


@dataclass(frozen=True)
class Judged:
    """`verdict` is "right", "right with ...", "wrong" or "not run: ..."; `told` says it with figures."""

    verdict: str
    told: str


def judged(collate: Collate, family: Family, implementation: Implementation) -> Judged:
    """Run a family on the batch exactly as it is given; if that is wrong, look for arguments that make it right.

    ValueError for a batch in which a sequence is not in one piece.
    """
    try:
        bench = bench_of(family, torch.device(default_device()), implementation.dtype)
        model = build(family, implementation.built).to(bench.device, bench.dtype).train(bench.training)
    except CannotBuild as error:
        return not_run(f"{family.name} cannot be built: {error}")
    # Where the tokens lie is found with tokens that all differ.
    places = collated(collate, features_of(LENGTHS)).places
    ids = [sequence.tolist() for sequence in bench.sequences]
    batch = dict(collate([{"input_ids": each, "labels": [*each], "attention_mask": [1] * len(each)} for each in ids]))
    known = inspect.signature(model.forward).parameters
    free = any(each.kind is each.VAR_KEYWORD for each in known.values())
    if unknown := [key for key in batch if key not in known and not free]:
        return not_run(f"{family.name} takes no {', '.join(unknown)}")
    most = allowance(bench.dtype).factor
    with offline(), full_precision(), implementation.attending(model):
        found, errors = times_rounding(model, Inputs(batch, places), bench)
        if found <= most:
            return Judged(RIGHT, f"{found:.2g} times what rounding does")
        way = next((words for words, other in ways_out(batch, places) if fits(model, Inputs(other, places), bench)), "")
    told = (
        f"logits off by {errors.logits:.2g} of the largest, loss by {errors.loss:.2g}, gradients by "
        f"{errors.gradients:.2g} ({errors.worst or 'none'}), {found:.2g} times what rounding does. "
    )
    if not way:
        return Judged(WRONG, f"{told}No change of arguments makes it right.")
    return Judged(f"right with {way}", f"{told}Right with {way}.")


def not_run(why: str) -> Judged:
    """Return the verdict of what no model can be asked of."""
    return Judged(f"not run: {why}", why)


def times_rounding(model: nn.Module, batch: Inputs, bench: Bench) -> tuple[float, Errors]:
    """Return how far a batch is off, in units of what rounding does, and the errors themselves."""
    errors = errors_of(run(model, batch, bench.labels), bench.truth)
    return max(error / rounds for error, rounds in zip(errors.values, bench.rounding.values, strict=True)), errors


def fits(model: nn.Module, batch: Inputs, bench: Bench) -> bool:
    """Tell whether a batch is right; one that the model refuses is not."""
    try:
        return times_rounding(model, batch, bench)[0] <= allowance(bench.dtype).factor
    except Exception:
        return False


def without_mask(batch: Batch, _: Any) -> Batch | None:
    """Return the batch without its attention mask."""
    if "attention_mask" not in batch:
        return None
    return {key: value for key, value in batch.items() if key != "attention_mask"}


def mask_of_floats(batch: Batch, _: Any) -> Batch | None:
    """Return the batch with a boolean 4-D mask as one that is added: 0 for what is seen."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.dtype != torch.bool:
        return None
    return batch | {"attention_mask": torch.where(mask, 0.0, torch.finfo(torch.float32).min)}


def first_labels_ignored(batch: Batch, places: Any) -> Batch | None:
    """Return the batch without the targets that are the first tokens of sequences."""
    if "labels" not in batch:
        return None
    labels = batch["labels"].clone()
    rows = labels if labels.dim() == 2 else labels[None]
    for row, columns in places:
        rows[row, columns.start] = IGNORE_INDEX
    return batch | {"labels": labels}


#: What is tried where a batch as it is given is wrong, alone and together; None if there is nothing to change.
CHANGES: dict[str, Callable[[Batch, Any], Batch | None]] = {
    "use_cache=False": lambda batch, _: batch | {"use_cache": False},
    "no attention_mask": without_mask,
    "a 4-D mask of floats": mask_of_floats,
    "the first label of each sequence ignored": first_labels_ignored,
}


def ways_out(batch: Batch, places: Any) -> Iterator[tuple[str, Batch]]:
    """Give changed batches and what was changed, the fewest changes first."""
    for size in range(1, len(CHANGES) + 1):
        for names in combinations(CHANGES, size):
            changed: Batch | None = batch
            for name in names:
                changed = None if changed is None else CHANGES[name](changed, places)
            if changed is not None:
                yield ", ".join(names), changed
