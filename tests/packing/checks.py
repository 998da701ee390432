"""Whether a family computes of several sequences what it computes of each one alone, for every way to hand them over.

The truth is each sequence alone, with neither padding nor mask, eager and without a cache, in a wider dtype where the
family can be run in one. The same in the dtype that is checked shows what rounding does; a way may be some times as
far off (`Allowance`).
"""

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.huggingface.families import CannotBuild, Family, build, first_line, offline, token_ids
from model.huggingface.implementations import Implementation
from model.huggingface.inputs import ALONE, LENGTHS, Inputs, Way, inputs
from model.reference import full_precision

State = Literal["right", "wrong", "refused"]


@dataclass(frozen=True)
class Allowance:
    """How many times what rounding does to each sequence alone a way may be off, and what rounding does at least.

    `least` is in units of the dtype's roundoff: families are small, and some are exact by luck. Where rounding alone
    moves a family by `unstable`, relative to its logits, nothing can be said of it.
    """

    factor: float
    least: float
    unstable: float


#: In float32 what is right was off by at most 24 times what rounding does, and what is wrong by at least 100,000 times
#: (docs/explanation/how-packing-is-checked.md). Sixteen bits leave less room between the two.
#: Of 23 families bfloat16 moved 21 by at most 0.02, and two, whose experts change, by 0.3 and more.
FULL, HALF = Allowance(factor=300, least=16, unstable=1e-2), Allowance(factor=4, least=1, unstable=5e-2)

#: Gradients of less than this share of the largest one count as if they were so large: some are zero but for rounding.
LEAST_GRADIENT = 1e-2


@dataclass(frozen=True)
class Outcome:
    """Logits of each sequence, the loss (None where the family computes none) and gradients by parameter, float64."""

    logits: list[Tensor]
    loss: float | None
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Errors:
    """How far off logits, loss and gradients are: relative, the worst token and the worst parameter, named `worst`."""

    logits: float
    loss: float
    gradients: float
    worst: str = field(default="", compare=False)

    @property
    def values(self) -> tuple[float, float, float]:
        """All three in order."""
        return self.logits, self.loss, self.gradients


@dataclass(frozen=True)
class Found:
    """What one way gave.

    `errors` are relative errors; `times` is the largest of them in units of what rounding does, of which
    `Allowance.factor` are allowed. `mixed` is how far the logits of a sequence move, relatively, when only others are
    changed: it tells sequences that see each other from positions that are wrong.
    """

    state: State
    errors: Errors | None = None
    times: float = 0.0
    mixed: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Checked:
    """What was found of a family and an implementation; `refusal` is why it could not be run at all."""

    found: Mapping[Way, Found] = field(default_factory=dict)
    start: int = 0
    rounding: Errors | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Bench:
    """A family's truth, and what rounding does to it.

    `labels` tells whether it takes labels, `training` whether it runs in training mode only (dropout is off anyway).
    """

    family: Family
    device: torch.device
    dtype: torch.dtype
    labels: bool
    training: bool
    sequences: list[Tensor]
    truth: Outcome
    rounding: Errors
    start: int


def sequences_of(family: Family) -> list[Tensor]:
    """Return the sequences that a family is checked with."""
    return token_ids(LENGTHS, seed=1)


def bench_of(family: Family, device: torch.device, dtype: torch.dtype) -> Bench:
    """Compute the truth of a family; CannotBuild says why there is none."""
    model = build(family, "eager").to(device, dtype)
    sequences = sequences_of(family)
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    with offline(), full_precision():
        labels, training, reference = first_outcome(model, sequences)
        try:
            truth = alone(deepcopy(model).to(wide), sequences, labels)
        except Exception:
            truth = reference
        if not finite_logits(truth):
            # Some families fix a dtype inside. Their truth is as exact as what is checked, and rounding its least.
            truth = reference
        if not finite_logits(truth):
            raise CannotBuild("its logits are not finite with random weights")
        errors = errors_of(reference, truth)
        floor = allowance(dtype).least * torch.finfo(dtype).eps / 2
        logits, loss, gradients = (max(error, floor) for error in errors.values)
        rounding = Errors(logits, loss, gradients)
        if rounding.logits > allowance(dtype).unstable:
            short = str(dtype).removeprefix("torch.")
            raise CannotBuild(
                f"rounding to {short} alone moves its logits by {rounding.logits:.1e}: nothing can be compared"
            )
        start = first_position(model, sequences, truth, rounding)
    return Bench(family, device, dtype, labels, training, sequences, truth, rounding, start)


