"""Faults of a step on several ranks, and of how it is timed."""

import statistics
import subprocess
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gate.measure import ranks
from gate.record.cell import NoTime
from model import distributed
from model.steps import Result
from tests.distributed import jobs
from tests.meta.faults.fault import Faults, everywhere

RANKS = Faults("ranks")

STEP = "test_gradients.py::test_a_step_of_several_ranks_is_the_step_of_one_process"
MOVED = "test_gradients.py::test_three_clipped_steps_move_every_parameter_as_one_process_does"
FREED = "test_gradients.py::test_a_step_after_a_forward_alone_is_seen_by_the_next_forward"
ROW = "test_context_parallel.py::test_a_row_over_several_ranks_is_the_row_of_one_process"
EPOCH = "test_epoch.py::test_an_epoch_on_several_ranks_ends_where_one_process_does"
SLOWEST = "test_ranks.py::test_the_slowest_rank_is_the_step_and_what_is_no_work_of_it_is_exposed"
WRONG = "test_ranks.py::test_a_rank_that_is_wrong_or_fails_is_the_reason"
EACH = "test_ranks.py::test_each_rank_proves_and_times_a_batch_of_its_own"
PACKED = "sdpa_document_mask-packed-train-causal-float32-eager-drawn"


@RANKS.inject(STEP, PACKED)
def each_rank_has_the_mean_of_its_own_targets(patch: pytest.MonkeyPatch) -> None:
    """Every rank divides by its own number of targets, and gradients are averaged."""

    def own(batches: Any, device: str) -> int:
        return int(sum(batch.num_targets for batch in batches) * dist.get_world_size())

    patch.setattr(distributed, "targets_of_all", own)


@RANKS.inject(STEP, PACKED)
def each_micro_batch_has_the_mean_of_its_own_targets(patch: pytest.MonkeyPatch) -> None:
    """Every micro-batch divides by its own number of targets."""
    right = distributed.forward
    patch.setattr(distributed, "forward", lambda model, backend, batch, case, total: right(model, backend, batch, case))


@RANKS.inject(STEP, PACKED)
def gradients_are_averaged_over_ranks(patch: pytest.MonkeyPatch) -> None:
    """The loss is not multiplied by the number of ranks, and the wrapper's average is taken as it is."""
    right = distributed.forward

    def forward(*arguments: Any) -> Result:
        found = right(*arguments)
        return replace(found, loss=found.loss / dist.get_world_size() + (found.loss * 0).detach())

    patch.setattr(distributed, "forward", forward)


@RANKS.inject(STEP, PACKED)
def the_batch_of_a_rank_is_lost(patch: pytest.MonkeyPatch) -> None:
    """The last rank's loss is of no batch."""
    right = distributed.forward

    def forward(*arguments: Any) -> Result:
        found = right(*arguments)
        return replace(found, loss=found.loss * 0) if dist.get_rank() == dist.get_world_size() - 1 else found

    patch.setattr(distributed, "forward", forward)


@RANKS.inject(STEP, PACKED)
def the_last_uneven_batch_is_run_twice(patch: pytest.MonkeyPatch) -> None:
    """A rank that has no batch left repeats its last one, as DistributedSampler does."""
    right = jobs.batches_of

    def batches_of(cell: Any, mine: Any, multiple: int = 64) -> Any:
        return right(cell, [given or mine[number - 1] for number, given in enumerate(mine)], multiple)

    patch.setattr(jobs, "batches_of", batches_of)


@RANKS.inject(STEP, PACKED)
def gradients_of_one_parameter_are_not_reduced(patch: pytest.MonkeyPatch) -> None:
    """DDP leaves out the bias of the last layer."""
    right = distributed.wrapped

    def wrapped(model: Any, *arguments: Any, **options: Any) -> Any:
        model._ddp_params_and_buffers_to_ignore = ["head.bias"]
        return right(model, *arguments, **options)

    patch.setattr(jobs, "wrapped", wrapped)


@RANKS.inject(STEP, PACKED)
def gradients_are_never_reduced(patch: pytest.MonkeyPatch) -> None:
    """`no_sync` is left on for the last micro-batch too."""
    right = distributed.reduced

    @contextmanager
    def reduced(model: Any, *, now: bool) -> Iterator[None]:
        with right(model, now=False):
            yield

    patch.setattr(distributed, "reduced", reduced)


@RANKS.inject(STEP, PACKED)
def only_the_last_micro_batch_counts(patch: pytest.MonkeyPatch) -> None:
    """Gradients of the micro-batches before the last are dropped."""
    right = distributed.forward

    def forward(model: Any, *arguments: Any) -> Result:
        model.zero_grad(set_to_none=True)
        return right(model, *arguments)

    patch.setattr(distributed, "forward", forward)


@RANKS.inject(MOVED, PACKED)
def each_rank_clips_by_another_norm(patch: pytest.MonkeyPatch) -> None:
    """The last rank clips to a norm of its own."""
    right = torch.nn.utils.clip_grad_norm_

    def clip(parameters: Any, norm: float) -> Any:
        return right(parameters, norm / (1 + dist.get_rank()) if dist.is_initialized() else norm)

    patch.setattr(torch.nn.utils, "clip_grad_norm_", clip)


@RANKS.inject(FREED, PACKED)
def the_root_alone_is_freed(patch: pytest.MonkeyPatch) -> None:
    """Only the root of FSDP2 is freed after a forward without a backward, as its own `reshard` does."""

    def freed(model: Any) -> None:
        if hasattr(model, "reshard"):
            model.reshard()

    patch.setattr(jobs, "freed", freed)


