"""What the reference computes of drawn batches, kept for all the cells that meet the same ones."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from collators import Example
from model.attention import REFERENCE, Backend, default_device
from model.decoder import Decoder, DecoderConfig
from model.equivalence import Bounds, bounds
from model.models import ProvedModel, seeded_model
from model.reference import Outcome, with_backend
from model.tolerance import Mismatch

T = TypeVar("T")

#: The reference in float64, or in the cell's own dtype.
Precision = Literal["truth", "own"]

#: What the reference computes, in a model of a number: 0 has the cell's weights, the others are rounded in another way.
Reference = Callable[[Precision, int], T]

#: In so many ways the reference is rounded before a cell is red.
ROUNDINGS = 4

#: Enough for 20 examples in both modes, causal and not, in float64 and in two dtypes, and for the bounds of the two.
KEPT = 416


def decoder(config: DecoderConfig, backend: Backend, dtype: torch.dtype = torch.float32) -> ProvedModel:
    """Return a model with the same weights at every call; queries and keys of the decoder are larger, so that attention
    is peaked."""
    model = seeded_model(config, backend, device=default_device(), dtype=dtype)
    if isinstance(model, Decoder):
        with torch.no_grad():
            for block in model.blocks:
                block.qkv.weight.mul_(3)
                block.qkv.bias.mul_(3)
    return model


def weight_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the parameters of a cell in `dtype`: 16-bit cells are autocast over float32."""
    return dtype if dtype == torch.float64 else torch.float32


def nudged(model: ProvedModel, dtype: torch.dtype, seed: int) -> ProvedModel:
    """Return a copy of `model` whose weights are moved at random by up to half a unit in the last place of `dtype`.

    All that follows is as good, and rounded in another way.
    """
    copied = deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copied.parameters():
            moves = torch.rand(parameter.shape, generator=generator, dtype=torch.float64).to(parameter) * 2 - 1
            parameter.mul_(1 + moves * torch.finfo(dtype).eps / 2)
    return copied


def against(
    reference: Reference[T], moved: Callable[[T, T, T], T], compare: Callable[[T, list[T]], list[Mismatch]]
) -> list[Mismatch]:
    """Return what `compare` finds to differ from the truth, given how far off several roundings of the reference are.

    `moved(truth, rounded, wanted)` is the truth, as far off as `rounded` is from `wanted`. More roundings can only
    widen a bound, so that they are computed for those alone that the first would call wrong.
    """
    truth, known = reference("truth", 0), [reference("own", 0)]
    while (found := compare(truth, known)) and len(known) < ROUNDINGS:
        number = len(known)
        known.append(moved(truth, reference("own", number), reference("truth", number)))
    return found


def moved_tensor(truth: Tensor, rounded: Tensor, wanted: Tensor) -> Tensor:
    """Return `truth`, as far off as `rounded` is from `wanted`."""
    return truth.double() + (rounded.double() - wanted.double())


def moved_outcome(truth: Outcome, rounded: Outcome, wanted: Outcome) -> Outcome:
    """Return `truth`, as far off in every tensor as `rounded` is from `wanted`."""
    logits = [moved_tensor(*each) for each in zip(truth.logits, rounded.logits, wanted.logits, strict=True)]
    gradients = {
        name: moved_tensor(each, rounded.gradients[name], wanted.gradients[name])
        for name, each in truth.gradients.items()
    }
    return Outcome(logits, moved_tensor(truth.loss, rounded.loss, wanted.loss), gradients)


def content(examples: Sequence[Example]) -> Hashable:
    """Return tokens and targets as a key."""
    return tuple(tensor.numpy().tobytes() for example in examples for tensor in (example.input_ids, example.targets))


@dataclass(frozen=True, repr=False)
class References:
    """Models that cells share, and the `capacity` results of the reference that were asked for last.

    Under a derandomized profile every cell of a test meets the same batches: what is right for each is computed once.
    Models and results are shared by those who ask, and not to be written to. `backend` is the reference, in the model
    that is proved.
    """

    capacity: int = KEPT
    backend: Backend = REFERENCE
    models: dict[Hashable, ProvedModel] = field(default_factory=dict)
    results: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)

    def model(self, config: DecoderConfig, backend: Backend, weights: torch.dtype) -> ProvedModel:
        """Return the eager decoder that attends with `backend`."""
        key = config, backend.name, weights
        if key not in self.models:
            self.models[key] = decoder(config, backend, weights)
        return self.models[key]

    def reference(self, config: DecoderConfig, dtype: torch.dtype, number: int) -> ProvedModel:
        """Return the decoder of the reference for cells of `dtype`: of their own weights, or from 1 on of nudged."""
        own = self.model(config, self.backend, weight_dtype(dtype))
        key = config, dtype, number
        if number and key not in self.models:
            self.models[key] = nudged(own, dtype, number)
        return self.models[key] if number else own

    def truth(self, config: DecoderConfig, dtype: torch.dtype, number: int) -> ProvedModel:
        """Return the same in float64: its weights are those that were drawn in fewer bits."""
        key = config, dtype, number, "truth"
        if key not in self.models:
            self.models[key] = with_backend(self.reference(config, dtype, number), REFERENCE, torch.float64)
        return self.models[key]

    def bounds(self, truth: Outcome, known: Sequence[Outcome], dtype: torch.dtype, config: DecoderConfig) -> Bounds:
        """Return what outcomes are compared with, kept where that is the first rounding of the reference alone."""
        if len(known) > 1:
            return bounds(truth, known, dtype=dtype, config=config)
        # What is kept holds both outcomes, so that no other object gets their ids meanwhile.
        key = "bounds", id(truth), id(known[0]), dtype, config
        return self.once(lambda: bounds(truth, known, dtype=dtype, config=config), *key)

    def once(self, compute: Callable[[], Any], *key: Hashable) -> Any:
        """Return the result held under `key`, or that of `compute`; the one unused for longest is let go."""
        if key not in self.results:
            self.results[key] = compute()
        self.results.move_to_end(key)
        if len(self.results) > self.capacity:
            self.results.popitem(last=False)
        return self.results[key]
