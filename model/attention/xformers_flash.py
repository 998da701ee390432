"""xFormers on a packed batch, the flash operator forced."""

from model.attention.backend import HALF, Backend
from model.attention.xformers import FLASH, REQUIRES, operator, prepare
from model.attention.xformers_loading import loading_problems

BACKEND = Backend(
    name="xformers_flash",
    layout="packed",
    summary="xFormers memory_efficient_attention, the flash operator",
    prepare=prepare,
    attend=operator("flash"),
    dtypes={"cuda": HALF},
    max_head_dim=256,
    head_dim_multiple=8,
    sure_head_dim=128,
    grouped_query=True,
    min_capability=(8, 0),
    requires=REQUIRES,
    kernels={"cuda": FLASH},
    probe=loading_problems,
)
