"""A module from outside (`pytest -m packing --model SPEC`) computes of a ragged batch what it computes of each sequence
alone: outputs and gradients, whatever lies beside a sequence."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.attention import default_device
from tests.packing.outside_parts import part_asked
from tests.packing.own_module import BOUND, FORMS, compared, forms_of, gives_tokens, module_of

pytestmark = pytest.mark.packing

lengths_drawn = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def module(pytestconfig: pytest.Config) -> nn.Module:
    return module_of(part_asked(pytestconfig, "model"), default_device())


@pytest.mark.parametrize("form", FORMS)
def test_a_module_computes_of_a_batch_what_each_sequence_alone_gives(module: nn.Module, form: str) -> None:
    if form not in forms_of(module):
        pytest.skip(f"its forward takes no {form} batch")

    tokens = gives_tokens(module, form, torch.device(default_device()))

    @given(lengths=lengths_drawn, seed=st.integers(0, 2**16))
    def check(lengths: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        most = getattr(module, "vocab_size", 32)
        sequences = [torch.randint(most, (each,), generator=generator).to(default_device()) for each in lengths]
        name, off = compared(module, sequences, form, tokens=tokens).worst
        assert off <= BOUND, f"lengths {lengths}, {form}: {name} is off by {off:.2g} of the largest"

    check()
