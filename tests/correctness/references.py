"""What the reference computes of drawn batches, kept for all the cells that meet the same ones."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from collators import Example
from model.attention import REFERENCE, Backend, Case, default_device
from model.decoder import Decoder, DecoderConfig, seeded_decoder
from model.reference import with_backend

#: Enough for 20 examples in both modes, causal and not, in float64 and in two dtypes.
KEPT = 256


def decoder(config: DecoderConfig, backend: Backend, dtype: torch.dtype = torch.float32) -> Decoder:
    """Return a decoder with the same weights at every call, its queries and keys larger so that attention is peaked."""
    model = seeded_decoder(config, backend.attend, device=default_device(), dtype=dtype)
    with torch.no_grad():
        for block in model.blocks:
            block.qkv.weight.mul_(3)
            block.qkv.bias.mul_(3)
    return model


def weight_dtype(case: Case) -> torch.dtype:
    """Return the dtype of a cell's parameters: 16-bit cells are autocast over float32."""
    return case.dtype if case.dtype == torch.float64 else torch.float32


def content(examples: Sequence[Example]) -> Hashable:
    """Return tokens and targets as a key."""
    return tuple(tensor.numpy().tobytes() for example in examples for tensor in (example.input_ids, example.targets))


@dataclass(frozen=True, repr=False)
class References:
    """Models that cells share, and the `capacity` results of the reference that were asked for last.

    Under a derandomized profile every cell of a test meets the same batches: what is right for each is computed once.
    Models and results are shared by those who ask, and not to be written to.
    """

    capacity: int = KEPT
    models: dict[Hashable, Decoder] = field(default_factory=dict)
    results: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)

    def model(self, config: DecoderConfig, backend: Backend, weights: torch.dtype) -> Decoder:
        """Return the eager decoder that attends with `backend`."""
        key = config, backend.name, weights
        if key not in self.models:
            self.models[key] = decoder(config, backend, weights)
        return self.models[key]

    def truth(self, config: DecoderConfig, weights: torch.dtype) -> Decoder:
        """Return the decoder of the reference in float64, its weights those that were drawn in `weights`."""
        key = config, weights
        if key not in self.models:
            self.models[key] = with_backend(self.model(config, REFERENCE, weights), REFERENCE, torch.float64)
        return self.models[key]

    def once(self, compute: Callable[[], Any], *key: Hashable) -> Any:
        """Return the result held under `key`, or that of `compute`; the one unused for longest is let go."""
        if key not in self.results:
            self.results[key] = compute()
        self.results.move_to_end(key)
        if len(self.results) > self.capacity:
            self.results.popitem(last=False)
        return self.results[key]
