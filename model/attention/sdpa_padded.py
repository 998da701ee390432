"""SDPA on a padded batch with a padding mask; torch chooses the kernel."""

from model.attention.backend import ANY, Backend
from model.attention.sdpa import attend, prepare_masked

BACKEND = Backend(
    name="sdpa_padded",
    layout="padded",
    summary="SDPA with a padding mask, the kernel torch chooses",
    prepare=prepare_masked,
    attend=attend,
    dtypes={"cpu": ANY, "cuda": ANY},
    grouped_query=True,
)
