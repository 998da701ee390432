"""What attention is given in several forms lies in memory in each in another way, and holds the same numbers."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from collators import collator_named
from model.attention import REFERENCE
from tests.correctness.attention_bench import AttentionInput, AttentionRun, Form

pytestmark = pytest.mark.unit

FORMS: tuple[Form, ...] = get_args(Form)


def lies(tensor: Tensor) -> tuple[tuple[int, ...], int, int]:
    return tensor.stride(), tensor.storage_offset(), tensor.untyped_storage().nbytes()


def run(form: Form, gradient_form: Form = "contiguous") -> AttentionRun:
    # Of one length, so that sequences may be repeated.
    given = AttentionInput((3, 3), head_dim=8, form=form, gradient_form=gradient_form)
    collator = collator_named("pad_longest")
    return AttentionRun.of(REFERENCE, collator, given, torch.float32, causal=False, mode="train")


def test_every_form_of_keys_lies_in_memory_in_a_way_of_its_own() -> None:
    places = {form: lies(run(form).inputs[1]) for form in FORMS}
    assert len(set(places.values())) == len(FORMS), places


def test_every_form_of_a_gradient_lies_in_memory_in_a_way_of_its_own() -> None:
    forms: tuple[Form, ...] = ("contiguous", "heads_first", "shifted", "sliced", "expanded")
    places = {form: lies(run("contiguous", form).gradient) for form in forms}
    assert len(set(places.values())) == len(forms), places


@pytest.mark.parametrize("form", sorted({*FORMS} - {"expanded", "repeated"}))
def test_a_form_that_shares_nothing_holds_the_numbers_of_a_contiguous_input(form: Form) -> None:
    for found, wanted in zip(run(form).inputs, run("contiguous").inputs, strict=True):
        assert torch.equal(found, wanted)
