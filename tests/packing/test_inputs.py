"""Flattened and padded inputs say where each sequence is, and what each token's position and target are."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

from model.huggingface.inputs import ALONE, FLATTENED, PADDED, WAYS, Way, inputs, way_named

pytestmark = pytest.mark.packing

SEQUENCES = [torch.tensor([11, 12, 13]), torch.tensor([21, 22])]


def test_a_flattened_row_is_what_the_collator_makes() -> None:
    way = Way("flattened", offsets=True, seq_idx=True, cache=True)
    given = inputs(way, SEQUENCES)
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    wanted = collate([{"input_ids": ids.tolist()} for ids in SEQUENCES], return_tensors="pt")
    assert given.arguments.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(torch.as_tensor(given.arguments[name]), torch.as_tensor(value)), name


def test_positions_and_labels_restart_in_a_flattened_row() -> None:
    given = inputs(Way("flattened", mask=True), SEQUENCES, start=2).arguments
    assert given["input_ids"].tolist() == [[11, 12, 13, 21, 22]]
    assert given["position_ids"].tolist() == [[2, 3, 4, 2, 3]]
    assert given["labels"].tolist() == [[-100, 12, 13, -100, 22]]
    assert given["attention_mask"].tolist() == [[1] * 5]
    assert given["use_cache"] is False


@pytest.mark.parametrize(
    ("layout", "ids", "positions", "labels", "mask"),
    [
        ("right", [21, 22, 5], [0, 1, 0], [-100, 22, -100], [1, 1, 0]),
        ("left", [5, 21, 22], [0, 0, 1], [-100, -100, 22], [0, 1, 1]),
    ],
)
def test_padding_has_no_label_and_no_mask(
    layout: str, ids: list[int], positions: list[int], labels: list[int], mask: list[int]
) -> None:
    given = inputs(Way(layout, mask=True), SEQUENCES, pad_id=5).arguments  # type: ignore[arg-type]
    rows = [given[name][1].tolist() for name in ("input_ids", "position_ids", "labels", "attention_mask")]
    assert rows == [ids, positions, labels, mask]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_sequence_is_found_again(way: Way) -> None:
    given = inputs(way, SEQUENCES)
    for ids, found in zip(SEQUENCES, given.split(given.arguments["input_ids"]), strict=True):
        assert torch.equal(ids, found)


def test_a_sequence_alone_is_given_nothing_else() -> None:
    assert inputs(ALONE, SEQUENCES[:1]).arguments.keys() == {"input_ids", "labels", "use_cache"}


def test_ways_have_names_of_their_own() -> None:
    names = [way.name for way in (*FLATTENED, *PADDED)]
    assert len(names) == len(set(names))
    assert [way_named(name).name for name in names] == names
    with pytest.raises(ValueError, match="unknown way 'packed'"):
        way_named("packed")
