"""SDPA on a padded batch, the flash kernel forced.

The CUDA flash kernel takes no mask. Causal attention over padding on the right needs none: a real token sees
earlier tokens only, and those are real. No other padded case is declared.
"""

from torch.nn.attention import SDPBackend

from collators.batch import PaddedBatch
from model.attention.backend import FLOAT, HALF, Backend
from model.attention.case import Case
from model.attention.sdpa import CPU_FLASH, CPU_FLASH_ROUNDS, FLASH, SdpaContext, forced


def prepare(batch: PaddedBatch, case: Case) -> SdpaContext:
    """Return a context without a mask."""
    return SdpaContext(mask=None, is_causal=case.causal)


BACKEND = Backend(
    name="sdpa_padded_flash",
    layout="padded",
    summary="SDPA without a mask, causal over padding on the right, the flash kernel",
    prepare=prepare,
    attend=forced(SDPBackend.FLASH_ATTENTION),
    dtypes={"cpu": FLOAT, "cuda": HALF},
    causal=(True,),
    padding_sides=("right",),
    max_head_dim=256,
    head_dim_multiple=8,
    grouped_query=True,
    min_capability=(8, 0),
    rounds=CPU_FLASH_ROUNDS,
    kernels={"cpu": CPU_FLASH, "cuda": FLASH},
)
