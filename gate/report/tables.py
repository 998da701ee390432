"""Print the tables of a record as Markdown: ms a step beside the article's, then what each cell cost.

The article times a toy decoder and GPT-2 on one H100 (PyTorch 2.5.1, CUDA 12.4, bfloat16 autocast). It evaluates
without a causal mask and trains with one; GPT-2 it trains only, with dropout.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from gate.baseline.store import load
from gate.record.cell import CellRecord, format_ms
from gate.record.files import Record
from gate.report.markdown import WIDE, markdown_box, no_time_word, render

COLUMNS = (("eval", "eager"), ("eval", "compiled"), ("train", "eager"), ("train", "compiled"))

#: Backend and collator -> the article's ms a step by column; a word where it gives no time, None where it has no cell.
ARTICLE_MS: dict[tuple[str, str], tuple[int | str | None, ...]] = {
    ("sdpa_padded", "pad_fixed"): (132, 130, 342, 299),
    ("sdpa_padded", "pad_longest"): (129, 116, 337, 294),
    ("sdpa_nested", "nested"): (131, 42, "not run", "not run"),
    ("fa2_varlen", "packed"): (51, "not supported then", 160, "not supported then"),
    ("xformers_auto", "packed"): (50, 42, 159, "failed then"),
    ("gpt2_hf_sdpa_padded", "pad_longest"): (None, None, 815, 440),
    ("gpt2_hf_fa2_padded", "pad_longest"): (None, None, 620, None),
    ("gpt2_hf_fa2", "packed"): (None, None, 323, None),
}

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

#: What is shown of each rank: a field of `CellRecord.ranks`, the title of its column, and how it is written.
OF_EACH_RANK: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("step_ms", "step of each ms", format_ms),
    ("own_ms", "own work of each ms", format_ms),
    ("peak_bytes", "peak GB of each", lambda value: f"{value / 1e9:.2f}"),
)

RANKS_LEGEND = (
    "ms a step: the median of the slowest rank; of each rank: means. Own work: the plain model's step on the same "
    "batches, on all ranks at once, without communication.\nExposed: what the mean step takes beyond the most own work "
    "of a rank in each step. Imbalance: how far that is above the mean of the ranks.\nEfficiency: tokens/s of a rank "
    "beside those of rank 0 alone (docs/how-to/prove-several-ranks.md)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate table`."""
    parser.add_argument("record", type=Path, metavar="RECORD", help="a saved record, or a baseline")


def run(args: argparse.Namespace) -> int:
    """Print the tables; ValueError for a file that cannot be read."""
    found = load(args.record)
    if found.committed:
        print(f"{found}: each cell shows its process with the median time.\n")
    print(tables(typical(found.processes), heading="### "))
    return 0


def tables(record: Record, width: int = WIDE, heading: str = "") -> str:
    """Return every table of a record as text at most `width` columns wide, or wider where an id needs it."""
    groups: dict[tuple[Any, ...], list[CellRecord]] = {}
    for one in record.cells.values():
        cell = one.cell
        if "ranks" in cell:
            continue
        as_article = cell["causal"] == (cell["mode"] == "train")
        groups.setdefault((cell["workload"], cell["lengths"], cell["dtype"], as_article), []).append(one)
    blocks = []
    for (workload, lengths, dtype, as_article), group in groups.items():
        masks = "eval full, train causal" if as_article else "eval causal, train full"
        legend = "ms a step, * the best of its column"
        same = same_work(group[0].cell)
        if same and any((one.cell["backend"], one.cell["collator"]) in ARTICLE_MS for one in group):
            legend += "; in brackets the article's ms, and ours as a multiple of it"
        timed = next((one for one in group if one.tokens), None)
        if timed and timed.tokens:
            count, mean = len(set(timed.batches or range(len(timed.tokens)))), sum(timed.tokens) / len(timed.tokens)
            legend += f". {count} batches of {mean:,.0f} tokens on average"
        title = f"{heading}{workload} workload, {lengths} lengths, {dtype}, mask: {masks}"
        blocks.append(f"{title}\n\n{render(_step_table(group, ARTICLE_MS if same else {}), width)}\n\n{legend}.")
    if several := [one for one in record.cells.values() if "ranks" in one.cell]:
        blocks.append(f"{heading}Several ranks\n\n{render(_ranks_table(several), width)}\n\n{RANKS_LEGEND}")
    if blocks:
        blocks.append(f"{_machine(record.machine)}\n\n{render(_cost_table(record), width)}")
    return "\n\n".join(blocks)


