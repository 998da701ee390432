"""SDPA on a padded batch, with a padding mask where one is needed; torch chooses the kernel."""

from model.attention.backend import ANY, Backend
from model.attention.sdpa import CHOSEN_KERNELS, CPU_FLASH_ROUNDS, attend, prepare_unmasked_where_possible

BACKEND = Backend(
    name="sdpa_padded",
    layout="padded",
    summary="SDPA with a padding mask where one is needed, the kernel torch chooses",
    prepare=prepare_unmasked_where_possible,
    attend=attend,
    dtypes={"cpu": ANY, "cuda": ANY},
    grouped_query=True,
    windows=True,
    rounds=CPU_FLASH_ROUNDS,
    kernels=CHOSEN_KERNELS,
    plans_by_shape=True,
)
