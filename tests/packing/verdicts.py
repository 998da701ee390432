"""What was found of a family, in one word and what it takes; and which of two findings is the better one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from model.huggingface.inputs import FLATTENED, PADDED, Layout, Way
from tests.packing.checks import Checked, Found

Grade = Literal["safe", "safe with", "refuses", "leaks", "shifts"]

#: States of a way and grades, the worst first. What is refused is lost, but nobody trains on it.
STATES = ("wrong", "refused", "right")


@dataclass(frozen=True)
class Verdict:
    """`needs` are the arguments that make it safe, `error` how far off it is without, `message` what it says.

    A family that leaks lets sequences see each other. One that shifts does not, but computes something else of each
    than alone, as it takes other positions.
    """

    grade: Grade
    needs: tuple[str, ...] = ()
    error: float = 0.0
    message: str = ""

    def __str__(self) -> str:
        if self.grade == "safe with":
            return f"safe with {', '.join(self.needs)}"
        if self.grade in ("leaks", "shifts"):
            return f"{self.grade} ({self.error:.2g})"
        return self.grade


def verdict(checked: Checked, layout: Layout) -> Verdict:
    """Return what the checks of one layout add up to.

    The first way that is right counts, in the order of model/huggingface/inputs.py: what people do by default, then
    with more and more arguments.
    """
    if checked.refusal:
        return Verdict("refuses", message=checked.refusal)
    ways = [way for way in (*FLATTENED, *PADDED) if way.layout == layout and (checked.refusal or way in checked.found)]
    found = {way: checked.found[way] for way in ways}
    base = next((way for way in ways if found[way].state == "right"), None)
    if base is None:
        return without_right_way(found)
    needs = [*words(base, ways[0]), *harms(found, base)]
    if checked.start and base.positions:
        needs.append(f"position_ids from {checked.start}")
    worst = max((result.errors.logits for result in found.values() if result.errors), default=0.0)
    return Verdict("safe with", tuple(needs), worst) if needs else Verdict("safe")


def without_right_way(found: Mapping[Way, Found]) -> Verdict:
    """Return the verdict on a layout of which no way is right: by the plainest that is not refused."""
    # With the cache at its default every family that looks for packed rows is wrong: it says little of a family.
    order = sorted(found, key=lambda way: way.cache)
    for way in order:
        result = found[way]
        if result.errors is not None and not (way.layout == "flattened" and not way.positions):
            grade: Grade = "leaks" if result.mixed > result.errors.logits / 1000 else "shifts"
            return Verdict(grade, error=result.errors.logits)
    return Verdict("refuses", message=found[order[0]].message)


def words(way: Way, default: Way) -> list[str]:
    """Return the arguments that a way adds to the default one."""
    said = [
        (default.cache and not way.cache, "use_cache=False"),
        (way.positions and not default.positions, "position_ids"),
        (way.offsets, "return_flash_attn_kwargs"),
        (way.seq_idx, "return_seq_idx"),
    ]
    return [word for holds, word in said if holds]


def harms(found: Mapping[Way, Found], base: Way) -> list[str]:
    """Return what must be left out, as it makes wrong what `base` does right: a mask that says nothing is one."""
    if base.layout != "flattened":
        return []
    more = {
        "no attention_mask": [way for way in found if way.mask and way.cache == base.cache],
        "no cu_seq_lens": [replace(base, offsets=True)],
        "no seq_idx": [replace(base, seq_idx=True)],
    }
    return [word for word, ways in more.items() if any(found[way].state != "right" for way in ways if way in found)]