def same_work(cell: Mapping[str, Any]) -> bool:
    """Tell whether a cell does the work that the article timed: its workload, lengths, dtype and masks."""
    as_article = cell["causal"] == (cell["mode"] == "train")
    return as_article and (cell["workload"], cell["lengths"], cell["dtype"]) == ("article", "uniform", "bfloat16")


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


def _step_table(group: Sequence[CellRecord], article: dict[tuple[str, str], tuple[int | str | None, ...]]) -> Table:
    """Each cell as `31.0* (51, 0.61x)`: its ms, a star at the best of a column, the article's, the ratio of both."""
    rows: dict[tuple[str, str], dict[tuple[str, str], CellRecord]] = {}
    for one in group:
        cell = one.cell
        rows.setdefault((cell["backend"], cell["collator"]), {})[cell["mode"], cell["execution"]] = one
    best = {
        column: min((ms for row in rows.values() if column in row and (ms := row[column].step_ms)), default=None)
        for column in COLUMNS
    }
    table = markdown_box("backend", "collator", numbers=[" ".join(column) for column in COLUMNS])
    for key, row in rows.items():
        texts = []
        for column, theirs in zip(COLUMNS, article.get(key, [None] * len(COLUMNS)), strict=True):
            ms = row[column].step_ms if column in row else None
            text = _time(row[column]) if column in row else "-"
            text += "*" * (ms is not None and ms == best[column])
            if isinstance(theirs, str):
                text += f" (article: {theirs})"
            elif theirs is not None:
                text += f" ({theirs}, {ms / theirs:.2f}x)" if ms else f" ({theirs})"
            texts.append(text)
        table.add_row(*key, *texts)
    return table


def _ranks_table(cells: Sequence[CellRecord]) -> Table:
    """What each cell of several ranks took, and where the time of its steps went."""
    titles = ("ms a step", "exposed ms", "imbalance", "efficiency", "tokens/s a rank")
    table = markdown_box("cell", numbers=[*titles, *(title for _, title, _ in OF_EACH_RANK)])
    for one in cells:
        values = [
            "-" if value is None else shape.format(value)
            for shape, value in (
                ("{:.2f}", one.exposed_ms),
                ("{:.1%}", one.imbalance),
                ("{:.1%}", one.efficiency),
                ("{:,.0f}", one.tokens_per_s_rank),
            )
        ]
        table.add_row(one.id, _time(one), *values, *(of_ranks(one, name, shown) for name, _, shown in OF_EACH_RANK))
    return table


def of_ranks(one: CellRecord, name: str, shown: Callable[[Any], str]) -> str:
    """Return what every rank has of a quantity, the mean of its steps, as `61.2, 60.8`; `-` where none has it."""
    values = [rank[name] for rank in one.ranks or () if rank.get(name) is not None]
    return ", ".join(shown(statistics.fmean(each) if isinstance(each, list) else each) for each in values) or "-"


def _cost_table(record: Record) -> Table:
    table = markdown_box("cell", numbers=["ms a step", *(title for _, title, _, _ in COSTS)])
    for cell, one in record.cells.items():
        values = [(getattr(one, name), shape, scale) for name, _, shape, scale in COSTS]
        table.add_row(
            cell, _time(one), *("-" if value is None else shape.format(value * scale) for value, shape, scale in values)
        )
    return table


def _time(one: CellRecord) -> str:
    return no_time_word(one) if one.step_ms is None else format_ms(one.step_ms)


def _machine(machine: dict[str, Any]) -> str:
    power = machine.get("power_limit_w")
    limit = [f"{power:g} W"] if isinstance(power, int | float) else []
    named = {"driver": "driver", "CUDA": "cuda_runtime", "Python": "python"}
    known = [f"{name} {machine[key]}" for name, key in named.items() if machine.get(key)]
    versions = [f"{name} {version}" for name, version in (machine.get("versions") or {}).items() if version]
    return ", ".join([machine.get("device", "unknown device"), *limit, *known, *versions])
