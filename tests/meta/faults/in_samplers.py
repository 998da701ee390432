"""Faults of the batch samplers, alone and in the loaders that deal their batches out, and of files of lengths."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from collators import length_file
from collators.epoch_batches import EpochBatchSampler, EpochPlan, split_to_multiple
from collators.length_buckets import LengthBucketBatchSampler
from collators.token_budget import TokenBudgetBatchSampler
from tests.meta.faults.fault import Faults

SAMPLERS = Faults("samplers")
inject = SAMPLERS.inject

WHOLE = "test_samplers.py::test_an_epoch_has_every_index_once_and_as_many_batches_a_rank"
DEALT = "test_prepared_loaders.py::test_an_epoch_has_every_index_once_and_as_many_batches_a_process"
RESUMED = "test_prepared_loaders.py::test_a_process_gets_what_a_sampler_of_its_rank_gives"
PARQUET = "test_lengths.py::test_a_parquet_file_gives_all_of_a_column_however_it_is_written"
EPOCHS = "test_samplers.py::TestEpochsOfAllRanks"


def planned(patch: pytest.MonkeyPatch, sampler: type[EpochBatchSampler], change: Any) -> None:
    """Let the sampler plan what `change` makes of itself and its right plan."""
    right = sampler._plan

    def plan(self: EpochBatchSampler, generator: np.random.Generator) -> EpochPlan:
        return change(self, right(self, generator))

    patch.setattr(sampler, "_plan", plan)


@inject(WHOLE)
def index_given_twice(patch: pytest.MonkeyPatch) -> None:
    """The first index of an epoch comes in its first batch twice."""
    planned(
        patch,
        TokenBudgetBatchSampler,
        lambda self, plan: replace(plan, batches=((plan.batches[0][0], *plan.batches[0]), *plan.batches[1:])),
    )


@inject(WHOLE)
def index_dropped(patch: pytest.MonkeyPatch) -> None:
    """The last index of an epoch's last batch is dropped, and not named in `dropped`."""
    planned(
        patch,
        LengthBucketBatchSampler,
        lambda self, plan: replace(plan, batches=(*plan.batches[:-1], plan.batches[-1][:-1])),
    )


@inject("test_samplers.py::test_drop_last_drops_what_it_says_and_nothing_else")
def dropped_indices_not_named(patch: pytest.MonkeyPatch) -> None:
    """`dropped` is empty whatever was dropped."""
    planned(patch, TokenBudgetBatchSampler, lambda self, plan: replace(plan, dropped=()))


@inject(WHOLE)
def ranks_with_unequal_batches(patch: pytest.MonkeyPatch) -> None:
    """Batches are not cut for an equal number on every rank."""
    patch.setattr("collators.token_budget.split_to_multiple", lambda batches, lengths, multiple: tuple(batches))


@inject("test_samplers.py::test_a_batch_never_passes_its_token_budget")
def budget_without_padding(patch: pytest.MonkeyPatch) -> None:
    """The cost of a padded batch is the sum of its lengths."""
    right = TokenBudgetBatchSampler._filled

    def filled(self: TokenBudgetBatchSampler, order: Any) -> list[list[int]]:
        padded, self.padded = self.padded, False
        try:
            return right(self, order)
        finally:
            self.padded = padded

    patch.setattr(TokenBudgetBatchSampler, "_filled", filled)


@inject("test_samplers.py::test_a_batch_stays_within_one_bucket")
def bucket_edges_ignored(patch: pytest.MonkeyPatch) -> None:
    """All lengths are in one bucket."""
    patch.setattr("collators.length_buckets.bisect_left", lambda edges, length: 0)


@inject("test_samplers.py::test_order_follows_from_the_pair_of_seed_and_epoch")
def epoch_added_to_the_seed(patch: pytest.MonkeyPatch) -> None:
    """Epoch 1 of seed 0 has the order of epoch 0 of seed 1."""
    right = np.random.PCG64
    patch.setattr(
        "collators.epoch_batches.np.random.PCG64", lambda seed: right(sum(seed) if isinstance(seed, list) else seed)
    )


@inject("test_samplers.py::test_order_follows_from_the_pair_of_seed_and_epoch")
def every_epoch_in_one_order(patch: pytest.MonkeyPatch) -> None:
    """Every epoch has the order of the first."""
    right = EpochBatchSampler._epoch_plan

    def first(self: EpochBatchSampler) -> EpochPlan:
        epoch, self.epoch = self.epoch, 0
        try:
            return right(self)
        finally:
            self.epoch = epoch

    patch.setattr(EpochBatchSampler, "_epoch_plan", first)


@inject(EPOCHS)
def epoch_planned_once(patch: pytest.MonkeyPatch) -> None:
    """The plan of the first epoch asked for is kept for all."""
    right = EpochBatchSampler._epoch_plan

    def kept(self: EpochBatchSampler) -> EpochPlan:
        return right(self) if self._planned is None else self._planned[1]

    patch.setattr(EpochBatchSampler, "_epoch_plan", kept)


