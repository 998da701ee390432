"""A batch is computed by the kernel that the backend declares: seen in torch's profiler, not assumed."""

import pickle
import re

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from collators import Collator, CollatorOptions, Example, collator_named
from model.attention import BACKENDS, backend_named, default_device
from model.cells import Cell
from tests.correctness.attention_bench import AttentionBench, AttentionInput
from tests.correctness.drawn import CONFIG, DRAWN

pytestmark = pytest.mark.correctness

GIVEN = AttentionInput((5, 2, 33))

#: Padding on either side.
PADDED = tuple(map(collator_named, ("pad_longest", "pad_left")))


def named(operator: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether one of `patterns` is the name of `operator`."""
    return any(re.fullmatch(pattern, operator) for pattern in patterns)


def operators_of(attention: AttentionBench) -> set[str]:
    """Return the names of all operators that one run of the cell dispatches."""
    run = attention.run(GIVEN.fitted(attention.cell.backend))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run.results()
    return {event.key for event in profiler.key_averages()}


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("collator", PADDED, ids=lambda collator: collator.name)
def test_a_batch_has_a_mask_only_where_one_is_needed(collator: Collator, causal: bool) -> None:
    """Fused kernels take causality without a mask faster, and some take no mask; a batch may come from a worker."""
    example = Example(torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64))
    batch = pickle.loads(pickle.dumps(collator.build(CollatorOptions(4))([example])))
    cell = Cell(backend_named("sdpa_padded"), collator, "eval", causal, torch.float32, "eager", DRAWN, DRAWN)
    context = cell.backend.prepared(batch, cell.case("cpu", CONFIG["cpu"]))
    needless = causal and collator.padding_side == "right"
    assert ((context.mask is None), context.is_causal) == (needless, needless)


# What a function from outside runs is not declared.
@pytest.mark.cells(one_of_each="layout", where=lambda cell: bool(cell.backend.kernels) or not cell.backend.spec)
def test_a_batch_runs_the_declared_kernel(attention: AttentionBench) -> None:
    backend = attention.cell.backend
    own = backend.kernels.get(default_device(), ())
    assert own, f"{backend.name} names no kernel on {default_device()}: add what torch.profiler shows to its record"
    others = tuple(p for other in BACKENDS for patterns in other.kernels.values() for p in patterns)
    ran = operators_of(attention)
    kernels = sorted(operator for operator in ran if named(operator, (*own, *others)))
    assert any(named(kernel, own) for kernel in kernels), (
        f"{backend.name} ran none of {own}, but {kernels or sorted(ran)}"
    )
    strangers = [kernel for kernel in kernels if not named(kernel, own)]
    assert not strangers, f"{backend.name} ran {strangers} beside {own}"
