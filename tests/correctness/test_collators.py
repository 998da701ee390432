"""Every collator: what goes in comes out, in order, and each layout says where its sequences lie."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from collators import COLLATORS, IGNORE_INDEX, Batch, Collator, CollatorOptions, Example
from collators.collator import Collate
from collators.nested import Nested
from collators.packed import Packed
from collators.packed_multiple import PackedMultiple
from collators.pad_fixed import PadFixed
from collators.pad_left import PadLeft
from collators.pad_longest import PadLongest
from collators.pad_multiple import PadMultiple
from tests.correctness.drawn import CONFIG
from tests.strategies import examples

pytestmark = pytest.mark.correctness

#: A pad id that no fresh tensor holds by chance.
DRAWN = replace(CONFIG["cpu"], pad_id=7)
#: Rounds up some batches and not others; 131 makes a filler that may be the longest segment.
multiples = st.sampled_from([1, 2, 8, 64, 131])
batches = examples(DRAWN)


def options(multiple: int = 8, max_length: int = DRAWN.max_length) -> CollatorOptions:
    return CollatorOptions(max_length, DRAWN.pad_id, multiple)


def of_layout(layout: str | None = None) -> pytest.MarkDecorator:
    chosen = [collator for collator in COLLATORS if layout in (None, collator.layout)]
    return pytest.mark.parametrize("collator", chosen, ids=lambda collator: collator.name)


every_collator = of_layout()


def worked_example() -> list[Example]:
    """Lengths 2, 4, 3, six of the nine targets supervised."""
    return [
        Example(torch.tensor([10, 11]), torch.tensor([20, -100])),
        Example(torch.tensor([12, 13, 14, 15]), torch.tensor([-100, 21, 22, 23])),
        Example(torch.tensor([16, 17, 18]), torch.tensor([24, -100, 25])),
    ]


def as_outputs(ids: Tensor) -> Tensor:
    """Return what a model that repeats its input gives, (..., 1) in the layout of `ids`: exact below 2^24."""
    return torch.nn.functional.embedding(ids, torch.arange(512, dtype=torch.float32)[:, None])


def split_ids(batch: Batch, ids: Tensor) -> list[list[int]]:
    pieces = batch.split(as_outputs(ids))
    assert all(piece.shape == (length, 1) for piece, length in zip(pieces, batch.lengths, strict=True))
    return [piece[:, 0].long().tolist() for piece in pieces]


def supervised_pairs(ids: Tensor, targets: Tensor) -> list[tuple[int, int]]:
    pairs = zip(ids.tolist(), targets.tolist(), strict=True)
    return [(token, target) for token, target in pairs if target != IGNORE_INDEX]


def lengths_of(batch: Sequence[Example]) -> list[int]:
    return [example.input_ids.numel() for example in batch]


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def assert_same(actual: Batch, expected: Batch) -> None:
    """Dataclasses of tensors have no useful `==`."""
    assert type(actual) is type(expected)
    for field in fields(expected):
        got, wanted = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(wanted, Tensor):
            assert got.dtype == wanted.dtype, field.name
            assert torch.equal(got, wanted), field.name
        else:
            assert type(got) is type(wanted), field.name
            assert got == wanted, field.name


@every_collator
@given(batch=batches, multiple=multiples)
def test_a_batch_splits_into_its_sequences_in_order(collator: Collator, batch: list[Example], multiple: int) -> None:
    made = collator.build(options(multiple))(batch)
    assert made.layout == collator.layout
    assert made.lengths == tuple(lengths_of(batch))
    assert split_ids(made, made.input_ids) == [example.input_ids.tolist() for example in batch]


@every_collator
@given(batch=batches, multiple=multiples)
def test_a_batch_restarts_positions_in_every_sequence(collator: Collator, batch: list[Example], multiple: int) -> None:
    made = collator.build(options(multiple))(batch)
    assert split_ids(made, made.position_ids) == [list(range(length)) for length in lengths_of(batch)]


@every_collator
@given(batch=batches, multiple=multiples)
def test_a_batch_keeps_every_token_and_counts_its_slots(
    collator: Collator, batch: list[Example], multiple: int
) -> None:
    made = collator.build(options(multiple))(batch)
    slots = made.flat(as_outputs(made.input_ids)).shape[0]
    assert made.num_tokens == sum(lengths_of(batch))
    assert made.num_slots == slots == made.flat_targets.numel()
    assert made.padded_token_share == pytest.approx((slots - made.num_tokens) / slots, abs=1e-12)


@every_collator
@given(batch=batches, multiple=multiples)
def test_a_batch_supervises_each_token_with_its_own_target(
    collator: Collator, batch: list[Example], multiple: int
) -> None:
    """No target crosses a boundary: the supervised (id, target) pairs are the examples', and no others."""
    made = collator.build(options(multiple))(batch)
    ids = made.flat(as_outputs(made.input_ids))[:, 0].long()
    wanted = [pair for example in batch for pair in supervised_pairs(example.input_ids, example.targets)]
    assert supervised_pairs(ids, made.flat_targets) == wanted
    assert made.num_targets == len(wanted)


