"""A collator from outside (`pytest -m packing --collator SPEC`) keeps its contracts, and models compute it right."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from model.attention import default_device
from model.huggingface.inputs import LENGTHS
from tests.packing.collated import CONTRACTS, Collate, Features, collated, features_of
from tests.packing.collated_models import RIGHT, judged
from tests.packing.outside_parts import part_asked
from tests.packing.plugin import families, implementations

pytestmark = pytest.mark.packing


@pytest.fixture(scope="module")
def collate(pytestconfig: pytest.Config) -> Collate:
    return part_asked(pytestconfig, "collator")


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_collated_batch_keeps_its_contract(collate: Collate, contract: str) -> None:
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    def check(lengths: list[int]) -> None:
        wrong = CONTRACTS[contract](collated(collate, features_of(lengths)))
        assert not wrong, f"lengths {lengths}: {'; '.join(wrong)}"

    check()


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def test_the_same_features_give_the_same_batch_and_are_left_alone(collate: Collate) -> None:
    features = features_of(LENGTHS)
    given = copy.deepcopy(features)
    first, second = collate(given), collate(copy.deepcopy(features))
    assert same(first, second)
    assert given == features, "the collator changes its features"


def test_a_dataloader_with_two_workers_gives_the_same_batches(collate: Collate) -> None:
    features = features_of([*LENGTHS, *LENGTHS])
    halves = [collate(copy.deepcopy(features[:4])), collate(copy.deepcopy(features[4:]))]
    loader: DataLoader[Features] = DataLoader(
        features, batch_size=4, collate_fn=collate, num_workers=2, pin_memory=default_device() == "cuda"
    )
    loaded = list(loader)
    assert len(loaded) == 2
    assert all(same(one, other) for one, other in zip(halves, loaded, strict=True))


def test_a_model_computes_of_a_collated_batch_what_each_sequence_alone_gives(
    collate: Collate, collated_case: tuple[Any, Any]
) -> None:
    family, implementation = collated_case
    found = judged(collate, family, implementation)
    if found.verdict.startswith("not run"):
        pytest.skip(found.told)
    if found.verdict != RIGHT:
        pytest.fail(f"{family.name} {implementation.name}: {found.told}", pytrace=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "collated_case" in metafunc.fixturenames:
        cases: list[Any] = [
            pytest.param((family, each), id=f"{family.name}-{each.name}")
            for family in families(metafunc.config)
            for each in implementations(metafunc.config)
        ]
        metafunc.parametrize("collated_case", cases)
