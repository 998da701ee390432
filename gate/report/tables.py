"""Tables of a record: ms a step beside the article's, then what each cell cost. Also as Markdown:

python -m gate.table RECORD.json

Of a baseline's processes each cell shows the one in the middle.
"""

import argparse
import io
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gate.article import article_ms
from gate.baseline.baselines import Baseline, load
from gate.records import Record, cell_id, cells, format_ms, load_record, no_time_word, step_ms

COLUMNS = (("eval", "eager"), ("eval", "compiled"), ("train", "eager"), ("train", "compiled"))
WIDE = 10_000

Infos = list[dict[str, Any]]


def tables(record: Record, width: int = WIDE, heading: str = "") -> str:
    """Every table of a record as text at most `width` columns wide, or wider where an id needs it."""
    infos = list(cells(record).values())
    groups: dict[tuple[Any, ...], Infos] = {}
    for info in infos:
        cell = info["cell"]
        as_article = cell["causal"] == (cell["mode"] == "train")
        groups.setdefault((cell["workload"], cell["lengths"], cell["dtype"], as_article), []).append(info)
    blocks = []
    for (workload, lengths, dtype, as_article), group in groups.items():
        masks = "eval without, train with" if as_article else "eval with, train without"
        title = f"{heading}{workload} workload, {lengths} lengths, {dtype}, {masks} a causal mask"
        legend = "ms a step, * the best of its column"
        if any(article_ms(info["cell"]) is not None for info in group):
            legend += "; in brackets the article's ms, and ours as a multiple of it"
        blocks.append("\n\n".join([title, render(_step_table(group), width), f"{legend}. {_work(group)}".strip()]))
    if infos:
        blocks.append(f"{_machine(record)}\n\n{render(_cost_table(infos), width)}")
    others = _other_benchmarks(record)
    if others:
        blocks.append("Other benchmarks, median ms:\n" + "\n".join(others))
    return "\n\n".join(blocks)


def markdown_table(record: Record) -> str:
    """The tables of a record as Markdown."""
    return tables(record, heading="### ") + "\n"


