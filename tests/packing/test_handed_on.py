"""What a layer asks for reaches the backend, and what the adapter does not hand on is refused in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from collators import CollatorOptions, collator_named
from model.attention import backend_named
from model.huggingface.attention import NEEDS, WITHOUT_EFFECT, Attention, attending
from model.huggingface.gpt2 import GPT2_BACKENDS, Gpt2Backend, _through_interface
from model.huggingface.masks import Prepared, Unprepared
from tests.packing.test_gpt2 import batch_of, case_of, examples
from tests.packing.tiny_models import llama

pytestmark = pytest.mark.packing

LENGTHS = (2, 4, 3)
TOKENS = sum(LENGTHS)
POSITIONS = torch.tensor([[0, 1, 0, 1, 2, 3, 0, 1, 2]])

#: Of two kinds, so that a transposed dimension or a copied key shows.
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


@dataclass
class StandIn:
    """A backend that keeps what it is handed, in the place of a kernel."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def attention(self) -> Attention:
        def attend(q: Tensor, k: Tensor, v: Tensor, context: Any, *, scale: float | None = None) -> Tensor:
            self.calls.append({"q": q, "k": k, "v": v, "context": context, "scale": scale})
            return q

        return Attention(replace(backend_named("sdpa_loop"), prepare=lambda batch, case: "the context", attend=attend))


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def heads(number: int = HEADS, tokens: int = TOKENS, rows: int = 1, head_dim: int = HEAD_DIM) -> Tensor:
    return torch.randn(rows, number, tokens, head_dim)


def layer(attention: Attention, dtype: torch.dtype = torch.float32, **asked: Any) -> Tensor:
    """Attend as one layer does that asks for what is `asked`."""
    row = attention.mask(1, TOKENS, causal, q_length=TOKENS, dtype=dtype)
    given = {"query": heads(), "key": heads(KV_HEADS), "value": heads(KV_HEADS), "position_ids": POSITIONS} | asked
    q, k, v = (given.pop(name) for name in ("query", "key", "value"))
    return attention.attend(nn.Identity(), q, k, v, given.pop("attention_mask", row), **given)[0]


@contextmanager
def refused(says: str = "") -> Iterator[None]:
    with pytest.raises(ValueError, match=rf"^varlen_gate_sdpa_loop [^\n]*{says}[^\n]*\.$"):
        yield


@pytest.mark.parametrize("scale", [None, 0.3, 1.0, 0.0])
def test_a_layer_attends_with_the_scale_that_it_asks_for(scale: float | None) -> None:
    stand_in = StandIn()
    layer(stand_in.attention, scaling=scale)
    assert [call["scale"] for call in stand_in.calls] == [scale]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_hands_on_its_heads_and_the_context(dtype: torch.dtype) -> None:
    stand_in = StandIn()
    q, k, v = heads(), heads(KV_HEADS), heads(KV_HEADS)
    out = layer(stand_in.attention, dtype, query=q, key=k, value=v)
    (call,) = stand_in.calls
    # In the dtype of autocast, which leaves rotated queries and keys in float32.
    for got, wanted in ((call["q"], q), (call["k"], k), (call["v"], v)):
        assert got.dtype == dtype
        assert torch.equal(got, wanted.to(dtype).transpose(1, 2))
    assert call["context"] == "the context"
    assert torch.equal(out, call["q"])


@pytest.mark.parametrize("asks", [*NEEDS, "a_word_of_tomorrow"])
@pytest.mark.parametrize("value", [30.0, 0.0, torch.ones(HEADS), True], ids=["number", "zero", "tensor", "true"])
def test_a_layer_that_asks_for_more_is_refused(asks: str, value: Any) -> None:
    stand_in = StandIn()
    with refused(rf"does not support .*, which Identity needs \({asks}\)"):
        layer(stand_in.attention, **{asks: value})
    assert stand_in.calls == []


@pytest.mark.parametrize("asks", NEEDS)
@pytest.mark.parametrize("value", [None, False])
def test_a_layer_that_asks_for_none_of_it_attends(asks: str, value: Any) -> None:
    stand_in = StandIn()
    layer(stand_in.attention, **{asks: value})
    assert len(stand_in.calls) == 1