@inject(EPOCHS)
def ranks_plan_apart(patch: pytest.MonkeyPatch) -> None:
    """Every rank shuffles with a seed of its own, and takes its share of another order."""
    right = EpochBatchSampler._epoch_plan

    def apart(self: EpochBatchSampler) -> EpochPlan:
        seed, self.seed = self.seed, self.seed + self.rank
        try:
            return right(self)
        finally:
            self.seed = seed

    patch.setattr(EpochBatchSampler, "_epoch_plan", apart)


@inject(DEALT)
def loader_leaves_the_epoch(patch: pytest.MonkeyPatch) -> None:
    """Accelerate finds no `sampler` whose epoch to set: every epoch of its loader is the first."""
    patch.delattr(EpochBatchSampler, "sampler")


@inject(RESUMED, links=("accelerate#4071",))
def resumed_epoch_in_the_order_of_the_first(patch: pytest.MonkeyPatch) -> None:
    """A loader's `set_epoch` reaches a copy of the sampler: an epoch that is resumed has the order of epoch 0."""
    right = EpochBatchSampler.sampler
    patch.setattr(EpochBatchSampler, "sampler", property(lambda self: copy.copy(right.fget(self))))


@inject("test_prepared_loaders.py::test_batches_of_one_rank_are_not_dealt_again")
def batches_dealt_twice(patch: pytest.MonkeyPatch) -> None:
    """Batches of one rank are taken for those of all, and dealt out again: of two ranks' half are lost."""
    patch.delattr(EpochBatchSampler, "batch_size")


@inject(DEALT)
def processes_with_unequal_batches(patch: pytest.MonkeyPatch) -> None:
    """The batches of all ranks are as many as fill up, whatever the number of processes that they are dealt to."""
    right = split_to_multiple

    def split(batches: Any, lengths: Any, multiple: int) -> Any:
        return right(batches, lengths, 1)

    patch.setattr("collators.token_budget.split_to_multiple", split)


@inject(DEALT)
def batch_size_told_of_batches_that_differ(patch: pytest.MonkeyPatch) -> None:
    """Buckets tell how many examples a batch has at most, and accelerate leaves out the steps of shorter ones."""
    patch.setattr(LengthBucketBatchSampler, "batch_size", property(lambda self: self.most_examples))


@inject("test_samplers.py::test_the_batches_of_all_ranks_come_in_turn")
def batches_of_all_ranks_one_rank_after_the_other(patch: pytest.MonkeyPatch) -> None:
    """The batches of all ranks begin with all of rank 0: dealt out in turn, each rank gets those of others."""
    right = EpochBatchSampler.__iter__

    def in_order(self: EpochBatchSampler) -> Any:
        batches = list(right(self))
        if self.rank is not None:
            return iter(batches)
        return iter([batch for rank in range(self.num_replicas) for batch in batches[rank :: self.num_replicas]])

    patch.setattr(EpochBatchSampler, "__iter__", in_order)


@inject("test_samplers.py::test_a_copy_goes_on_in_the_epoch_and_has_its_own")
def copy_starts_again_at_epoch_0(patch: pytest.MonkeyPatch) -> None:
    """A copy of a sampler, as in a worker or a checkpoint, forgets the epoch."""
    patch.setattr(
        EpochBatchSampler,
        "__getstate__",
        lambda self: {**vars(self), "epoch": 0, "_planned": None},
        raising=False,
    )


@inject("test_samplers.py::test_a_copy_goes_on_in_the_epoch_and_has_its_own")
def copy_keeps_the_plan_that_was_made(patch: pytest.MonkeyPatch) -> None:
    """A copy gives the batches that were planned when it was made, whatever epoch it is set to."""

    def state(self: EpochBatchSampler) -> dict[str, Any]:
        plan = self._epoch_plan()
        return {**vars(self), "_plan": lambda generator: plan}

    patch.setattr(EpochBatchSampler, "__getstate__", state, raising=False)


@inject(PARQUET)
def first_row_group_read_alone(patch: pytest.MonkeyPatch) -> None:
    """Of a Parquet file the first row group gives the lengths."""
    patch.setattr("pyarrow.parquet.ParquetFile.read", lambda self, columns: self.read_row_group(0, columns=columns))


@inject("test_lengths.py::test_a_bad_column_is_refused")
def rows_without_a_length_dropped(patch: pytest.MonkeyPatch) -> None:
    """Rows of a Parquet file that hold no length are left out in silence."""
    from pyarrow.parquet import ParquetFile

    right = ParquetFile.read
    patch.setattr(ParquetFile, "read", lambda self, columns: right(self, columns=columns).drop_null())


@inject(PARQUET)
def first_integer_column_whatever_is_named(patch: pytest.MonkeyPatch) -> None:
    """The column that is named is not looked for: lengths in words are taken for tokens."""
    right = length_file._from_parquet
    patch.setattr("collators.length_file._from_parquet", lambda path, file, column: right(path, file, None))


@inject("test_lengths.py::test_an_npy_file_gives_its_integers_however_they_are_written")
def bytes_of_another_order_read_as_they_stand(patch: pytest.MonkeyPatch) -> None:
    """An array of big-endian integers is read as if they were this machine's."""
    right = np.lib.format.read_array

    def read(file: Any, allow_pickle: bool) -> np.ndarray:
        array = right(file, allow_pickle=allow_pickle)
        return array.view(array.dtype.newbyteorder("="))

    patch.setattr("numpy.lib.format.read_array", read)
