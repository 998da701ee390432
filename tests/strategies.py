"""Hypothesis strategies for ragged batches; they shrink towards one sequence of one token."""

import torch
from hypothesis import strategies as st

from collators import IGNORE_INDEX, Example
from model.decoder import DecoderConfig

#: Kernels work on tiles of 64 and 128 tokens; the lengths beside them are where their last tile is cut.
TILE_EDGES = (63, 64, 65, 127, 128, 129)


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

    def tokens(length: int) -> torch.Tensor:
        ids = torch.randint(config.vocab_size - 1, (length,), generator=generator)
        return ids + (ids >= config.pad_id)

    batch = []
    for length in drawn:
        targets = tokens(length)
        targets[torch.rand(length, generator=generator) < unsupervised] = IGNORE_INDEX
        batch.append(Example(tokens(length), targets))
    return batch
