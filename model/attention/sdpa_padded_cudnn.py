"""SDPA on a padded batch, the cuDNN kernel forced."""

from torch.nn.attention import SDPBackend

from model.attention.backend import HALF, Backend
from model.attention.sdpa import CUDNN, forced, prepare_masked

BACKEND = Backend(
    name="sdpa_padded_cudnn",
    layout="padded",
    summary="SDPA with a padding mask, the cuDNN kernel",
    prepare=prepare_masked,
    attend=forced(SDPBackend.CUDNN_ATTENTION),
    dtypes={"cuda": HALF},
    max_head_dim=128,
    head_dim_multiple=8,
    # "cudnn SDPA does not support key/value sequence length 1": sdp_utils.cpp in torch 2.11.
    min_keys=2,
    grouped_query=True,
    windows=True,
    min_capability=(8, 0),
    kernels={"cuda": CUDNN},
    plans_by_shape=True,
)
