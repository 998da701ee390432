"""Attention backends: one file each, and the registry of them all."""

from model.attention import (
    cudnn_ragged,
    fa2_varlen,
    fa4_varlen,
    flashinfer_ragged,
    flex_document_mask,
    sdpa_document_mask,
    sdpa_loop,
    sdpa_nested,
    sdpa_padded,
    sdpa_padded_cudnn,
    sdpa_padded_efficient,
    sdpa_padded_flash,
    sdpa_padded_math,
    torch_varlen,
    xformers_auto,
    xformers_cutlass,
    xformers_flash,
)
from model.attention.backend import Backend, Refusal, Requirement
from model.attention.case import EXECUTIONS, MODES, Case, Device, Execution, Machine, Mode, default_device, this_machine

__all__ = [
    "BACKENDS",
    "EXECUTIONS",
    "MODES",
    "REFERENCE",
    "Backend",
    "Case",
    "Device",
    "Execution",
    "Machine",
    "Mode",
    "Refusal",
    "Requirement",
    "backend_named",
    "default_device",
    "this_machine",
]

#: The backend that every other one is compared with, itself proved against each sequence alone.
REFERENCE: Backend = sdpa_padded_math.BACKEND

#: Every backend, in the order of the matrix. A new one is a new file and a line here.
BACKENDS: tuple[Backend, ...] = (
    sdpa_padded.BACKEND,
    sdpa_padded_math.BACKEND,
    sdpa_padded_efficient.BACKEND,
    sdpa_padded_cudnn.BACKEND,
    sdpa_padded_flash.BACKEND,
    sdpa_document_mask.BACKEND,
    sdpa_loop.BACKEND,
    sdpa_nested.BACKEND,
    torch_varlen.BACKEND,
    fa2_varlen.BACKEND,
    fa4_varlen.BACKEND,
    cudnn_ragged.BACKEND,
    flashinfer_ragged.BACKEND,
    xformers_auto.BACKEND,
    xformers_flash.BACKEND,
    xformers_cutlass.BACKEND,
    flex_document_mask.BACKEND,
)


def backend_named(name: str) -> Backend:
    """Return the backend called `name`; ValueError lists the names."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"unknown backend {name!r}; choose one of: {', '.join(b.name for b in BACKENDS)}.")
