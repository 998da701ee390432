"""A batch gives the same where activations are computed again in the backward: attention is called twice a layer."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from hypothesis import assume, example, given, settings
from torch.utils.checkpoint import checkpoint

from collators import Example
from model.attention import default_device
from model.models import ProvedModel
from tests.correctness.attention_bench import AttentionBench, AttentionInput
from tests.correctness.drawn import CONFIG
from tests.correctness.report import assert_same
from tests.correctness.workbench import Workbench
from tests.strategies import attention_inputs, examples

pytestmark = pytest.mark.correctness

fewest = settings(max_examples=settings.default.max_examples // 10)


@contextmanager
def recomputed(model: ProvedModel) -> Iterator[None]:
    """Let every block keep its inputs alone, as activation checkpointing does."""
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    except Exception as error:
        # What `checkpoint` pushed for autograd stays as long as the frames of an error: later tests would meet it.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        for block in model.blocks:
            del block.forward


@pytest.mark.cells(one_of_each="layout", causal=(True,))
@fewest
@given(given=attention_inputs())
@example(given=AttentionInput((1, 2, 5)))
def test_a_batch_gives_the_same_when_attended_again_on_its_context(
    attention: AttentionBench, given: AttentionInput
) -> None:
    given = given.fitted(attention.cell.backend)
    if attention.refuses(given):
        return
    first, second = attention.run(given).outputs(2)
    assert_same("output of a second call", first, second)


@pytest.mark.cells(distinct=True, one_of_each="layout", mode=("train",))
@fewest
@given(batch=examples(CONFIG[default_device()]))
def test_a_batch_whose_blocks_are_computed_again_equals_the_padded_reference(
    workbench: Workbench, batch: list[Example]
) -> None:
    collated = workbench.batch(batch)
    assume(not workbench.refuses(collated))
    with recomputed(workbench.model):
        actual = workbench.outcome_of(collated)
    workbench.assert_right(actual, batch)
