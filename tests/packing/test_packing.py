"""A family computes of several sequences, in one row or in padded ones, what it computes of each one alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.attention import default_device
from model.huggingface.families import Family
from tests.packing.conftest import Result
from tests.packing.plugin import ENTRY, implementations
from tests.packing.records import family_changes, family_entry, recorded
from tests.packing.windows import check_window

pytestmark = pytest.mark.packing


def check(result: Result, request: pytest.FixtureRequest) -> None:
    if isinstance(result.found, str):
        pytest.skip(f"{result.family.name} cannot be built: {result.found}")
    marker = request.node.get_closest_marker("packing")
    wrong = result.wrong(*marker.args)
    if wrong:
        lines = f"python -m tests.studies.packing reproduce {result.family.name} sdpa '{marker.args[0]}'"
        told = [] if result.family.config else [f"Lines that show it: {lines}"]
        pytest.fail("\n".join([*wrong, *told]), pytrace=False)


@pytest.mark.packing("flattened: position_ids")
def test_a_flattened_row_equals_each_sequence_alone(checked: Result, request: pytest.FixtureRequest) -> None:
    check(checked, request)


@pytest.mark.packing(
    "flattened: position_ids, cu_seq_lens",
    "flattened: position_ids, seq_idx",
    "flattened: position_ids, cu_seq_lens, seq_idx",
)
def test_a_row_with_offsets_and_numbers_equals_each_sequence_alone(
    checked: Result, request: pytest.FixtureRequest
) -> None:
    check(checked, request)


@pytest.mark.packing(
    "flattened: position_ids, cache",
    "flattened: position_ids, cu_seq_lens, cache",
    "flattened: position_ids, seq_idx, cache",
    "flattened: position_ids, cu_seq_lens, seq_idx, cache",
)
def test_a_default_cache_changes_nothing(checked: Result, request: pytest.FixtureRequest) -> None:
    check(checked, request)


@pytest.mark.packing(
    "flattened: position_ids, attention_mask",
    "flattened: position_ids, attention_mask, cache",
    "flattened: position_ids, cu_seq_lens, seq_idx, attention_mask",
)
def test_a_mask_of_ones_changes_nothing(checked: Result, request: pytest.FixtureRequest) -> None:
    check(checked, request)


@pytest.mark.packing(
    "right: attention_mask",
    "right: attention_mask, cache",
    "right: position_ids, attention_mask",
    "right: position_ids, attention_mask, cache",
)
def test_padding_on_the_right_changes_nothing(checked: Result, request: pytest.FixtureRequest) -> None:
    check(checked, request)


@pytest.mark.packing("left: position_ids, attention_mask", "left: position_ids, attention_mask, cache")
def test_padding_on_the_left_with_positions_changes_nothing(checked: Result, request: pytest.FixtureRequest) -> None:
    check(checked, request)


@pytest.mark.packing("left: attention_mask", "left: attention_mask, cache")
def test_padding_on_the_left_changes_nothing(checked: Result, request: pytest.FixtureRequest) -> None:
    check(checked, request)


def test_a_token_past_the_window_changes_nothing(windowed: Family, request: pytest.FixtureRequest) -> None:
    device = torch.device(default_device())
    found = {each.name: check_window(windowed, each, device) for each in implementations(request.config)}
    checks = {name: each for name, each in found.items() if each is not None}
    if not checks:
        pytest.skip(f"{windowed.name} has no sliding window, or cannot have one in every layer")
    if all(each.state == "refused" for each in checks.values()):
        pytest.skip(f"{windowed.name} cannot be run with a window: {next(iter(checks.values())).message}")
    wrong = [
        f"{windowed.name} {name}: {each.message or f'logits past the window move by {each.mixed:.2g} of the largest'}"
        for name, each in checks.items()
        if each.state == "wrong"
    ]
    assert not wrong, "\n".join(wrong)


def test_a_family_is_no_worse_than_recorded(checked: Result, record_property: Callable[[str, Any], None]) -> None:
    name = checked.family.name
    entry = family_entry(checked.family, checked.found)
    record_property(ENTRY, (name, entry))
    if checked.family.config:
        pytest.skip("nothing is recorded of a config of its own")
    record = recorded(default_device())
    if record is None:
        pytest.skip("no record of this transformers: pytest -m packing --packing-report=docs/results/packing makes one")
    assert name in record["families"], (
        f"{name} is new: record it with pytest -m packing --packing-report=docs/results/packing"
    )
    worse = [change for change in family_changes(name, record["families"][name], entry) if change.direction == "worse"]
    assert not worse, "\n".join(map(str, worse))
