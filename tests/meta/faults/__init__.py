"""The catalogue of injected faults: each must turn its property red, so that green means something.

`python -m tests.studies.faults` runs it (tests/studies/faults.py); docs/results/injected-faults.md is what it writes.
"""

from tests.meta.faults.fault import Fault
from tests.meta.faults.in_adapters import ADAPTERS
from tests.meta.faults.in_checks import CHECKS
from tests.meta.faults.in_collators import COLLATORS
from tests.meta.faults.in_fast import FAST
from tests.meta.faults.in_gate import GATE
from tests.meta.faults.in_huggingface import HUGGINGFACE
from tests.meta.faults.in_kernels import KERNELS
from tests.meta.faults.in_masks import MASKS
from tests.meta.faults.in_ranks import RANKS
from tests.meta.faults.in_samplers import SAMPLERS
from tests.meta.faults.in_steps import MODEL, STEPS
from tests.meta.faults.in_windows import WINDOWS

__all__ = ["CATALOGUE", "Fault"]

#: Every injected fault, by room.
CATALOGUE: tuple[Fault, ...] = tuple(
    fault
    for room in (
        COLLATORS,
        SAMPLERS,
        MASKS,
        WINDOWS,
        KERNELS,
        ADAPTERS,
        MODEL,
        STEPS,
        FAST,
        HUGGINGFACE,
        CHECKS,
        GATE,
        RANKS,
    )
    for fault in room.injected
)
