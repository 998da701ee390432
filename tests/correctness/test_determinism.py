"""A batch gives the same bits at every repeat, gradients included, where its backend declares so."""

import pytest
from hypothesis import given, settings

from model.attention import default_device
from model.cells import Cell
from tests.correctness.attention_bench import AttentionBench, AttentionInput
from tests.correctness.drawn import ONE_OF_EACH_LAYOUT
from tests.correctness.report import assert_same
from tests.strategies import attention_inputs

pytestmark = pytest.mark.correctness

REPEATS = 3


def declared_deterministic(cell: Cell) -> bool:
    """Tell whether the cell's backend declares repeats in its mode bitwise equal on this machine's device."""
    return cell.mode in cell.backend.deterministic.get(default_device(), ())


@pytest.mark.cells(collator=ONE_OF_EACH_LAYOUT, causal=(True,), where=declared_deterministic)
@settings(max_examples=settings.default.max_examples // 10)
@given(given=attention_inputs())
def test_a_batch_repeats_bit_by_bit(attention: AttentionBench, given: AttentionInput) -> None:
    given = given.fitted(attention.cell.backend)
    if attention.refuses(given):
        return
    run = attention.run(given)
    first = run.results()
    for _ in range(REPEATS - 1):
        for name, repeated in run.results().items():
            assert repeated is not first[name]
            assert_same(f"{name} of a repeat", first[name], repeated)
