"""What is wrong with a collated batch is said, and what is right is let alone."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.packing.collated import CONTRACTS, Collate, Features, collated, features_of, understood

pytestmark = pytest.mark.packing

LENGTHS = (3, 2, 4)
Batch = dict[str, Any]


def flattened(features: Features) -> Batch:
    """One row, with everything that carries boundaries; the model shifts labels."""
    ids = [token for feature in features for token in feature["input_ids"]]
    labels = [label for feature in features for label in [-100, *feature["labels"][1:]]]
    positions = [at for feature in features for at in range(len(feature["input_ids"]))]
    offsets = torch.tensor([0, *(len(feature["input_ids"]) for feature in features)]).cumsum(0).to(torch.int32)
    numbers = [number for number, feature in enumerate(features) for _ in feature["input_ids"]]
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": offsets,
        "max_length_q": max(len(feature["input_ids"]) for feature in features),
        "seq_idx": torch.tensor([numbers], dtype=torch.int32),
    }


def shifted(features: Features) -> Batch:
    """As `flattened`, with labels that are shifted already."""
    batch = flattened(features)
    return batch | {"labels": torch.cat([batch["labels"][:, 1:], torch.tensor([[-100]])], dim=1)}


def padded(features: Features) -> Batch:
    """A rectangle with padding on the right and a mask."""
    width = max(len(feature["input_ids"]) for feature in features)

    def filled(key: str, fill: int) -> Tensor:
        return torch.tensor([[*feature[key], *[fill] * (width - len(feature[key]))] for feature in features])

    return {
        "input_ids": filled("input_ids", 0),
        "labels": filled("labels", -100),
        "attention_mask": filled("attention_mask", 0),
    }


def four_d(features: Features) -> Batch:
    """One row with a causal mask of blocks, and nothing else."""
    batch = flattened(features)
    numbers = batch["seq_idx"][0]
    seen = (numbers[:, None] == numbers[None]) & torch.ones(len(numbers), len(numbers), dtype=torch.bool).tril()
    return {"input_ids": batch["input_ids"], "labels": batch["labels"], "attention_mask": seen[None, None]}


def shuffled(features: Features) -> Batch:
    """One row whose offsets are those of the sequences in reverse order."""
    return flattened(features) | {"cu_seq_lens_q": flattened(features[::-1])["cu_seq_lens_q"]}


def changed(made: Collate, **change: Callable[[Batch], Any]) -> Collate:
    """Return a collator with other values under some keys; None takes a key away."""

    def collate(features: Features) -> Batch:
        batch = made(features)
        batch |= {key: value(batch) for key, value in change.items()}
        return {key: value for key, value in batch.items() if value is not None}

    return collate


def but(key: str, where: Any, value: Any) -> Callable[[Batch], Tensor]:
    """Return what is under a key, with another value somewhere."""

    def made(batch: Batch) -> Tensor:
        copy = batch[key].clone()
        copy[where] = value
        return copy

    return made


RIGHT = {"flattened": flattened, "shifted": shifted, "padded": padded, "four_d": four_d}

#: A wrong collator, the contract that it breaks, and what is said.
WRONG: dict[str, tuple[Collate, str, str]] = {
    "drops": (lambda features: flattened(features[1:]), "every token is there once", "sequence 0: 3 of 3 tokens"),
    "repeats": (lambda features: flattened([*features, features[0]]), "every token is there once", "more than once"),
    "late offset": (
        changed(flattened, cu_seq_lens_q=but("cu_seq_lens_q", 1, 4)),
        "all keys carry the same boundaries",
        "cu_seq_lens_q has no boundary at slot (0, 3)",
    ),
    "short offsets": (
        changed(flattened, cu_seq_lens_q=lambda batch: batch["cu_seq_lens_q"][:1]),
        "all keys carry the same boundaries",
        "cu_seq_lens_q has no boundary",
    ),
    "one number": (
        changed(flattened, seq_idx=but("seq_idx", slice(None), 0)),
        "all keys carry the same boundaries",
        "seq_idx has no boundary",
    ),
    "no boundaries": (
        lambda features: {key: flattened(features)[key] for key in ("input_ids", "labels")},
        "all keys carry the same boundaries",
        "no key says where they begin",
    ),
    "positions run on": (
        changed(flattened, position_ids=lambda batch: torch.arange(9)[None]),
        "positions restart",
        "position_ids: sequences begin at 0, 3, 5",
    ),
    "mask of blocks leaks": (
        changed(four_d, attention_mask=but("attention_mask", (0, 0, 4, 0), True)),
        "masks show a sequence its own tokens alone",
        "lets token 1 of sequence 1 see sequence 0",
    ),
    "mask of blocks hides": (
        changed(four_d, attention_mask=but("attention_mask", (0, 0, 2, 0), False)),
        "masks show a sequence its own tokens alone",
        "hides token 0 of sequence 0 from token 2",
    ),
    "mask shows padding": (
        changed(padded, attention_mask=but("attention_mask", (0, 3), 1)),
        "masks show a sequence its own tokens alone",
        "shows padding at slot (0, 3)",
    ),
    "target over a boundary": (
        changed(flattened, labels=but("labels", (0, 3), 103)),
        "every target is the next token",
        "token 2 of sequence 0 is supervised with 103",
    ),
    "shifted target over a boundary": (
        changed(shifted, labels=but("labels", (0, 2), 103)),
        "every target is the next token",
        "token 2 of sequence 0 is supervised with 103",
    ),
    "padding is supervised": (
        changed(padded, labels=but("labels", (1, 3), 7)),
        "every target is the next token",
        "padding is supervised",
    ),
    "a target is missing": (
        changed(flattened, labels=but("labels", (0, 1), -100)),
        "every target is the next token",
        "5 targets are supervised, of 6",
    ),
    "offsets of int64": (
        changed(flattened, cu_seq_lens_q=lambda batch: batch["cu_seq_lens_q"].long()),
        "dtypes are those that kernels take",
        "cu_seq_lens_q is torch.int64",
    ),
}


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_batch_keeps_every_contract(name: str, contract: str) -> None:
    assert CONTRACTS[contract](collated(RIGHT[name], features_of(LENGTHS))) == []


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    collate, contract, told = WRONG[name]
    assert told in "; ".join(CONTRACTS[contract](collated(collate, features_of(LENGTHS))))


@pytest.mark.parametrize(
    ("collate", "told"),
    [
        (lambda features: [1], "returned list; it must be a mapping"),
        (lambda features: {"x": 1}, "the batch has x; it needs input_ids"),
        (lambda features: {"input_ids": torch.ones(3)}, "input_ids is torch.float32 (3,)"),
        (lambda features: {"input_ids": [1]}, "input_ids is list"),
    ],
)
def test_what_is_no_batch_is_refused(collate: Collate, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        collated(collate, features_of(LENGTHS))


def test_it_says_how_a_batch_was_understood() -> None:
    assert understood(collated(flattened, features_of((3, 2)))) == (
        "2 sequences in 1 row of 5 slots (packed, boundaries in position_ids, cu_seq_lens_q, cu_seq_lens_k, seq_idx), "
        "0 slots of padding, labels of their own slots (the model shifts); keys: input_ids, labels, position_ids, "
        "cu_seq_lens_q, cu_seq_lens_k, max_length_q, seq_idx"
    )
    assert "(padded), 1 slots of padding" in understood(collated(padded, features_of((3, 2))))