def typical(baseline: Baseline) -> Record:
    """A record with what the process in the middle of each cell's times holds of it; the cells by their ids.

    Of an even number the faster one of the middle; of those without a time the last, where no process has one.
    """
    entries = []
    for cell in sorted(baseline.cell_ids):
        infos = [info for _, info in baseline.infos(cell)]
        timed = sorted((ms, place) for place, info in enumerate(infos) if (ms := step_ms(info)) is not None)
        place = timed[(len(timed) - 1) // 2][1] if timed else -1
        entries.append({"extra_info": infos[place]})
    return {"machine_info": baseline.newest.machine, "benchmarks": entries}


def _step_table(group: Infos) -> Table:
    table = markdown_box("backend", "collator")
    for mode, execution in COLUMNS:
        table.add_column(f"{mode} {execution}", justify="right")
    rows: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for info in group:
        cell = info["cell"]
        rows.setdefault((cell["backend"], cell["collator"]), {})[cell["mode"], cell["execution"]] = info
    best = {
        column: min((ms for row in rows.values() if (ms := step_ms(row.get(column, {}))) is not None), default=None)
        for column in COLUMNS
    }
    for (backend, collator), row in rows.items():
        any_cell = next(iter(row.values()))["cell"]
        texts = []
        for mode, execution in COLUMNS:
            # Within one table the mask follows from the mode, also for a cell that did not run.
            causal = any_cell["causal"] == (any_cell["mode"] == mode)
            cell = any_cell | {"mode": mode, "execution": execution, "causal": causal}
            texts.append(_step_text(row.get((mode, execution)), article_ms(cell), best[mode, execution]))
        table.add_row(backend, collator, *texts)
    return table


def _step_text(info: dict[str, Any] | None, article: float | str | None, best: float | None) -> str:
    """`31.0* (51, 0.61x)`: ours, a star if it is the best of its column, the article's, ours / article's."""
    ms = None if info is None else step_ms(info)
    if ms is not None:
        text = format_ms(ms) + ("*" if ms == best else "")
    else:
        text = "-" if info is None else no_time_word(info)
    if article is None:
        return text
    if isinstance(article, str):
        return f"{text} (article: {article})"
    return f"{text} ({article:g})" if ms is None else f"{text} ({article:g}, {ms / article:.2f}x)"


def _cost_table(infos: Infos) -> Table:
    table = markdown_box("cell")
    for column in (
        "ms a step",
        "peak GB",
        "tokens/s",
        "MFU",
        "padded",
        "compile s",
        "compilations",
        "graph breaks",
    ):
        table.add_column(column, justify="right")
    for info in infos:
        ms = step_ms(info)
        table.add_row(
            cell_id(info["cell"]),
            no_time_word(info) if ms is None else format_ms(ms),
            _number(info, "peak_bytes", "{:.2f}", 1e-9),
            _number(info, "tokens_per_s", "{:,.0f}") if ms is not None else "-",
            _number(info, "mfu", "{:.1%}") if ms is not None else "-",
            _number(info, "padded_token_share", "{:.1%}"),
            _number(info, "compile_s", "{:.1f}"),
            _number(info, "compilations", "{}"),
            _number(info, "graph_breaks", "{}"),
        )
    return table


def _number(info: dict[str, Any], key: str, shape: str, scale: float = 1) -> str:
    value = info.get(key)
    return "-" if value is None else shape.format(value * scale)


def _work(group: Infos) -> str:
    info = next((info for info in group if info.get("tokens")), None)
    if info is None:
        return ""
    tokens = info["tokens"]
    batches = len(set(info.get("batches") or range(len(tokens))))
    return f"{batches} batches of {sum(tokens) / len(tokens):,.0f} tokens on average."


def _machine(record: Record) -> str:
    machine = record.get("machine_info", {})
    versions = [f"{name} {version}" for name, version in machine.get("versions", {}).items() if version]
    power = machine.get("power_limit_w")
    limit = [f"{power:g} W"] if isinstance(power, int | float) else []
    named = {
        "driver": machine.get("driver"),
        "CUDA": machine.get("cuda_runtime"),
        "Python": machine.get("python"),
    }
    others = [f"{name} {version}" for name, version in named.items() if version]
    return ", ".join([machine.get("device", "unknown device"), *limit, *others, *versions])


def _other_benchmarks(record: Record) -> list[str]:
    entries = [entry for entry in record["benchmarks"] if "cell" not in entry["extra_info"]]
    return [f"- {entry['name']}: {format_ms(entry['stats']['median'] * 1e3)}" for entry in entries]


def markdown_box(*ids: str) -> Table:
    """A table whose first columns are `ids`, drawn as Markdown."""
    # The Markdown box reads well in a terminal too, and can be pasted from there.
    table = Table(box=box.MARKDOWN, header_style="")
    for name in ids:
        table.add_column(name)
    return table


def render(table: Table, width: int) -> str:
    """The table in `width` columns, by wrapping its widest columns; wider where a word would be cut."""
    texts = [[str(text) for text in (column.header, *column.cells)] for column in table.columns]
    widths = [max(map(len, column)) for column in texts]
    least = [max(len(word) for text in column for word in text.split()) for column in texts]
    # Rich itself would cut words. A column has a blank on both sides and a bar; one bar opens the line.
    while sum(widths) + 3 * len(widths) + 1 > width and widths != least:
        slack = [have if have > need else 0 for have, need in zip(widths, least, strict=True)]
        widths[slack.index(max(slack))] -= 1
    for column, chosen in zip(table.columns, widths, strict=True):
        column.width = chosen
    out = io.StringIO()
    console = Console(file=out, width=WIDE, markup=False, highlight=False, emoji=False, color_system=None)
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def main() -> None:
    """Print the tables of a record or of a baseline as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m gate.table", description=main.__doc__)
    parser.add_argument("record", type=Path, metavar="RECORD.json")
    try:
        path = parser.parse_args().record
        found = load(path)
        if found.committed:
            print(f"{found}: of each cell the process in the middle.\n")
        print(markdown_table(typical(found) if found.committed else load_record(path)), end="")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
