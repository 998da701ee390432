"""Families that leak as people call them are right with a backend of this project: same weights, same checks."""

import pytest
import torch

from model.attention import backend_named, this_machine
from model.huggingface.families import family_named
from model.huggingface.gpt2 import TOLD
from model.huggingface.implementations import Implementation, own
from model.huggingface.inputs import FLATTENED
from tests.packing.checks import Checked, checked_with
from tests.packing.verdicts import verdict

pytestmark = pytest.mark.packing

SDPA = Implementation("sdpa", "sdpa", torch.float32)
OWN = own(backend_named("sdpa_document_mask"), "cpu")

#: Leaks with the default cache, and with a mask of ones; the first two are the commonest kinds, the third is an encoder
#: that transformers has no safe way for at all.
#: In earlier releases models other than the second make masks of their own, and are refused.
FAMILIES = ("llama",) if TOLD.reasons(this_machine()) else ("gpt2", "llama", "bert")


@pytest.fixture(scope="module", params=FAMILIES)
def found(request: pytest.FixtureRequest) -> dict[str, Checked]:
    return checked_with(family_named(request.param), (SDPA, OWN), torch.device("cpu"))


def test_a_family_leaks_in_a_way_that_its_own_backend_does_not(found: dict[str, Checked]) -> None:
    theirs, ours = (found[implementation.name].found for implementation in (SDPA, OWN))
    # The first way is what the collator gives, and nothing else.
    assert theirs[FLATTENED[0]].state == "wrong"
    assert theirs[FLATTENED[0]].mixed > 0
    # Without positions that restart, learned ones are not those of a sequence alone, whatever attends.
    told = [way for way in ours if way.layout == "flattened" and way.positions]
    assert {way.name: ours[way].state for way in told} == {way.name: "right" for way in told}
    assert ours[FLATTENED[0]].mixed == 0


def test_a_family_is_safe_to_pack_with_our_backend(found: dict[str, Checked]) -> None:
    assert verdict(found[OWN.name], "flattened").grade == "safe"
    assert verdict(found[SDPA.name], "flattened").grade != "safe"
