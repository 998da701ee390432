"""Reads what a collator from outside makes of a list of features, and says what is wrong with it.

A feature is a dict as HuggingFace has it: `input_ids`, `labels` and `attention_mask`, lists of ints. The collator gives
a mapping of tensors. Every token of the features is another number here, so that each slot of the batch is known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collators.example import IGNORE_INDEX
from tests.matrix import plural

Features = list[dict[str, list[int]]]
Collate = Callable[[Features], Any]
Slot = tuple[int, int]

#: What collators call a batch's tokens, positions, offsets and numbers of sequences.
TOKENS = ("input_ids", "tokens")
POSITIONS = ("position_ids", "input_pos")
OFFSETS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens_q", "cu_seqlens_k", "cu_seqlens", "cu_seq_lens")
NUMBERS = ("seq_idx", "sequence_id", "document_ids", "sequence_ids")


def features_of(lengths: Sequence[int], first: int = 100) -> Features:
    """Return features of these lengths; all tokens differ, from `first` on, and each is its own label."""
    made, token = [], first
    for length in lengths:
        ids = [*range(token, token + length)]
        made.append({"input_ids": ids, "labels": [*ids], "attention_mask": [1] * length})
        token += length
    return made


@dataclass(frozen=True)
class Collated:
    """A batch, and where its tokens lie: `slots` has one (row, column) a token and feature, None for a lost token."""

    batch: Mapping[str, Any]
    tokens: Tensor
    slots: tuple[tuple[Slot | None, ...], ...]
    repeated: int

    @property
    def owners(self) -> dict[Slot, tuple[int, int]]:
        """The feature and the number of the token in each slot that is not padding."""
        return {slot: (feature, at) for feature, own in enumerate(self.slots) for at, slot in enumerate(own) if slot}

    @property
    def starts(self) -> set[Slot]:
        """The slots of the first tokens of sequences."""
        return {kept[0] for own in self.slots if (kept := [slot for slot in own if slot])}

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one sequence."""
        return len(self.starts) > len({row for row, _ in self.starts})

    @property
    def places(self) -> tuple[tuple[int, slice], ...]:
        """The row and columns of each sequence; ValueError if one is not whole, in order and in one piece."""
        found = []
        for number, own in enumerate(self.slots):
            kept = [slot for slot in own if slot]
            if len(kept) < len(own) or not in_one_piece(kept):
                raise ValueError(f"sequence {number} is not in one piece")
            row, first = kept[0]
            found.append((row, slice(first, first + len(own))))
        return tuple(found)


def rows_of(value: Tensor) -> Tensor:
    """Return a batch's tensor as [rows, slots]: one without rows is one row."""
    return value if value.dim() == 2 else value[None]


def in_one_piece(slots: Sequence[Slot]) -> bool:
    """Tell whether slots follow each other in one row."""
    row, first = slots[0]
    return all(slot == (row, first + at) for at, slot in enumerate(slots))


def collated(collate: Collate, features: Features) -> Collated:
    """Collate and find every token; ValueError, in one line, for what is no batch."""
    batch = collate([{key: [*value] for key, value in feature.items()} for feature in features])
    if not isinstance(batch, Mapping):
        raise ValueError(f"the collator returned {type(batch).__name__}; it must be a mapping of tensors")
    name = next((each for each in TOKENS if each in batch), None)
    if name is None:
        raise ValueError(f"the batch has {', '.join(map(str, batch)) or 'nothing'}; it needs input_ids")
    tokens = batch[name]
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.dim() not in (1, 2):
        shown = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"{name} is {shown}; it must be an int64 tensor [rows, slots] or [slots]")
    rows = rows_of(tokens)
    where: dict[int, list[Slot]] = {}
    for row, line in enumerate(rows.tolist()):
        for column, token in enumerate(line):
            where.setdefault(token, []).append((row, column))
    slots = tuple(tuple(where.get(token, [None])[0] for token in feature["input_ids"]) for feature in features)
    repeated = sum(len(where.get(token, ())) > 1 for feature in features for token in feature["input_ids"])
    return Collated(batch, rows, slots, repeated)


