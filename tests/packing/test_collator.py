"""A collator from outside (`pytest -m packing --collator SPEC`) keeps its contracts, and models compute it right."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from model.attention import default_device
from model.huggingface.families import CannotBuild, build, offline
from model.huggingface.inputs import LENGTHS, Inputs
from model.reference import full_precision
from tests.packing.checks import Bench, Errors, allowance, bench_of, errors_of, run
from tests.packing.collated import CONTRACTS, Collate, Features, collated, features_of
from tests.packing.plugin import collator_asked, families, implementations

pytestmark = pytest.mark.packing


@pytest.fixture(scope="module")
def collate(pytestconfig: pytest.Config) -> Collate:
    return collator_asked(pytestconfig)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_collated_batch_keeps_its_contract(collate: Collate, contract: str) -> None:
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    def check(lengths: list[int]) -> None:
        wrong = CONTRACTS[contract](collated(collate, features_of(lengths)))
        assert not wrong, f"lengths {lengths}: {'; '.join(wrong)}"

    check()


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def test_the_same_features_give_the_same_batch_and_are_left_alone(collate: Collate) -> None:
    features = features_of(LENGTHS)
    given = copy.deepcopy(features)
    first, second = collate(given), collate(copy.deepcopy(features))
    assert same(first, second)
    assert given == features, "the collator changes its features"


def test_a_dataloader_with_two_workers_gives_the_same_batches(collate: Collate) -> None:
    features = features_of([*LENGTHS, *LENGTHS])
    halves = [collate(copy.deepcopy(features[:4])), collate(copy.deepcopy(features[4:]))]
    loader: DataLoader[Features] = DataLoader(
        features, batch_size=4, collate_fn=collate, num_workers=2, pin_memory=default_device() == "cuda"
    )
    loaded = list(loader)
    assert len(loaded) == 2
    assert all(same(one, other) for one, other in zip(halves, loaded, strict=True))


def test_a_model_computes_of_a_collated_batch_what_each_sequence_alone_gives(
    collate: Collate, collated_case: tuple[Any, Any]
) -> None:
    family, implementation = collated_case
    try:
        bench = bench_of(family, torch.device(default_device()), implementation.dtype)
        model = build(family, implementation.built).to(bench.device, bench.dtype).train(bench.training)
    except CannotBuild as error:
        pytest.skip(f"{family.name} cannot be built: {error}")
    # Where the tokens lie is found with tokens that all differ.
    places = collated(collate, features_of(LENGTHS)).places
    ids = [sequence.tolist() for sequence in bench.sequences]
    batch = collate([{"input_ids": each, "labels": [*each], "attention_mask": [1] * len(each)} for each in ids])
    known = inspect.signature(model.forward).parameters
    free = any(each.kind is each.VAR_KEYWORD for each in known.values())
    unknown = [key for key in batch if key not in known and not free]
    if unknown:
        pytest.skip(f"{family.name} takes no {', '.join(unknown)}")
    with offline(), full_precision(), implementation.attending(model):
        found, errors = times_rounding(model, Inputs(dict(batch), places), bench)
        if found <= allowance(bench.dtype).factor:
            return
        rights = [
            what for what, change in WAYS_OUT.items() if _right(model, Inputs(change(dict(batch)), places), bench)
        ]
    pytest.fail(
        f"{family.name} {implementation.name}: logits off by {errors.logits:.2g} of the largest, loss by "
        f"{errors.loss:.2g}, gradients by {errors.gradients:.2g} ({errors.worst or 'none'}), {found:.2g} times what "
        f"rounding does. {f'Right {rights[0]}.' if rights else 'No change of arguments makes it right.'}",
        pytrace=False,
    )


#: What is tried where a batch as it is given is wrong, the least first.
WAYS_OUT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "with use_cache=False": lambda batch: batch | {"use_cache": False},
    "without attention_mask": lambda batch: {key: value for key, value in batch.items() if key != "attention_mask"},
    "with use_cache=False, without attention_mask": lambda batch: {
        key: value for key, value in (batch | {"use_cache": False}).items() if key != "attention_mask"
    },
}


def times_rounding(model: nn.Module, batch: Inputs, bench: Bench) -> tuple[float, Errors]:
    """Return how far a batch is off, in units of what rounding does, and the errors themselves."""
    errors = errors_of(run(model, batch, bench.labels), bench.truth)
    return max(error / rounds for error, rounds in zip(errors.values, bench.rounding.values, strict=True)), errors


def _right(model: nn.Module, batch: Inputs, bench: Bench) -> bool:
    try:
        return times_rounding(model, batch, bench)[0] <= allowance(bench.dtype).factor
    except Exception:
        return False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "collated_case" in metafunc.fixturenames:
        cases: list[Any] = [
            pytest.param((family, each), id=f"{family.name}-{each.name}")
            for family in families(metafunc.config)
            for each in implementations(metafunc.config)
        ]
        metafunc.parametrize("collated_case", cases)
