"""SDPA on a padded batch, the memory-efficient kernel forced."""

from torch.nn.attention import SDPBackend

from model.attention.backend import FLOAT, Backend
from model.attention.sdpa import EFFICIENT, forced, prepare_masked

BACKEND = Backend(
    name="sdpa_padded_efficient",
    layout="padded",
    summary="SDPA with a padding mask, the memory-efficient kernel",
    prepare=prepare_masked,
    attend=forced(SDPBackend.EFFICIENT_ATTENTION),
    dtypes={"cuda": FLOAT},
    head_dim_multiple=8,
    windows=True,
    min_capability=(8, 0),
    kernels={"cuda": EFFICIENT},
)
