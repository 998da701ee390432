"""xFormers on a packed batch; xFormers chooses the operator."""

from model.attention.backend import FLOAT, Backend
from model.attention.xformers import REQUIRES, operator, prepare
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
    probe=loading_problems,
)
