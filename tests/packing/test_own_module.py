"""Modules that mix sequences are told from those that do not."""

import re

import pytest
import torch
from torch import Tensor, nn

from tests.packing.own_module import BOUND, compared, forms_of, gives_tokens, module_of

pytestmark = pytest.mark.packing

LENGTHS = (3, 1, 4)


class Mixer(nn.Module):
    """A running mean of each sequence's tokens, as a linear mixer or a state-space layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, seq_idx: Tensor) -> Tensor:
        return self.out(self.mean(self.embedding(input_ids), seq_idx))  # type: ignore[no-any-return]

    def mean(self, hidden: Tensor, seq_idx: Tensor) -> Tensor:
        """The mean of the tokens of the same sequence up to each one."""
        seen = (seq_idx[:, :, None] == seq_idx[:, None]).tril().to(hidden.dtype)
        return seen @ hidden / seen.sum(-1, keepdim=True)


class Leaking(Mixer):
    """Goes on over the boundaries."""

    def mean(self, hidden: Tensor, seq_idx: Tensor) -> Tensor:
        return super().mean(hidden, torch.zeros_like(seq_idx))


class LosesAGradient(Mixer):
    """Trains on the first sequence only."""

    def mean(self, hidden: Tensor, seq_idx: Tensor) -> Tensor:
        mean = super().mean(hidden, seq_idx)
        return torch.where((seq_idx == 0)[..., None], mean, mean.detach())


class Pooled(nn.Module):
    """One output a sequence: the mean over its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None]
        return (self.embedding(input_ids) * mask).sum(1) / self.count(mask)

    def count(self, mask: Tensor) -> Tensor:
        return mask.sum(1)


class PoolsPadding(Pooled):
    """Divides by the slots of the row."""

    def count(self, mask: Tensor) -> Tensor:
        return torch.full_like(mask.sum(1), mask.shape[1])


def worst(make: type[nn.Module]) -> tuple[str, float]:
    module = module_of(make, "cpu")
    (form,) = forms_of(module)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(32, (each,), generator=generator) for each in LENGTHS]
    return compared(module, sequences, form, tokens=gives_tokens(module, form, torch.device("cpu"))).worst


@pytest.mark.parametrize("make", [Mixer, Pooled])
def test_a_right_module_is_right(make: type[nn.Module]):
    assert worst(make)[1] <= BOUND


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Leaking, "output of sequence "),
        (LosesAGradient, "gradient of embedding.weight"),
        (PoolsPadding, "output of sequence "),
    ],
)
def test_a_wrong_module_is_wrong_and_the_place_is_named(make: type[nn.Module], told: str):
    name, off = worst(make)
    assert off > 0.01
    assert name.startswith(told)


class TakesNothing(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids


class WithoutTokens(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


class OfAnotherShape(Pooled):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids, attention_mask).sum()[None, None, None].expand(7, 1, 1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (dict, "make() returned dict; it must return an nn.Module"),
        (WithoutTokens, "forward takes (hidden); it must take input_ids"),
        (
            TakesNothing,
            "forward takes (input_ids); for packed rows it must take one of cu_seqlens, ",
        ),
        (OfAnotherShape, "forward returned (7, 1, 1) for input_ids (2, 5) of 2 sequences; it must return one output"),
    ],
)
def test_what_is_no_such_module_is_one_line(make: type[nn.Module], told: str):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        worst(make)
