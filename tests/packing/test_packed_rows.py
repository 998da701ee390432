"""What is wrong with packed rows is said, and what is right is let alone."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.packing.collated import Features, features_of
from tests.packing.packed_rows import CONTRACTS, packed

pytestmark = pytest.mark.packing

Rows = list[dict[str, Any]]
LENGTHS = (7, 2, 3)


def first_fit(features: Features, budget: int) -> Rows:
    """Rows in order; a sequence that is longer than a row has one of its own, too long."""
    rows: Rows = []
    for feature in features:
        ids = feature["input_ids"]
        if not rows or len(rows[-1]["input_ids"]) + len(ids) > budget:
            rows.append({"input_ids": [], "labels": [], "seq_lengths": []})
        rows[-1]["input_ids"] += ids
        rows[-1]["labels"] += [-100, *ids[1:]]
        rows[-1]["seq_lengths"].append(len(ids))
    return rows


def cuts_what_is_long(features: Features, budget: int) -> Rows:
    """As best-fit packing of trl does: what is beyond a row is dropped."""
    return first_fit([{key: value[:budget] for key, value in each.items()} for each in features], budget)


def wraps(features: Features, budget: int) -> Rows:
    ids = [token for each in features for token in each["input_ids"]]
    return [{"input_ids": ids[at : at + budget]} for at in range(0, len(ids), budget)]


def repeats(features: Features, budget: int) -> Rows:
    rows = first_fit(features, budget)
    return [*rows, rows[-1]]


def labels_of_the_next(features: Features, budget: int) -> Rows:
    return [row | {"labels": [*row["labels"][1:], -100]} for row in first_fit(features, budget)]


def one_length(features: Features, budget: int) -> Rows:
    return [row | {"seq_lengths": [sum(row["seq_lengths"])]} for row in first_fit(features, budget)]


def test_a_right_packer_keeps_all_contracts():
    made = packed(first_fit, features_of(LENGTHS), 9)
    assert {name: check(made) for name, check in CONTRACTS.items()} == {name: [] for name in CONTRACTS}
    assert made.share == 12 / 18


@pytest.mark.parametrize(
    ("pack", "budget", "contract", "told"),
    [
        (cuts_what_is_long, 4, "every token is there once", "sequence 0 of 7 tokens: 3 are dropped"),
        (repeats, 9, "every token is there once", "3 tokens are in the rows more than once"),
        (wraps, 4, "every sequence is in one piece", "sequence 0 is in 2 pieces"),
        (wraps, 9, "rows say where sequences begin", "row 0 holds 2 sequences, and no key says where they begin"),
        (first_fit, 4, "rows keep to the budget", "row 0 has 7 slots of 4"),
        (labels_of_the_next, 9, "labels stay with their tokens", "row 0 has the label 101 at slot 0, where the token"),
        (one_length, 9, "rows say where sequences begin", "row 0 states lengths [9], and a sequence begins at slot 7"),
    ],
)
def test_what_is_wrong_is_said(pack: Callable[..., Rows], budget: int, contract: str, told: str):
    assert CONTRACTS[contract](packed(pack, features_of(LENGTHS), budget))[0].startswith(told)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ({"input_ids": [1]}, "the packer returned dict; it must return a list of rows"),
        ([[1, 2]], "row 0 is list; it must be a dict with input_ids"),
        ([{"tokens": [1]}], "row 0 is the keys tokens; it must be a dict with input_ids"),
    ],
)
def test_what_are_no_rows_is_one_line(returned: Any, told: str):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        packed(lambda *_: returned, features_of(LENGTHS), 9)
