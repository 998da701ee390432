"""Every known upstream failure, and the cells it strikes. An entry that matches no cell is an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet

from model.attention import Device, Machine
from model.cells import Cell


@dataclass(frozen=True)
class KnownFailure:
    """A defect of a dependency, shown by strict xfail: when it is mended, the entry must go.

    `tests` are the test functions that it turns red on `device`, and `matches` maps fields of the cell's key to
    their values. `package` and `versions` (a PEP 440 specifier) say which releases have it. `reproduction` is a
    script under docs/reproductions; `link` an upstream report, where there is one.
    """

    tests: tuple[str, ...]
    device: Device
    matches: Mapping[str, Any]
    package: str
    versions: str
    reason: str
    reproduction: str
    link: str = ""

    def strikes(self, cell: Cell, device: Device, test: str) -> bool:
        """Tell whether `cell` is struck in `test` on `device`."""
        key = cell.key
        return test in self.tests and device == self.device and all(key[f] == v for f, v in self.matches.items())

    def present(self, machine: Machine) -> bool:
        """Tell whether the installed release has the defect."""
        found = machine.version_of(self.package)
        return found is not None and found in SpecifierSet(self.versions)


KNOWN_FAILURES: tuple[KnownFailure, ...] = (
    KnownFailure(
        tests=(
            "test_a_compiled_batch_equals_the_padded_reference",
            "test_ragged_batches_after_a_warm_up_are_not_compiled_again",
            "test_a_batch_is_timed",
        ),
        device="cpu",
        matches={"backend": "flex_document_mask", "execution": "compiled"},
        package="torch",
        versions="==2.13.*",
        reason="the C++ that torch.compile writes for FlexAttention with dynamic shapes does not compile",
        reproduction="flex_cpu_dynamic.py",
    ),
    KnownFailure(
        tests=("test_a_batch_takes_a_part_of_a_longer_upstream_gradient",),
        device="cpu",
        matches={"backend": "sdpa_nested"},
        package="torch",
        versions="==2.13.*",
        reason="the backward of SDPA on NestedTensors reads an upstream gradient from the start of its storage",
        reproduction="nested_gradient_offset.py",
    ),
)
