"""Attention writes to what it returns, and to nothing else: not to its arguments, and not to memory around its own."""

from dataclasses import fields

import pytest
import torch
from hypothesis import example, given, settings

from model.attention import default_device
from tests.correctness.attention_bench import AttentionBench, AttentionInput
from tests.correctness.guards import Guards, Kept
from tests.strategies import FORMS, attention_inputs

pytestmark = pytest.mark.correctness


@pytest.fixture(scope="module")
def guards() -> Guards:
    return Guards(default_device())


@pytest.mark.cells(mode=("train",), one_of_each="layout", causal=(True,))
@settings(max_examples=settings.default.max_examples // 5)
@given(given=attention_inputs(forms=FORMS))
# The backward of flash-attn's dense kernel zeroed 128 bytes behind its own: docs/reproductions/flash_small_heads.py
@example(given=AttentionInput((7, 100), head_dim=32))
@example(given=AttentionInput((3, 5), form="sliced"))
def test_a_batch_leaves_all_other_memory_as_it_was(
    attention: AttentionBench, guards: Guards, given: AttentionInput
) -> None:
    given = given.fitted(attention.cell.backend)
    if attention.refuses(given):
        return
    run = attention.run(given)
    of_batch = [getattr(run.batch, field.name) for field in fields(run.batch)]
    kept = Kept([*run.inputs, run.gradient, *(value for value in of_batch if isinstance(value, torch.Tensor))])
    guards.overwritten()
    run.results()
    assert kept.changed() == 0, "bytes of its arguments, or beside them, were changed"
    assert guards.overwritten() == 0, "bytes of other tensors were overwritten"
