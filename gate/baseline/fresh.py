"""Times cells of a pytest session again, in fresh processes of its checkout and its Python."""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gate.processes import Side, run_cells
from gate.records import Record
from gate.selecting import selection


def fresh_records(config: pytest.Config, ids: Sequence[str], processes: int, *options: str) -> Iterator[Record | str]:
    """Yield the record of each fresh process that timed these cells, or the sentence that says why it did not.

    They run with this session's variables, workload and plugins (`-p`), each with its cells in another order.
    """
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="gate-again-") as name:
        folder = Path(name)
        side = Side("again", config.rootpath, Path(sys.executable), Path(cache) if cache else folder / "compiled")
        for number in range(processes):
            given = [*child_options(config), *options, f"--order-seed={number}"]
            try:
                yield run_cells(side, given, folder, f"again-{number}", ids=list(ids))
            except ValueError as error:
                yield str(error)


def child_options(config: pytest.Config) -> list[str]:
    """What a process needs to time the same as this one; which cells is another matter."""
    names = ("workload", "lengths", "steps")
    given = {name: config.getoption(name, None) for name in names}
    options = selection(argparse.Namespace(cells=None, backend=None, collator=None, **given))
    plugins = [name for name in config.option.plugins or () if not name.startswith("no:")]
    return [*options, *(word for name in plugins for word in ("-p", name))]
