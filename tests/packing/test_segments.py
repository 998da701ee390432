"""What tells the sequences of a row is understood in every shape that people have, and anything else is refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from collators.batch import PackedBatch
from model.attention import Case, backend_named
from model.huggingface.attention import Attention, attending
from model.huggingface.segments import told_segments
from tests.packing.tiny_models import llama

pytestmark = pytest.mark.packing

LENGTHS = (2, 4, 3)
TOKENS = sum(LENGTHS)
CPU = torch.device("cpu")

TOLD: dict[str, Tensor] = {
    "cu_seq_lens_q": torch.tensor([0, 2, 6, 9]),
    "seq_idx": torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2]]),
    "position_ids": torch.tensor([[0, 1, 0, 1, 2, 3, 0, 1, 2]]),
}


def strided(values: Tensor) -> Tensor:
    """Every other element of twice as many; what lies between is no offset of anything."""
    return torch.stack([values, torch.full_like(values, 7)], dim=-1)[..., 0]


@cache
def model() -> nn.Module:
    return llama(attn_implementation="eager")


def recording(found: list[PackedBatch]) -> Attention:
    """Return a backend that keeps the segments that it is prepared with."""
    backend = backend_named("sdpa_loop")

    def prepare(batch: PackedBatch, case: Case) -> Any:
        found.append(batch)
        return backend.prepare(batch, case)

    return Attention(replace(backend, prepare=prepare))


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def by_function(arguments: dict[str, Any]) -> PackedBatch | None:
    return told_segments(arguments, (1, TOKENS), CPU)


def by_layer(arguments: dict[str, Any]) -> PackedBatch:
    """A layer tells it: the mask function was told nothing."""
    found: list[PackedBatch] = []
    attention = recording(found)
    row = attention.mask(1, TOKENS, causal, q_length=TOKENS)
    q, k, v = (torch.randn(1, 2, TOKENS, 8) for _ in range(3))
    attention.attend(nn.Identity(), q, k, v, row, **arguments)
    return found[0]


def by_model(arguments: dict[str, Any]) -> PackedBatch:
    """A model is called with it."""
    found: list[PackedBatch] = []
    with attending(model(), recording(found).backend):
        model()(input_ids=torch.arange(1, TOKENS + 1)[None], **arguments)
    return found[0]


Door = Callable[[dict[str, Any]], PackedBatch]

every_door = pytest.mark.parametrize("door", [by_function, by_layer, by_model], ids=lambda door: door.__name__)
every_name = pytest.mark.parametrize("name", TOLD)


@every_door
@every_name
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("laid", [Tensor.clone, strided], ids=["whole", "strided"])
def test_a_row_is_the_same_however_it_is_told(
    name: str, dtype: torch.dtype, laid: Callable[[Tensor], Tensor], door: Door
) -> None:
    found = door({name: laid(TOLD[name].to(dtype))})
    assert found.cu_seqlens.tolist() == [0, 2, 6, 9]
    assert found.cu_seqlens.dtype == torch.int32
    assert found.cu_seqlens.is_contiguous()
    assert (found.lengths, found.filler_length) == (LENGTHS, 0)
    assert type(found.lengths) is tuple
    assert {type(length) for length in found.lengths} == {int}
    assert (found.max_seqlen, type(found.max_seqlen)) == (max(LENGTHS), int)
    assert found.input_ids.shape == (1, TOKENS)


def test_a_row_of_which_nothing_is_told_is_one_segment() -> None:
    assert by_function({}) is None
    found = by_model({})
    assert (found.lengths, found.cu_seqlens.tolist(), found.cu_seqlens.dtype) == ((9,), [0, 9], torch.int32)


def test_a_row_is_told_by_the_surest_argument() -> None:
    everything = {**TOLD, "seq_idx": torch.zeros(1, TOKENS).long(), "position_ids": torch.arange(TOKENS)[None]}
    assert by_function(everything).lengths == LENGTHS
    assert by_function({**TOLD, "cu_seq_lens_q": None, "position_ids": everything["position_ids"]}).lengths == LENGTHS


def test_a_row_whose_positions_begin_elsewhere_is_the_same() -> None:
    # A family that counts from its padding id has them so.
    assert by_function({"position_ids": TOLD["position_ids"] + 2}).lengths == LENGTHS


def test_a_row_keeps_its_empty_segments() -> None:
    assert by_function({"cu_seq_lens_q": torch.tensor([0, 2, 2, 9, 9])}).lengths == (2, 0, 7, 0)


#: What may be wrong with an argument, whatever it tells: of the right one, a wrong one.
WRONG: dict[str, Callable[[Tensor], Any]] = {
    "of a float": Tensor.float,
    "of a bool": Tensor.bool,
    "of 8 bits": lambda values: values.to(torch.int8),
    "a list": Tensor.tolist,
    "a number": lambda values: values.max(),
    # Qwen2-VL's positions are of time, height and width, or of text and these three.
    "of three planes": lambda values: values.expand(3, *values.shape),
    "of four planes": lambda values: values.expand(4, *values.shape),
    "of a dimension more": lambda values: values[None],
    "of a dimension more behind": lambda values: values[..., None],
    "of two rows": lambda values: values.expand(2, -1),
    "on another device": lambda values: values.to("meta"),
    "too wide": lambda values: torch.cat([values, values[..., -1:] + 1], dim=-1),
    "too narrow": lambda values: values[..., :-1],
    "empty": lambda values: values[..., :0],
}


@every_door
@every_name
@pytest.mark.parametrize("wrong", WRONG)
def test_a_row_that_is_told_wrongly_is_refused_in_a_line(name: str, wrong: str, door: Door) -> None:
    with pytest.raises(ValueError, match=rf"^{name} [^\n]*; got [^\n]*\.$"):
        door({name: WRONG[wrong](TOLD[name])})


@every_door
@pytest.mark.parametrize("name", ["seq_idx", "position_ids"])
def test_a_row_that_is_told_without_its_rows_is_refused(name: str, door: Door) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must have the shape of the row, \(1, 9\); got \(9,\)\. "):
        door({name: TOLD[name][0]})


@every_door
@pytest.mark.parametrize("offsets", [[0, 2, 6, 8], [0, 2, 6, 10], [1, 2, 6, 9], [0, 6, 2, 9], [-1, 2, 9], [9], []])
def test_offsets_that_do_not_rise_from_0_to_the_tokens_are_refused(offsets: list[int], door: Door) -> None:
    with pytest.raises(ValueError, match=r"^cu_seq_lens_q must rise from 0 to the 9 tokens of the row; got "):
        door({"cu_seq_lens_q": torch.tensor(offsets, dtype=torch.int32)})


@every_door
@pytest.mark.parametrize(
    "keys", [torch.tensor([0, 3, 6, 9]), torch.tensor([0, 2, 6, 9, 12]), torch.tensor([0.0, 2.0, 6.0, 9.0]), [0, 9]]
)
def test_a_row_with_other_offsets_for_its_keys_is_refused(keys: Any, door: Door) -> None:
    with pytest.raises(ValueError, match=r"^cu_seq_lens_k must (be|equal) [^\n]*; got [^\n]*\.$"):
        door({"cu_seq_lens_q": TOLD["cu_seq_lens_q"], "cu_seq_lens_k": keys})


@every_name
def test_several_rows_are_no_flattened_row(name: str) -> None:
    with pytest.raises(ValueError, match=r"^flattened sequences lie in one row; got a batch of 2 rows\."):
        told_segments({name: TOLD[name]}, (2, TOKENS), CPU)


@pytest.mark.parametrize("ids", [torch.arange(1, 10), None], ids=["without_rows", "none"])
def test_a_row_without_ids_of_its_shape_is_refused(ids: Tensor | None) -> None:
    with (
        attending(model(), backend_named("sdpa_loop")) as name,
        pytest.raises(ValueError, match=rf"^{name} takes input_ids of \(1, T\), or inputs_embeds of \(1, T, C\); got "),
    ):
        model()(input_ids=ids)