@every_collator
@given(batch=batches)
def test_a_batch_of_examples_is_the_same_when_collated_again(collator: Collator, batch: list[Example]) -> None:
    """A collator is seeded by nothing and changes neither its examples nor the random state."""
    collate = collator.build(options())
    kept = [(example.input_ids.clone(), example.targets.clone()) for example in batch]
    state = torch.get_rng_state()
    first, second = collate(batch), collate(batch)
    assert_same(second, first)
    assert torch.equal(torch.get_rng_state(), state)
    for example, (ids, targets) in zip(batch, kept, strict=True):
        assert torch.equal(example.input_ids, ids)
        assert torch.equal(example.targets, targets)


@every_collator
def test_a_batch_is_no_view_of_its_examples(collator: Collator) -> None:
    example = worked_example()[1]
    made = collator.build(options(multiple=4))([example])
    example.input_ids.zero_()
    assert split_ids(made, made.input_ids) == [[12, 13, 14, 15]]


@every_collator
def test_a_batch_moves_to_a_device_whole(collator: Collator) -> None:
    """The meta device is another one that every machine has."""
    made = collator.build(options())(worked_example())
    moved = made.to("meta")
    assert {name: tensor.device.type for name, tensor in tensors_of(moved).items()} == dict.fromkeys(
        tensors_of(made), "meta"
    )
    unmoved = {field.name for field in fields(made)} - tensors_of(made).keys()
    assert all(getattr(moved, name) == getattr(made, name) for name in unmoved)


@every_collator
def test_a_batch_stays_the_same_when_moved_to_where_it_is(collator: Collator) -> None:
    made = collator.build(options())(worked_example())
    assert_same(made.to("cpu"), made)
    assert_same(made.to(torch.device("cpu"), non_blocking=True).to("cpu"), made)


