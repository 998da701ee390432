"""SDPA on a padded batch, the math kernel forced: the reference."""

from torch.nn.attention import SDPBackend

from model.attention.backend import ANY, Backend
from model.attention.sdpa import MATH, forced, prepare_masked

BACKEND = Backend(
    name="sdpa_padded_math",
    layout="padded",
    summary="SDPA with a padding mask, the math kernel",
    prepare=prepare_masked,
    attend=forced(SDPBackend.MATH),
    dtypes={"cpu": ANY, "cuda": ANY},
    grouped_query=True,
    windows=True,
    sinks=True,
    deterministic={"cpu": ("eval", "train"), "cuda": ("eval", "train")},
    kernels={"cpu": MATH, "cuda": MATH},
)