def test_what_a_layer_needs_is_never_without_effect() -> None:
    assert not NEEDS.keys() & WITHOUT_EFFECT
    # These are named: attend must hand them on or refuse them.
    assert not {"dropout", "scaling", "sliding_window", "is_causal"} & WITHOUT_EFFECT


@pytest.mark.parametrize("window", [1, 3, 4, 5])
def test_a_window_is_refused_where_it_is_shorter_than_a_sequence(window: int) -> None:
    stand_in = StandIn()
    if window >= max(LENGTHS):
        layer(stand_in.attention, sliding_window=window)
        return
    with refused(f"has no sliding window; Identity asks for one of {window}"):
        layer(stand_in.attention, sliding_window=window)
    row = stand_in.attention.mask(1, TOKENS, causal, q_length=TOKENS, local_size=window)
    with refused(f"layers see {window} tokens"):
        layer(stand_in.attention, attention_mask=row)
    assert stand_in.calls == []


@pytest.mark.parametrize("dropout", [0.1, 1.0])
def test_a_layer_with_dropout_is_refused(dropout: float) -> None:
    with refused(f"has no dropout; Identity asks for {dropout}"):
        layer(StandIn().attention, dropout=dropout)


def test_a_model_whose_mask_is_neither_causal_nor_full_is_refused() -> None:
    def window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < 2)

    def prefix(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) | (key < 4)

    for function, says in ((window, "hides the first token"), (prefix, "lets only some tokens see later ones")):
        row = StandIn().attention.mask(1, TOKENS, function, q_length=TOKENS)
        with refused(says):
            layer(StandIn().attention, attention_mask=row)


#: What may be wrong with queries, keys and values beside a row of so many tokens.
OTHER: dict[str, dict[str, Tensor]] = {
    "more keys": {"key": heads(KV_HEADS, TOKENS + 3), "value": heads(KV_HEADS, TOKENS + 3)},
    "fewer keys": {"key": heads(KV_HEADS, TOKENS - 3), "value": heads(KV_HEADS, TOKENS - 3)},
    "more queries": {"query": heads(HEADS, TOKENS + 1)},
    "more values": {"value": heads(KV_HEADS, TOKENS + 1)},
    "fewer values": {"value": heads(KV_HEADS, TOKENS - 1)},
    "other heads of values": {"value": heads(1)},
    "another head dim of values": {"value": heads(KV_HEADS, head_dim=2 * HEAD_DIM)},
    "two rows": {"query": heads(rows=2), "key": heads(KV_HEADS, rows=2), "value": heads(KV_HEADS, rows=2)},
    "two rows of keys": {"key": heads(KV_HEADS, rows=2), "value": heads(KV_HEADS, rows=2)},
    "a longer row": {name: heads(HEADS, TOKENS + 1) for name in ("query", "key", "value")},
    "a shorter row": {name: heads(HEADS, TOKENS - 1) for name in ("query", "key", "value")},
}


@pytest.mark.parametrize("other", OTHER)
def test_a_layer_of_another_shape_than_its_row_is_refused(other: str) -> None:
    stand_in = StandIn()
    with refused(" got "):
        layer(stand_in.attention, **OTHER[other])
    assert stand_in.calls == []


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, TOKENS, TOKENS).bool(), torch.zeros(1, TOKENS), "causal"])
def test_a_layer_with_another_mask_is_refused(mask: Any) -> None:
    with refused("needs the mask of its own mask function; Identity got "):
        layer(StandIn().attention, attention_mask=mask)


@pytest.mark.parametrize(
    "asked",
    [
        {"kv_length": 12, "q_length": 9},
        {"kv_length": 9, "q_length": 12},
        {"kv_length": 9, "q_length": 1},
        {"kv_length": 9, "q_length": 9, "q_offset": 3},
        {"kv_length": 9, "q_length": 9, "q_offset": torch.tensor(3)},
        {"kv_length": 12, "cache_position": torch.arange(9)},
        {"kv_length": 12, "cache_position": torch.arange(3, 12)},
        {"kv_length": 12},
    ],
    ids=str,
)
def test_a_mask_for_other_keys_than_queries_is_refused(asked: dict[str, Any]) -> None:
    with refused("takes whole sequences, not steps from a cache; got "):
        StandIn().attention.mask(1, mask_function=causal, **asked)


