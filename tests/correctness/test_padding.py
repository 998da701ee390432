"""A batch does not feel its padding: how much of it there is, what ids and embeddings it holds."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from collators import Example, collator_named
from model.attention import default_device
from tests.correctness.drawn import CONFIG
from tests.correctness.report import assert_same
from tests.correctness.slots import embeddings_replaced, real_slots, widened, with_empty_row, with_padding_ids
from tests.correctness.workbench import Workbench
from tests.strategies import examples

pytestmark = pytest.mark.correctness

#: Every way to pad: NestedTensors have none.
WITH_PADDING = tuple(collator_named(name) for name in ("pad_longest", "pad_left", "packed_multiple"))

#: As large as the embeddings of padding may be, where those of tokens are about 1.
GARBAGE = 1e4

drawn = examples(CONFIG[default_device()])


@pytest.mark.cells(distinct=True, collator=WITH_PADDING)
@settings(max_examples=settings.default.max_examples // 5)
@given(batch=drawn, extra=st.sampled_from([1, 7, 64, 129]))
def test_any_amount_of_padding_changes_nothing(workbench: Workbench, batch: list[Example], extra: int) -> None:
    collated = widened(workbench.batch(batch), extra)
    assume(not workbench.refuses(collated))
    workbench.assert_right(workbench.outcome_of(collated), batch)


@pytest.mark.cells(distinct=True, collator=WITH_PADDING)
@settings(max_examples=settings.default.max_examples // 5)
@given(batch=drawn, extra=st.sampled_from([0, 3, 64]), seed=st.integers(0, 2**32 - 1))
def test_ids_and_embeddings_of_padding_change_nothing(
    workbench: Workbench, batch: list[Example], extra: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = widened(workbench.batch(batch), extra)
    assume(not workbench.refuses(clean))
    ids = torch.randint(workbench.config.vocab_size, (clean.num_slots,), generator=generator)
    garbage = GARBAGE * (2 * torch.rand(clean.num_slots, workbench.config.hidden_size, generator=generator) - 1)
    padding = ~real_slots(clean)
    with embeddings_replaced(workbench.model, padding, garbage.to(padding.device)):
        filled = workbench.outcome_of(with_padding_ids(clean, ids))
    for index, (was, now) in enumerate(zip(workbench.logits_of(clean), filled.logits, strict=True)):
        assert_same(f"logits of sequence {index} with other padding", was, now)
    workbench.assert_right(filled, batch)


@pytest.mark.cells(distinct=True, collator=WITH_PADDING[:2])
@settings(max_examples=settings.default.max_examples // 5)
@given(batch=drawn, at=st.integers(0, 6))
def test_rows_of_nothing_but_padding_are_finite_and_without_gradient(
    workbench: Workbench, batch: list[Example], at: int
) -> None:
    collated = workbench.batch(batch)
    assume(not workbench.refuses(collated))
    at = min(at, len(batch))
    padded = with_empty_row(collated, at, workbench.config.pad_id)
    assert workbench.every_slot(padded).isfinite().all()
    actual = workbench.outcome_of(padded)
    assert actual.logits[at].shape[0] == 0
    workbench.assert_right(replace(actual, logits=[*actual.logits[:at], *actual.logits[at + 1 :]]), batch)
