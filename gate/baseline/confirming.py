"""Times suspect cells again in fresh processes before a comparison calls them slower."""

from collections.abc import Sequence
from typing import Any

import pytest

from gate.baseline.fresh import fresh_records
from gate.records import cells


def timed_again(
    config: pytest.Config, suspects: Sequence[str], processes: int
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Each suspect's `extra_info` in each of `processes` fresh ones, and sentences on processes that told nothing."""
    found: dict[str, list[dict[str, Any]]] = {cell: [] for cell in suspects}
    troubles = []
    for record in fresh_records(config, suspects, processes, "--no-exact-costs"):
        if isinstance(record, str):
            troubles.append(record)
            continue
        for cell, info in cells(record).items():
            found.setdefault(cell, []).append(info)
    return found, troubles