@every_collator
def test_a_batch_is_whole_when_every_tensor_of_it_is_pinned(
    collator: Collator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a GPU can pin: a stand-in tells which tensors were asked to."""
    made = collator.build(options())(worked_example())
    pages: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pages.append(tensor.clone()) or pages[-1])
    pinned = made.pin_memory()
    assert_same(pinned, made)
    assert {id(tensor) for tensor in tensors_of(pinned).values()} == {id(tensor) for tensor in pages}


@every_collator
@pytest.mark.parametrize("non_blocking", [True, False])
def test_a_batch_is_whole_when_every_tensor_of_it_is_moved(
    collator: Collator, non_blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU has nowhere to move to: a stand-in tells which tensors were asked to, whereto and whether to wait."""
    made = collator.build(options())(worked_example())
    copies: list[Tensor] = []
    asked: list[Any] = []

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        asked.append((args, kwargs))
        copies.append(tensor.clone())
        return copies[-1]

    monkeypatch.setattr(Tensor, "to", to)
    moved = made.to("cuda", non_blocking=non_blocking)
    monkeypatch.undo()
    assert_same(moved, made)
    assert {id(tensor) for tensor in tensors_of(moved).values()} == {id(tensor) for tensor in copies}
    assert asked == [(("cuda",), {"non_blocking": non_blocking})] * len(copies)


@every_collator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: only then is memory pinned")
def test_a_batch_is_pinned_whole(collator: Collator) -> None:
    made = collator.build(options())(worked_example())
    (pinned,) = DataLoader(
        worked_example(),  # type: ignore[arg-type]
        batch_size=3,
        collate_fn=collator.build(options()),
        pin_memory=True,
    )
    assert_same(pinned, made)
    assert_same(made.pin_memory(), made)
    for name, tensor in {**tensors_of(pinned), **tensors_of(made.pin_memory())}.items():
        assert tensor.is_pinned(), name


@every_collator
def test_a_collator_is_the_same_after_pickling(collator: Collator) -> None:
    collate = collator.build(options(multiple=4))
    copy = pickle.loads(pickle.dumps(collate))
    assert copy == collate
    assert_same(copy(worked_example()), collate(worked_example()))


@dataclass(frozen=True)
class CollateEveryWay:
    """Makes a batch of every layout at once, so that one start of the workers serves all collators."""

    collates: tuple[Collate, ...]

    def __call__(self, batch: Sequence[Example]) -> list[Batch]:
        return [collate(batch) for collate in self.collates]


def test_a_batch_from_a_worker_equals_the_one_collated_here() -> None:
    """The workers start as the platform starts them; examples come in the sampler's order."""
    generator = torch.Generator().manual_seed(0)
    data = [
        Example(*torch.randint(8, DRAWN.vocab_size, (2, length), generator=generator))
        for length in (2, 4, 3, 1, 1, 8, 130, 5, 64, 65, 7)
    ]
    every_way = CollateEveryWay(tuple(collator.build(options()) for collator in COLLATORS))
    loader: DataLoader[Example] = DataLoader(
        data,  # type: ignore[arg-type]
        batch_size=3,
        collate_fn=every_way,
        num_workers=2,
    )
    loaded = list(loader)
    here = [every_way(data[start : start + 3]) for start in range(0, len(data), 3)]
    assert len(loaded) == len(here) == 4
    for from_worker, made in zip(loaded, here, strict=True):
        for got, wanted in zip(from_worker, made, strict=True):
            assert_same(got, wanted)
            assert split_ids(got, got.input_ids) == split_ids(wanted, wanted.input_ids)


@of_layout("padded")
@given(batch=batches, multiple=multiples)
def test_a_padded_batch_masks_what_is_not_a_token(collator: Collator, batch: list[Example], multiple: int) -> None:
    """Padding lies on the collator's side, holds the pad id, target -100 and position 0, and is masked out."""
    made = collator.build(options(multiple))(batch)
    assert made.padding_side == collator.padding_side
    width = made.input_ids.shape[1]
    assert made.attention_mask.dtype == torch.bool
    for row, length in enumerate(lengths_of(batch)):
        real, padding = [True] * length, [False] * (width - length)
        wanted = padding + real if collator.padding_side == "left" else real + padding
        assert made.attention_mask[row].tolist() == wanted
    padding = ~made.attention_mask
    for name, value in (("input_ids", DRAWN.pad_id), ("targets", IGNORE_INDEX), ("position_ids", 0)):
        tensor = getattr(made, name)
        assert tensor.dtype == torch.int64, name
        assert tensor.shape == padding.shape, name
        assert (tensor[padding] == value).all(), name


Width = Callable[[CollatorOptions, Sequence[int]], int]


@pytest.mark.parametrize(
    ("build", "width"),
    [
        (PadFixed, lambda options, lengths: options.max_length),
        (PadLongest, lambda options, lengths: max(lengths)),
        (PadLeft, lambda options, lengths: max(lengths)),
        (
            PadMultiple,
            lambda options, lengths: next(n for n in range(max(lengths), 10**6) if n % options.multiple == 0),
        ),
    ],
)
@given(batch=batches, multiple=multiples)
def test_a_padded_batch_has_the_width_its_collator_says(
    build: Callable[[CollatorOptions], Collate], width: Width, batch: list[Example], multiple: int
) -> None:
    chosen = options(multiple)
    assert build(chosen)(batch).input_ids.shape == (len(batch), width(chosen, lengths_of(batch)))


@of_layout("packed")
@given(batch=batches, multiple=multiples)
def test_a_packed_batch_says_where_its_segments_lie(collator: Collator, batch: list[Example], multiple: int) -> None:
    made = collator.build(options(multiple))(batch)
    offsets = made.cu_seqlens
    segments = offsets.diff().tolist()
    assert offsets.dtype == torch.int32
    assert offsets[0] == 0
    assert offsets[-1] == made.input_ids.shape[1]
    assert min(segments) > 0
    assert segments[: len(batch)] == lengths_of(batch)
    assert tuple(segments) == made.segment_lengths
    assert type(made.max_seqlen) is int
    assert made.max_seqlen == max(segments)
    for name in ("input_ids", "targets", "position_ids"):
        tensor = getattr(made, name)
        assert tensor.dtype == torch.int64, name
        assert tensor.shape == (1, sum(segments)), name
    # Those of a filler too: no position may pass the longest that the model knows.
    assert made.position_ids[0].tolist() == [at for length in segments for at in range(length)]


def test_a_packed_batch_of_lengths_2_4_3_has_offsets_0_2_6_9() -> None:
    made = Packed(options())(worked_example())
    assert made.cu_seqlens.tolist() == [0, 2, 6, 9]
    assert made.max_seqlen == 4
    assert made.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 0, 1, 2]]
    assert made.targets.tolist() == [[20, -100, -100, 21, 22, 23, 24, -100, 25]]


