"""Faults of the batch samplers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from collators.epoch_batches import EpochBatchSampler, EpochPlan
from collators.length_buckets import LengthBucketBatchSampler
from collators.token_budget import TokenBudgetBatchSampler
from tests.meta.faults.fault import Faults

SAMPLERS = Faults("samplers")
plant = SAMPLERS.plant

WHOLE = "test_samplers.py::test_an_epoch_has_every_index_once_and_as_many_batches_a_rank"
EPOCHS = "test_samplers.py::TestEpochsOfAllRanks"


def planned(patch: pytest.MonkeyPatch, sampler: type[EpochBatchSampler], change: Any) -> None:
    """Let the sampler plan what `change` makes of itself and its right plan."""
    right = sampler._plan

    def plan(self: EpochBatchSampler, generator: np.random.Generator) -> EpochPlan:
        return change(self, right(self, generator))

    patch.setattr(sampler, "_plan", plan)


@plant(WHOLE)
def index_given_twice(patch: pytest.MonkeyPatch) -> None:
    """The first index of an epoch comes in its first batch twice."""
    planned(
        patch,
        TokenBudgetBatchSampler,
        lambda self, plan: replace(plan, batches=((plan.batches[0][0], *plan.batches[0]), *plan.batches[1:])),
    )


@plant(WHOLE)
def index_dropped(patch: pytest.MonkeyPatch) -> None:
    """The last index of an epoch's last batch is dropped, and not named in `dropped`."""
    planned(
        patch,
        LengthBucketBatchSampler,
        lambda self, plan: replace(plan, batches=(*plan.batches[:-1], plan.batches[-1][:-1])),
    )


@plant("test_samplers.py::test_drop_last_drops_what_it_says_and_nothing_else")
def dropped_indices_not_named(patch: pytest.MonkeyPatch) -> None:
    """`dropped` is empty whatever was dropped."""
    planned(patch, TokenBudgetBatchSampler, lambda self, plan: replace(plan, dropped=()))


@plant(WHOLE)
def ranks_with_unequal_batches(patch: pytest.MonkeyPatch) -> None:
    """Batches are not cut for an equal number on every rank."""
    patch.setattr("collators.token_budget.split_to_multiple", lambda batches, lengths, multiple: tuple(batches))


@plant("test_samplers.py::test_a_batch_never_passes_its_token_budget")
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


@plant("test_samplers.py::test_a_batch_stays_within_one_bucket")
def bucket_edges_ignored(patch: pytest.MonkeyPatch) -> None:
    """All lengths are in one bucket."""
    patch.setattr("collators.length_buckets.bisect_left", lambda edges, length: 0)


@plant("test_samplers.py::test_order_follows_from_the_pair_of_seed_and_epoch")
def epoch_added_to_the_seed(patch: pytest.MonkeyPatch) -> None:
    """Epoch 1 of seed 0 has the order of epoch 0 of seed 1."""
    right = np.random.PCG64
    patch.setattr(
        "collators.epoch_batches.np.random.PCG64", lambda seed: right(sum(seed) if isinstance(seed, list) else seed)
    )


@plant("test_samplers.py::test_order_follows_from_the_pair_of_seed_and_epoch")
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


@plant(EPOCHS)
def epoch_planned_once(patch: pytest.MonkeyPatch) -> None:
    """The plan of the first epoch asked for is kept for all."""
    right = EpochBatchSampler._epoch_plan

    def kept(self: EpochBatchSampler) -> EpochPlan:
        return right(self) if self._planned is None else self._planned[1]

    patch.setattr(EpochBatchSampler, "_epoch_plan", kept)


@plant(EPOCHS)
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