def first_outcome(model: nn.Module, sequences: Sequence[Tensor]) -> tuple[bool, bool, Outcome]:
    """Return the outcome of each sequence alone, with labels if that works, else without, else in training mode."""
    takes = "labels" in inspect.signature(model.forward).parameters
    failures: list[str] = []
    for training in (False, True):
        for labels in (True, False) if takes else (False,):
            try:
                return labels, training, alone(model.train(training), sequences, labels)
            except Exception as error:
                failures.append(first_line(error))
    raise CannotBuild(f"does not run on a sequence alone: {failures[0]}")


def run(model: nn.Module, batch: Inputs, labels: bool) -> Outcome:
    """Compute logits, loss and the gradients of the loss (of the logits, weighted, where there is no loss)."""
    batch = batch.to(next(model.parameters()).device)
    arguments = {name: value for name, value in batch.arguments.items() if labels or name != "labels"}
    output = model(**taken(model, arguments))
    logits = batch.split(output.logits)
    loss = getattr(output, "loss", None)
    target = weighted(logits) if loss is None else loss
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(target, list(named.values()), allow_unused=True)
    found = {name: gradient for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
    here = fetched([*logits, *found.values()])
    return Outcome(
        here[: len(logits)],
        None if loss is None else float(loss.detach()),
        dict(zip(found, here[len(logits) :], strict=True)),
    )


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return float64 copies on the CPU, brought there together: where processes share a GPU each transfer waits."""
    flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors]).cpu()
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def weighted(logits: Sequence[Tensor]) -> Tensor:
    """Return a sum of logits, each with a weight of its own, the same for a sequence wherever it stands."""
    return torch.stack(
        [(piece * torch.linspace(-1, 1, piece.numel(), device=piece.device).view_as(piece)).sum() for piece in logits]
    ).sum()


def alone(model: nn.Module, sequences: Sequence[Tensor], labels: bool) -> Outcome:
    """Return the outcome of each sequence alone; losses are means over targets, so each counts with its number."""
    parts = [run(model, inputs(ALONE, [sequence]), labels) for sequence in sequences]
    targets = [len(sequence) - 1 for sequence in sequences]
    with_loss = parts[0].loss is not None
    shares = [number / sum(targets) if with_loss else 1.0 for number in targets]
    gradients: dict[str, Tensor] = {}
    for part, share in zip(parts, shares, strict=True):
        for name, gradient in part.gradients.items():
            gradients[name] = gradients.get(name, torch.zeros_like(gradient)) + share * gradient
    loss = sum(share * part.loss for part, share in zip(parts, shares, strict=True) if part.loss is not None)
    return Outcome([part.logits[0] for part in parts], loss if with_loss else None, gradients)


def errors_of(actual: Outcome, truth: Outcome) -> Errors:
    """Return how far `actual` is off: infinitely where it is not finite, or where a gradient is missing."""
    largest = max(float(wanted.norm(dim=-1).max()) for wanted in truth.logits)
    logits = max(
        float((got - wanted).norm(dim=-1).max()) for got, wanted in zip(actual.logits, truth.logits, strict=True)
    )
    loss = 0.0
    if truth.loss is not None:
        loss = abs((actual.loss if actual.loss is not None else torch.inf) - truth.loss) / max(abs(truth.loss), 1e-6)
    norms = {name: float(wanted.norm()) for name, wanted in truth.gradients.items()}
    least = LEAST_GRADIENT * max(norms.values(), default=1.0)
    gradients, worst, zero = 0.0, "", torch.zeros((), dtype=torch.float64)
    for name in truth.gradients.keys() | actual.gradients.keys():
        difference = float((actual.gradients.get(name, zero) - truth.gradients.get(name, zero)).norm())
        error = finite(difference / max(norms.get(name, 0.0), least))
        if error > gradients:
            gradients, worst = error, name
    return Errors(finite(logits / largest), finite(loss), gradients, worst)


def finite_logits(outcome: Outcome) -> bool:
    """Tell whether all logits are numbers."""
    return all(bool(logits.isfinite().all()) for logits in outcome.logits)


def allowance(dtype: torch.dtype) -> Allowance:
    """Return how far off a way may be in `dtype`."""
    return FULL if dtype in (torch.float32, torch.float64) else HALF


def finite(value: float) -> float:
    """Return `value`, or infinity where it is not a number."""
    return value if value == value else torch.inf


def first_position(model: nn.Module, sequences: Sequence[Tensor], truth: Outcome, rounding: Errors) -> int:
    """Return the position from which the family counts by itself: 0, or what follows its padding id."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return 0
    pad = getattr(model.config, "pad_token_id", None)
    for start in dict.fromkeys((0, (pad or 0) + 1, 2)):
        try:
            with torch.no_grad():
                logits = logits_of(model, inputs(Way("flattened"), sequences[:1], start=start))
        except Exception:
            return 0
        if moved(logits, truth.logits[:1], truth) <= allowance(next(model.parameters()).dtype).factor * rounding.logits:
            return start
    return 0


def logits_of(model: nn.Module, batch: Inputs) -> list[Tensor]:
    """Return the logits of each sequence alone, float64."""
    arguments = {name: value for name, value in batch.arguments.items() if name != "labels"}
    batch = Inputs(arguments, batch.places).to(next(model.parameters()).device)
    return fetched(batch.split(model(**taken(model, batch.arguments)).logits))


def taken(model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without `use_cache` where the model has no cache to use; any other one is its to refuse."""
    parameters = inspect.signature(model.forward).parameters
    cached = "use_cache" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {name: value for name, value in arguments.items() if cached or name != "use_cache"}


def moved(logits: Sequence[Tensor], before: Sequence[Tensor], truth: Outcome) -> float:
    """Return how far the worst token moved, relative to the largest logits."""
    largest = max(float(wanted.norm(dim=-1).max()) for wanted in truth.logits)
    distances = [float((a - b).norm(dim=-1).max()) for a, b in zip(logits, before, strict=True)]
    return finite(max(distances, default=0.0) / largest)


def check(bench: Bench, implementation: Implementation, ways: Sequence[Way] = ()) -> Checked:
    """Hand a family's sequences over to a model that attends with `implementation`, and compare with the truth.

    `ways` are those that the implementation is for where none are given.
    """
    try:
        model = build(bench.family, implementation.built).to(bench.device, bench.dtype)
        model.train(bench.training)
    except CannotBuild as error:
        return Checked(refusal=str(error))
    with offline(), full_precision(), implementation.attending(model):
        found = {way: check_way(bench, model, way) for way in ways or implementation.ways}
    return Checked(found, bench.start, bench.rounding)


def check_way(bench: Bench, model: nn.Module, way: Way) -> Found:
    """Hand over the sequences in one way, compare with the truth, and change some to see whether others move."""
    pad = getattr(model.config, "pad_token_id", None)
    pad_id = pad if isinstance(pad, int) else 0
    # Every other sequence is exchanged for another one of its length.
    others = token_ids(LENGTHS, seed=2)
    changed = [others[i] if i % 2 == 0 else own for i, own in enumerate(bench.sequences)]
    try:
        actual = run(model, inputs(way, bench.sequences, start=bench.start, pad_id=pad_id), bench.labels)
        with torch.no_grad():
            logits = logits_of(model, inputs(way, changed, start=bench.start, pad_id=pad_id))
    except Exception as error:
        return Found("refused", message=first_line(error))
    errors = errors_of(actual, bench.truth)
    mixed = moved(logits[1::2], actual.logits[1::2], bench.truth)
    units = [error / allowed for error, allowed in zip(errors.values, bench.rounding.values, strict=True)]
    times = max(*units, mixed / bench.rounding.logits)
    return Found("right" if times <= allowance(bench.dtype).factor else "wrong", errors, times, mixed)


def checked_with(family: Family, implementations: Sequence[Implementation], device: torch.device) -> dict[str, Checked]:
    """Return what was found of a family with each implementation; CannotBuild where it can be in no dtype of theirs."""
    benches: dict[torch.dtype, Bench | CannotBuild] = {}
    for dtype in dict.fromkeys(each.dtype for each in implementations):
        try:
            benches[dtype] = bench_of(family, device, dtype)
        except CannotBuild as error:
            benches[dtype] = error
    failures = [each for each in benches.values() if isinstance(each, CannotBuild)]
    if failures and len(failures) == len(benches):
        raise failures[0]
    results = {}
    for implementation in implementations:
        bench = benches[implementation.dtype]
        results[implementation.name] = (
            check(bench, implementation) if isinstance(bench, Bench) else Checked(refusal=str(bench))
        )
    return results
