"""A batch moves every parameter as it moves those of the reference, step after step."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings

from collators import Batch, Example
from model.attention import Backend, Case, default_device
from model.decoder import Decoder
from model.equivalence import reduction_length
from model.reference import full_precision, padded_reference
from model.steps import train_step
from model.tolerance import Mismatch, mismatch
from tests.correctness.drawn import CONFIG, ONE_OF_EACH_LAYOUT
from tests.correctness.references import Precision, against, moved_tensor
from tests.correctness.workbench import Workbench
from tests.strategies import examples

pytestmark = pytest.mark.correctness

STEPS = 3

#: Large enough that the second step meets other weights than the first.
LEARNING_RATE = 0.1


Updates = dict[str, torch.Tensor]


def moved(before: Decoder, after: Decoder) -> Updates:
    start = dict(before.named_parameters())
    return {name: (parameter - start[name]).detach() for name, parameter in after.named_parameters()}


def moved_updates(truth: Updates, rounded: Updates, wanted: Updates) -> Updates:
    return {name: moved_tensor(truth[name], rounded[name], wanted[name]) for name in truth}


def trained(model: Decoder, backend: Backend, batch: Batch, case: Case) -> Updates:
    """Return how far each parameter is moved by training a copy of `model` on `batch`."""
    copied = copy.deepcopy(model)
    optimizer = torch.optim.SGD(copied.parameters(), lr=LEARNING_RATE)
    with full_precision():
        for _ in range(STEPS):
            train_step(copied, backend, batch, case, optimizer)
            # Held until the next step, they would add to its peak memory.
            assert all(parameter.grad is None for parameter in copied.parameters())
    return moved(model, copied)


def descended(model: Decoder, examples: list[Example], case: Case) -> Updates:
    """Return the same for the reference, from its gradients alone: neither the step nor the optimizer has a part."""
    copied = copy.deepcopy(model)
    for _ in range(STEPS):
        gradients = padded_reference(copied, examples, case).gradients
        with torch.no_grad():
            for name, parameter in copied.named_parameters():
                parameter -= LEARNING_RATE * gradients[name]
    return moved(model, copied)


@pytest.mark.cells(distinct=True, collator=ONE_OF_EACH_LAYOUT, mode=("train",))
@settings(max_examples=settings.default.max_examples // 10)
@given(batch=examples(CONFIG[default_device()]).filter(lambda batch: len(batch) > 1))
def test_three_steps_move_every_parameter_as_the_reference_does(workbench: Workbench, batch: list[Example]) -> None:
    collated = workbench.batch(batch)
    assume(not workbench.refuses(collated))

    def reference(precision: Precision, number: int) -> Updates:
        return workbench.once(
            "updates", lambda model, case: descended(model, batch, case), batch, precision, number=number
        )

    def differences(truth: Updates, known: list[Updates]) -> list[Mismatch]:
        found = [
            mismatch(
                f"update of {name}",
                update,
                truth[name],
                [each[name] for each in known],
                dtype=workbench.cell.dtype,
                error_factor=workbench.cell.backend.error_factor,
                reduction_length=STEPS * reduction_length(workbench.config),
            )
            for name, update in updates.items()
        ]
        return [each for each in found if each]

    updates = trained(workbench.model, workbench.cell.backend, collated, workbench.case)
    workbench.assert_none(against(reference, moved_updates, differences))