def tokens_lost(made: Collated) -> list[str]:
    """Say which tokens are dropped, repeated or torn apart."""
    problems = [
        f"sequence {number}: {own.count(None)} of {len(own)} tokens are dropped"
        for number, own in enumerate(made.slots)
        if None in own
    ]
    if made.repeated:
        problems.append(f"{made.repeated} tokens are in the batch more than once")
    for number, own in enumerate(made.slots):
        kept = [slot for slot in own if slot]
        if kept and not in_one_piece(kept):
            problems.append(f"sequence {number} is not in one piece")
    return problems


def claimed_starts(made: Collated) -> dict[str, set[Slot]]:
    """Return where sequences begin by each key that carries boundaries."""
    rows, width = made.tokens.shape
    claims: dict[str, set[Slot]] = {}
    for key, value in made.batch.items():
        if key in OFFSETS and isinstance(value, Tensor):
            flat = value.flatten().tolist()
            claims[key] = {divmod(at, width) for at in flat[:-1] if at < rows * width}
            if flat[-1:] != [rows * width] or flat[:1] != [0]:
                claims[f"{key} (from {flat[0]} to {flat[-1]} of {rows * width} slots)"] = set()
        elif key in (*NUMBERS, *POSITIONS, "attention_mask") and isinstance(value, Tensor):
            lines = value.tolist() if value.dim() == 2 else [value.tolist()] if value.dim() == 1 else None
            if lines is None or (key == "attention_mask" and int(value.max()) <= 1):
                continue
            step = int(key in POSITIONS)
            claims[key] = {
                (row, column)
                for row, line in enumerate(lines)
                for column in range(len(line))
                if column == 0 or line[column] != line[column - 1] + step
            }
    return claims


def boundaries_wrong(made: Collated) -> list[str]:
    """Say which keys carry other boundaries than the tokens have, or none at all."""
    real = made.owners
    problems = []
    claims = claimed_starts(made)
    for key, starts in claims.items():
        if missing := sorted(made.starts - starts):
            problems.append(f"{key} has no boundary at slot {missing[0]}, where a sequence begins")
        if extra := sorted(slot for slot in starts - made.starts if slot in real):
            problems.append(f"{key} has a boundary at slot {extra[0]}, in the middle of a sequence")
    if made.packed and not claims and _visible(made) is None:
        problems.append("rows hold several sequences, and no key says where they begin")
    return problems


def positions_wrong(made: Collated) -> list[str]:
    """Say where positions do not count up from the same first one in every sequence."""
    for key in POSITIONS:
        value = made.batch.get(key)
        if not isinstance(value, Tensor):
            continue
        rows = rows_of(value)
        base = {int(rows[slot]) for slot in made.starts}
        if len(base) > 1:
            return [f"{key}: sequences begin at {', '.join(map(str, sorted(base)))}"]
        (first,) = base
        for slot, (number, at) in made.owners.items():
            if int(rows[slot]) != first + at:
                return [f"{key} is {int(rows[slot])} for token {at} of sequence {number}"]
    return []


def _visible(made: Collated) -> Tensor | None:
    """Return which keys each query of a row sees by a 4-D mask, bool [rows, queries, keys]."""
    mask = made.batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return None
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > torch.finfo(torch.float32).min / 2
    return seen.expand(made.tokens.shape[0], -1, -1)


def masks_wrong(made: Collated) -> list[str]:
    """Say where a mask hides a token of the query's own sequence, or shows padding or another sequence."""
    real, mask = made.owners, made.batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        for row in range(mask.shape[0]):
            for column in range(mask.shape[1]):
                if bool(mask[row, column]) != ((row, column) in real):
                    what = "shows padding" if mask[row, column] else "hides a token"
                    return [f"attention_mask {what} at slot {(row, column)}"]
    seen = _visible(made)
    for slot, (number, at) in real.items() if seen is not None else ():
        assert seen is not None
        row, query = slot
        for key in range(seen.shape[2]):
            owner = real.get((row, key))
            if bool(seen[row, query, key]) and (owner is None or owner[0] != number):
                other = "padding" if owner is None else f"sequence {owner[0]}"
                return [f"attention_mask lets token {at} of sequence {number} see {other}"]
        hidden = [other for other in range(at + 1) if not bool(seen[row, query, query - at + other])]
        if hidden:
            return [f"attention_mask hides token {hidden[0]} of sequence {number} from token {at}"]
    return []


