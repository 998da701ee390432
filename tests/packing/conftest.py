"""The checks of one family, made once and shared by its tests."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from model.attention import default_device
from model.huggingface.families import CannotBuild, Family
from tests.packing.checks import Checked, checked_with
from tests.packing.plugin import implementations


@dataclass(frozen=True)
class Result:
    """A family with what each implementation gave, or why it cannot be built."""

    family: Family
    found: Mapping[str, Checked] | str

    def wrong(self, *ways: str) -> list[str]:
        """Return a line for each implementation and way of `ways` that is wrong."""
        if isinstance(self.found, str):
            return []
        return [
            f"{self.family.name} {name}, {way.name}: logits off by {found.errors.logits:.2g}, gradients by "
            f"{found.errors.gradients:.2g} ({found.errors.worst or 'none'}), {found.times:.2g} times what rounding does"
            for name, checked in self.found.items()
            for way, found in checked.found.items()
            if way.name in ways and found.state == "wrong" and found.errors is not None
        ]


@pytest.fixture(scope="session")
def checked(request: pytest.FixtureRequest) -> Result:
    """Return what the checks found of a family with every implementation of this run."""
    family, device = request.param, torch.device(default_device())
    try:
        return Result(family, checked_with(family, implementations(request.config), device))
    except CannotBuild as error:
        return Result(family, str(error))
