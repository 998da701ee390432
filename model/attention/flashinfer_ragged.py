"""FlashInfer's wrapper for ragged prefill on a packed batch. It has no backward, so it evaluates only.

FlashInfer plans every batch on the host. A compiled block cannot hold such a plan, so it runs eager only. On Hopper it
takes its FA3 kernel, and elsewhere its FA2 kernel. It builds a library with nvcc for each dtype, head dim, and soft cap
or none, at the first plan that needs it. It also has heads of 256, but none of 192.
Shapes: T tokens, N segments, H heads, D head dim. https://docs.flashinfer.ai/api/attention.html
"""

import functools
import os
import shutil
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from collators.batch import PackedBatch
from model.attention.backend import HALF, Backend, Requirement, first_line
from model.attention.case import Case

#: What FlashInfer's documentation asks for.
WORKSPACE_BYTES = 128 * 2**20

#: Kernels read 16 bytes at once. The FA3 kernel gives another tensor no error: its output is then wrong.
ALIGNMENT = 16

#: FlashInfer dispatches no operator of torch, so the profiler shows this name around its call.
RUN = "varlen_gate::flashinfer_ragged"


@dataclass(frozen=True)
class RaggedPlans:
    """`ends` int32 [N+1] on the host, for a batch on `device`; a planned wrapper for each scale, None for 1/sqrt(D).

    Segments 2, 4, 3 have the ends [0, 2, 6, 9].
    """

    ends: Tensor
    device: torch.device
    case: Case
    wrappers: dict[float | None, Any] = field(default_factory=dict)

    def wrapper(self, scale: float | None) -> Any:
        """Return the wrapper for `scale`. A layer that has a scale of its own makes a plan at its first call."""
        if scale not in self.wrappers:
            self.wrappers[scale] = planned(self.ends, self.device, self.case, scale)
        return self.wrappers[scale]


def prepare(batch: PackedBatch, case: Case) -> RaggedPlans:
    """Take lengths from the host, and plan for the default scale."""
    ends = torch.tensor([0, *accumulate(batch.segment_lengths)], dtype=torch.int32, device="cpu")
    plans = RaggedPlans(ends, batch.cu_seqlens.device, case)
    plans.wrapper(None)
    return plans


def attend(q: Tensor, k: Tensor, v: Tensor, context: RaggedPlans, *, scale: float | None = None) -> Tensor:
    """Run FlashInfer's kernel on the packed row."""
    wrapper = context.wrapper(scale)
    with record_function(RUN):
        out: Tensor = wrapper.run(*(readable(tensor[0]) for tensor in (q, k, v)))
    return out[None]


def planned(ends: Tensor, device: torch.device, case: Case, scale: float | None) -> Any:
    """Return a wrapper that is planned for segments between `ends`. Each has a plan of its own in GPU memory.

    Wrappers share a workspace. A run leaves nothing in it for a later one, so that they may run in any order.
    """
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

    wrapper = BatchPrefillWithRaggedKVCacheWrapper(workspace(device), "NHD")
    wrapper.plan(
        ends,
        ends,
        case.num_heads,
        case.num_kv_heads,
        case.head_dim,
        causal=case.causal,
        logits_soft_cap=case.softcap,
        sm_scale=scale,
        q_data_type=case.dtype,
    )
    keep_until_read(wrapper, after_now(device))
    return wrapper


@functools.cache
def workspace(device: torch.device) -> Tensor:
    """Return the workspace of all wrappers of `device`, uint8."""
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def after_now(device: torch.device) -> torch.cuda.Event:
    """Return an event that comes after all work in the current stream of `device`."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


#: Wrappers and the events after which the GPU has read their plans.
_UNREAD: list[tuple[Any, torch.cuda.Event]] = []


def keep_until_read(wrapper: Any, read: torch.cuda.Event) -> None:
    """Keep `wrapper` until the event `read` has come, and let go of others that were read.

    The GPU copies a plan from pinned memory when its stream comes to it. FlashInfer (0.6.1) does not tell torch of this
    copy. Without the wrapper torch would give the memory to the next plan, and an earlier batch would run with that.
    """
    _UNREAD[:] = [each for each in _UNREAD if not each[1].query()]
    _UNREAD.append((wrapper, read))


def readable(tensor: Tensor) -> Tensor:
    """Return `tensor` (T, H, D), or a contiguous copy where a kernel cannot read it."""
    per_token, per_head, per_number = tensor.stride()
    aligned = [step * tensor.element_size() % ALIGNMENT == 0 and step > 0 for step in (per_token, per_head)]
    plain = per_number == 1 and all(aligned) and tensor.data_ptr() % ALIGNMENT == 0
    return tensor if plain else tensor.clone(memory_format=torch.contiguous_format)


def has_nvcc() -> bool:
    """Tell whether FlashInfer finds nvcc, where it looks for it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return Path(home or "/usr/local/cuda", "bin", "nvcc").is_file() or (not home and bool(shutil.which("nvcc")))


def probe() -> list[str]:
    """Return why FlashInfer cannot be imported or cannot build its kernels, or an empty list."""
    try:
        from flashinfer import BatchPrefillWithRaggedKVCacheWrapper  # noqa: F401
        from flashinfer.jit.env import FLASHINFER_AOT_DIR
    except (ImportError, OSError, RuntimeError) as error:
        return [f"flashinfer does not load ({first_line(error)}); install flashinfer-python and what it requires"]
    if FLASHINFER_AOT_DIR.exists() or (has_nvcc() and shutil.which("ninja")):
        return []
    return ["needs nvcc and ninja to build FlashInfer's kernels; put both on PATH, or install flashinfer-jit-cache"]


BACKEND = Backend(
    name="flashinfer_ragged",
    layout="packed",
    summary="FlashInfer's BatchPrefillWithRaggedKVCacheWrapper",
    prepare=prepare,
    attend=attend,
    dtypes={"cuda": HALF},
    modes=("eval",),
    executions=("eager",),
    max_head_dim=128,
    head_dim_multiple=64,
    grouped_query=True,
    softcaps=True,
    rounds={"cuda": ("tanh",)},
    min_capability=(8, 0),
    kernels={"cuda": (RUN,)},
    requires=(Requirement("flashinfer-python", "0.6.1", "pip install flashinfer-python"),),
    probe=probe,
)
