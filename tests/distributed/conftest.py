"""The ranks that the tests run on, and the cells that are run on them."""

import os
from collections.abc import Iterator

import pytest
import torch

from gate.record.cell import chosen_by
from model.attention import default_device
from model.distributed import HOWS
from tests.correctness.conftest import references, workbench
from tests.correctness.drawn import CONFIG, in_first_dtype
from tests.distributed.ranks import Processes, Ranks, Torchrun
from tests.selection import drawn_candidates, represented, support_status

__all__ = ["references", "workbench"]

#: How many gloo processes are started where torchrun started none.
WORLDS = (2, 3)

UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID" in os.environ

WORLDS_HERE = [int(os.environ["WORLD_SIZE"])] if UNDER_TORCHRUN else WORLDS


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "layout(name, execution='eager', first=False, narrow=False): only cells of this layout and execution run a "
        "distributed test, or those in bfloat16, or the first; with --backend, --collator or --compiled=all every one",
    )


@pytest.fixture(scope="session", params=WORLDS_HERE)
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Several ranks: those of torchrun, or forked gloo processes on a CPU."""
    if not UNDER_TORCHRUN and default_device() == "cuda":
        pytest.skip("on GPUs run it by torchrun --nproc-per-node N -m pytest -m distributed")
    found = Torchrun() if UNDER_TORCHRUN else Processes(request.param)
    try:
        yield found
    finally:
        found.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that takes a workbench the causal training cells that run here, one of each layout.

    Eager ones in one dtype, unless the test asks for compiled ones.
    """
    if "workbench" not in metafunc.fixturenames:
        return
    config, device = metafunc.config, default_device()
    sizes, marker = CONFIG[device], metafunc.definition.get_closest_marker("layout")
    asked = marker.kwargs if marker else {}
    execution = asked.get("execution", "eager")
    cells = [
        cell
        for cell in represented(drawn_candidates(config, device), "layout", config)
        if (cell.mode, cell.causal, cell.execution) == ("train", True, execution)
        and (cell.dtype == torch.bfloat16 if asked.get("narrow") else execution == "compiled" or in_first_dtype(cell))
        and chosen_by(cell.id, config.getoption("cells"))
        and (marker is None or cell.backend.layout in marker.args)
        and support_status(cell, sizes, device).state == "supported"
        and set(HOWS) <= set(cell.backend.wrappers)
    ]
    named = any(config.getoption(option) for option in ("backend", "collator")) or config.getoption("compiled") == "all"
    if asked.get("first") and not named:
        cells = cells[:1]
    params = [pytest.param((cell, sizes), id=cell.id) for cell in cells]
    metafunc.parametrize("workbench", params, indirect=True, scope="module")
