"""A sampler from outside (`pytest -m packing --sampler SPEC`) gives every index once an epoch, also through loaders."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.packing.outside_parts import EXAMPLES, part_asked
from tests.packing.sampled import Batches, Make, batches_of, counts_wrong, indices_wrong, ranks_taken, samplers_of

pytestmark = pytest.mark.packing

#: As many examples as fill several batches of every usual size.
drawn = st.lists(st.integers(1, 32), min_size=64, max_size=120)


@pytest.fixture(scope="module")
def make(pytestconfig: pytest.Config) -> Make:
    return part_asked(pytestconfig, "sampler")


@pytest.mark.parametrize("ranks", [1, 2, 3], ids=lambda ranks: f"{ranks} ranks")
def test_an_epoch_has_every_index_once_over_all_ranks(make: Make, ranks: int) -> None:
    if ranks_taken(make, ranks) < ranks:
        pytest.skip("it takes no num_replicas and rank")

    @given(lengths=drawn, epoch=st.integers(0, 3))
    def check(lengths: list[int], epoch: int) -> None:
        samplers = samplers_of(make, lengths, ranks)
        batches = [batches_of(sampler, epoch) for sampler in samplers]
        wrong = indices_wrong(batches, getattr(samplers[0], "dropped", ()), len(lengths))
        assert not wrong, f"{len(lengths)} examples, {ranks} ranks: {'; '.join(wrong)}"

    check()


@pytest.mark.parametrize("ranks", [1, 2, 3], ids=lambda ranks: f"{ranks} ranks")
def test_every_rank_has_as_many_batches_and_says_how_many(make: Make, ranks: int) -> None:
    if ranks_taken(make, ranks) < ranks:
        pytest.skip("it takes no num_replicas and rank")
    samplers = samplers_of(make, EXAMPLES, ranks)
    batches = [batches_of(sampler) for sampler in samplers]
    wrong = counts_wrong(batches, [len(sampler) for sampler in samplers])
    assert not wrong, "; ".join(wrong)


def test_an_epoch_is_the_same_again(make: Make) -> None:
    if not hasattr(make(EXAMPLES), "set_epoch"):
        pytest.skip("it has no set_epoch")
    first, *_ = epochs = [batches_of(make(EXAMPLES), epoch) for epoch in (0, 1, 2)]
    assert [batches_of(make(EXAMPLES), epoch) for epoch in (0, 1, 2)] == epochs
    sampler = make(EXAMPLES)
    batches_of(sampler, 2)
    assert batches_of(sampler, 0) == first, "epoch 0 is another after epoch 2"


def test_a_dataloader_with_two_workers_gives_the_same_batches(make: Make) -> None:
    loader = loader_of(make(EXAMPLES), num_workers=2)
    assert list(loader) == batches_of(make(EXAMPLES))


def test_accelerate_deals_every_index_to_two_processes(make: Make) -> None:
    state = pytest.importorskip("accelerate.state", reason="needs accelerate: pip install '.[accelerate]'")
    from accelerate.data_loader import prepare_data_loader

    state.PartialState(cpu=True)

    def ranks_of(sampler: Callable[[], Any]) -> list[Batches]:
        return [
            list(prepare_data_loader(loader_of(sampler()), num_processes=2, process_index=rank, even_batches=False))
            for rank in range(2)
        ]

    def whole() -> Any:
        return make(EXAMPLES)

    def for_two() -> Any:
        return make(EXAMPLES, num_replicas=2, rank=None)

    try:
        try:
            sampler, ranks = whole, ranks_of(whole)
        except ValueError:
            # It asks for the number of processes, as ours does.
            sampler, ranks = for_two, ranks_of(for_two)
        wrong = indices_wrong(ranks, getattr(sampler(), "dropped", ()), len(EXAMPLES))
        assert not wrong, "; ".join(wrong)
    finally:
        state.GradientState._reset_state()
        state.PartialState._reset_state()


def loader_of(sampler: Any, **more: Any) -> DataLoader[int]:
    """Return a loader whose batches are the indices themselves."""
    data: Sequence[int] = range(len(EXAMPLES))
    return DataLoader(data, batch_sampler=sampler, collate_fn=list, **more)  # type: ignore[arg-type]
