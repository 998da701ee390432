"""The figures of a replay as Markdown, and the part of a document that holds them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from gate.replay.data import FEWEST

BEGIN = "<!-- python -m gate replay --markdown writes what follows -->"
END = "<!-- end of what python -m gate replay --markdown wrote -->"

#: What stands in place of tables that were never made.
NO_FIGURES = "No tables yet: no processes were recorded for them."

Figures = Mapping[str, Any]


def figures_path(document: Path) -> Path:
    """Where the figures of a document's tables lie, as JSON: `docs/gate.replay.json` for `docs/gate.md`."""
    return document.with_suffix(".replay.json")


def written(text: str, tables: str, name: str) -> str:
    """The document with these tables between its marks; ValueError without both marks, in order."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{name} has no place for the tables: it needs the line {BEGIN} and, after it, {END}.")
    return f"{head}{BEGIN}\n\n{tables.strip()}\n\n{END}{tail}"


def markdown(figures: Figures) -> str:
    """Every table, each under a heading."""
    blocks = [
        _of_what(figures),
        "### Variance components\n\n" + _components(figures["components"]),
    ]
    if figures["false_alarms"]:
        blocks.append("### False alarms\n\n" + _false_alarms(figures["false_alarms"], figures["replay"]))
    else:
        blocks.append(f"No comparisons are drawn from fewer than {FEWEST} processes of one session.")
    if figures["sensitivity"]:
        blocks.append("### Sensitivity\n\n" + _sensitivity(figures["sensitivity"]))
    if figures["side_by_side"]:
        rivals = _side_by_side(figures["side_by_side"], figures["replay"])
        blocks.append("### The same data through other tools\n\n" + rivals)
    return "\n\n".join(_wrapped(block) for block in "\n\n".join(blocks).split("\n\n"))


def _wrapped(block: str) -> str:
    """A paragraph in lines as long as the rest of the documents'; tables, code and headings as they are."""
    prose = not block.startswith(("|", "`", "#"))
    return fill(block, 120, break_long_words=False, break_on_hyphens=False) if prose else block


def _of_what(figures: Figures) -> str:
    data, replay = figures["data"], figures["replay"]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items() if version)
    took, own = "", sum(data["cell_s"].values())
    if data["process_s"] is not None:
        rest = max(data["process_s"] - own, 0)
        took = (
            f"; a process takes {data['process_s']:.0f} s, {own:.0f} s of them in its cells' steps ({rest:.0f} s not)"
        )
    left = f" Left out: {'; '.join(f'{c} ({why})' for c, why in data['left_out'].items())}." if data["left_out"] else ""
    return (
        f"`{replay['command']}`\n\n"
        f"{_count(data['processes'], 'fresh process', 'fresh processes')} of "
        f"{_count(data['sessions'], 'session', 'sessions')} on {data['device']}, {data['first'][:10]}, commit "
        f"{data['commit']}, {_count(data['cells'], 'cell', 'cells')}{took}. {versions}.{left} Seed {replay['seed']}. "
        "Every comparison is drawn from the same processes, so they are not independent: the counts are what happened, "
        "and bound no probability."
    )


def _components(rows: Sequence[Figures]) -> str:
    table = [
        ["clock", "mode", "execution", "cells", "step", "round", "process", "session"],
        *(
            [
                row["clock"],
                row["mode"],
                row["execution"],
                str(row["cells"]),
                _percent(row["step"], 2),
                _percent(row["round"], 2),
                _component(row["process"]),
                _component(row["session"]),
            ]
            for row in rows
        ),
    ]
    apart = [f"{cell} {_percent(sd, 1)}" for row in rows for cell, sd in row["apart"].items()]
    noisier = f"\n\nNoisier than the others of their row: {', '.join(apart)}." if apart else ""
    return _table(table) + (
        "\n\nStandard deviations of logs. *step*: between the timed steps of one process, whose batches differ in "
        "length (the same ones in every process, so this cancels). *round*: one timed step about its batch's and its "
        "process's level. *process*, *session*: of the gate's estimate of a cell, between fresh processes and between "
        "sessions, pooled over the cells of a row (in brackets: degrees of freedom, cells that move together counted "
        "once). Cells that are noisier than the others are judged by their own noise, and left out of these two."
        + noisier
    )


def _component(found: Figures) -> str:
    if found["sd"] is not None:
        return f"{_percent(found['sd'], 2)} ({found['df']:.0f})"
    assumed = f"the gate assumes {_percent(found['assumed'], 1)}"
    if "seen" in found:
        return f"{_percent(found['seen'], 2)} ({found['df']:.1f}: too few, {assumed})"
    return f"not measured ({assumed})"


def _false_alarms(rows: Sequence[Figures], replay: Figures) -> str:
    table = [
        ["how", "comparisons", "with an alarm", "cells alarmed", "cells faster", "cells not told", "minutes (most)"],
        *(
            [
                row["how"],
                str(row["comparisons"]),
                str(row["alarms"]),
                f"{row['cells_alarmed']} of {row['cells']}",
                str(row["cells_faster"]),
                str(row["cells_not_told"]),
                f"{row['minutes']:.1f} ({row['most_minutes']:.1f})",
            ]
            for row in rows
        ),
    ]
    told = "A/A: nothing differs between the sides. *minutes*: of the device, the mean and the most."
    return f"{_table(table)}\n\n{told} {replay['how']}"


def _sensitivity(rows: Sequence[Figures]) -> str:
    table = [
        [
            "how",
            "what is slower",
            "by",
            "comparisons",
            "detected",
            "not told",
            "worst cell",
            "another cell",
            "cause",
            "minutes",
        ],
        *(
            [
                row["how"],
                row["kind"],
                f"{row['size']:.1%}",
                str(row["comparisons"]),
                f"{row['detected']:.1%}",
                f"{row['not_told']:.1%}" if "not_told" in row else "-",
                f"{row['worst_cell']:.0%}",
                f"{row['another_cell']:.1%}",
                "-" if row["right_cause"] is None else f"{row['right_cause']:.0%}",
                f"{row['minutes']:.1f}",
            ]
            for row in rows
        ),
    ]
    return _table(table) + (
        "\n\nOne cell of the newer side is slower, every cell in turn, with as many re-drawings each; by a sleep of "
        "the host only those that wait for it, as no other would be. *detected*: that cell failed. *not told*: it was "
        "*cannot tell*, which fails where strict. *worst cell*: the share of its comparisons in which the least "
        "visible cell was detected. *another cell*: comparisons in which a cell failed that was not slower. *cause*: "
        "of the detected ones, those with the right cause, without the profile that a live `gate ab` adds; the "
        "device's where it does not wait for the host. "
        "*minutes*: of the device, in the mean, all processes started anew."
    )


def _side_by_side(rows: Sequence[Figures], replay: Figures) -> str:
    sizes = sorted(float(size) for size in rows[0]["detected"])
    table = [
        [
            "tool",
            "times",
            "A/A",
            "alarms",
            "unsure",
            *(f"{size:.0%} found" for size in sizes),
            "another cell",
            "minutes",
        ],
        *(
            [
                row["tool"],
                row["times"],
                str(row["comparisons"]),
                str(row["alarms"]),
                str(row["unsure"]),
                *(f"{row['detected'][str(size)]:.0%}" for size in sizes),
                f"{row['another_cell']:.1%}",
                f"{row['minutes']:.1f}",
            ]
            for row in rows
        ),
    ]
    return _table(table) + "\n\n" + replay["rivals"]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *rest])


def _percent(share: float, digits: int) -> str:
    return f"{share:.{digits}%}"


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
