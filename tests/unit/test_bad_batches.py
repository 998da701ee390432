"""A batch that cannot be right is refused: one line that names the thing, the limit and what to do."""

import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from collators import (
    COLLATORS,
    Batch,
    Collator,
    CollatorOptions,
    Example,
    NestedBatch,
    PackedBatch,
    PaddedBatch,
    collator_named,
)
from collators.packed_multiple import PackedMultiple
from model.attention import BACKENDS, REFERENCE, Backend, Device, backend_named, default_device
from model.cells import Cell, all_cells
from tests.correctness.drawn import CONFIG, DRAWN

pytestmark = pytest.mark.unit

PAD_ID = 7
OPTIONS = CollatorOptions(max_length=12, pad_id=PAD_ID)
DEVICES: tuple[Device, ...] = ("cpu", "cuda")

every_collator = pytest.mark.parametrize("collator", COLLATORS, ids=lambda collator: collator.name)
every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)


def refusal(function: Callable[[], Any], match: str = "") -> str:
    """Return the message of the one-line ValueError that `function` raises, with no other error behind it."""
    with pytest.raises(ValueError, match=match) as raised:
        function()
    message = str(raised.value)
    assert message
    assert "\n" not in message
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return message


def ids(*shape: int) -> Tensor:
    return torch.full(shape, 9)


def good(length: int = 3) -> Example:
    return Example(ids(length), ids(length))


@dataclass(frozen=True)
class BadExample:
    """An example that every collator refuses; `message` matches what is said after its index."""

    name: str
    example: Example
    message: str


BAD_EXAMPLES = (
    BadExample("empty", Example(ids(0), ids(0)), r" is empty; a sequence has at least 1 token"),
    BadExample("2-D", Example(ids(2, 3), ids(2, 3)), r": input_ids must be 1-D; got shape \(2, 3\)"),
    BadExample("0-D", Example(torch.tensor(9), torch.tensor(9)), r": input_ids must be 1-D; got shape \(\)"),
    BadExample("2-D targets", Example(ids(3), ids(1, 3)), r": targets must be 1-D; got shape \(1, 3\)"),
    BadExample(
        "short targets", Example(ids(3), ids(2)), r": input_ids has 3 tokens but targets has 2; make them equal"
    ),
    BadExample("long targets", Example(ids(3), ids(4)), r": input_ids has 3 tokens but targets has 4; make them equal"),
    BadExample("empty targets", Example(ids(3), ids(0)), r": input_ids has 3 tokens but targets has 0"),
    BadExample("int32", Example(ids(3).int(), ids(3)), r": input_ids must be int64; got torch\.int32.*\.long\(\)"),
    BadExample("float targets", Example(ids(3), ids(3).float()), r": targets must be int64; got torch\.float32"),
    BadExample(
        "too long", Example(ids(13), ids(13)), r" has 13 tokens, over the maximum of 12; split it or raise max_length"
    ),
)


@every_collator
def test_a_batch_of_no_examples_is_refused(collator: Collator) -> None:
    match = rf"^{collator.name} needs at least one example; got an empty list\. Check the sampler\.$"
    refusal(lambda: collator.build(OPTIONS)([]), match)


@every_collator
@pytest.mark.parametrize("bad", BAD_EXAMPLES, ids=lambda bad: bad.name)
@pytest.mark.parametrize("place", [0, 2])
def test_a_batch_with_a_bad_example_is_refused_by_its_index(collator: Collator, bad: BadExample, place: int) -> None:
    batch = [good(), good(1), good(12)]
    batch[place] = bad.example
    message = refusal(lambda: collator.build(OPTIONS)(batch), rf"\bexample {place}{bad.message}")
    assert message.startswith(f"{collator.name}: example {place}")


@every_collator
def test_a_batch_with_two_bad_examples_is_refused_for_the_first(collator: Collator) -> None:
    batch = [good(), good(13), good(0)]
    refusal(lambda: collator.build(OPTIONS)(batch), r"example 1 has 13 tokens, over the maximum of 12")


@every_collator
@pytest.mark.parametrize("pad_id", [0, PAD_ID])
@pytest.mark.parametrize("at", [0, 2])
def test_a_batch_with_the_pad_id_is_refused_where_padding_makes_it_ambiguous(
    collator: Collator, at: int, pad_id: int
) -> None:
    example = good()
    example.input_ids[at] = pad_id
    collate = collator.build(replace(OPTIONS, pad_id=pad_id))
    if collator.layout == "padded":
        refusal(lambda: collate([good(), example]), rf"example 1 contains the pad id {pad_id}.*choose a pad id")
    else:
        assert collate([good(), example]).num_tokens == 6


