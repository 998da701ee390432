"""Matrix products of the fast step in 16 bits, with what follows them as epilogues (quack-kernels).

Each is a custom operator, so that torch.compile takes it. On a CPU torch computes the same to the tolerance: quack
applies the GELU to float32 sums, and its tanh is an approximation. Shapes: T tokens, E features in, F features out.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from model.attention.backend import Requirement, first_line

#: What quack-kernels calls the tanh form.
GELU = "gelu_tanh_approx"

REQUIREMENT = Requirement("quack-kernels", "0.6.5", "pip install --upgrade quack-kernels")


def probe() -> list[str]:
    """Return why the epilogues cannot be imported, or an empty list."""
    try:
        from quack.epilogue.library import dact_dbias_mod  # noqa: F401
        from quack.gemm_interface import gemm_act  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return [f"quack-kernels does not load ({first_line(error)}); install it again"]
    return []


def by_quack(x: Tensor) -> bool:
    """Tell whether products of `x` are quack's."""
    return x.is_cuda


def tile(weight: Tensor) -> Any:
    """Return the tile for products with `weight` (F, E), or None, which is what quack takes by default.

    On Hopper, two of quack's 22: others were no faster in a step (docs/results/fast-step.md). quack's tuner would
    choose again for each number of tokens.
    """
    if torch.cuda.get_device_capability(weight.device)[0] != 9:
        return None
    return _of_hopper(192, 128, 1, 2) if weight.shape[0] > weight.shape[1] else _of_hopper(128, 208, 2, 1)


# quack 0.6.5 knows a tile by its address: one that is freed may be taken for the next at that address.
@functools.cache
def _of_hopper(rows: int, columns: int, cluster_rows: int, cluster_columns: int) -> Any:
    from quack.gemm_config import GemmConfig

    return GemmConfig(
        tile_m=rows, tile_n=columns, cluster_m=cluster_rows, cluster_n=cluster_columns, is_dynamic_persistent=False
    )


@torch.library.custom_op("varlen_gate::product", mutates_args=())
def product(x: Tensor, weight: Tensor, bias: Tensor, with_gelu: bool) -> Tensor:
    """Return `x` (T, E) times `weight` (F, E) transposed plus `bias` (F), or the tanh GELU of that: (T, F)."""
    # quack writes rows of whole 16 bytes, and a vocabulary may have any number of words.
    if not by_quack(x) or weight.shape[0] % 8:
        out = linear(x, weight, bias)
        return gelu(out, approximate="tanh") if with_gelu else out
    from quack.gemm_interface import gemm_act

    activation = GELU if with_gelu else None
    found: Tensor = gemm_act(
        x, weight.t(), bias=bias, activation=activation, store_preact=False, tuned=False, config=tile(weight)
    )[1]
    return found


@product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, with_gelu: bool) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


@torch.library.custom_op("varlen_gate::product_and_gelu", mutates_args=())
def product_and_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `product` does without the GELU, and with it, (T, F) each."""
    if not by_quack(x):
        inner = linear(x, weight, bias)
        return inner, gelu(inner, approximate="tanh")
    from quack.gemm_interface import gemm_act

    inner, activated = gemm_act(x, weight.t(), bias=bias, activation=GELU, tuned=False, config=tile(weight))
    return inner, activated


@product_and_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    inner, activated = (x.new_empty((x.shape[0], weight.shape[0])) for _ in range(2))
    return inner, activated


@torch.library.custom_op("varlen_gate::gradient_before_gelu", mutates_args=())
def gradient_before_gelu(gradient: Tensor, weight: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient (T, E) of what went into the GELU, `inner`, and its sum over the tokens, float32 (E).

    `gradient` (T, F) is of what `weight` (F, E) made of the GELU's results.
    """
    if not by_quack(gradient):
        own = torch.ops.aten.gelu_backward(gradient @ weight, inner, approximate="tanh")
        return own, own.sum(0, dtype=torch.float32)
    from quack.epilogue.library import dact_dbias_mod

    found = dact_dbias_mod(GELU)(gradient, weight, inner, tuned=False, config=tile(weight.t()))
    return found["D"], found["dwb"]


@gradient_before_gelu.register_fake
def _(gradient: Tensor, weight: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    return inner.new_empty(inner.shape), inner.new_empty(inner.shape[1], dtype=torch.float32)


@torch.library.custom_op("varlen_gate::gradient_of_matrix", mutates_args=())
def gradient_of_matrix(gradient: Tensor, x: Tensor) -> Tensor:
    """Return `gradient` (T, F) transposed times `x` (T, E), float32 (F, E), of 16-bit factors."""
    if not x.is_cuda:
        with torch.autocast("cpu", enabled=False):
            return gradient.t().float() @ x.float()
    return torch.mm(gradient.t(), x, out_dtype=torch.float32)


@gradient_of_matrix.register_fake
def _(gradient: Tensor, x: Tensor) -> Tensor:
    return x.new_empty((gradient.shape[1], x.shape[1]), dtype=torch.float32)
