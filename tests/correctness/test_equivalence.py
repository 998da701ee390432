"""A batch gives the same logits, loss and gradients in every cell as in the padded reference."""

import pytest
from hypothesis import given

from collators import Example
from model.attention import default_device
from tests.correctness.drawn import CONFIG
from tests.correctness.workbench import Workbench
from tests.strategies import examples

pytestmark = pytest.mark.correctness


@pytest.mark.cells(execution=("eager",))
@given(batch=examples(CONFIG[default_device()]))
def test_a_batch_equals_the_padded_reference(workbench: Workbench, batch: list[Example]) -> None:
    workbench.check(batch)
