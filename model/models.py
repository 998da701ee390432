"""The models that are timed: the article's decoder, GPT-2 of transformers for the backends that name it, and one from
outside."""

from collections.abc import Sequence
from importlib.metadata import entry_points

import torch

from model.attention import BACKENDS, REFERENCE, Backend
from model.attention.outside import outside_backend
from model.decoder import Decoder, DecoderConfig
from model.fast import FAST_BACKENDS, FastBackend, FastDecoder
from model.huggingface.gpt2 import GPT2_BACKENDS, GPT2_REFERENCE, Gpt2, Gpt2Backend
from model.own import OwnModel, OwnModelBackend, own_backend

Model = Decoder | Gpt2 | OwnModel

#: Those that the correctness tests prove in the matrix.
ProvedModel = Decoder | OwnModel

#: Those that the correctness tests prove.
PROVED_BACKENDS: tuple[Backend, ...] = (*BACKENDS, *FAST_BACKENDS)

#: Every backend of every model, in the order of the matrix.
ALL_BACKENDS: tuple[Backend, ...] = (*PROVED_BACKENDS, *GPT2_BACKENDS)

#: Where an installed package names its kernels: `their_name = "their_package.kernels:attention"`.
ENTRY_POINTS = "varlen_gate.backends"


def any_backend_named(name: str) -> Backend:
    """Return the backend of this name, of any model, or of this `package.module:object` or `path/to/file.py:object`.

    An installed package may name backends of its own as entry points. ValueError lists the names, or says in one line
    why what is asked for from outside is none.
    """
    for backend in ALL_BACKENDS:
        if backend.name == name:
            return backend
    if ":" in name:
        return outside_backend(name)
    theirs = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}
    if name in theirs:
        return outside_backend(theirs[name])
    names = ", ".join([*(backend.name for backend in ALL_BACKENDS), *theirs])
    raise ValueError(f"unknown backend {name!r}; choose one of: {names}; or path/to/file.py:object, module:object.")


def backends_asked(names: Sequence[str] | None, model: str = "") -> tuple[Backend, ...]:
    """Return the backends that `--backend` names, in the order of the matrix; every one if it names none.

    With `--model` they attend in the model that this SPEC names. GPT-2 is a model of its own, so it is left out.
    """
    if model:
        inner = [one for one in backends_asked(names) if not isinstance(one, Gpt2Backend)]
        return tuple(own_backend(model, one) for one in inner)
    if not names:
        return ALL_BACKENDS
    asked = {backend.name: backend for backend in map(any_backend_named, names)}
    return (*(one for one in ALL_BACKENDS if one.name in asked), *(one for one in asked.values() if one.spec))


def seeded_model(
    config: DecoderConfig, backend: Backend, *, device: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Model:
    """Return the model that `backend` attends in; backends of one model give the same weights.

    Its random weights follow from `seed` and `device` alone; global generators are untouched.
    """
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        return _model(config, backend).to(dtype)


def _model(config: DecoderConfig, backend: Backend) -> Model:
    if isinstance(backend, Gpt2Backend):
        return Gpt2(config, backend)
    if isinstance(backend, FastBackend):
        return FastDecoder(config, backend.attend, backend.attend_heads)
    if isinstance(backend, OwnModelBackend):
        return OwnModel(backend.make, config, backend.attend)
    return Decoder(config, backend.attend)


def reference_of(backend: Backend) -> Backend:
    """Return the backend that `backend` is compared with, in the same model."""
    if isinstance(backend, OwnModelBackend):
        return backend.around(REFERENCE)
    return GPT2_REFERENCE if isinstance(backend, Gpt2Backend) else REFERENCE
