"""The models that are timed: the article's decoder, and GPT-2 of transformers for the backends that name it."""

import torch

from model.attention import BACKENDS, REFERENCE, Backend
from model.decoder import Decoder, DecoderConfig, seeded_decoder
from model.huggingface.gpt2 import GPT2_BACKENDS, GPT2_REFERENCE, Gpt2, Gpt2Backend, seeded_gpt2

Model = Decoder | Gpt2

#: Every backend of every model, in the order of the matrix.
ALL_BACKENDS: tuple[Backend, ...] = (*BACKENDS, *GPT2_BACKENDS)


def any_backend_named(name: str) -> Backend:
    """Return the backend called `name`, of any model; ValueError lists the names."""
    for backend in ALL_BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"unknown backend {name!r}; choose one of: {', '.join(b.name for b in ALL_BACKENDS)}.")


def seeded_model(
    config: DecoderConfig, backend: Backend, *, device: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Model:
    """Return the model that `backend` attends in; backends of one model give the same weights."""
    if isinstance(backend, Gpt2Backend):
        return seeded_gpt2(config, backend, device=device, dtype=dtype, seed=seed)
    return seeded_decoder(config, backend.attend, device=device, dtype=dtype, seed=seed)


def reference_of(backend: Backend) -> Backend:
    """Return the backend that `backend` is compared with, in the same model."""
    return GPT2_REFERENCE if isinstance(backend, Gpt2Backend) else REFERENCE
