"""The report of a record as Markdown, the difference of two, and the lines that reproduce a finding:

python -m tests.studies.packing table RECORD.json
python -m tests.studies.packing diff BEFORE.json AFTER.json
python -m tests.studies.packing reproduce FAMILY [IMPLEMENTATION [WAY]]
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from model.huggingface.families import Family
from model.huggingface.inputs import LAYOUTS, WAYS, way_named
from tests.packing.records import Change, Record, changes_between, state_of
from tests.packing.reproduction import reproduction

WIDE = 10_000

#: The columns of the report, by layout.
TITLES = {"flattened": "flattened", "right": "padded right", "left": "padded left"}


def markdown(rows: Iterable[Sequence[str]], *columns: str) -> str:
    """Return a Markdown table."""
    table = Table(*columns, box=box.MARKDOWN, header_style="")
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=WIDE, markup=False, highlight=False, emoji=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def verdicts_of(entry: Mapping[str, Any], layout: str) -> dict[str, list[str]]:
    """Return each verdict on one layout with the implementations that got it.

    Those that a family has not at all are left out where it has another: they stand among the refusals.
    """
    texts: dict[str, list[str]] = {}
    everything = entry["implementations"]
    had = {name: each for name, each in everything.items() if "refusal" not in each}
    for name, each in (had or everything).items():
        if layout in each["verdicts"]:
            texts.setdefault(each["verdicts"][layout]["is"], []).append(name)
    return texts


def cell(entry: Mapping[str, Any], layout: str, *, grades: bool = False) -> str:
    """Return the verdict on one layout; where implementations differ, each with its own.

    `grades` leaves out how far off each is.
    """
    texts: dict[str, list[str]] = {}
    for text, names in verdicts_of(entry, layout).items():
        texts.setdefault(re.sub(r" \([^)]*\)", "", text) if grades else text, []).extend(names)
    if len(texts) == 1:
        return next(iter(texts))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())


def counts(record: Record) -> str:
    """Return how many families there are, and how many could not be built."""
    families = record["families"]
    missing = sum("cannot_build" in entry for entry in families.values())
    return f"{len(families)} families: {len(families) - missing} built, {missing} not built"


def heading(record: Record) -> str:
    """Return what a record holds for."""
    names = dict.fromkeys(name for entry in record["families"].values() for name in entry.get("implementations", ()))
    return (
        f"transformers {record['transformers']}, torch {record['torch']}, Python {record['python']}, "
        f"{record['device']}; {', '.join(names)}; {counts(record)}"
    )


def by_verdict(record: Record) -> str:
    """Return a table of verdicts on flattened rows with the families that have them."""
    groups: dict[str, list[str]] = {}
    for name, entry in record["families"].items():
        if "cannot_build" not in entry:
            groups.setdefault(cell(entry, "flattened", grades=True), []).append(name)
    rows = [
        (text, str(len(names)), ", ".join(names)) for text, names in sorted(groups.items(), key=lambda g: -len(g[1]))
    ]
    return markdown(rows, "flattened", "families", "which")


def by_way(record: Record) -> str:
    """Return a table of ways with how many families and implementations each is right, wrong or refused in."""
    found: dict[str, Counter[str]] = {way.name: Counter() for way in WAYS}
    for entry in record["families"].values():
        for each in entry.get("implementations", {}).values():
            for name, state in each.get("ways", {}).items():
                found[name][state_of(state)] += 1
    rows = [(name, *(str(count[state]) for state in ("right", "wrong", "refused"))) for name, count in found.items()]
    return markdown(rows, "given", "right", "wrong", "refused")


def messages(record: Record) -> list[tuple[str, str, str]]:
    """Return what refused, and what it said, each once."""
    rows: dict[str, list[str]] = {}
    for name, entry in record["families"].items():
        for implementation, each in entry.get("implementations", {}).items():
            said = [each["refusal"]] if "refusal" in each else each["says"]
            for message in said:
                rows.setdefault(f"{name}\0{message}", []).append(implementation)
    return [(key.split("\0")[0], ", ".join(names), key.split("\0")[1]) for key, names in rows.items()]


def report(record: Record) -> str:
    """Return the whole report of a record as Markdown."""
    families = record["families"]
    built = {name: entry for name, entry in families.items() if "cannot_build" not in entry}
    rows = [(name, entry["class"], *(cell(entry, layout) for layout in LAYOUTS)) for name, entry in built.items()]
    parts = [
        f"# Is it safe to pack? transformers {record['transformers']}",
        heading(record) + ".",
        "How to read it, and how it was made: [check a model](../../how-to/check-a-model.md).",
        "## Verdicts on flattened rows",
        by_verdict(record),
        "## What a model is given",
        "Families and implementations together.",
        by_way(record),
        "## Families",
        markdown(rows, "family", "class", *(TITLES[layout] for layout in LAYOUTS)),
    ]
    if said := messages(record):
        parts += ["## What refusals say", markdown(said, "family", "implementation", "message")]
    lost = [(name, entry["cannot_build"]) for name, entry in families.items() if "cannot_build" in entry]
    if lost:
        parts += ["## Not built", markdown(lost, "family", "why")]
    parts += [
        "## To see one yourself",
        "These lines print a script of its own, which needs nothing but torch and transformers:",
        "```\npython -m tests.studies.packing reproduce gpt2 sdpa 'flattened: position_ids, cache'\n```",
    ]
    return "\n\n".join(parts) + "\n"


def difference(before: Record, after: Record) -> str:
    """Return what changed for packing between two records, as Markdown."""
    changes = changes_between(before, after)
    parts = [
        f"# What changed for packing: transformers {before['transformers']} -> {after['transformers']}",
        f"Before: {heading(before)}.\n\nAfter: {heading(after)}.",
    ]
    for title, direction in (("Worse", "worse"), ("Better", "better"), ("Come and gone", "other")):
        chosen = [change for change in changes if change.direction == direction]
        parts.append(f"## {title}: {len({change.family for change in chosen})} families")
        if chosen:
            parts.append(markdown(grouped(chosen), "what", "before", "after", "families"))
    return "\n\n".join(parts) + "\n"


def grouped(changes: Iterable[Change]) -> list[tuple[str, str, str, str]]:
    """Return changes that the same families share as one row: what, before, after, families."""
    families: dict[tuple[str, str, str], list[str]] = {}
    for change in changes:
        families.setdefault((change.what or "family", change.before, change.after), []).append(change.family)
    shared: dict[tuple[str, str, str], list[str]] = {}
    for (what, before, after), names in families.items():
        shared.setdefault((before, after, ", ".join(names)), []).append(what)
    return [("; ".join(whats), before, after, names) for (before, after, names), whats in shared.items()]


def own_report(family: Family, entry: Mapping[str, Any]) -> str:
    """Return the verdicts on a model's own config as lines, and a script that shows what is wrong."""
    if "cannot_build" in entry:
        return f"{family.class_name} cannot be built: {entry['cannot_build']}"
    lines = []
    for layout in LAYOUTS:
        for text, names in verdicts_of(entry, layout).items():
            lines.append(f"{TITLES[layout]}, {', '.join(names)}: {text}")
    wrong = [
        (name, way.name)
        for way in sorted(WAYS, key=lambda way: way.cache, reverse=True)
        for name, each in entry["implementations"].items()
        if name in ("eager", "sdpa") and state_of(each.get("ways", {}).get(way.name, "refused")) == "wrong"
    ]
    if wrong:
        name, way = wrong[0]
        lines += ["", f"These lines show it ({name}, {way}):", "", reproduction(family, name, way_named(way))]
    return "\n".join(lines)
