"""SDPA on jagged NestedTensors."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from collators.batch import NestedBatch
from model.attention.backend import FLOAT, Backend, Refusal
from model.attention.case import Case
from model.attention.sdpa import CHOSEN_KERNELS


@dataclass(frozen=True)
class NestedContext:
    """The NestedTensor carries its offsets; only causality is left to say."""

    causal: bool


def prepare(batch: NestedBatch, case: Case) -> NestedContext:
    """Take causality; the batch holds the rest."""
    return NestedContext(case.causal)


def attend(q: Tensor, k: Tensor, v: Tensor, context: NestedContext, *, scale: float | None = None) -> Tensor:
    """Run SDPA on (B, jagged, H, D) NestedTensors; torch chooses the kernel."""
    if not q.is_cuda:
        # The one kernel of the CPU wants contiguous inputs, which the parts of a fused projection are not.
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=context.causal, scale=scale
    )
    return out.transpose(1, 2)


BACKEND = Backend(
    name="sdpa_nested",
    layout="nested",
    summary="SDPA on jagged NestedTensors, the kernel torch chooses",
    prepare=prepare,
    attend=attend,
    dtypes={"cpu": FLOAT, "cuda": FLOAT},
    head_dim_multiple=8,
    # On the CPU it is the math kernel, which for NestedTensors does not convert its inputs to float32.
    rounds={"cpu": ("scores",)},
    kernels=CHOSEN_KERNELS,
    unavailable=(
        Refusal("needs a CUDA GPU: causal SDPA on NestedTensors has no CPU kernel", device="cpu", causal=True),
        Refusal(
            "needs a CUDA GPU: SDPA on NestedTensors does not compile on the CPU", device="cpu", execution="compiled"
        ),
    ),
)
