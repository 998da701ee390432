"""The tiles of a packed batch are those that FlexAttention finds itself, which looks at every pair of tokens.

On the CPU only compiled FlexAttention skips tiles: eager, it would not show a wrong one.
"""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from collators import CollatorOptions, Example, collator_named
from collators.batch import PackedBatch
from model.attention.flex_document_mask import BLOCK, document_block_mask
from model.attention.sdpa_document_mask import document_ids

pytestmark = pytest.mark.unit

#: Tiles of one segment, of many, cut by a segment's end, and cut by the end of the row.
LENGTHS = st.lists(
    st.one_of(st.integers(1, 16), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5])),
    min_size=1,
    max_size=5,
)


def tiles(counts: torch.Tensor, indices: torch.Tensor) -> list[list[int]]:
    """Return the columns of the tiles in each row of them, in their order."""
    return [row[:count].tolist() for count, row in zip(counts[0, 0].tolist(), indices[0, 0], strict=True)]


def test_a_packed_batch_of_lengths_2_and_3_has_documents_0_0_1_1_1() -> None:
    ones = [torch.ones(length, dtype=torch.int64) for length in (2, 3)]
    batch = collator_named("packed").build(CollatorOptions(4))([Example(ids, ids) for ids in ones])
    assert isinstance(batch, PackedBatch)
    documents = document_ids(batch)
    assert documents.tolist() == [0, 0, 1, 1, 1]
    # A mask reads two of them for each of its T x T pairs.
    assert documents.dtype == torch.int32


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@given(lengths=LENGTHS, window=st.sampled_from([None, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK]))
# Whole tiles within a window, at its edge, and past it.
@example(lengths=[4 * BLOCK], window=2 * BLOCK - 1)
@example(lengths=[4 * BLOCK], window=2 * BLOCK)
@example(lengths=[4 * BLOCK], window=BLOCK + 1)
def test_a_packed_batch_visits_the_tiles_that_hold_a_pair_and_masks_those_that_are_not_full(
    causal: bool, lengths: list[int], window: int | None
) -> None:
    collate = collator_named("packed").build(CollatorOptions(4 * BLOCK))
    batch = collate(
        [Example(torch.ones(length, dtype=torch.int64), torch.ones(length, dtype=torch.int64)) for length in lengths]
    )
    assert isinstance(batch, PackedBatch)
    documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    total = sum(lengths)

    def visible(batch_index: torch.Tensor, head: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        same = documents[q] == documents[kv]
        near = same if window is None else same & (q - kv < window) & (kv - q < window)
        return near & (q >= kv) if causal else near

    wanted = create_block_mask(visible, None, None, total, total, device="cpu", BLOCK_SIZE=BLOCK)
    found = document_block_mask(batch, causal=causal, window=window)
    assert found.seq_lengths == (total, total)
    assert found.BLOCK_SIZE == (BLOCK, BLOCK)
    assert wanted.full_kv_num_blocks is not None
    assert wanted.full_kv_indices is not None
    assert found.full_kv_num_blocks is not None
    assert found.full_kv_indices is not None
    assert tiles(found.kv_num_blocks, found.kv_indices) == tiles(wanted.kv_num_blocks, wanted.kv_indices)
    assert tiles(found.full_kv_num_blocks, found.full_kv_indices) == tiles(
        wanted.full_kv_num_blocks, wanted.full_kv_indices
    )
    pairs = torch.meshgrid(torch.arange(total), torch.arange(total), indexing="ij")
    zero = torch.zeros((), dtype=torch.int64)
    assert torch.equal(found.mask_mod(zero, zero, *pairs), visible(zero, zero, *pairs))
