"""xFormers on a packed batch, the cutlass operator forced."""

from model.attention.backend import FLOAT, Backend, Refusal
from model.attention.xformers import COMPILED_CUTLASS_TRAINING, CUTLASS, REQUIRES, operator, prepare
from model.attention.xformers_loading import loading_problems

BACKEND = Backend(
    name="xformers_cutlass",
    layout="packed",
    summary="xFormers memory_efficient_attention, the cutlass operator",
    prepare=prepare,
    attend=operator("cutlass"),
    dtypes={"cuda": FLOAT},
    max_head_dim=256,
    head_dim_multiple=8,
    grouped_query=True,
    min_capability=(8, 0),
    requires=REQUIRES,
    undeclared=(Refusal(COMPILED_CUTLASS_TRAINING, mode="train", execution="compiled"),),
    kernels={"cuda": CUTLASS},
    probe=loading_problems,
)