def test_a_mask_of_several_rows_is_refused() -> None:
    with refused("got a batch of 2 rows"):
        StandIn().attention.mask(2, TOKENS, causal, q_length=TOKENS)


#: Masks that are not one of a row's own tokens; all of them hide nothing.
WRONG_MASKS = [(1, TOKENS + 1), (1, TOKENS + 9), (1, TOKENS - 1), (1, 1), (2, TOKENS), (TOKENS,), (1, 1, TOKENS)]


@pytest.mark.parametrize("shape", WRONG_MASKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_an_attention_mask_of_another_shape_is_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with refused(rf"takes an attention_mask of the row's shape, \(1, {TOKENS}\); got "):
        StandIn().attention.mask(1, TOKENS, causal, q_length=TOKENS, attention_mask=torch.ones(shape, dtype=dtype))


def test_an_attention_mask_of_the_row_is_taken() -> None:
    row = StandIn().attention.mask(1, TOKENS, causal, q_length=TOKENS, attention_mask=torch.ones(1, TOKENS).bool())
    assert isinstance(row, Unprepared)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("extra", [-1, 1, 9])
def test_a_model_given_an_attention_mask_of_another_width_is_refused(cache: bool, extra: int) -> None:
    made = llama(attn_implementation="eager")
    ids = torch.arange(1, TOKENS + 1)[None]
    mask = torch.ones(1, TOKENS + extra, dtype=torch.long)
    with attending(made, backend_named("sdpa_loop")), refused("; got "):
        made(input_ids=ids, position_ids=POSITIONS, attention_mask=mask, use_cache=cache)


PADDED = [backend for backend in GPT2_BACKENDS if backend.layout == "padded"]
FLATTENED = [backend for backend in GPT2_BACKENDS if backend.layout == "packed" and backend.inner is None]


@pytest.mark.parametrize("backend", PADDED, ids=lambda backend: backend.name)
def test_a_padded_batch_of_gpt2_is_told_its_own_padding(backend: Gpt2Backend) -> None:
    batch: Any = batch_of(backend, examples())
    assert torch.equal(backend.prepare(batch, case_of(backend))["attention_mask"], batch.attention_mask)


#: Without a filler, and with one that is the longest segment.
ROWS = [collator_named(name).build(CollatorOptions(8))(examples((1, 2))) for name in ("packed", "packed_multiple")]


@pytest.mark.parametrize("batch", ROWS, ids=["packed", "packed_multiple"])
@pytest.mark.parametrize("backend", FLATTENED, ids=lambda backend: backend.name)
def test_a_flattened_batch_of_gpt2_is_told_its_own_offsets(backend: Gpt2Backend, batch: Any) -> None:
    told = backend.prepare(batch, case_of(backend))
    wanted = {"cu_seq_lens": batch.cu_seqlens, "max_length": batch.max_seqlen}
    for name, value in told.items():
        assert value is wanted[name.removesuffix("_q").removesuffix("_k")]
    # A kernel takes all four or none.
    assert len(told) in (0, 4)


@pytest.mark.parametrize("batch", ROWS, ids=["packed", "packed_multiple"])
@pytest.mark.parametrize("backend", [b for b in GPT2_BACKENDS if b.inner is not None], ids=lambda b: b.name)
def test_a_context_through_the_interface_says_what_it_is_of(backend: Gpt2Backend, batch: Any) -> None:
    assert backend.inner is not None
    stand_in = replace(backend.inner, prepare=lambda batch, case: (batch, case))
    case = replace(case_of(backend), dtype=torch.bfloat16)
    found = _through_interface(stand_in).prepare(batch, case)
    assert found == Prepared(stand_in.name, (batch, case), True, batch.max_seqlen, torch.bfloat16, batch.num_slots)
