"""What sessions of tests/meta/sessions.py break, so that there is a red test to report on; each takes a MonkeyPatch."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from model import decoder, steps
from model.attention import BACKENDS, REFERENCE
from model.decoder import Decoder
from model.equivalence import Bounds
from model.reference import Outcome
from tests import known_failures
from tests.correctness import slots
from tests.correctness.attention_bench import AttentionBench, AttentionRun
from tests.correctness.workbench import Workbench
from tests.known_failures import KnownFailure
from tests.meta.faults.fault import everywhere


def attends(patch: pytest.MonkeyPatch, faulty: Callable[..., Tensor]) -> None:
    """Let every backend but the reference return what `faulty` makes of the right function; nothing is compiled, as a
    compilation takes seconds and what is red is so anyway."""
    patch.setattr(Decoder, "compile_blocks", lambda model: None)
    patch.setattr(torch, "compile", lambda function, **options: function)
    for backend in BACKENDS:
        if backend is not REFERENCE:
            right = backend.attend

            def attend(q: Tensor, k: Tensor, *args: Any, right: Any = right, **options: Any) -> Tensor:
                return faulty(lambda: right(q, k, *args, **options), q, k)

            patch.setitem(vars(backend), "attend", attend)


def leak(patch: pytest.MonkeyPatch) -> None:
    """Attention returns something of all tokens, those of other sequences and of padding too, in every batch."""
    attends(patch, lambda right, q, k: 1.1 * right() + q.mean() + k.mean())


def noise(patch: pytest.MonkeyPatch) -> None:
    """Attention returns something else each time."""
    attends(patch, lambda right, q, k: right() * (1 + torch.rand(())))


def another_kernel(patch: pytest.MonkeyPatch) -> None:
    """Attention runs no kernel."""
    attends(patch, lambda right, q, k: q * 1)


def arguments_written_to(patch: pytest.MonkeyPatch) -> None:
    """Attention adds to its queries in place."""

    def faulty(right: Callable[[], Tensor], q: Tensor, k: Tensor) -> Tensor:
        out = right()
        with torch.no_grad():
            q.add_(1)
        return out

    attends(patch, faulty)


def an_error(patch: pytest.MonkeyPatch) -> None:
    """Attention raises what is no assertion."""

    def faulty(right: Callable[[], Tensor], q: Tensor, k: Tensor) -> Tensor:
        raise RuntimeError("a kernel gives up\nand says why in a second line")

    attends(patch, faulty)


def loss_off(patch: pytest.MonkeyPatch) -> None:
    """The loss has something of every logit."""
    right = steps.loss_of
    everywhere(patch, right, lambda batch, logits, *rest: right(batch, logits, *rest) + batch.flat(logits).sum())


def positions_ignored(patch: pytest.MonkeyPatch) -> None:
    """Batches cannot be put at other positions."""
    everywhere(patch, slots.with_positions, lambda batch, positions: batch)


def rotary_positions_absolute(patch: pytest.MonkeyPatch) -> None:
    """Rotary positions are a factor, which differs where all are shifted."""
    everywhere(patch, decoder.rotated, lambda x, rotation: x * rotation.to(x.dtype).unsqueeze(2))


def nothing_refused(patch: pytest.MonkeyPatch) -> None:
    """Attention takes any batch."""
    patch.setattr(AttentionBench, "run", lambda self, given: SimpleNamespace())
    patch.setattr(AttentionRun, "of", lambda *args, **options: SimpleNamespace())


def off(patch: pytest.MonkeyPatch, wrong: Callable[[int], dict[str, float]]) -> None:
    """Let gradients be off by so many times their bound as `wrong` says of a step's number, from 1 on, by name."""
    right_outcome, right_differences = Workbench.outcome_of, Bounds.differences
    step = 0

    def outcome_of(self: Workbench, *args: Any) -> Outcome:
        nonlocal step
        step += 1
        return right_outcome(self, *args)

    def differences(self: Bounds, actual: Outcome, error_factor: float) -> Any:
        gradients = dict(actual.gradients)
        for name, times in wrong(step).items():
            wanted, allowed = self.truth.gradients[name], self.gradients[name].allowed(error_factor)
            moved = torch.zeros_like(wanted)
            moved.view(-1)[0] = times * allowed
            gradients[name] = wanted + moved
        return right_differences(self, replace(actual, gradients=gradients), error_factor)

    patch.setattr(Workbench, "outcome_of", outcome_of)
    patch.setattr(Bounds, "differences", differences)


BIAS, OTHER = "blocks.1.mlp.up.bias", "blocks.0.mlp.up.bias"


def third(step: int) -> bool:
    """Tell whether a step is one of every three."""
    return step % 3 == 0


def bias_off_in_every_third_step(patch: pytest.MonkeyPatch) -> None:
    """A bias gradient is off by twice its bound in every third call."""
    off(patch, lambda step: {BIAS: 2.0} if third(step) else {})


def known(patch: pytest.MonkeyPatch) -> None:
    """The gradient of that bias is known to be wrong now and then."""
    failure = KnownFailure(
        tests=("test_a_batch_equals_the_padded_reference",),
        device="cpu",
        matches={"backend": "sdpa_document_mask"},
        package="torch",
        versions=">=2.0",
        reason="a sum that comes and goes",
        reproduction="some.py",
        tensors=f"gradient of {BIAS}",
    )
    everywhere(patch, known_failures.KNOWN_FAILURES, (failure,))


def known_bias_off_in_every_third_step(patch: pytest.MonkeyPatch) -> None:
    """What is known to come and go does."""
    known(patch)
    bias_off_in_every_third_step(patch)


def known_bias_off_in_no_step(patch: pytest.MonkeyPatch) -> None:
    """What is known to come and go stays away."""
    known(patch)


def known_bias_off_in_every_step(patch: pytest.MonkeyPatch) -> None:
    """The same error repeats, which is another defect."""
    known(patch)
    off(patch, lambda step: {BIAS: 2.0})


def another_bias_off_in_every_third_step(patch: pytest.MonkeyPatch) -> None:
    """What comes and goes is in a tensor where it is not known."""
    known(patch)
    off(patch, lambda step: {OTHER: 2.0} if third(step) else {})


def both_biases_off_in_every_third_step(patch: pytest.MonkeyPatch) -> None:
    """What comes and goes is in the known tensor and in another."""
    known(patch)
    off(patch, lambda step: {BIAS: 2.0, OTHER: 2.0} if third(step) else {})


def another_bias_off_later(patch: pytest.MonkeyPatch) -> None:
    """Batches that fail as known come before one that fails for good."""
    known(patch)
    off(patch, lambda step: {OTHER: 2.0} if step > 30 else {BIAS: 2.0} if third(step) and step < 20 else {})


def known_and_an_error(patch: pytest.MonkeyPatch) -> None:
    """Where a failure comes and goes, an error of another kind is raised."""
    known(patch)
    an_error(patch)
