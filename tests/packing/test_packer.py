"""A packer from outside (`pytest -m packing --packer SPEC`) keeps every token, the budget, labels and boundaries."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.packing.collated import features_of
from tests.packing.outside_parts import part_asked
from tests.packing.packed_rows import CONTRACTS, Pack, packed

pytestmark = pytest.mark.packing

#: Longest sequence that is drawn, and a row that is shorter: what a packer does with a longer one must be said.
LONGEST, SHORT = 9, 7


@pytest.fixture(scope="module")
def pack(pytestconfig: pytest.Config) -> Pack:
    return part_asked(pytestconfig, "packer")


@pytest.mark.parametrize("budget", [16, LONGEST, SHORT], ids=lambda budget: f"rows of {budget}")
@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_packer_keeps_its_contract(pack: Pack, contract: str, budget: int) -> None:
    @given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=6))
    def check(lengths: list[int]) -> None:
        wrong = CONTRACTS[contract](packed(pack, features_of(lengths), budget))
        assert not wrong, f"lengths {lengths}, rows of {budget}: {'; '.join(wrong)}"

    check()


@given(data=st.data(), lengths=st.lists(st.integers(1, LONGEST), min_size=1, max_size=6))
def test_the_order_of_features_loses_nothing(pack: Pack, data: st.DataObject, lengths: list[int]) -> None:
    features = features_of(lengths)
    shuffled = data.draw(st.permutations(features))
    one, other = (
        sorted(token for row in packed(pack, each, 16).rows for token in row["input_ids"])
        for each in (features, shuffled)
    )
    assert one == other


def test_features_are_left_alone(pack: Pack) -> None:
    features = features_of((3, 5, 2))
    given_ = copy.deepcopy(features)
    pack(given_, 16)
    assert given_ == features, "the packer changes its features"
