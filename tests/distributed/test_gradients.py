"""Gradients on several ranks are those of one process on all sequences, whoever has which."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import device_mesh, fsdp

from collators import CollatorOptions, Example
from model import distributed
from model.attention import REFERENCE, default_device
from model.distributed import HOWS, How, blocks_at_once, wrapped
from model.equivalence import reduction_length
from model.reference import REFERENCE_COLLATOR, Outcome, full_precision, reference_case
from model.steps import forward
from model.tolerance import bound
from tests.correctness.drawn import CONFIG
from tests.correctness.references import decoder, weight_dtype
from tests.correctness.slots import unsupervised
from tests.correctness.workbench import Workbench
from tests.distributed.jobs import (
    RATE,
    Asked,
    Shares,
    Step,
    Trained,
    evaluated_before_a_step,
    groups_of_fsdp2,
    step,
    trained,
)
from tests.distributed.ranks import Ranks

pytestmark = pytest.mark.distributed


def sequences(lengths: Sequence[int], seed: int = 0) -> list[Example]:
    config = CONFIG[default_device()]
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, config.vocab_size, (length + 1,), generator=generator) for length in lengths]
    return [Example(row[:-1], row[1:]) for row in rows]


def lengths(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(1, 70) for _ in range(count)]


def as_they_come(world: int, seed: int = 0) -> Shares:
    """Two sequences for each of two micro-batches of every rank."""
    given = sequences(lengths(4 * world, seed), seed)
    return [[given[4 * rank : 4 * rank + 2], given[4 * rank + 2 : 4 * rank + 4]] for rank in range(world)]


def balanced(world: int) -> Shares:
    """The longest first, each to the rank with the fewest tokens."""
    ranks: list[list[Example]] = [[] for _ in range(world)]
    for example in sorted(sequences(lengths(4 * world, 1), 1), key=lambda each: -len(each.input_ids)):
        min(ranks, key=lambda each: sum(len(one.input_ids) for one in each)).append(example)
    return [[each] for each in ranks]


def uneven(world: int) -> Shares:
    """One token on the first rank, five sequences on the last."""
    return [
        [sequences([1])],
        *([sequences([9, 4], rank)] for rank in range(1, world - 1)),
        [sequences([40] * 5, world)],
    ]


def unsupervised_rank(world: int) -> Shares:
    """No target counts on the first rank."""
    shares = [[list(given) for given in rank] for rank in as_they_come(world, 2)]
    shares[0] = [[unsupervised(example) for example in given] for given in shares[0]]
    return shares


def without_a_batch(world: int) -> Shares:
    """The last rank has no second batch, as at the end of an epoch."""
    shares = [list(rank) for rank in as_they_come(world, 3)]
    shares[-1][1] = []
    return shares


SHARED: tuple[Callable[[int], Shares], ...] = (as_they_come, balanced, uneven, unsupervised_rank, without_a_batch)


def widened(shares: Shares, fewest: int) -> Shares:
    """Return shares with `fewest` tokens in each sequence of a batch that has none so long."""
    return [
        [given if widest(given) >= fewest else sequences([fewest] * len(given)) for given in rank] for rank in shares
    ]


def widest(given: Sequence[Example]) -> int:
    return max((len(each.input_ids) for each in given), default=0)


def joined(shares: Shares) -> list[Example]:
    return [example for rank in shares for given in rank for example in given]


def outcome_of(found: Sequence[Step]) -> Outcome:
    """Return what all ranks computed as the outcome of one process."""
    device = default_device()
    loss = torch.stack([each.loss.double() for each in found]).sum().to(found[0].loss.dtype)
    gradients = {name: one.to(device) for name, one in found[0].gradients.items()}
    return Outcome([piece.to(device) for each in found for piece in each.logits], loss.to(device), gradients)


@pytest.mark.parametrize("shared", SHARED, ids=lambda each: each.__name__)
@pytest.mark.parametrize("how", HOWS)
def test_a_step_of_several_ranks_is_the_step_of_one_process(
    workbench: Workbench, ranks: Ranks, how: How, shared: Callable[[int], Shares]
) -> None:
    shares = widened(shared(ranks.world), workbench.cell.backend.min_keys)
    found = ranks.run(step, Asked(workbench.cell.key, how), shares)
    workbench.assert_right(outcome_of(found), joined(shares))
    for other in found[1:]:
        assert all(torch.equal(other.gradients[name], one) for name, one in found[0].gradients.items())


@pytest.mark.layout("packed", first=True, narrow=True)
@pytest.mark.parametrize("how", HOWS)
def test_a_step_in_16_bits_is_the_step_of_one_process(workbench: Workbench, ranks: Ranks, how: How) -> None:
    shares = as_they_come(ranks.world)
    found = ranks.run(step, Asked(workbench.cell.key, how), shares)
    workbench.assert_right(outcome_of(found), joined(shares))


@pytest.mark.parametrize("how", HOWS)
def test_three_clipped_steps_move_every_parameter_as_one_process_does(
    workbench: Workbench, ranks: Ranks, how: How
) -> None:
    steps, clip = [as_they_come(ranks.world, seed) for seed in (4, 5, 6)], 0.5
    # FSDP2 of single blocks frees them after the forward, and gathers them anew.
    options = {"blocks_a_group": 1} if how == "fsdp2" else {}
    found = ranks.run(trained, Asked(workbench.cell.key, how, options), steps, clip)
    batches = [joined(shares) for shares in steps]
    truth, own = (alone(workbench, batches, clip, dtype) for dtype in (torch.float64, torch.float32))
    assert_moved_alike(workbench, found, truth, [own])


@pytest.mark.parametrize(
    ("blocks", "group_bytes", "size"), [(24, 2**31, 12), (24, 300, 3), (24, 99, 1), (5, 2**31, 3), (1, 2**31, 1)]
)
def test_fsdp2_gathers_half_of_the_blocks_at_once_and_fewer_of_large_ones(
    monkeypatch: pytest.MonkeyPatch, blocks: int, group_bytes: int, size: int
) -> None:
    monkeypatch.setattr(distributed, "GROUP_BYTES", group_bytes)
    assert blocks_at_once([nn.Linear(5, 5, bias=False)] * blocks) == size


@pytest.mark.layout("packed", first=True)
def test_fsdp2_shards_in_groups(workbench: Workbench, ranks: Ranks) -> None:
    blocks = workbench.config.num_layers
    halves = 2 if blocks > 1 else 1
    for options, groups in (({}, halves + 1), ({"blocks_a_group": 1}, blocks + 1), ({"blocks_a_group": blocks}, 2)):
        asked = Asked(workbench.cell.key, "fsdp2", options)
        assert ranks.run(groups_of_fsdp2, asked) == [groups] * ranks.world


@pytest.mark.parametrize(("device", "narrow"), [("cuda", True), ("cpu", False)])
def test_fsdp2_gathers_blocks_in_16_bits_on_gpus_and_keeps_the_last_ones(
    monkeypatch: pytest.MonkeyPatch, device: str, narrow: bool
) -> None:
    calls: list[dict[str, Any]] = []
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    monkeypatch.setattr(fsdp, "fully_shard", lambda modules, **options: calls.append({"of": modules, **options}))
    monkeypatch.setattr(device_mesh, "init_device_mesh", lambda *given: "mesh")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    wrapped(model, "fsdp2", device, dtype=torch.bfloat16)
    first, last, root = calls
    assert (first["of"], last["of"], root["of"]) == ([*model.blocks[:2]], [*model.blocks[2:]], model)
    assert [call.get("reshard_after_forward") for call in calls] == [None, False, None]
    policy = fsdp.MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if narrow else None
    assert [call.get("mp_policy") for call in calls] == [policy, policy, None]


@pytest.mark.layout("packed", first=True)
def test_a_step_after_a_forward_alone_is_seen_by_the_next_forward(workbench: Workbench, ranks: Ranks) -> None:
    shares = as_they_come(ranks.world)
    losses = [ranks.run(evaluated_before_a_step, Asked(workbench.cell.key, how), shares)[0] for how in ("ddp", "fsdp2")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(("how", "blocks"), [("ddp", 2), ("fsdp2", 0)])
def test_a_number_of_blocks_that_no_group_has_is_refused(how: How, blocks: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^blocks_a_group is a number from 1 on, of fsdp2; got {blocks} for {how}\.$"
    ):
        wrapped(nn.Linear(1, 1), how, "cpu", blocks_a_group=blocks)


def alone(
    workbench: Workbench, batches: Sequence[Sequence[Example]], clip: float | None, dtype: torch.dtype
) -> Trained:
    """Take the same steps in one process, with the reference on all sequences of a step at once."""
    case = reference_case(workbench.case, dtype)
    model = decoder(workbench.config, REFERENCE, weight_dtype(dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    collate = REFERENCE_COLLATOR.build(CollatorOptions(workbench.config.max_length, workbench.config.pad_id))
    losses = []
    for examples in batches:
        batch = collate(examples).to(case.device)
        with full_precision():
            result = forward(model, REFERENCE, batch, case)
            result.loss.backward()
        losses.append(result.loss.detach())
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Trained({name: one.detach() for name, one in model.named_parameters()}, torch.stack(losses))


def assert_moved_alike(
    workbench: Workbench, found: Sequence[Trained], truth: Trained, references: Sequence[Trained]
) -> None:
    """Fail where parameters of a rank, or the loss of a step, are further off than the references' rounding explains,
    or where two ranks have other parameters."""
    length = len(truth.losses) * reduction_length(workbench.config)
    losses = torch.stack([each.losses.double() for each in found]).sum(0)
    wanted = {"loss of each step": truth.losses, **truth.parameters}
    for name, value in wanted.items():
        rounded = [each.parameters.get(name, each.losses) for each in references]
        known = bound(name, value, rounded, dtype=workbench.cell.dtype, reduction_length=length)
        actual = found[0].parameters.get(name, losses)
        assert known.mismatch(actual.to(value.device), workbench.cell.backend.error_factor) is None
        assert all(torch.equal(each.parameters[name], actual) for each in found[1:] if name in each.parameters)