@every_collator
def test_a_batch_whose_targets_hold_the_pad_id_is_collated(collator: Collator) -> None:
    """It may be the id of the end of text, which a model learns to predict."""
    assert collator.build(OPTIONS)([Example(ids(2), torch.tensor([9, PAD_ID]))]).num_targets == 2


@every_collator
@pytest.mark.parametrize("longest", [1, 12, 1000])
def test_a_batch_of_the_longest_allowed_sequence_is_collated(collator: Collator, longest: int) -> None:
    options = CollatorOptions(max_length=longest, pad_id=PAD_ID, multiple=1)
    assert collator.build(options)([good(longest)]).lengths == (longest,)


@pytest.mark.parametrize("value", [0, -8])
def test_a_collator_with_a_multiple_below_one_is_refused(value: int) -> None:
    refusal(
        lambda: CollatorOptions(max_length=12, multiple=value),
        rf"^multiple must be at least 1; got {re.escape(str(value))}\.$",
    )


@pytest.mark.parametrize("value", [0, -1])
def test_a_collator_with_a_maximum_length_below_one_is_refused(value: int) -> None:
    refusal(lambda: CollatorOptions(max_length=value), rf"^max_length must be at least 1; got {value}\.$")


@pytest.mark.parametrize("longest", [12, 13])
def test_a_collator_whose_filler_could_pass_the_maximum_length_is_refused(longest: int) -> None:
    """The longest filler has one token less than the multiple."""
    refusal(
        lambda: PackedMultiple(CollatorOptions(longest, multiple=longest + 2)),
        rf"^packed_multiple needs a multiple of at most max_length \+ 1 = {longest + 1},.*; got {longest + 2}\.$",
    )
    fills = PackedMultiple(CollatorOptions(longest, multiple=longest + 1))
    assert fills([good(1)]).max_seqlen == longest


def wrong_outputs(batch: Batch) -> Sequence[Tensor]:
    """Return tensors that no model gives for `batch`: another count of tokens, of sequences, another layout."""
    slots = batch.num_slots
    jagged = torch.nested.nested_tensor_from_jagged(torch.zeros(slots + 1, 4), torch.tensor([0, slots + 1]))
    return [torch.zeros(slots, 4), torch.zeros(1, slots + 1, 4), torch.zeros(5, 2, 4), torch.zeros(0), jagged]


@every_collator
@pytest.mark.parametrize("which", range(5), ids=["flat", "one token more", "other rectangle", "empty", "nested"])
def test_a_batch_splits_no_outputs_of_another_shape(collator: Collator, which: int) -> None:
    batch = collator.build(OPTIONS)([good(2), good(4), good(3)])
    wrong = wrong_outputs(batch)[which]
    message = refusal(lambda: batch.split(wrong), rf"^a {batch.layout} batch .*splits .*; got ")
    assert wrong.is_nested or str(tuple(wrong.shape)) in message


def test_an_unknown_collator_is_refused_with_the_names_of_all() -> None:
    message = refusal(lambda: collator_named("pakced"), r"^unknown collator 'pakced'; choose one of: ")
    assert message.endswith(f": {', '.join(collator.name for collator in COLLATORS)}.")


def test_an_unknown_backend_is_refused_with_the_names_of_all() -> None:
    message = refusal(lambda: backend_named("flash"), r"^unknown backend 'flash'; choose one of: ")
    assert message.endswith(f": {', '.join(backend.name for backend in BACKENDS)}.")


@every_collator
def test_a_collator_is_found_by_its_name(collator: Collator) -> None:
    # As a command line gives it: equal, and another object.
    assert collator_named("".join([*collator.name])) is collator


@every_backend
def test_a_backend_is_found_by_its_name(backend: Backend) -> None:
    assert backend_named("".join([*backend.name])) is backend


@pytest.fixture(scope="module")
def batches() -> dict[str, Batch]:
    """Return one batch of each collator, by its name."""
    made = [Example(ids(length), ids(length)) for length in (2, 4, 3)]
    return {collator.name: collator.build(OPTIONS)(made) for collator in COLLATORS}


