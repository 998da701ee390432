"""Products of the fast step are what torch computes; a stand-in for quack-kernels shows what it is asked for."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from model import products
from tests.unit.stand_ins import Quack, in_quack

pytestmark = pytest.mark.unit

both_sides = pytest.mark.parametrize("by", ["torch", "quack"])
TOKENS, INSIDE, OUT = 24, 16, 64


@pytest.fixture
def quack(monkeypatch: pytest.MonkeyPatch, by: str) -> Quack | None:
    return in_quack(monkeypatch) if by == "quack" else None


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype = torch.bfloat16) -> None:
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    error = (found.double() - wanted).abs().max() / wanted.abs().max()
    assert error < (0.01 if dtype == torch.bfloat16 else 0.005), error


@both_sides
@pytest.mark.parametrize("with_gelu", [False, True], ids=["plain", "gelu"])
@pytest.mark.parametrize("out", [OUT, OUT - 3], ids=["whole", "odd"])
def test_a_product_has_its_bias_and_is_asked_for_the_gelu(quack: Quack | None, with_gelu: bool, out: int) -> None:
    """quack writes no rows of an odd number of words, so torch does."""
    given = drawn(TOKENS, INSIDE), drawn(out, INSIDE), drawn(out)
    wanted = linear(*(each.double() for each in given))
    close(products.product(*given, with_gelu), gelu(wanted, approximate="tanh") if with_gelu else wanted)
    assert quack is None or len(quack.tiles) == (out == OUT)


@both_sides
def test_a_product_is_returned_before_and_after_the_gelu(quack: Quack | None) -> None:
    given = drawn(TOKENS, INSIDE), drawn(OUT, INSIDE), drawn(OUT)
    wanted = linear(*(each.double() for each in given))
    inner, activated = products.product_and_gelu(*given)
    close(inner, wanted)
    close(activated, gelu(wanted, approximate="tanh"))


@both_sides
def test_the_gradient_before_the_gelu_is_summed_for_the_bias_in_float32(quack: Quack | None) -> None:
    gradient, weight, inner = drawn(TOKENS, INSIDE), drawn(INSIDE, OUT), drawn(TOKENS, OUT)
    wanted = torch.ops.aten.gelu_backward(gradient.double() @ weight.double(), inner.double(), approximate="tanh")
    own, of_bias = products.gradient_before_gelu(gradient, weight, inner)
    close(own, wanted)
    close(of_bias, wanted.sum(0), torch.float32)


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_the_gradient_of_a_matrix_is_float32(autocast: bool) -> None:
    """A backward may run where the forward has autocast."""
    gradient, x = drawn(TOKENS, OUT), drawn(TOKENS, INSIDE)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = products.gradient_of_matrix(gradient, x)
    close(found, gradient.double().t() @ x.double(), torch.float32)
    assert torch.allclose(found.double(), gradient.double().t() @ x.double(), atol=1e-4)


def test_a_tile_is_one_object_of_its_own_for_wide_products_and_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """quack 0.6.5 knows a tile by its address, so that a second object is another tile, or the one before it."""
    quack = in_quack(monkeypatch)
    for weight in (drawn(OUT, INSIDE), drawn(INSIDE, OUT), drawn(INSIDE, INSIDE)) * 2:
        products.product(drawn(TOKENS, weight.shape[1]), weight, drawn(len(weight)), False)
    products.gradient_before_gelu(drawn(TOKENS, INSIDE), drawn(INSIDE, OUT), drawn(TOKENS, OUT))
    wide, narrow, square = quack.tiles[:3]
    assert wide != narrow
    assert narrow is square
    assert [id(each) for each in quack.tiles] == [id(each) for each in (wide, narrow, narrow) * 2] + [id(wide)]


def test_another_gpu_has_the_tile_that_quack_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    quack = in_quack(monkeypatch, capability=(10, 0))
    products.product(drawn(TOKENS, INSIDE), drawn(OUT, INSIDE), drawn(OUT), False)
    assert quack.tiles == [None]


@pytest.mark.parametrize("missing", ["quack.gemm_interface", "quack.epilogue.library"])
def test_a_quack_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    in_quack(monkeypatch)
    assert products.probe() == []
    monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type]
    (reason,) = products.probe()
    assert reason.startswith("quack-kernels does not load (")
    assert reason.endswith("; install it again")


def test_operators_are_what_torch_compile_may_take_them_for() -> None:
    """Their schemas, and the shapes and dtypes that their fakes promise."""
    wide, narrow = (drawn(TOKENS, INSIDE), drawn(OUT, INSIDE), drawn(OUT)), (drawn(TOKENS, OUT), drawn(TOKENS, INSIDE))
    asked: tuple[tuple[Any, tuple[Any, ...]], ...] = (
        (products.product, (*wide, True)),
        (products.product_and_gelu, wide),
        (products.gradient_before_gelu, (drawn(TOKENS, INSIDE), drawn(INSIDE, OUT), drawn(TOKENS, OUT))),
        (products.gradient_of_matrix, narrow),
    )
    for operator, given in asked:
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))
