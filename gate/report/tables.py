"""Tables of a record: ms a step beside the article's, then what each cell cost."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from gate.record.cell import CellRecord, format_ms
from gate.record.files import Record
from gate.report.article import article_ms
from gate.report.markdown import WIDE, markdown_box, no_time_word, render

COLUMNS = (("eval", "eager"), ("eval", "compiled"), ("train", "eager"), ("train", "compiled"))

#: The costs of a cell: a field, the title of its column, how it is written, and what it is multiplied by.
COSTS = (
    ("peak_bytes", "peak GB", "{:.2f}", 1e-9),
    ("tokens_per_s", "tokens/s", "{:,.0f}", 1),
    ("mfu", "MFU", "{:.1%}", 1),
    ("padded_token_share", "padded", "{:.1%}", 1),
    ("compile_s", "compile s", "{:.1f}", 1),
    ("compilations", "compilations", "{}", 1),
    ("graph_breaks", "graph breaks", "{}", 1),
)


def tables(record: Record, width: int = WIDE, heading: str = "") -> str:
    """Return every table of a record as text at most `width` columns wide, or wider where an id needs it."""
    groups: dict[tuple[Any, ...], list[CellRecord]] = {}
    for one in record.cells.values():
        cell = one.cell
        as_article = cell["causal"] == (cell["mode"] == "train")
        groups.setdefault((cell["workload"], cell["lengths"], cell["dtype"], as_article), []).append(one)
    blocks = []
    for (workload, lengths, dtype, as_article), group in groups.items():
        masks = "eval without, train with" if as_article else "eval with, train without"
        title = f"{heading}{workload} workload, {lengths} lengths, {dtype}, {masks} a causal mask"
        legend = "ms a step, * the best of its column"
        if any(article_ms(one.cell) is not None for one in group):
            legend += "; in brackets the article's ms, and ours as a multiple of it"
        blocks.append("\n\n".join([title, render(_step_table(group), width), f"{legend}. {_work(group)}".strip()]))
    if blocks:
        blocks.append(f"{_machine(record.machine)}\n\n{render(_cost_table(record), width)}")
    return "\n\n".join(blocks)


def typical(processes: Sequence[Record]) -> Record:
    """Return a record of each cell's process in the middle of its times; the cells by their ids.

    Of an even number the faster one of the middle; where no process has a time of a cell, the last that has the cell.
    """
    chosen = {}
    for cell in sorted({cell for process in processes for cell in process.cells}):
        found = [process.cells[cell] for process in processes if cell in process.cells]
        timed = sorted((one for one in found if one.step_ms is not None), key=lambda one: one.step_ms or 0.0)
        chosen[cell] = timed[(len(timed) - 1) // 2] if timed else found[-1]
    newest = max(processes, key=lambda process: process.at)
    return Record(newest.at, newest.machine, newest.commit, chosen)


def _step_table(group: Sequence[CellRecord]) -> Table:
    table = markdown_box("backend", "collator")
    for mode, execution in COLUMNS:
        table.add_column(f"{mode} {execution}", justify="right")
    rows: dict[tuple[str, str], dict[tuple[str, str], CellRecord]] = {}
    for one in group:
        cell = one.cell
        rows.setdefault((cell["backend"], cell["collator"]), {})[cell["mode"], cell["execution"]] = one
    best = {
        column: min((ms for row in rows.values() if column in row and (ms := row[column].step_ms)), default=None)
        for column in COLUMNS
    }
    for (backend, collator), row in rows.items():
        any_cell = next(iter(row.values())).cell
        texts = []
        for mode, execution in COLUMNS:
            # Within one table the mask follows from the mode, also for a cell that did not run.
            causal = any_cell["causal"] == (any_cell["mode"] == mode)
            cell = any_cell | {"mode": mode, "execution": execution, "causal": causal}
            texts.append(_step_text(row.get((mode, execution)), article_ms(cell), best[mode, execution]))
        table.add_row(backend, collator, *texts)
    return table


def _step_text(one: CellRecord | None, article: float | str | None, best: float | None) -> str:
    """`31.0* (51, 0.61x)`: ours, a star if it is the best of its column, the article's, ours / article's."""
    if one is None:
        ms, text = None, "-"
    elif (ms := one.step_ms) is None:
        text = no_time_word(one)
    else:
        text = format_ms(ms) + ("*" if ms == best else "")
    if article is None:
        return text
    if isinstance(article, str):
        return f"{text} (article: {article})"
    return f"{text} ({article:g}, {ms / article:.2f}x)" if ms else f"{text} ({article:g})"


def _cost_table(record: Record) -> Table:
    table = markdown_box("cell")
    for column in ("ms a step", *(title for _, title, _, _ in COSTS)):
        table.add_column(column, justify="right")
    for cell, one in record.cells.items():
        values = [(getattr(one, name), shape, scale) for name, _, shape, scale in COSTS]
        costs = ("-" if value is None else shape.format(value * scale) for value, shape, scale in values)
        table.add_row(cell, no_time_word(one) if one.step_ms is None else format_ms(one.step_ms), *costs)
    return table


def _work(group: Sequence[CellRecord]) -> str:
    one = next((one for one in group if one.tokens), None)
    if one is None or not one.tokens:
        return ""
    batches = len(set(one.batches or range(len(one.tokens))))
    return f"{batches} batches of {sum(one.tokens) / len(one.tokens):,.0f} tokens on average."


def _machine(machine: dict[str, Any]) -> str:
    versions = [f"{name} {version}" for name, version in (machine.get("versions") or {}).items() if version]
    power = machine.get("power_limit_w")
    limit = [f"{power:g} W"] if isinstance(power, int | float) else []
    named = {"driver": "driver", "CUDA": "cuda_runtime", "Python": "python"}
    others = [f"{name} {machine[key]}" for name, key in named.items() if machine.get(key)]
    return ", ".join([machine.get("device", "unknown device"), *limit, *others, *versions])