@RANKS.inject(ROW, PACKED)
def boundaries_are_dropped_when_a_row_is_cut(patch: pytest.MonkeyPatch) -> None:
    """Every slot of a row that is shared out belongs to one document."""
    right = distributed.shard_of

    def shard_of(batch: Any, case: Any) -> Any:
        whole = replace(batch, cu_seqlens=batch.cu_seqlens)
        object.__setattr__(whole, "cu_seqlens", batch.cu_seqlens[[0, -1]])
        return right(whole, case)

    patch.setattr(distributed, "shard_of", shard_of)


@RANKS.inject(ROW, PACKED)
def a_shard_sees_its_own_keys_only(patch: pytest.MonkeyPatch) -> None:
    """Keys of other ranks are gathered as zeros."""

    def gathered(shard: torch.Tensor) -> torch.Tensor:
        return torch.cat([shard if rank == dist.get_rank() else shard * 0 for rank in range(dist.get_world_size())], 1)

    patch.setattr(distributed, "gathered", gathered)


@RANKS.inject(ROW, PACKED)
def gathered_keys_have_no_gradient(patch: pytest.MonkeyPatch) -> None:
    """Keys and values of other ranks are gathered without a backward."""

    def gathered(shard: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(shard) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, shard.detach().contiguous())
        parts[dist.get_rank()] = shard
        return torch.cat(parts, 1)

    patch.setattr(distributed, "gathered", gathered)


@RANKS.inject("test_failures.py::test_a_rank_that_fails_is_named_first_and_no_process_is_left")
def processes_are_left_behind(patch: pytest.MonkeyPatch) -> None:
    """The processes of a failed job go on."""
    from tests.distributed.ranks import Processes

    def close(self: Processes) -> None:
        self.processes, self.ends = [], []

    patch.setattr(Processes, "close", close)


@RANKS.inject(EPOCH, PACKED)
def targets_of_the_first_step_counted_for_all(patch: pytest.MonkeyPatch) -> None:
    """Ranks count their targets once, and divide the loss of every later step by those of the first."""
    right = distributed.targets_of_all
    counted: list[int] = []

    def targets_of_all(batches: Any, device: str) -> int:
        if not counted:
            counted.append(right(batches, device))
        return counted[0]

    patch.setattr(distributed, "targets_of_all", targets_of_all)


@RANKS.inject(EPOCH, PACKED)
def gradients_of_the_step_before_kept_on_one_rank(patch: pytest.MonkeyPatch) -> None:
    """The last rank does not drop its gradients after a step, and reduces them once more with those of the next."""
    right = torch.optim.SGD.zero_grad

    def zero_grad(self: torch.optim.SGD, **options: Any) -> None:
        if not dist.is_initialized() or dist.get_rank() < dist.get_world_size() - 1:
            right(self, **options)

    patch.setattr(torch.optim.SGD, "zero_grad", zero_grad)


@RANKS.inject(SLOWEST)
def times_of_ranks_are_averaged(patch: pytest.MonkeyPatch) -> None:
    """A step takes what it takes the ranks on average, and not as long as the slowest."""
    right = ranks.joined

    def joined(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        steps = zip(*(one["wall_ms"] for one in answers), strict=True)
        mean = [statistics.fmean(step) for step in steps]
        return right([{**one, "wall_ms": mean} for one in answers])

    everywhere(patch, right, joined)


def in_each_rank(patch: pytest.MonkeyPatch, code: str) -> None:
    """Let ranks that are timed run `code` first, which knows their module as `rank`: they are fresh processes."""
    program = f"""
import sys
from pathlib import Path
from gate.measure import rank
{code}
sys.exit(rank.main(Path(sys.argv[1]), int(sys.argv[2])))
"""

    def start(command: Sequence[Any], **options: Any) -> "subprocess.Popen[bytes]":
        python, _, _, *arguments = command
        return subprocess.Popen([python, "-c", program, *arguments], **options)

    patch.setattr(ranks, "subprocess", types.SimpleNamespace(**{**vars(subprocess), "Popen": start}))


@RANKS.inject(WRONG)
def proof_of_several_ranks_skipped(patch: pytest.MonkeyPatch) -> None:
    """Ranks time their steps and never compare the first one with that of one process."""
    in_each_rank(patch, "rank.RankBench.mismatches = lambda bench: []")


@RANKS.inject(WRONG)
def proof_of_the_first_rank_alone(patch: pytest.MonkeyPatch) -> None:
    """Rank 0 proves the gradients of its own batch, before those of other ranks are added."""
    in_each_rank(
        patch,
        "rank.RankBench.mismatches = lambda bench: rank.CellBench.mismatches(bench) if bench.truth else []",
    )


@RANKS.inject(EACH)
def ranks_get_the_same_batch(patch: pytest.MonkeyPatch) -> None:
    """All ranks of a step have the batch of the first, and the proof compares with as many copies of it."""
    in_each_rank(
        patch,
        "right = rank.shares_of\n"
        "rank.shares_of = lambda *given, **asked: [step[:1] * len(step) for step in right(*given, **asked)]",
    )


@RANKS.inject(EACH, errors=(NoTime,))
def timed_ranks_divide_by_their_own_targets(patch: pytest.MonkeyPatch) -> None:
    """Steps that are timed divide by the rank's own number of targets, and their gradients are averaged."""
    in_each_rank(
        patch,
        "right = rank.accumulate\n"
        "rank.accumulate = lambda model, backend, batches, case, total: right(\n"
        "    model, backend, batches, case, batches[0].num_targets * rank.dist.get_world_size()\n"
        ")",
    )
