"""xFormers on a packed batch; xFormers chooses the operator."""

import torch

from model.attention.backend import FLOAT, Backend, Refusal
from model.attention.xformers import COMPILED_CUTLASS_TRAINING, CUTLASS, FLASH, FLASH_3, REQUIRES, operator, prepare
from model.attention.xformers_loading import loading_problems

BACKEND = Backend(
    name="xformers_auto",
    layout="packed",
    summary="xFormers memory_efficient_attention, the operator it chooses",
    prepare=prepare,
    attend=operator(None),
    dtypes={"cuda": FLOAT},
    max_head_dim=256,
    head_dim_multiple=8,
    grouped_query=True,
    min_capability=(8, 0),
    requires=REQUIRES,
    # Its operator for float32 is cutlass.
    undeclared=(Refusal(COMPILED_CUTLASS_TRAINING, mode="train", execution="compiled", dtype=torch.float32),),
    kernels={"cuda": (*FLASH_3, *FLASH, *CUTLASS)},
    probe=loading_problems,
)
