"""The packing of trainers gives what the record says: red if a release changed, for the worse or the better."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from model.attention import default_device
from model.huggingface.families import family_named
from model.huggingface.implementations import implementation_named
from model.huggingface.inputs import LENGTHS
from tests.packing.collated import CONTRACTS, collated, features_of
from tests.packing.collated_models import judged
from tests.packing.plugin import FOR_A_COLLATOR, NATIVE
from tests.trainers import (
    of_axolotl,
    of_llamafactory,
    of_llmfoundry,
    of_torchtitan,
    of_torchtune,
    of_transformers,
    of_trl,
)
from tests.trainers.path import TrainerPath

pytestmark = pytest.mark.trainers

PATHS: tuple[TrainerPath, ...] = (
    *of_transformers.PATHS,
    *of_trl.PATHS,
    *of_axolotl.PATHS,
    *of_llamafactory.PATHS,
    *of_torchtune.PATHS,
    *of_llmfoundry.PATHS,
    *of_torchtitan.PATHS,
)

#: What `python -m tests.studies.trainers` wrote: by path its version, broken contracts and verdicts.
RECORD = Path(__file__).with_name("record.json")


@functools.cache
def recorded() -> dict[str, Any]:
    return dict(json.loads(RECORD.read_text()))


def broken(path: TrainerPath) -> dict[str, str]:
    """Return what is wrong with a path's batch of sequences of 4, 3, 9 and 5 tokens, by contract."""
    made = collated(path.collate, features_of(LENGTHS))
    return {name: "; ".join(wrong) for name, check in CONTRACTS.items() if (wrong := check(made))}


def verdict(path: TrainerPath, family: str, implementation: str) -> str:
    """Return the verdict of a path's batch, as it is given, on a family."""
    try:
        return judged(
            path.collate, family_named(family), implementation_named(implementation, default_device())
        ).verdict
    except ValueError as error:
        return f"not run: {error}"


@pytest.fixture(params=PATHS, ids=lambda path: path.name.replace(" ", "_"))
def path(request: pytest.FixtureRequest) -> TrainerPath:
    found: TrainerPath = request.param
    if found.version is None:
        pytest.skip(f"needs {found.package}: run tox -e trainers")
    return found


def test_the_contracts_that_a_trainer_breaks_are_the_recorded_ones(path: TrainerPath) -> None:
    assert broken(path) == recorded()[path.name]["contracts"]


@pytest.mark.parametrize("implementation", NATIVE)
@pytest.mark.parametrize("family", FOR_A_COLLATOR)
def test_the_verdict_of_a_trainers_batch_is_the_recorded_one(
    path: TrainerPath, family: str, implementation: str
) -> None:
    assert verdict(path, family, implementation) == recorded()[path.name]["verdicts"][f"{family} {implementation}"]
