"""Backends from outside this repository: `--backend package.module:object` or `--backend path/to/file.py:object`.

The object is a `Backend` record, or a plain function with the signature of `flash_attn_varlen_func` or of
`scaled_dot_product_attention`. What a plain function supports is asked of it: it runs once on a tiny batch.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from collators import COLLATORS, Batch, Collator, CollatorOptions, Example
from collators.outside import loaded, name_of
from model.attention.backend import ANY, Backend, first_line
from model.attention.case import Case, default_device
from model.attention.sdpa import SdpaContext, prepare_masked, prepare_unmasked_where_possible
from model.attention.torch_varlen import VarlenContext
from model.attention.torch_varlen import prepare as prepare_varlen
from model.compilation import fresh_compiler

#: The arguments that each kind of function must take in this order, by any of these names.
VARLEN = (
    ("q", "query"),
    ("k", "key"),
    ("v", "value"),
    ("cu_seqlens_q", "cu_seq_q"),
    ("cu_seqlens_k", "cu_seq_k"),
    ("max_seqlen_q", "max_q"),
    ("max_seqlen_k", "max_k"),
)
PADDED = (*VARLEN[:3], ("attn_mask",))

SCALES = ("softmax_scale", "scale", "sm_scale")
WINDOW = "window_size"
CAUSAL = ("causal", "is_causal", WINDOW)

#: Lengths of the sequences of the batch that a function is tried on.
TRIED = (3, 2)


@functools.cache
def outside_backend(spec: str) -> Backend:
    """Return the backend that `package.module:object` or `path/to/file.py:object` names.

    ValueError, in one line, if there is no such object, its import raises, or it is neither a record nor a function
    with a known signature that runs on this machine.
    """
    found = loaded("--backend", spec)
    if isinstance(found, Backend):
        if "-" in found.name:
            raise ValueError(
                f"--backend {spec!r}: its name {found.name!r} has a hyphen, which separates words of an id; use '_'."
            )
        return replace(found, spec=spec)
    if not callable(found):
        raise ValueError(
            f"--backend {spec!r} is {type(found).__name__}; give a Backend record or an attention function."
        )
    return _plain(spec, name_of(spec), found)


@dataclass(frozen=True)
class PlainBackend(Backend):
    """A function from outside: a case is undeclared if the function raises on a tiny batch of it."""

    answers: dict[tuple[Any, ...], list[str]] = field(default_factory=dict, compare=False, repr=False)

    def undeclared_reasons(self, case: Case) -> list[str]:
        """Return why `case` is not supported: the record's reasons, or what the function raised."""
        if reasons := super().undeclared_reasons(case):
            return reasons
        if case.device != default_device():
            return []
        tried: tuple[Any, ...] = (case.dtype, case.mode, case.causal, case.num_heads, case.num_kv_heads, case.head_dim)
        if case.execution == "compiled":
            # A compilation takes seconds: one tells of all that run eagerly.
            tried = ("compiled", case.mode)
        if tried not in self.answers:
            self.answers[tried] = self.tried(case)
        return self.answers[tried]

    def tried(self, case: Case) -> list[str]:
        """Run the function on a tiny batch of this case; return what it raised, or an empty list."""
        collator = next(one for one in COLLATORS if (one.layout, one.padding_side) == (case.layout, case.padding_side))
        batch = tried_batch(collator).to(case.device)
        shape = tuple(batch.input_ids.shape)  # type: ignore[attr-defined]
        generator = torch.Generator(case.device).manual_seed(0)
        q, k, v = (
            torch.randn((*shape, heads, case.head_dim), device=case.device, generator=generator)
            .to(case.dtype)
            .requires_grad_(case.mode == "train")
            for heads in (case.num_heads, case.num_kv_heads, case.num_kv_heads)
        )
        compiled = case.execution == "compiled"
        try:
            with torch.set_grad_enabled(case.mode == "train"), _quiet_compiler() if compiled else nullcontext():
                attend: Callable[..., Any] = (
                    torch.compile(self.attend, fullgraph=True, dynamic=True) if compiled else self.attend
                )
                out = attend(q, k, v, self.prepare(batch, case), scale=None)
            if not isinstance(out, Tensor) or out.shape != q.shape or out.dtype != q.dtype:
                shown = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
                return [
                    f"returned {shown} for queries {q.dtype} {tuple(q.shape)}; it must be a tensor like the queries"
                ]
            if case.mode == "train":
                out.float().sum().backward()
        except Exception as error:
            return [f"raised {_short(error)}"]
        return []


def tried_batch(collator: Collator) -> Batch:
    """Return the tiny batch that parts from outside are tried on."""
    examples = [Example(torch.ones(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64)) for n in TRIED]
    return collator.build(CollatorOptions(max(TRIED)))(examples)


@contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Compile without the logs of what fails, and forget what was compiled."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with fresh_compiler():
            yield
    finally:
        logging.disable(before)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:200]


