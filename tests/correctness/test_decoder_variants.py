"""A batch is right with grouped-query heads, and with rotary positions, in every backend that declares them."""

import pytest
from hypothesis import given, settings

from collators import Example
from model.attention import default_device
from tests.correctness.drawn import CONFIG
from tests.correctness.workbench import Workbench
from tests.strategies import examples

pytestmark = pytest.mark.correctness


@pytest.mark.cells(variants=("grouped", "rotary"), one_of_each="layout", mode=("train",), execution=("eager",))
@settings(max_examples=settings.default.max_examples // 5)
@given(batch=examples(CONFIG[default_device()]))
def test_a_batch_with_other_heads_or_positions_equals_the_padded_reference(
    workbench: Workbench, batch: list[Example]
) -> None:
    workbench.check(batch)
