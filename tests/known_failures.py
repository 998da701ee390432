"""Every known upstream failure, and the cells it strikes. An entry that matches no cell is an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.attention import Device
from model.cells import Cell


@dataclass(frozen=True)
class KnownFailure:
    """A defect of a dependency, shown by strict xfail: when it is mended, the entry must go.

    `matches` maps fields of the cell's key to their values; `device` is the one that fails; `test` names the test
    function; `link` is the upstream report, `reason` the cause in one sentence.
    """

    test: str
    device: Device
    matches: Mapping[str, Any]
    link: str
    reason: str

    def strikes(self, cell: Cell, device: Device, test: str) -> bool:
        """Tell whether `cell` is struck in `test` on `device`."""
        key = cell.key
        return (test, device) == (self.test, self.device) and all(key[f] == v for f, v in self.matches.items())


KNOWN_FAILURES: tuple[KnownFailure, ...] = ()
