"""Hypothesis strategies for ragged batches; they shrink towards one sequence of one token."""

import functools
from dataclasses import replace

import torch
from hypothesis import strategies as st

from collators import IGNORE_INDEX, Example
from model.attention import default_device
from model.decoder import DecoderConfig
from tests.correctness.attention_bench import AttentionInput, Form

#: Kernels work on tiles of 64 and 128 tokens; the lengths beside them are where their last tile is cut.
TILE_EDGES = (63, 64, 65, 127, 128, 129)

#: Query heads and key-value heads. A backend without grouped heads gives every query head its own.
HEADS = ((1, 1), (2, 2), (3, 3), (5, 5), (4, 2), (3, 1), (6, 2))

#: Some builds of some kernels have only 64 and 128.
HEAD_DIMS = (64, 128) if default_device() == "cuda" else (16, 8, 64, 128)

#: Windows of a token alone, of few, and at either side of a tile.
WINDOWS = (1, 2, 5, 63, 64, 65)

#: None leaves the scale out; the others are times 1/sqrt(head dim).
SHARPNESS = (None, 0.5, 2.0)

FORMS: tuple[Form, ...] = ("contiguous", "fused", "heads_first", "shifted", "sliced", "expanded", "repeated")


@functools.cache
def lengths(max_length: int) -> st.SearchStrategy[list[int]]:
    """Draw the lengths of a batch: a few short ones, all equal, one long among short ones, tile edges."""
    short = st.integers(1, 16)
    edges = st.sampled_from([length for length in TILE_EDGES if length <= max_length])
    return st.one_of(
        st.lists(short, min_size=1, max_size=6),
        st.builds(lambda length, count: [length] * count, short, st.integers(2, 4)),
        st.builds(
            lambda long, many, at: [*many[:at], long, *many[at:]],
            st.integers(max_length // 2, max_length),
            st.lists(st.integers(1, 3), min_size=1, max_size=6),
            st.integers(0, 6),
        ),
        st.lists(st.one_of(edges, short), min_size=1, max_size=3),
    )


@st.composite
def examples(draw: st.DrawFn, config: DecoderConfig) -> list[Example]:
    """Draw a batch of sequences for a model of `config`; ids avoid the pad id, some targets are not supervised."""
    drawn = draw(lengths(config.max_length))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    unsupervised = draw(st.sampled_from([0.0, 0.25]))

    total = sum(drawn)
    # Random ids and targets of all sequences at once: a batch is drawn thousands of times.
    ids = torch.randint(config.vocab_size - 1, (2, total), generator=generator)
    inputs, targets = ids + (ids >= config.pad_id)
    targets[torch.rand(total, generator=generator) < unsupervised] = IGNORE_INDEX
    pieces = zip(inputs.split(drawn), targets.split(drawn), strict=True)
    # Of their own, as a dataset gives them.
    return [Example(piece.clone(), target.clone()) for piece, target in pieces]


@st.composite
def attention_inputs(
    draw: st.DrawFn,
    *,
    max_length: int = 130,
    lengths_of: st.SearchStrategy[list[int]] | None = None,
    heads: tuple[tuple[int, int], ...] = HEADS,
    head_dims: tuple[int, ...] = HEAD_DIMS,
    sharpness: tuple[float | None, ...] = SHARPNESS,
    forms: tuple[Form, ...] = ("contiguous", "fused"),
    gradient_forms: tuple[Form, ...] = ("contiguous",),
) -> AttentionInput:
    """Draw queries, keys and values of a batch: lengths, heads, scale, and how they lie in memory.

    How upstream gradients lie is a property of its own: a kernel that goes by how those before them lay would turn any
    test red, as the drawn batches of others will have it.
    """
    drawn = draw(lengths(max_length) if lengths_of is None else lengths_of)
    num_heads, num_kv_heads = draw(st.sampled_from(heads))
    return AttentionInput(
        lengths=tuple(drawn),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from(head_dims)),
        sharpness=draw(st.sampled_from(sharpness)),
        form=draw(st.sampled_from(forms)),
        gradient_form=draw(st.sampled_from(gradient_forms)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def windowed_inputs(draw: st.DrawFn) -> AttentionInput:
    """Draw a window and a batch of sequences that end before it, at it and past it."""
    window = draw(st.sampled_from(WINDOWS))
    around = st.sampled_from([length for length in (window - 1, window, window + 1, 2 * window + 1) if length])
    lengths_of = st.lists(st.one_of(around, st.integers(1, 16)), min_size=1, max_size=4)
    return replace(draw(attention_inputs(lengths_of=lengths_of)), window=window)
