"""Batch samplers through accelerate's loaders, which deal batches to processes and count epochs themselves."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from collators.epoch_batches import EpochBatchSampler
from collators.token_budget import TokenBudgetBatchSampler
from tests.unit.test_samplers import Batches, MakeSampler, every_sampler, indices_of, many_lengths, ranks_of

pytestmark = pytest.mark.unit

processes = st.integers(1, 4)


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """Accelerate keeps what it knows of the process: here, that it is alone and has a CPU."""
    state = pytest.importorskip("accelerate.state", reason="needs accelerate: pip install '.[accelerate]'")
    state.PartialState(cpu=True)
    yield
    state.GradientState._reset_state()
    state.PartialState._reset_state()


def prepared(sampler: EpochBatchSampler, num_processes: int, process: int, **options: Any) -> Any:
    """Return the loader that accelerate makes for one of `num_processes`; its batches are lists of indices."""
    from accelerate.data_loader import prepare_data_loader

    loader: DataLoader[int] = DataLoader(
        range(len(sampler.lengths)),  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=list,
        num_workers=0,
    )
    options = {"even_batches": False, **options}
    return prepare_data_loader(loader, num_processes=num_processes, process_index=process, **options)


def loaders_of(make: Callable[[], EpochBatchSampler], num_processes: int) -> list[Any]:
    """Return the loaders of all processes, each with a sampler of its own."""
    return [prepared(make(), num_processes, process) for process in range(num_processes)]


@every_sampler
@given(lengths=many_lengths, num_processes=processes, drop_last=st.booleans())
def test_an_epoch_has_every_index_once_and_as_many_batches_a_process(
    make: MakeSampler, lengths: list[int], num_processes: int, drop_last: bool
) -> None:
    def sampler() -> EpochBatchSampler:
        return make(lengths, num_replicas=num_processes, rank=None, drop_last=drop_last)

    loaders = loaders_of(sampler, num_processes)
    dropped = sampler()
    epochs: list[list[Batches]] = []
    for epoch in range(3):
        dropped.set_epoch(epoch)
        ranks = [list(loader) for loader in loaders]
        assert sorted([*indices_of(ranks), *dropped.dropped]) == list(range(len(lengths)))
        assert (
            [len(batches) for batches in ranks] == [len(loader) for loader in loaders] == [len(ranks[0])] * len(ranks)
        )
        assert ranks not in epochs
        epochs.append(ranks)


@every_sampler
@given(lengths=many_lengths, num_processes=processes, epoch=st.integers(0, 5), skipped=st.integers(0, 2))
def test_a_process_gets_what_a_sampler_of_its_rank_gives(
    make: MakeSampler, lengths: list[int], num_processes: int, epoch: int, skipped: int
) -> None:
    """In an epoch that is set, in the rest of one that is resumed, and in the next (accelerate#4071)."""
    from accelerate.data_loader import skip_first_batches

    def wanted(of: int) -> list[Batches]:
        return ranks_of(lambda rank: make(lengths, num_replicas=num_processes, rank=rank), num_processes, of)

    loaders = loaders_of(lambda: make(lengths, num_replicas=num_processes, rank=None), num_processes)
    for loader in loaders:
        loader.set_epoch(epoch)
    resumed = [list(skip_first_batches(loader, skipped)) for loader in loaders]
    assert resumed == [batches[skipped:] for batches in wanted(epoch)]
    assert [list(loader) for loader in loaders] == wanted(epoch)
    assert [list(loader) for loader in loaders] == wanted(epoch + 1)


@every_sampler
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_that_trainer_resumes_goes_on_in_its_epoch(make: MakeSampler, num_processes: int) -> None:
    """Trainer skips batches first, and sets the epoch of a loader that does not pass it on."""
    from accelerate.data_loader import skip_first_batches

    lengths = [1 + 7 * index % 31 for index in range(60)]
    resumed = []
    for process in range(num_processes):
        sampler = make(lengths, num_replicas=num_processes, rank=None)
        sampler.set_epoch(3)
        loader = skip_first_batches(prepared(sampler, num_processes, process), 2)
        loader.set_epoch(3)
        resumed.append(list(loader))
    ranks = ranks_of(lambda rank: make(lengths, num_replicas=num_processes, rank=rank), num_processes, epoch=3)
    assert resumed == [batches[2:] for batches in ranks]


@every_sampler
@pytest.mark.parametrize(("num_replicas", "rank"), [(1, 0), (1, None), (2, 0), (2, 1)])
@pytest.mark.parametrize("even_batches", [True, False])
def test_batches_of_one_rank_are_not_dealt_again(
    make: MakeSampler, num_replicas: int, rank: int | None, even_batches: bool
) -> None:
    """Of one rank of two half would be lost; all of them, given as one rank's, may be of an odd number: a hang."""
    message = (
        r"^a loader that distributes batches needs those of all ranks; "
        rf"got num_replicas={num_replicas} and rank={rank}\. "
        r"Pass num_replicas=accelerator\.num_processes and rank=None\.$"
    )
    for process in range(2):
        with pytest.raises(ValueError, match=message):
            prepared(make([3] * 50, num_replicas=num_replicas, rank=rank), 2, process, even_batches=even_batches)


@every_sampler
def test_a_loader_of_one_process_takes_a_sampler_of_one_rank(make: MakeSampler) -> None:
    loader = prepared(make([3, 14, 8, 1] * 9), 1, 0)
    epochs = [[list(loader)] for _ in range(3)]
    assert epochs == [ranks_of(lambda rank: make([3, 14, 8, 1] * 9), 1, epoch) for epoch in range(3)]


@every_sampler
def test_batches_are_not_cut_among_processes(make: MakeSampler) -> None:
    """Accelerate's `split_batches` cuts equal parts of one batch size, which these do not have."""
    with pytest.raises(ValueError, match="batch_size"):
        prepared(make([3] * 50, num_replicas=2, rank=None), 2, 0, split_batches=True)


@pytest.mark.parametrize(("world", "num_replicas", "right"), [(2, 2, True), (6, 2, True), (3, 2, False), (1, 2, False)])
def test_batches_for_another_number_of_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, world: int, num_replicas: int, right: bool
) -> None:
    """Processes that share a batch, as those of tensor parallelism, make it fewer than all."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    sampler = TokenBudgetBatchSampler([3] * 8, 6, num_replicas=num_replicas, rank=None)
    if right:
        assert len(list(sampler)) == 4
        return
    message = (
        rf"^batches distributed to {world} processes need num_replicas that divides {world}; got {num_replicas}\. Pass"
    )
    with pytest.raises(ValueError, match=message):
        list(sampler)