def shift_of(made: Collated) -> int | None:
    """Return 0 if labels are those of their own slot (the model shifts), 1 if of the next token, None without any."""
    labels = made.batch.get("labels")
    if not isinstance(labels, Tensor):
        return None
    rows = rows_of(labels)
    told = rows != IGNORE_INDEX
    own = int((told & (rows == made.tokens)).sum())
    following = int((told[:, :-1] & (rows[:, :-1] == made.tokens[:, 1:])).sum())
    return int(following > own)


def targets_wrong(made: Collated) -> list[str]:
    """Say where a target is not the next token of its own sequence, is padding's, or is missing."""
    shift = shift_of(made)
    if shift is None:
        return ["the batch has no labels"]
    rows = rows_of(made.batch["labels"])
    if rows.shape != made.tokens.shape:
        return [f"labels are {tuple(rows.shape)}, and tokens {tuple(made.tokens.shape)}"]
    real, count = made.owners, 0
    for row, line in enumerate(rows.tolist()):
        for column, label in enumerate(line):
            if label == IGNORE_INDEX or (not shift and column == 0):
                continue
            # The slot whose logits are compared with this label.
            query = (row, column if shift else column - 1)
            owner = real.get(query)
            if owner is None:
                return [f"padding is supervised at slot {query}"]
            number, at = owner
            following = made.slots[number][at + 1] if at + 1 < len(made.slots[number]) else None
            if following is None or int(made.tokens[following]) != label:
                return [f"token {at} of sequence {number} is supervised with {label}, which is not its next token"]
            count += 1
    kept = [sum(slot is not None for slot in own) for own in made.slots]
    wanted = sum(max(number - 1, 0) for number in kept)
    return [] if count == wanted else [f"{count} targets are supervised, of {wanted}"]


def types_wrong(made: Collated) -> list[str]:
    """Say which keys have a dtype that models and kernels do not take."""
    problems = []
    for key, value in made.batch.items():
        if key in OFFSETS and isinstance(value, Tensor) and value.dtype != torch.int32:
            problems.append(f"{key} is {value.dtype}; kernels take int32")
        elif key in (*POSITIONS, "labels") and isinstance(value, Tensor) and value.dtype != torch.int64:
            problems.append(f"{key} is {value.dtype}; it must be int64")
        elif key.startswith("max_") and not isinstance(value, int):
            problems.append(f"{key} is {type(value).__name__}; an int needs no copy from the device")
    return problems


#: What is checked, by the name of its test.
CONTRACTS: dict[str, Callable[[Collated], list[str]]] = {
    "every token is there once": tokens_lost,
    "all keys carry the same boundaries": boundaries_wrong,
    "positions restart": positions_wrong,
    "masks show a sequence its own tokens alone": masks_wrong,
    "every target is the next token": targets_wrong,
    "dtypes are those that kernels take": types_wrong,
}


def understood(made: Collated) -> str:
    """Say in one line how the batch was read."""
    rows, width = made.tokens.shape
    padding = rows * width - len(made.owners)
    shift = {None: "no labels", 0: "labels of their own slots (the model shifts)", 1: "labels of the next tokens"}
    carried = ", ".join(claimed_starts(made)) or ("attention_mask (4-D)" if _visible(made) is not None else "no key")
    kind = f"packed, boundaries in {carried}" if made.packed else "padded"
    return (
        f"{len(made.slots)} sequences in {plural(rows, 'row')} of {width} slots ({kind}), {padding} slots of padding, "
        f"{shift[shift_of(made)]}; keys: {', '.join(map(str, made.batch))}"
    )