def test_a_filled_batch_of_lengths_2_4_3_has_offsets_0_2_6_9_16() -> None:
    made = PackedMultiple(options(multiple=8))(worked_example())
    assert made.cu_seqlens.tolist() == [0, 2, 6, 9, 16]
    assert made.max_seqlen == 7
    assert made.filler_length == 7
    assert made.lengths == (2, 4, 3)


@given(batch=batches, multiple=multiples)
def test_a_filled_batch_reaches_the_next_multiple_of_tokens(batch: list[Example], multiple: int) -> None:
    made = PackedMultiple(options(multiple))(batch)
    assert made.num_slots % multiple == 0
    assert 0 <= made.filler_length < multiple
    assert made.num_slots == sum(lengths_of(batch)) + made.filler_length


@given(batch=batches, multiple=multiples)
def test_a_filled_batch_supervises_no_filler(batch: list[Example], multiple: int) -> None:
    """Nor is the filler an output: `split` returns the sequences alone."""
    made = PackedMultiple(options(multiple))(batch)
    tokens = sum(lengths_of(batch))
    assert (made.targets[0, tokens:] == IGNORE_INDEX).all()
    assert (made.input_ids[0, tokens:] == DRAWN.pad_id).all()
    assert len(made.split(as_outputs(made.input_ids))) == len(batch)


@given(batch=batches)
def test_a_batch_that_fits_the_multiple_gets_no_filler(batch: list[Example]) -> None:
    tokens = sum(lengths_of(batch))
    divisors = [n for n in range(1, DRAWN.max_length + 2) if tokens % n == 0]
    for multiple in divisors:
        assert_same(PackedMultiple(options(multiple))(batch), Packed(options(multiple))(batch))


@of_layout("nested")
@given(batch=batches)
def test_a_nested_batch_has_a_row_of_its_own_length_for_each_sequence(collator: Collator, batch: list[Example]) -> None:
    made = collator.build(options())(batch)
    assert made.offsets.dtype == torch.int64
    assert made.offsets.tolist() == [sum(lengths_of(batch)[:at]) for at in range(len(batch) + 1)]
    for name in ("input_ids", "position_ids"):
        tensor = getattr(made, name)
        assert tensor.is_nested, name
        assert tensor.layout == torch.jagged, name
        assert tensor.dtype == torch.int64, name
        assert tensor.ndim == 2, name
        assert [len(row) for row in tensor.unbind()] == lengths_of(batch), name
        assert torch.equal(tensor.offsets(), made.offsets), name
    # Torch adds two NestedTensors only where their ragged dimensions are one.
    assert (made.input_ids + made.position_ids).shape == made.input_ids.shape


@every_collator
def test_a_batch_of_one_token_keeps_every_dimension(collator: Collator) -> None:
    """NestedTensors once dropped one: https://github.com/pytorch/pytorch/issues/130196."""
    made = collator.build(options(multiple=1))([Example(torch.tensor([3]), torch.tensor([4]))])
    assert made.input_ids.ndim == 2
    assert made.input_ids.shape[0] == 1
    assert split_ids(made, made.input_ids) == [[3]]
    assert made.num_targets == 1


@pytest.mark.parametrize(
    ("build", "slots"),
    [
        (PadFixed, 36),
        (PadLongest, 12),
        (PadLeft, 12),
        (PadMultiple, 24),
        (Packed, 9),
        (PackedMultiple, 16),
        (Nested, 9),
    ],
)
def test_a_batch_of_lengths_2_4_3_has_the_padded_share_of_its_layout(
    build: Callable[[CollatorOptions], Collate], slots: int
) -> None:
    """With a maximum of 12 and a multiple of 8."""
    made = build(options(max_length=12))(worked_example())
    assert made.num_slots == slots
    assert made.padded_token_share == pytest.approx(1 - 9 / slots, abs=1e-12)
    assert made.num_targets == 6


@every_collator
def test_a_batch_in_which_nothing_is_supervised_has_no_targets(collator: Collator) -> None:
    made = collator.build(options())([Example(torch.tensor([8, 9]), torch.tensor([IGNORE_INDEX] * 2))])
    assert made.num_targets == 0
    assert (made.flat_targets == IGNORE_INDEX).all()


def test_a_collator_has_a_name_and_a_layout_of_its_own() -> None:
    assert len({collator.name for collator in COLLATORS}) == len(COLLATORS)
    for collator in COLLATORS:
        assert (collator.padding_side is None) == (collator.layout != "padded")
        assert collator.summary