def refused_cells(backend: Backend) -> list[tuple[Cell, Device, list[str]]]:
    """Return the cells of `backend` that it does not claim, on each device, or that are unavailable here."""
    found = []
    for cell in all_cells(DRAWN, DRAWN, backends=[backend], dtypes=(torch.float64, torch.float32, torch.bfloat16)):
        for device in DEVICES:
            case = cell.case(device, CONFIG[device])
            reasons = backend.undeclared_reasons(case)
            if device == default_device():
                reasons = backend.unsupported_reasons(case)
            if reasons:
                found.append((cell, device, reasons))
    return found


@every_backend
def test_a_batch_of_another_layout_is_refused(backend: Backend, batches: dict[str, Batch]) -> None:
    """Whatever the case says, the batch itself is looked at."""
    own = next(collator for collator in COLLATORS if collator.layout == backend.layout)
    cell = next(all_cells(DRAWN, DRAWN, backends=[backend], collators=[own]))
    others = [batch for batch in batches.values() if batch.layout != backend.layout]
    assert {batch.layout for batch in others} == {collator.layout for collator in COLLATORS} - {backend.layout}
    for batch in others:
        refusal(
            lambda batch=batch: backend.prepared(batch, cell.case("cpu", CONFIG["cpu"])),
            rf"^{backend.name} needs a {backend.layout} batch; got {batch.layout}\. Use a collator of that layout",
        )


@every_backend
def test_a_batch_of_a_cell_that_is_not_supported_is_refused(backend: Backend, batches: dict[str, Batch]) -> None:
    """Undeclared on any machine, or unavailable here: the message has the backend's name and every reason."""
    refused = refused_cells(backend)
    for cell, device, reasons in refused:
        batch = batches[cell.collator.name]
        case = cell.case(device, CONFIG[device])
        message = refusal(lambda batch=batch, case=case: backend.prepared(batch, case), rf"^{backend.name} ")
        if batch.layout == backend.layout:
            assert all(reason in message for reason in reasons), cell.id
    assert refused


@every_backend
def test_a_batch_of_a_supported_cell_is_not_refused(backend: Backend, batches: dict[str, Batch]) -> None:
    """The other direction, so that refusing everything fails."""
    device = default_device()
    for cell in all_cells(DRAWN, DRAWN, backends=[backend]):
        case = cell.case(device, CONFIG[device])
        if not backend.unsupported_reasons(case):
            # As a worker sends it: equal words, other objects.
            sent = pickle.loads(pickle.dumps(batches[cell.collator.name]))
            backend.prepared(sent.to(device), case)


@every_backend
def test_a_backend_gives_each_reason_in_one_line(backend: Backend) -> None:
    for cell, _, reasons in refused_cells(backend):
        for reason in reasons:
            assert reason.strip() == reason != "", cell.id
            assert "\n" not in reason, cell.id


def test_a_padded_batch_narrower_than_the_backend_takes_is_refused() -> None:
    backend = replace(REFERENCE, min_keys=4)
    collator = next(collator for collator in COLLATORS if collator.layout == backend.layout)
    cell = next(all_cells(DRAWN, DRAWN, backends=[backend], collators=[collator]))
    case = cell.case("cpu", CONFIG["cpu"])

    def batch_of(width: int) -> Batch:
        return collator.build(CollatorOptions(width, PAD_ID, multiple=1))([good(width), good(width)])

    refusal(
        lambda: backend.prepared(batch_of(3), case),
        rf"^{backend.name} needs padded batches of at least 4 columns; got 3\.",
    )
    backend.prepared(batch_of(4), case)


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


#: What collators have done to one field and not to the others.
WRONG_FIELDS: dict[str, Callable[[Tensor], Tensor]] = {
    "padded": lambda field: torch.cat([field, field[..., -1:]], dim=-1),
    "cut": lambda field: field[..., :-1],
    "another dimension": lambda field: field[None],
    "a dimension less": lambda field: field[0],
    "another dtype": lambda field: field.to(torch.int16),
}


@every_collator
@pytest.mark.parametrize("change", WRONG_FIELDS.values(), ids=list(WRONG_FIELDS))
def test_a_batch_with_a_field_unlike_the_others_is_refused_where_it_is_made(
    collator: Collator, change: Callable[[Tensor], Tensor]
) -> None:
    """Else it is an error of shapes deep in the model (LLaMA-Factory#10736)."""
    batch = collator.build(OPTIONS)([good(2), good(4), good(3)])
    for name, right in tensors_of(batch).items():
        wrong = change(right)
        message = refusal(lambda name=name, wrong=wrong: replace(batch, **{name: wrong}), rf"^a {batch.layout} batch ")
        for shape in {tuple(right.shape), tuple(wrong.shape)}:
            assert str(shape) in message
        # All others differ from the row that the ids have.
        assert name in message or name == "input_ids"
        if right.shape == wrong.shape:
            assert f"{name} {right.dtype} ".replace("torch.", "") in message
            assert f"{name} {wrong.dtype} ".replace("torch.", "") in message


