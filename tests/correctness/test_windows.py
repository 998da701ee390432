"""A batch's windows, soft caps and sinks are honoured by the backends that declare them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.attention import default_device
from model.cells import Cell
from tests.correctness.attention_bench import AttentionBench, AttentionInput, AttentionRun
from tests.correctness.drawn import CONFIG, in_first_dtype
from tests.correctness.report import assert_changed, assert_same
from tests.strategies import attention_inputs, windowed_inputs

pytestmark = pytest.mark.correctness

more_than_one_token = st.lists(st.integers(2, 20), min_size=1, max_size=4)
fewest = settings(max_examples=settings.default.max_examples // 10)


def shows_most(cell: Cell) -> bool:
    """Tell whether the cell trains, which shows what evaluation shows, or its backend cannot train here."""
    device = default_device()
    trained = replace(cell, mode="train").case(device, CONFIG[device])
    return cell.mode == "train" or bool(cell.backend.unsupported_reasons(trained))


@pytest.mark.cells(
    where=lambda cell: cell.backend.windows and shows_most(cell),
    one_of_each="side",
)
@fewest
@given(given=windowed_inputs())
# Off by one, at the lengths where it shows: https://github.com/huggingface/transformers/issues/39408
@example(given=AttentionInput((3, 4, 5, 9), window=4))
@example(given=AttentionInput((1, 2, 3), window=1))
# Tiles of 128 before, across and past the edge of the window.
@example(given=AttentionInput((300,), num_heads=1, num_kv_heads=1, window=129))
def test_a_batch_attends_within_the_window_as_each_sequence_alone(
    attention: AttentionBench, given: AttentionInput
) -> None:
    attention.check(given)


@pytest.mark.cells(where=lambda cell: cell.backend.softcaps and shows_most(cell), one_of_each="layout")
@fewest
@given(
    given=attention_inputs(lengths_of=more_than_one_token, sharpness=(1.0, 3.0)), softcap=st.sampled_from([0.5, 2.0])
)
@example(given=AttentionInput((3, 1, 130), sharpness=2.0), softcap=1.0)
def test_a_batch_attends_with_capped_scores_as_each_sequence_alone(
    attention: AttentionBench, given: AttentionInput, softcap: float
) -> None:
    attention.check(replace(given, softcap=softcap))


@pytest.mark.cells(where=lambda cell: cell.backend.sinks and shows_most(cell), one_of_each="layout")
@fewest
@given(given=attention_inputs())
@example(given=AttentionInput((1, 2, 1), num_heads=4))
@example(given=AttentionInput((3, 65), num_heads=4, num_kv_heads=2))
def test_a_batch_attends_with_sinks_as_each_sequence_alone(attention: AttentionBench, given: AttentionInput) -> None:
    attention.check(replace(given, sinks=True))


#: All at once, and each other than it is. A backend has its part of it, without what it does not declare.
TOGETHER = AttentionInput((3, 5, 1, 9), num_heads=4, num_kv_heads=2, sharpness=2.0, window=4, softcap=1.5, sinks=True)
OTHERS = (
    replace(TOGETHER, window=3),
    replace(TOGETHER, window=5),
    replace(TOGETHER, window=None),
    replace(TOGETHER, softcap=3.0),
    replace(TOGETHER, softcap=None),
    replace(TOGETHER, sinks=False),
)


@pytest.mark.cells(
    where=lambda cell: cell.backend.windows and shows_most(cell), one_of_each="layout", dtype=(torch.bfloat16,)
)
def test_a_batch_differs_with_another_window_cap_or_no_sinks(attention: AttentionBench) -> None:
    """The widest bound there is still tells them, a window that is off by one token too."""
    attention.check(TOGETHER)
    declared = TOGETHER.fitted(attention.cell.backend)
    for other in (other.fitted(attention.cell.backend) for other in OTHERS):
        if other != declared:
            assert attention.differences(declared, attention.run(other).results()), f"{other} passes for {declared}"


def with_another_token(run: AttentionRun, sequence: int, token: int) -> AttentionRun:
    """Return `run` with another key and value, far from the old ones, in one place."""
    q, k, v = run.inputs
    k, v = k.clone(), v.clone()
    for tensor in (k, v):
        run.batch.split(tensor)[sequence][token] += 100
    return replace(run, inputs=(q, k, v))


@pytest.mark.cells(
    where=lambda cell: cell.backend.windows and in_first_dtype(cell), one_of_each="layout", mode=("eval",)
)
@fewest
@given(given=windowed_inputs(), sequence=st.integers(0, 3), token=st.integers(0, 130))
# One path of several that drops the window: https://github.com/vllm-project/semantic-router/issues/3406
@example(given=AttentionInput((3, 9), window=4), sequence=1, token=2)
@example(given=AttentionInput((9,), window=4), sequence=0, token=7)
def test_a_token_past_the_window_changes_nothing(
    attention: AttentionBench, given: AttentionInput, sequence: int, token: int
) -> None:
    given = replace(given, form="contiguous").fitted(attention.cell.backend)
    sequence %= len(given.lengths)
    token %= given.lengths[sequence]
    if attention.refuses(given):
        return
    run = attention.run(given)
    before, after = (each.results()["out"] for each in (run, with_another_token(run, sequence, token)))
    first = sum(given.lengths[:sequence])
    for place, (was, now) in enumerate(zip(before, after, strict=True)):
        later = place - first - token
        same_sequence = 0 <= place - first < given.lengths[sequence]
        seen = same_sequence and abs(later) < given.window and (later >= 0 or not attention.cell.causal)
        # Shapes are the same, so that kernels add in the same order: equality is exact.
        check = assert_changed if seen else assert_same
        check(f"output {later} after another token at {token} of sequence {sequence}", was, now)
