"""Draws tables as Markdown, which reads well in a terminal and can be pasted from there."""

import io
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from gate.record.cell import CellRecord

#: Wider than any table.
WIDE = 10_000


def markdown_box(*ids: str, numbers: Iterable[str] = ()) -> Table:
    """Return a table whose first columns are `ids` and the next ones `numbers`, drawn as Markdown."""
    table = Table(*ids, box=box.MARKDOWN, header_style="")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def render(table: Table, width: int = WIDE) -> str:
    """Return the table in `width` columns, by wrapping its widest columns; wider where a word would be cut."""
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


def no_time_word(record: CellRecord) -> str:
    """Return what stands in place of a cell's time: "OOM", "wrong"; "no time" where its times are none."""
    return {"timed": "no time", "out of memory": "OOM"}.get(record.verdict, record.verdict)
