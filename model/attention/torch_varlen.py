"""`torch.nn.attention.varlen.varlen_attn`: the flash kernel that torch ships, on a packed batch."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from collators.batch import PackedBatch
from model.attention.backend import HALF, Backend, Requirement
from model.attention.case import Case


@dataclass(frozen=True)
class VarlenContext:
    """`cu_seqlens` int32 [N+1] on the device, `max_seqlen` on the host."""

    cu_seqlens: Tensor
    max_seqlen: int
    causal: bool


def prepare(batch: PackedBatch, case: Case) -> VarlenContext:
    """Take offsets and the longest length from the batch."""
    return VarlenContext(batch.cu_seqlens, batch.max_seqlen, case.causal)


@functools.cache
def varlen_attn() -> tuple[Callable[..., Any], dict[bool, dict[str, Any]], dict[str, Any]]:
    """Return torch's function, its arguments for causal or not, and those for grouped heads.

    torch 2.10 took `is_causal`; from 2.11 on it is `window_size`, and from 2.12 on grouped heads are asked for.
    """
    from torch.nn.attention.varlen import varlen_attn as function

    known = inspect.signature(function).parameters
    if "is_causal" in known:
        causality: dict[bool, dict[str, Any]] = {False: {"is_causal": False}, True: {"is_causal": True}}
    else:
        causality = {False: {"window_size": (-1, -1)}, True: {"window_size": (-1, 0)}}
    return function, causality, {"enable_gqa": True} if "enable_gqa" in known else {}


def attend(q: Tensor, k: Tensor, v: Tensor, context: VarlenContext, *, scale: float | None = None) -> Tensor:
    """Run `varlen_attn` on the packed row."""
    function, causality, grouped = varlen_attn()
    arguments = causality[context.causal]
    if scale is not None:
        arguments = {**arguments, "scale": scale}
    if q.shape[2] != k.shape[2]:
        arguments = {**arguments, **grouped}
    offsets, longest = context.cu_seqlens, context.max_seqlen
    return function(q[0], k[0], v[0], offsets, offsets, longest, longest, **arguments)[None]


BACKEND = Backend(
    name="torch_varlen",
    layout="packed",
    summary="torch.nn.attention.varlen.varlen_attn",
    prepare=prepare,
    attend=attend,
    dtypes={"cuda": HALF},
    max_head_dim=256,
    head_dim_multiple=8,
    grouped_query=True,
    min_capability=(8, 0),
    kernels={"cuda": ("torch_attn::_varlen_attn", "aten::_flash_attention_forward")},
    requires=(Requirement("torch", "2.10", "upgrade torch"),),
)
