"""Every family of language models is found and built small, from a seed and without a download."""

import os

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model.huggingface.families import all_families, build, family_named, offline, token_ids
from model.huggingface.overrides import OVERRIDES
from model.huggingface.sizes import SMALL_VOCABULARY
from tests.packing.records import recorded
from tests.packing.subset import CI_FAMILIES

pytestmark = pytest.mark.packing

#: Of the families that transformers knows, at most so many may not be built.
MOST_NOT_BUILT = 0.1


def test_every_causal_family_is_found() -> None:
    found = {family.name for family in all_families() if family.kind == "decoder"}
    assert found == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_encoders_with_an_unpadded_path_are_found() -> None:
    encoders = {family.name for family in all_families() if family.kind == "encoder"}
    assert "modernbert" in encoders
    assert "reformer" not in encoders


def test_an_unknown_family_names_others() -> None:
    with pytest.raises(ValueError, match=r"unknown language-model family 'llamma'; choose one .*llama"):
        family_named("llamma")


def test_few_recorded_families_are_not_built() -> None:
    record = recorded("cpu")
    if record is None:
        pytest.skip("no record of this transformers: pytest -m packing --packing-report=docs/results/packing makes one")
    families = record["families"]
    missing = {name: entry["cannot_build"] for name, entry in families.items() if "cannot_build" in entry}
    assert families.keys() == {family.name for family in all_families()}
    assert len(missing) <= MOST_NOT_BUILT * len(families), missing
    assert all(reason and "\n" not in reason for reason in missing.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_a_family_is_small_and_its_weights_follow_from_the_seed(name: str) -> None:
    family = family_named(name)
    before = torch.get_rng_state()
    first, again, other = build(family, "eager"), build(family, "eager"), build(family, "eager", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert sum(parameter.numel() for parameter in first.parameters()) < 1_000_000
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_a_family_has_the_same_weights_with_every_implementation() -> None:
    family = family_named("llama")
    eager, sdpa = build(family, "eager").state_dict(), build(family, "sdpa").state_dict()
    assert all(torch.equal(value, sdpa[key]) for key, value in eager.items())


def test_no_weight_is_left_as_a_constant() -> None:
    for name, parameter in build(family_named("gpt2"), "eager").named_parameters():
        assert parameter.std() > 0, name


def test_sliding_families_keep_a_layer_of_each_kind() -> None:
    config = build(family_named("gemma3_text"), "eager").config
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.sliding_window < max(9, config.sliding_window)


def test_nothing_is_fetched_inside_and_what_was_set_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with offline():
        assert constants.HF_HUB_OFFLINE
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ


def test_tokens_are_no_special_ones_and_follow_from_the_seed() -> None:
    first, again = token_ids((50, 3), 1), token_ids((50, 3), 1)
    assert [len(ids) for ids in first] == [50, 3]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert 8 <= int(first[0].min()) <= int(first[0].max()) < SMALL_VOCABULARY
    assert not torch.equal(first[0], token_ids((50,), 2)[0])


def test_every_override_is_of_a_config_that_transformers_has() -> None:
    # A stale entry would go unnoticed: it is looked up by name.
    used = {
        type(build(family, "eager").config).__name__ for family in all_families() if family.name in {"mamba2", "esm"}
    }
    assert {"Mamba2Config", "EsmConfig"} <= used <= OVERRIDES.keys()


def test_the_families_of_ci_exist() -> None:
    assert CI_FAMILIES.keys() <= {family.name for family in all_families()}