def _plain(spec: str, name: str, function: Callable[..., Any]) -> Backend:
    """Return the record of a plain function; ValueError if its signature is unknown or it runs on no tiny batch."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise ValueError(
            f"--backend {spec!r}: Python cannot read its signature; wrap it in a Python function."
        ) from None
    layout, options = _options(spec, parameters)
    device = default_device()
    made = functools.partial(
        PlainBackend,
        name=name,
        layout=layout,
        summary=spec,
        spec=spec,
        prepare=_prepare(layout, parameters),
        attend=functools.partial(_varlen if layout == "packed" else _padded, function, options),
        causal=(False, True) if layout == "padded" or options.causal else (False,),
        # Not known of a function: its own record may claim more.
        rounds={device: ("scores", "sums")},
        deterministic={},
    )
    case = Case(device, layout, "right" if layout == "padded" else None, "eval", False, ANY[0], "eager", 2, 2, 64)
    errors = {dtype: made(dtypes={device: ANY}).tried(replace(case, dtype=dtype)) for dtype in ANY}
    dtypes = tuple(dtype for dtype in ANY if not errors[dtype])
    if not dtypes:
        raise ValueError(f"--backend {spec!r} on a batch of {len(TRIED)} sequences, {device}: {errors[ANY[-1]][0]}.")

    def runs(**changes: Any) -> bool:
        return not made(dtypes={device: dtypes}, grouped_query=True).tried(replace(case, dtype=dtypes[0], **changes))

    multiple = next((dim for dim in (1, 8, 16, 32) if runs(head_dim=dim) and runs(head_dim=3 * dim)), 64)
    return made(
        dtypes={device: dtypes},
        grouped_query=runs(num_heads=4),
        head_dim_multiple=multiple,
        # Others are tried one by one: the suite draws these two.
        max_head_dim=None if runs(head_dim=128) else 64,
    )


@dataclass(frozen=True)
class Options:
    """What a function calls the scale, and what makes it causal ("" if nothing does); whether it takes `enable_gqa`."""

    scale: str
    causal: str
    grouped: bool

    def asked(self, q: Tensor, k: Tensor, scale: float | None) -> dict[str, Any]:
        """Return the arguments for a scale of its own and for grouped heads."""
        asked: dict[str, Any] = {} if scale is None else {self.scale: scale}
        if self.grouped and q.shape[2] != k.shape[2]:
            asked["enable_gqa"] = True
        return asked


def _options(spec: str, parameters: Mapping[str, inspect.Parameter]) -> tuple[Any, Options]:
    """Return the layout that a function takes, and what it calls its options; ValueError for another signature."""
    names = [*parameters]
    layout, taken = next(
        ((each, kind) for each, kind in (("packed", VARLEN), ("padded", PADDED)) if _starts(names, kind)), ("", ())
    )
    if not layout:
        raise ValueError(
            f"--backend {spec!r} takes ({', '.join(names)}); it must begin with the arguments of "
            f"flash_attn_varlen_func ({', '.join(each[0] for each in VARLEN)}), or of scaled_dot_product_attention "
            "(query, key, value, attn_mask)."
        )
    scale = next((each for each in SCALES if each in names), "")
    if not scale:
        raise ValueError(f"--backend {spec!r} takes no softmax scale; add an argument {' or '.join(SCALES[:2])}.")
    causal = next((each for each in CAUSAL if each in names), "")
    known = {scale, causal}
    unknown = [
        name
        for name in names[len(taken) :]
        if parameters[name].default is inspect.Parameter.empty
        and parameters[name].kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and name not in known
    ]
    if unknown:
        raise ValueError(
            f"--backend {spec!r} needs {', '.join(unknown)}, which the suite does not pass; give a default."
        )
    return layout, Options(scale, causal, "enable_gqa" in names)


def _starts(names: Sequence[str], kind: Sequence[Sequence[str]]) -> bool:
    return len(names) >= len(kind) and all(name in known for name, known in zip(names, kind, strict=False))


def _prepare(layout: str, parameters: Mapping[str, inspect.Parameter]) -> Callable[[Any, Case], Any]:
    if layout == "packed":
        return prepare_varlen
    return prepare_unmasked_where_possible if "is_causal" in parameters else prepare_masked


def _varlen(
    function: Callable[..., Any],
    options: Options,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: VarlenContext,
    *,
    scale: float | None = None,
) -> Any:
    """Run a function with `flash_attn_varlen_func`'s signature on the packed row."""
    asked = options.asked(q, k, scale)
    if options.causal:
        asked[options.causal] = context.window_size if options.causal == WINDOW else context.causal
    offsets, longest = context.cu_seqlens, context.max_seqlen
    out = function(q[0], k[0], v[0], offsets, offsets, longest, longest, **asked)
    return out[None] if isinstance(out, Tensor) else out


def _padded(
    function: Callable[..., Any],
    options: Options,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: SdpaContext,
    *,
    scale: float | None = None,
) -> Any:
    """Run a function with `scaled_dot_product_attention`'s signature on the padded batch."""
    asked = options.asked(q, k, scale)
    if context.is_causal:
        asked[options.causal] = True
    out = function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), context.mask, **asked)
    return out.transpose(1, 2) if isinstance(out, Tensor) else out
