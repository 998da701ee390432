"""A packed row whose slots are shared out over ranks gives what one process gives of the whole row."""

import pytest

from model.cells import Cell
from model.distributed import check_torch_context_parallel
from tests.correctness.workbench import Workbench
from tests.distributed.jobs import Asked, sharded_step
from tests.distributed.ranks import RankFailed, Ranks
from tests.distributed.test_gradients import outcome_of, sequences

pytestmark = [pytest.mark.distributed, pytest.mark.layout("packed")]

#: Boundaries in the middle of a shard, at its end, and one document over all shards.
ROWS = ([5, 1, 40, 3], [12, 12, 12], [70], [1, 2])


def packed(cell: Cell) -> dict[str, object]:
    """Return the cell on rows that are filled up, so that they can be cut evenly."""
    return {**cell.key, "collator": "packed_multiple"}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_over_several_ranks_is_the_row_of_one_process(workbench: Workbench, ranks: Ranks, row: list[int]) -> None:
    examples = sequences(row)
    found = ranks.run(sharded_step, Asked(packed(workbench.cell), "ddp"), examples)
    workbench.assert_right(outcome_of(found), examples)


def test_a_row_that_cannot_be_cut_evenly_is_refused_in_one_line(workbench: Workbench, ranks: Ranks) -> None:
    examples = sequences([ranks.world + 1])
    told = f"needs a row of a multiple of {ranks.world} slots; got {ranks.world + 1}. Use packed_multiple"
    with pytest.raises(RankFailed, match=told):
        ranks.run(sharded_step, Asked(workbench.cell.key, "ddp"), examples)


def test_torchs_own_context_parallel_is_refused_a_row_of_several_sequences(workbench: Workbench) -> None:
    several, one = (workbench.batch(sequences(row)) for row in ([5, 40, 3], [48]))
    with pytest.raises(ValueError, match=r"^torch's context_parallel has no document mask.*got 3. Use attend_gathered"):
        check_torch_context_parallel(several)
    check_torch_context_parallel(one)