@every_collator
@pytest.mark.parametrize(
    "lengths",
    [(2, 4), (2, 4, 3, 1), (2, 4, 3, 0), (2, 4, 13), (2, 4, -3), (2, 4, 3.0), (2, 4, torch.tensor(3)), ()],
    ids=str,
)
def test_a_batch_with_lengths_that_are_not_those_of_its_fields_is_refused(
    collator: Collator, lengths: tuple[Any, ...]
) -> None:
    batch = collator.build(OPTIONS)([good(2), good(4), good(3)])
    refusal(lambda: replace(batch, lengths=lengths), rf"^a {batch.layout} batch ")


@pytest.mark.parametrize(
    ("collator", "field", "values"),
    [
        *[(collator.name, "num_targets", (-1, 10, 9.0, torch.tensor(9))) for collator in COLLATORS],
        *[(collator.name, "padding_side", ("top", None)) for collator in COLLATORS if collator.layout == "padded"],
        ("packed", "max_seqlen", (3, 5, 4.0, torch.tensor(4))),
        # The filler is the longest of its segments.
        ("packed_multiple", "max_seqlen", (4, 6, 8, torch.tensor(7))),
        ("packed", "filler_length", (-1, 1, 0.0, torch.tensor(0))),
        ("packed_multiple", "filler_length", (0, 6, 8, torch.tensor(7))),
    ],
)
def test_a_batch_with_a_wrong_number_is_refused(collator: str, field: str, values: tuple[Any, ...]) -> None:
    batch = collator_named(collator).build(OPTIONS)([good(2), good(4), good(3)])
    for value in values:
        refusal(lambda value=value: replace(batch, **{field: value}), rf"^a {batch.layout} batch .*\bgot .*\. \w")


def test_a_batch_of_empty_sequences_may_be_made_by_hand() -> None:
    """Collators refuse them; rows of a forward that hold no tokens, and segments that do not, are none of theirs."""
    empty = torch.zeros(1, 0, dtype=torch.int64)
    PaddedBatch((0,), 0, empty, empty, empty, empty.bool(), "right")
    for side in ("right", "left"):
        row = torch.zeros(2, 3, dtype=torch.int64)
        rows = PaddedBatch((0, 3), 0, row, row, row, row.bool(), side)
        assert [len(piece) for piece in rows.split(row[..., None])] == [0, 3]
    PackedBatch((0, 0), 0, empty, empty, empty, torch.zeros(3, dtype=torch.int32), 0)
    NestedBatch((0, 0), 0, empty[0], empty[0], empty[0], torch.zeros(3, dtype=torch.int64))


def test_a_nested_batch_splits_no_outputs_of_other_lengths() -> None:
    batch = collator_named("nested").build(OPTIONS)([good(2), good(4), good(3)])
    rows = [torch.zeros(length, 4) for length in (3, 4, 2)]
    for wrong in (
        torch.nested.nested_tensor(rows, layout=torch.jagged),
        torch.nested.nested_tensor([torch.zeros(9, 4)], layout=torch.jagged),
        torch.nested.nested_tensor([torch.zeros(length, 4) for length in (2, 4, 3)], layout=torch.strided),
    ):
        refusal(lambda wrong=wrong: batch.split(wrong), r"^a nested batch splits jagged NestedTensors of lengths")


def test_a_batch_padded_on_another_side_than_the_case_says_is_refused() -> None:
    for backend in BACKENDS:
        if backend.layout == "padded":
            padded = [collator for collator in COLLATORS if collator.layout == "padded"]
            for cell in all_cells(DRAWN, DRAWN, backends=[backend], collators=padded):
                others = [c for c in padded if c.padding_side != cell.collator.padding_side]
                case = cell.case(default_device(), CONFIG[default_device()])
                for other in others:
                    batch = other.build(OPTIONS)([good(2), good(4)])
                    refusal(lambda b=backend, x=batch, c=case: b.prepared(x, c), f"^{backend.name} ")
