"""Which backend and collator to take: the fastest right cell of each mode, and by how much, from one run's times."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gate.judge.verdicts import PERCENT, device_of
from gate.record.cell import CellRecord, format_ms

#: Backends of another model than the others: their steps do other work.
OTHER_MODELS = ("gpt2_",)

#: Collators that pad each sequence.
PADDED = "pad_"

#: How an interval of 95% is taken from a standard error of many batches.
WIDTH = 1.96

MODES = {"train": "Training", "eval": "Evaluation"}


@dataclass(frozen=True)
class Ratio:
    """How many times as long one cell takes as another for the same batches, with an interval of 95%."""

    ratio: float
    low: float
    high: float

    def clear(self, percent: float) -> bool:
        """Tell whether the difference is more than noise, and more than `percent`."""
        return (self.low > 1 or self.high < 1) and abs(self.ratio - 1) > percent / 100


@dataclass(frozen=True)
class Choice:
    """The fastest right cell of a mode; the fastest with padding and the next best, where there are any."""

    mode: str
    best: CellRecord
    padded: CellRecord | None
    next_best: CellRecord | None
    percent: float

    @property
    def sentences(self) -> list[str]:
        """The answer in words."""
        best = self.best
        rate = f", {best.tokens_per_s:,.0f} tokens/s" if best.tokens_per_s else ""
        told = [f"{MODES[self.mode]}: {named(best)}, {format_ms(best.step_ms or 0.0)} ms a step{rate}."]
        if self.padded:
            told.append(self._against_padding(self.padded))
        if self.next_best:
            ratio = compared(self.next_best, best)
            if ratio is None or not ratio.clear(self.percent):
                told.append(f"{named(self.next_best)}, is as fast: the difference is within noise.")
            else:
                told.append(f"Next best: {named(self.next_best)}, {ratio.ratio - 1:.1%} slower.")
        return told

    def _against_padding(self, padded: CellRecord) -> str:
        ratio = compared(padded, self.best)
        if ratio is None or not ratio.clear(self.percent):
            return f"Padding ({named(padded)}) is as fast: the difference is within noise."
        if ratio.ratio < 1:
            return f"Padding ({named(padded)}) is faster."
        times = f"{ratio.ratio:.2f} times as fast (95%: {ratio.low:.2f} .. {ratio.high:.2f})"
        told = f"For all batches together {times} as padding ({named(padded)}"
        told += f", {padded.padded_token_share:.0%} of its slots are padding)" if padded.padded_token_share else ")"
        ours, theirs = self.best.peak_bytes, padded.peak_bytes
        if ours is not None and theirs is not None:
            less = (theirs - ours) / 1e9
            told += f", with {abs(less):.1f} GB {'less' if less >= 0 else 'more'}"
        return told + "."


def choices(cells: Iterable[CellRecord], device: str) -> list[Choice]:
    """Return the answer for each mode that was timed, training first; of one workload, dtype and mask at a time.

    `device` is cpu or cuda. Cells that are wrong, have no time, or run on several ranks, are no answer.
    """
    groups: dict[tuple[Any, ...], list[CellRecord]] = {}
    for one in cells:
        cell = one.cell
        if one.step_ms is not None and "ranks" not in cell and not cell["backend"].startswith(OTHER_MODELS):
            key = (*(cell[name] for name in ("workload", "lengths", "dtype", "causal")), cell["mode"])
            groups.setdefault(key, []).append(one)
    found = []
    for key, group in groups.items():
        ordered = sorted(group, key=lambda one: one.step_ms or math.inf)
        best = ordered[0]
        padded = next((one for one in ordered[1:] if one.cell["collator"].startswith(PADDED)), None)
        others = (one for one in ordered[1:] if one is not padded)
        found.append(Choice(key[-1], best, padded, next(others, None), PERCENT[device]))
    return sorted(found, key=lambda choice: [*MODES].index(choice.mode))


def compared(one: CellRecord, other: CellRecord) -> Ratio | None:
    """Return how many times as long `one` takes for the batches that both ran; None for fewer than two of them.

    The ratio of their total times. Its standard error follows from how far each batch is from that ratio.
    """
    ours, theirs = by_batch(one), by_batch(other)
    numbers = [*(ours.keys() & theirs.keys())]
    if len(numbers) < 2:
        return None
    total = sum(theirs[number] for number in numbers)
    ratio = sum(ours[number] for number in numbers) / total
    residuals = [ours[number] - ratio * theirs[number] for number in numbers]
    half = WIDTH * statistics.stdev(residuals) * math.sqrt(len(numbers)) / total
    return Ratio(ratio, ratio - half, ratio + half)


def by_batch(one: CellRecord) -> Mapping[int, float]:
    """Return the median step time of each batch in ms, with what the host's launches add to a step."""
    times: dict[int, list[float]] = {}
    for number, ms in zip(one.batches or range(len(one.times_ms)), one.times_ms, strict=True):
        times.setdefault(number, []).append(ms)
    return {number: statistics.median(each) + (one.host_deficit_ms or 0.0) for number, each in times.items()}


def against_tokens(cells: Iterable[CellRecord], device: str) -> list[dict[str, Any]]:
    """Return, for each mode, the points (tokens of a batch, ms a step) of the best cell and of the best padded one."""
    found = []
    for choice in choices(cells, device):
        lines = []
        for one in filter(None, (choice.best, choice.padded)):
            numbers = one.batches or range(len(one.times_ms))
            tokens = dict(zip(numbers, one.tokens or [], strict=False))
            points = [[tokens[number], ms] for number, ms in sorted(by_batch(one).items()) if number in tokens]
            lines.append({"id": one.id, "points": points})
        if lines[0]["points"]:
            found.append({"mode": choice.mode, "lines": lines})
    return found


def named(one: CellRecord) -> str:
    """Return a cell in words."""
    cell = one.cell
    return f"`{cell['backend']}` with `{cell['collator']}`, {cell['execution']}"


def answer(cells: Iterable[CellRecord], machine: Mapping[str, Any], padding: Mapping[str, float] | None) -> list[str]:
    """Return the answer as lines of text, empty where nothing has a time; `padding` are shares by kind of batch."""
    device = device_of(machine.get("device_slug", "cpu-"))
    found = choices(cells, device)
    if not found:
        return []
    lines = [" ".join(choice.sentences) for choice in found]
    if padding:
        shares = ", ".join(f"{share:.0%} {how}" for how, share in padding.items())
        lines.append(f"Share of padding, if these lengths are padded to the longest of a batch: {shares}.")
    if device == "cpu":
        lines.append("This answer is of a CPU, and of a small model. It says nothing about a GPU.")
    return lines


def spread(one: CellRecord) -> tuple[float, float] | None:
    """Return the shortest and the longest step in ms, with what the host's launches add; None without a time."""
    if one.step_ms is None:
        return None
    return tuple(pick(one.times_ms) + (one.host_deficit_ms or 0.0) for pick in (min, max))  # type: ignore[return-value]


def histogram(lengths: Sequence[int], bins: int = 16) -> list[tuple[int, int, int]]:
    """Return bins of equal width as (first length, last length, count); the last bin ends at the longest."""
    if not lengths:
        return []
    width = -(-max(lengths) // bins)
    counts = [0] * -(-max(lengths) // width)
    for length in lengths:
        counts[(length - 1) // width] += 1
    return [(at * width + 1, min((at + 1) * width, max(lengths)), count) for at, count in enumerate(counts)]
