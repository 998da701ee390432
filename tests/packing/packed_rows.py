"""Says what is wrong with the rows that a packer from outside makes of features.

A packer takes a list of features and the number of slots of a row, and returns rows. A row is a dict with `input_ids`,
and may have `labels` and `seq_lengths` (or `seq_lens`): lists of ints, all in the order of the row.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collators.example import IGNORE_INDEX
from tests.packing.collated import Features

Row = Mapping[str, Any]
Pack = Callable[[Features, int], Sequence[Row]]

LENGTHS_KEYS = ("seq_lengths", "seq_lens")


@dataclass(frozen=True)
class Packed:
    """The rows that a packer made of features for a budget of slots a row."""

    features: Features
    rows: tuple[Row, ...]
    budget: int

    @functools.cached_property
    def owners(self) -> dict[int, int]:
        """The number of the feature that each token is of."""
        return {token: number for number, feature in enumerate(self.features) for token in feature["input_ids"]}

    @property
    def share(self) -> float:
        """The share of slots that hold a token of the features."""
        held = sum(token in self.owners for row in self.rows for token in row["input_ids"])
        return held / (len(self.rows) * self.budget) if self.rows else 0.0


def packed(pack: Pack, features: Features, budget: int) -> Packed:
    """Pack; ValueError, in one line, for what are no rows."""
    rows = pack([{key: [*value] for key, value in feature.items()} for feature in features], budget)
    if isinstance(rows, Mapping | str) or not hasattr(rows, "__iter__"):
        raise ValueError(f"the packer returned {type(rows).__name__}; it must return a list of rows")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or "input_ids" not in row:
            shown = f"the keys {', '.join(map(str, row))}" if isinstance(row, Mapping) else type(row).__name__
            raise ValueError(f"row {number} is {shown}; it must be a dict with input_ids")
    return Packed(features, tuple({key: _listed(value) for key, value in row.items()} for row in rows), budget)


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def tokens_lost(made: Packed) -> list[str]:
    """Say which tokens are dropped or repeated."""
    count = Counter(token for row in made.rows for token in row["input_ids"])
    problems = [
        f"sequence {number} of {len(feature['input_ids'])} tokens: {lost} are dropped"
        for number, feature in enumerate(made.features)
        if (lost := sum(token not in count for token in feature["input_ids"]))
    ]
    again = sum(count[token] > 1 for token in made.owners)
    return [*problems, f"{again} tokens are in the rows more than once"] if again else problems


def sequences_cut(made: Packed) -> list[str]:
    """Say which sequences are in more than one piece."""
    pieces: Counter[int] = Counter()
    for row in made.rows:
        before: tuple[int | None, int] = (None, 0)
        for token in row["input_ids"]:
            number = made.owners.get(token)
            if number is not None and before != (number, token - 1):
                pieces[number] += 1
            before = (number, token)
    return [f"sequence {number} is in {count} pieces" for number, count in sorted(pieces.items()) if count > 1]


def rows_too_long(made: Packed) -> list[str]:
    """Say which rows hold more slots than the budget."""
    long = [(number, len(row["input_ids"])) for number, row in enumerate(made.rows)]
    return [f"row {number} has {count} slots of {made.budget}" for number, count in long if count > made.budget]


def labels_astray(made: Packed) -> list[str]:
    """Say where a label is neither its own token nor ignored."""
    for number, row in enumerate(made.rows):
        labels = row.get("labels")
        if labels is None:
            continue
        if len(labels) != len(row["input_ids"]):
            return [f"row {number} has {len(labels)} labels for {len(row['input_ids'])} tokens"]
        for at, (token, label) in enumerate(zip(row["input_ids"], labels, strict=True)):
            if label not in (token, IGNORE_INDEX):
                return [f"row {number} has the label {label} at slot {at}, where the token is {token}"]
    return []


def lengths_wrong(made: Packed) -> list[str]:
    """Say which rows state other lengths than their sequences have, or none."""
    problems = []
    for number, row in enumerate(made.rows):
        tokens = row["input_ids"]
        stated = next((row[key] for key in LENGTHS_KEYS if key in row), None)
        owners = [made.owners.get(token) for token in tokens]
        starts = [
            at
            for at, (before, own) in enumerate(zip([None, *owners], owners, strict=False))
            if own not in (None, before)
        ]
        if stated is None:
            if len(starts) > 1 and "position_ids" not in row:
                problems.append(f"row {number} holds {len(starts)} sequences, and no key says where they begin")
            continue
        begins = {sum(stated[:count]) for count in range(len(stated))}
        if missing := [at for at in starts if at and at not in begins]:
            problems.append(f"row {number} states lengths {stated}, and a sequence begins at slot {missing[0]}")
        elif sum(stated) != len(tokens):
            problems.append(f"row {number} states {sum(stated)} slots by its lengths {stated}, and has {len(tokens)}")
    return problems


#: What is checked, by the name of its test.
CONTRACTS: dict[str, Callable[[Packed], list[str]]] = {
    "every token is there once": tokens_lost,
    "every sequence is in one piece": sequences_cut,
    "rows keep to the budget": rows_too_long,
    "labels stay with their tokens": labels_astray,
    "rows say where sequences begin": lengths_wrong,
}
