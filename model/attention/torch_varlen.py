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
    """`cu_seqlens` int32 [N+1] on the device, `max_seqlen` on the host; a query sees the last `window` tokens."""

    cu_seqlens: Tensor
    max_seqlen: int
    causal: bool
    window: int | None = None
    softcap: float | None = None

    @property
    def window_size(self) -> tuple[int, int]:
        """How many tokens before and after itself a query sees, -1 for all of them: a window holds itself too."""
        side = -1 if self.window is None else self.window - 1
        return side, 0 if self.causal else side


def prepare(batch: PackedBatch, case: Case) -> VarlenContext:
    """Take offsets and the longest length from the batch."""
    return VarlenContext(batch.cu_seqlens, batch.max_seqlen, case.causal, case.window, case.softcap)


@functools.cache
def varlen_attn() -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return torch's function, and its arguments for grouped heads, which are asked for from torch 2.12 on."""
    from torch.nn.attention.varlen import varlen_attn as function

    known = inspect.signature(function).parameters
    return function, {"enable_gqa": True} if "enable_gqa" in known else {}


def attend(q: Tensor, k: Tensor, v: Tensor, context: VarlenContext, *, scale: float | None = None) -> Tensor:
    """Run `varlen_attn` on the packed row."""
    function, asked = varlen_attn()
    grouped = asked if q.shape[2] != k.shape[2] else {}
    offsets, longest = context.cu_seqlens, context.max_seqlen
    out = function(
        q[0], k[0], v[0], offsets, offsets, longest, longest, scale=scale, window_size=context.window_size, **grouped
    )
    return out[None]


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
    windows=True,
    min_capability=(8, 0),
    kernels={"cuda": ("torch_attn::_varlen_attn", "aten::_flash_attention_forward")},
    # That of torch 2.10 takes neither a scale nor a window.
    requires=(Requirement("torch", "2.11", "upgrade torch"),),
)
