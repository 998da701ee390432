"""Records of what was found, one for each version of transformers, and what changed between two of them."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from model.huggingface.families import Family
from model.huggingface.inputs import LAYOUTS
from tests.packing.checks import Checked, Found
from tests.packing.verdicts import STATES, verdict

#: The records of this repository: <version of transformers>.json.
FOLDER = Path(__file__).parents[2] / "docs" / "results" / "packing"

Record = dict[str, Any]
Direction = Literal["better", "worse", "other"]


def rounded(value: float) -> float:
    """Return `value` to two digits: more would change with every machine."""
    return float(f"{value:.1e}")


def way_entry(found: Found) -> Any:
    """Return what a record keeps of a way: its state, and if wrong how far off logits and gradients are, and how far
    others move the logits."""
    if found.errors is None or found.state == "right":
        return found.state
    return ["wrong", *(rounded(value) for value in (found.errors.logits, found.errors.gradients, found.mixed))]


def state_of(entry: Any) -> str:
    """Return the state that a record's entry of a way holds."""
    return entry if isinstance(entry, str) else entry[0]


def implementation_entry(checked: Checked) -> dict[str, Any]:
    """Return what a record keeps of a family with one implementation."""
    layouts = [layout for layout in LAYOUTS if checked.refusal or any(way.layout == layout for way in checked.found)]
    verdicts = {layout: verdict(checked, layout) for layout in layouts}
    entry: dict[str, Any] = {
        "verdicts": {layout: {"is": str(each), "grade": each.grade} for layout, each in verdicts.items()}
    }
    if checked.refusal:
        return {**entry, "refusal": checked.refusal}
    right = [found.times for found in checked.found.values() if found.state == "right"]
    wrong = [found.times for found in checked.found.values() if found.state == "wrong"]
    return {
        **entry,
        "most_times_right": rounded(max(right, default=0.0)),
        "least_times_wrong": rounded(min(wrong, default=0.0)),
        "says": list(dict.fromkeys(found.message for found in checked.found.values() if found.message)),
        "ways": {way.name: way_entry(found) for way, found in checked.found.items()},
    }


def family_entry(family: Family, checked: Mapping[str, Checked] | str) -> dict[str, Any]:
    """Return what a record keeps of a family; `checked` is why it cannot be built, or what each implementation gave."""
    entry: dict[str, Any] = {"class": family.class_name, "kind": family.kind}
    if isinstance(checked, str):
        return {**entry, "cannot_build": checked}
    start = max((each.start for each in checked.values()), default=0)
    results = {name: implementation_entry(each) for name, each in checked.items()}
    return {**entry, "first_position": start, "implementations": results}


def record_of(entries: Mapping[str, Any], device: str) -> Record:
    """Return the record of the installed transformers from the entries of its families."""
    names = ("transformers", "torch")
    return {
        **{name: version(name) for name in names},
        "python": platform.python_version(),
        "device": device,
        "families": dict(sorted(entries.items())),
    }


def merged(before: Record, found: Record) -> Record:
    """Return `before` with what `found` has of the same version: a run of a few families or implementations."""
    families = {
        name: {**entry, "implementations": before["families"][name]["implementations"] | entry["implementations"]}
        if "implementations" in entry and "implementations" in before["families"].get(name, {})
        else entry
        for name, entry in found["families"].items()
    }
    return {**found, "families": dict(sorted({**before["families"], **families}.items()))}


def load(path: Path) -> Record:
    """Return a record from its file; ValueError says what is wrong with it."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no packing record: {error}. Write one: pytest -m packing --packing-report."
        ) from None
    if not isinstance(record, dict) or "families" not in record:
        raise ValueError(
            f"{path} is no packing record: it has no families. Write one: pytest -m packing --packing-report."
        )
    return record


def file_name(record: Record) -> str:
    """Return what the file of a record is called: the version, and the device where it is not a CPU."""
    device = "" if record["device"] == "cpu" else f"-{record['device']}"
    return f"{record['transformers']}{device}.json"


def recorded(device: str, folder: Path = FOLDER) -> Record | None:
    """Return the record of the installed transformers on `device`, or None where there is none."""
    path = folder / file_name({"transformers": version("transformers"), "device": device})
    return load(path) if path.exists() else None


def save(record: Record, path: Path) -> None:
    """Write a record, a line for each implementation of a family so that changes can be read."""
    families = record["families"]
    lines = []
    for name, entry in families.items():
        head = {key: value for key, value in entry.items() if key != "implementations"}
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        text = f"  {json.dumps(name)}: {{{', '.join(parts)}"
        if "implementations" in entry:
            inner = ",\n".join(
                f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in entry["implementations"].items()
            )
            text += f', "implementations": {{\n{inner}}}'
        lines.append(text + "}")
    head = {key: value for key, value in record.items() if key != "families"}
    opening = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{\n{opening},\n "families": {{\n' + ",\n".join(lines) + "}}\n")


@dataclass(frozen=True)
class Change:
    """One thing that differs between two records of a family."""

    family: str
    what: str
    before: str
    after: str
    direction: Direction

    def __str__(self) -> str:
        return f"{self.family} {self.what}: {self.before} -> {self.after}"


def direction(before: str, after: str) -> Direction:
    """Tell whether a way's state became better or worse."""
    return "better" if STATES.index(after) > STATES.index(before) else "worse"


def family_changes(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return what changed of a family that both records have."""
    gone, come = before.get("cannot_build"), after.get("cannot_build")
    if gone or come:
        same = bool(gone) == bool(come)
        how: Direction = "better" if gone else "worse"
        return [] if same else [Change(name, "", gone or "built", come or "built", how)]
    changes = []
    for implementation, old in before["implementations"].items():
        new = after["implementations"].get(implementation)
        if new is not None:
            changes += implementation_changes(name, implementation, old, new)
    return changes


def implementation_changes(
    name: str, implementation: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[Change]:
    """Return the ways whose state changed; a refusal of the implementation refuses all of them."""
    changes = []
    for way in old.get("ways", new.get("ways", {})):
        states = [
            "refused" if "refusal" in each else state_of(each["ways"][way]) if way in each["ways"] else None
            for each in (old, new)
        ]
        if states[0] is None or states[1] is None or states[0] == states[1]:
            continue
        what = f"{implementation}, {way}"
        changes.append(Change(name, what, states[0], states[1], direction(states[0], states[1])))
    return changes


def changes_between(before: Record, after: Record) -> list[Change]:
    """Return what changed for packing between two records: families that came and went, and ways of the others."""
    changes: list[Change] = []
    for name in sorted(before["families"].keys() | after["families"].keys()):
        old, new = before["families"].get(name), after["families"].get(name)
        if old is None or new is None:
            known = "unknown to that version"
            changes.append(Change(name, "", summary(old) if old else known, summary(new) if new else known, "other"))
        else:
            changes += family_changes(name, old, new)
    return changes


def summary(entry: Mapping[str, Any]) -> str:
    """Return a family's verdicts in a few words: those on flattened rows."""
    if "cannot_build" in entry:
        return f"cannot be built ({entry['cannot_build']})"
    texts: dict[str, list[str]] = {}
    for name, each in entry["implementations"].items():
        texts.setdefault(each["verdicts"]["flattened"]["is"], []).append(name)
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in texts.items())
