"""Keeps the results of a pure function of another module for a while: a replay asks for the same ones over and over."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def remembered(module: ModuleType, name: str) -> Iterator[None]:
    """Have the function `name` of `module`, of hashable arguments, compute each result once; undone at the end."""
    original = getattr(module, name)
    setattr(module, name, functools.cache(original))
    try:
        yield
    finally:
        setattr(module, name, original)
