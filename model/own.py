"""A model from outside in the matrix: `--model package.module:make` or `--model path/to/file.py:make`.

make(config, attend)      returns an nn.Module; its tokens go through an nn.Embedding of config.vocab_size rows
config                    vocab_size, max_length, num_layers, num_heads, kv_heads, head_dim, pad_id
forward(batch, context)   takes batch.input_ids and batch.position_ids, (B, S) each, and returns logits
                          (B, S, vocab_size); a packed batch has B = 1
attend(q, k, v, context)  is the attention of each layer, masks included: q (B, S, num_heads, head_dim),
                          k and v (B, S, kv_heads, head_dim); returns the shape of q
compile_blocks()          optional: compiles the blocks in place; compiled cells need it
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from collators import collator_named
from collators.batch import Batch, Layout
from collators.outside import loaded, name_of
from model.attention import Backend, Case, backend_named
from model.attention.backend import Attend, first_line
from model.attention.outside import TRIED, tried_batch
from model.decoder import DecoderConfig

Make = Callable[[DecoderConfig, Attend], nn.Module]

#: On which collator and backend a model is tried, to see whether it takes a layout: they run on every machine.
TRIED_ON: dict[Layout, tuple[str, str]] = {
    "padded": ("pad_longest", "sdpa_padded_math"),
    "packed": ("packed", "sdpa_document_mask"),
    "nested": ("nested", "sdpa_nested"),
}

COMPILE = "compile_blocks"


class OwnModel(nn.Module):
    """The module that `make` returned, called as the decoder is: with a batch and its backend's context."""

    #: model/flops.py counts those of the decoder.
    flops_unknown = True

    def __init__(self, make: Make, config: DecoderConfig, attend: Attend) -> None:
        super().__init__()
        self.make, self.config = make, config
        made = make(config, attend)
        if not isinstance(made, nn.Module):
            raise ValueError(f"make(config, attend) returned {type(made).__name__}; it must return an nn.Module")
        self.model = made

    @property
    def tokens(self) -> nn.Embedding:
        """The embedding of tokens."""
        found = [one for one in self.model.modules() if isinstance(one, nn.Embedding)]
        for one in found:
            if one.num_embeddings == self.config.vocab_size:
                return one
        sizes = ", ".join(str(one.num_embeddings) for one in found) or "no nn.Embedding"
        raise ValueError(f"the model needs an nn.Embedding of vocab_size={self.config.vocab_size} rows; it has {sizes}")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Its longest ModuleList, as the layers of a model are kept; the model itself where it has none."""
        lists = [one for one in self.model.modules() if isinstance(one, nn.ModuleList)]
        return [*max(lists, key=len)] if lists else [self.model]

    def attending(self, attend: Attend) -> "OwnModel":
        """Return a new model of these sizes, with weights of its own, that attends with `attend`."""
        return OwnModel(self.make, self.config, attend)

    def forward(self, batch: Batch, context: Any) -> Tensor:
        """Return logits (B, S, vocabulary) in the layout of `batch`."""
        logits: Tensor = self.model(batch, context)
        return logits

    def compile_blocks(self) -> None:
        """Compile the blocks in place, as the model does it."""
        getattr(self.model, COMPILE)()


@dataclass(frozen=True)
class OwnModelBackend(Backend):
    """A backend of this project, or one from outside, in a model from outside.

    The model is asked which layouts, sizes and executions it takes: it runs once on a tiny batch.
    """

    inner: Backend = field(kw_only=True)
    make: Make = field(kw_only=True)
    model: str = field(kw_only=True)

    @property
    def attention(self) -> str:
        """The name of the backend, without that of the model."""
        return self.inner.name

    def undeclared_reasons(self, case: Case) -> list[str]:
        """Return why `case` is not supported: the backend's reasons, or what the model raised."""
        if reasons := self.inner.undeclared_reasons(case):
            return reasons
        # What a model takes depends on neither device, dtype nor mask.
        side = collator_named(TRIED_ON[case.layout][0]).padding_side
        return refusals(self.make, replace(case, device="cpu", dtype=torch.float32, causal=False, padding_side=side))

    def around(self, inner: Backend) -> "OwnModelBackend":
        """Return another backend in the same model."""
        return in_model(inner, self.make, self.model)


def in_model(inner: Backend, make: Make, model: str) -> OwnModelBackend:
    """Return a backend in the model that `make` returns, which is called `model`."""
    claims = inner.claims() | {"name": f"{model}_{inner.name}", "summary": f"{model}, {inner.summary}"}
    return OwnModelBackend(**claims, inner=inner, make=make, model=model)


@functools.cache
def refusals(make: Make, case: Case) -> list[str]:
    """Return why a model does not take batches as `case` has them, in its sizes, mode and execution; empty if it does.

    It runs eagerly in float32 on the CPU, with a backend that is there on every machine.
    """
    name, attention = TRIED_ON[case.layout]
    backend = backend_named(attention)
    config = DecoderConfig(17, max(TRIED), 2, case.num_heads, case.head_dim, num_kv_heads=case.num_kv_heads)
    batch = tried_batch(collator_named(name))
    try:
        with torch.random.fork_rng(), torch.set_grad_enabled(case.mode == "train"):
            model = OwnModel(make, config, backend.attend)
            assert model.tokens is not None
            if case.execution == "compiled" and not hasattr(model.model, COMPILE):
                return [f"needs a model with {COMPILE}()"]
            logits = model(batch, backend.prepare(batch, replace(case, execution="eager")))
            if case.mode == "train":
                batch.flat(logits).sum().backward()
    except Exception as error:
        what = f"takes {case.layout} batches in mode {case.mode}"
        return [f"needs a model that {what}; it raised {type(error).__name__}: {first_line(error)}"[:300]]
    wanted = (*batch.input_ids.shape[:2], config.vocab_size)  # type: ignore[attr-defined]
    if not isinstance(logits, Tensor):
        return [f"needs a model that returns logits; it returned {type(logits).__name__}"]
    if case.layout != "nested" and tuple(logits.shape) != wanted:
        return [f"needs logits of shape {wanted} (B, S, vocab_size); the model returned {tuple(logits.shape)}"]
    return []


@functools.cache
def own_make(spec: str) -> Make:
    """Return the function that `--model SPEC` names; ValueError, in one line, if its model is not understood."""
    if ":" not in spec:
        raise ValueError(f"--model {spec!r} is no SPEC; give package.module:make or path/to/file.py:make.")
    make: Make = loaded("--model", spec)
    if not callable(make):
        raise ValueError(f"--model {spec!r} is {type(make).__name__}; give a function or class make(config, attend).")
    layouts: tuple[Layout, ...] = ("padded", "packed")
    cases = [Case("cpu", each, None, "eval", False, torch.float32, "eager", 2, 2, 16) for each in layouts]
    found = [refusals(make, case) for case in cases]
    if all(found):
        raise ValueError(f"--model {spec!r}: {found[0][0]}. model/own.py says what make(config, attend) returns.")
    return make


def own_backend(spec: str, inner: Backend) -> OwnModelBackend:
    """Return `inner` in the model that `spec` names; ValueError as `own_make`."""
    return in_model(inner, own_make(spec), name_of(spec))
