"""A batch at the edges of what is allowed: one token, tile edges, one long sequence, very many short ones."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.attention import default_device
from model.cells import Cell, all_cells
from tests.correctness.attention_bench import AttentionBench, AttentionInput
from tests.correctness.drawn import DRAWN, ONE_OF_EACH_LAYOUT
from tests.strategies import HEAD_DIMS, TILE_EDGES, attention_inputs

pytestmark = pytest.mark.correctness

#: On the CPU thousands of sequences take a second a cell.
SINGLE_OR_HALF = (torch.float32,) if default_device() == "cpu" else (torch.float32, torch.bfloat16)
SMALLEST_HEAD = min(HEAD_DIMS)

fewest = settings(max_examples=settings.default.max_examples // 10)


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@fewest
@given(given=attention_inputs(lengths_of=st.just([1])))
def test_a_batch_may_be_one_token(attention: AttentionBench, given: AttentionInput) -> None:
    attention.check(given)


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@fewest
@given(given=attention_inputs(lengths_of=st.integers(2, 70).map(lambda count: [1] * count)))
def test_a_batch_may_hold_single_tokens_only(attention: AttentionBench, given: AttentionInput) -> None:
    attention.check(given)


@pytest.mark.cells(one_of_each="layout", mode=("train",))
def test_a_batch_may_end_at_either_side_of_a_tile(attention: AttentionBench) -> None:
    for index, length in enumerate(TILE_EDGES):
        attention.check(AttentionInput((length,), 1, 1, seed=index))
    attention.check(AttentionInput((*TILE_EDGES[:3], 1), 1, 1, seed=len(TILE_EDGES)))


@pytest.mark.cells(one_of_each="side", mode=("train",))
def test_a_batch_may_be_as_wide_as_a_tile_beside_shorter_sequences(attention: AttentionBench) -> None:
    """The last tile of the widest is whole, and of the others it is padding."""
    for width in (32, 64, 96, 128, 256):
        attention.check(AttentionInput((width, 1, width - 1, 5), 1, 1, SMALLEST_HEAD, seed=width))


@pytest.mark.cells(one_of_each="layout", mode=("train",))
@fewest
@given(given=attention_inputs(), longest=st.integers(250, 260), count=st.integers(1, 20), at=st.integers(0, 20))
# Past a power of two, whatever is drawn.
@example(given=AttentionInput((1,)), longest=259, count=5, at=2)
def test_a_batch_may_hold_one_long_sequence_among_short_ones(
    attention: AttentionBench, given: AttentionInput, longest: int, count: int, at: int
) -> None:
    short = [1 + index % 3 for index in range(count)]
    lengths = (*short[:at], longest, *short[at:])
    attention.check(replace(given, lengths=lengths, num_heads=2, num_kv_heads=2, head_dim=SMALLEST_HEAD))


#: A grid of kernels must hold their number.
MANY = AttentionInput(tuple(1 + index % 3 for index in range(2000)), 1, 1, SMALLEST_HEAD)


@pytest.mark.cells(dtype=SINGLE_OR_HALF, one_of_each="layout", mode=("train",), causal=(True,))
def test_a_batch_may_hold_thousands_of_sequences(attention: AttentionBench) -> None:
    attention.check(MANY)


#: No power of two, so that a read that wraps around at 2^31 meets other numbers.
LARGE = AttentionInput((1023,) * 4, num_heads=16, num_kv_heads=16, head_dim=128)
COPIES = 2**31 // (4 * 1023 * 16 * 128) + 2


def cell_of(cell_id: str) -> Cell:
    return next(cell for cell in all_cells(DRAWN, DRAWN) if cell.id == cell_id)


def copies_differ(cell: Cell | str, given: AttentionInput, copies: int) -> str | None:
    """Return how copies of `given` differ from it, None where they do not, or that the GPU's memory is too small.

    To another process a cell travels as its id: not all backends can be pickled.
    """
    try:
        AttentionBench(cell_of(cell) if isinstance(cell, str) else cell).check_copies(given, copies)
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY
    except (AssertionError, RuntimeError) as error:
        return str(error)
    return None


OUT_OF_MEMORY = "needs more memory than this GPU has: its scores or mask are dense"


@pytest.mark.cells(dtype=(torch.bfloat16,), mode=("train",), causal=(True,))
def test_a_batch_may_have_more_elements_than_32_bits_count(attention: AttentionBench) -> None:
    """Addresses past 2^31: https://github.com/pytorch/pytorch/issues/190857.

    In a process of its own, as a wild address leaves no CUDA context to go on with.
    """
    if default_device() != "cuda" or settings.get_current_profile_name() != "deep":
        pytest.skip("more than 2^31 elements in a tensor: on a CUDA GPU of 80 GB only, with --hypothesis-profile=deep")
    torch.cuda.empty_cache()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        found = process.submit(copies_differ, attention.cell.id, LARGE, COPIES).result()
    if found == OUT_OF_MEMORY:
        pytest.skip(f"{attention.cell.backend.name} {found}")
    assert found is None, found


def test_a_batch_that_differs_from_its_copies_is_told_by_another_process() -> None:
    """What the test above relies on: cells travel there, and what went wrong comes back."""
    every = all_cells(DRAWN, DRAWN, dtypes=(torch.float32,), collators=ONE_OF_EACH_LAYOUT)
    cell = next(cell for cell in every if cell.mode == "train")
    assert cell_of(cell.id) == cell
    astray = replace(cell, backend=replace(cell.backend, attend=wild))
    assert copies_differ(astray, AttentionInput((15,), head_dim=SMALLEST_HEAD), 2) == "a wild address"


def wild(*args: object, **kwargs: object) -> torch.Tensor:
    raise RuntimeError("a wild address")


@pytest.mark.cells(one_of_each="layout", mode=("train",))
def test_a_batch_of_copies_gives_the_same_everywhere(attention: AttentionBench) -> None:
    """What the test above does, on a few elements: no power of two, as there."""
    attention.check_copies(AttentionInput((15,) * 2, head_dim=SMALLEST_HEAD), 3)


@pytest.mark.cells(one_of_each="layout", mode=("train",))
def test_a_batch_with_an_empty_sequence_is_refused(attention: AttentionBench) -> None:
    """Zero-length sequences crash or hang kernels: https://github.com/Dao-AILab/flash-attention/issues/1537."""
    with pytest.raises(ValueError, match=r"^\w+: example 1 is empty; a sequence has at least 1 token\. [^\n]*$"):
        attention.run(AttentionInput((3, 0, 2), head_dim=SMALLEST_HEAD))
