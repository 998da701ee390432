"""Times each product of the fast step with each tile of quack-kernels, beside torch: python -m tests.studies.tiles

`--out FILE` gets milliseconds a call in a CUDA graph of 20. Each graph has run for a while before it is timed, so that
the chip draws the power that it may, as in a step. `torch` is cuBLAS and what torch runs after it, `here` is the tile
of `model/products.py`. A CPU has no tiles. A tile that ends its process ends the study.
"""

import argparse
import functools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from gate.measure.environment import environment
from gate.measure.timing import timed_steps
from gate.record.files import reason, write_json
from gate.report.markdown import markdown_box, render
from model import products
from model.attention import default_device
from model.workloads import workload_named

DEVICE = default_device()
#: Calls in a graph, processes that compile, and for how long a graph runs before it is timed.
CALLS, PROCESSES, WARM_MS = (20, 12, 250) if DEVICE == "cuda" else (1, 1, 0)

Call = Callable[[], Any]


def of_torch(x: Tensor, weight: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `gradient_before_gelu` does."""
    own = torch.ops.aten.gelu_backward(x @ weight, inner, approximate="tanh")
    return own, own.sum(0, dtype=torch.float32)


def calls(name: str, workload: str) -> tuple[Call, Call]:
    """Return a product of a workload's mean batch by torch, and by `model/products.py`."""
    asked = workload_named(workload, DEVICE)
    config, width = asked.config, asked.config.hidden_size
    heads = (config.num_heads + 2 * config.kv_heads) * config.head_dim
    tokens = sum(len(each.input_ids) for batch in asked.examples() for each in batch) // asked.num_batches

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(shape, device=DEVICE) * shape[-1] ** -0.25).to(torch.bfloat16)

    if name == "gradient before GELU":
        given = drawn(tokens, width), drawn(width, 4 * width), drawn(tokens, 4 * width)
        return partial(of_torch, *given), partial(products.gradient_before_gelu, *given)
    inside, out = {"qkv": (width, heads), "projection": (width, width), "down": (4 * width, width)}.get(
        name, (width, 4 * width)
    )
    x, weight, bias = drawn(tokens, inside), drawn(out, inside), drawn(out)
    if name == "up and GELU":
        return lambda: gelu(linear(x, weight, bias), approximate="tanh"), partial(
            products.product_and_gelu, x, weight, bias
        )
    if name == "GELU of up":
        plain = partial(torch._addmm_activation, bias, x, weight.t(), use_gelu=True)
        return plain, partial(products.product, x, weight, bias, True)
    return partial(linear, x, weight, bias), partial(products.product, x, weight, bias, False)


NAMES = ("qkv", "projection", "up and GELU", "GELU of up", "down", "gradient before GELU")


@functools.cache
def tiles() -> dict[str, Any]:
    """Return the tiles that quack's tuner has for Hopper, by name; none on a CPU.

    They are kept, as quack 0.6.5 knows a tile by its address.
    """
    if DEVICE == "cpu":
        return {}
    from quack.gemm_config import get_all_configs

    found = [each for each in get_all_configs() if each.device_capacity == 9 and not each.swap_ab]
    return {
        f"{each.tile_m} x {each.tile_n}{', pingpong' * each.pingpong}, {each.cluster_m} x {each.cluster_n}": each
        for each in found
    }


@contextmanager
def using(tile: str | None) -> Iterator[None]:
    """Let products take a tile; None is their own choice."""
    chosen = products.tile if tile is None else lambda weight: tiles()[tile]
    with mock.patch.object(products, "tile", chosen):
        yield


def failure(workload: str, pair: tuple[str, str]) -> str:
    """Compile a product with a tile, whose kernel quack keeps on disk; return what it raised, or nothing."""
    name, tile = pair
    try:
        with using(tile):
            calls(name, workload)[1]()
    except Exception as error:
        return reason(error)[:200]
    return ""


def graph(call: Call, tile: str | None) -> Call:
    """Return what runs `call` several times: a CUDA graph, or `call` itself on a CPU."""
    with using(tile):
        call()
        if DEVICE == "cpu":
            return call
        torch.cuda.synchronize()
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            for _ in range(CALLS):
                call()
    return recorded.replay


def measured(name: str, workload: str, usable: list[str]) -> dict[str, float]:
    """Return the milliseconds of a product by torch, with the tile it has here, and with each usable tile."""
    plain, ours = calls(name, workload)
    graphs = {"torch": graph(plain, None), "here": graph(ours, None)} | {tile: graph(ours, tile) for tile in usable}
    return {tile: sustained(own) / CALLS for tile, own in graphs.items()}


def sustained(call: Call) -> float:
    """Return the milliseconds of a call after others have run for `WARM_MS`."""
    first = median(timed_steps(lambda _: call(), range(3), DEVICE).times_ms)
    times = timed_steps(lambda _: call(), range(2 * int(WARM_MS / first) + 3), DEVICE).times_ms
    return median(times[len(times) // 2 :])


def main() -> None:
    """Compile in several processes, time in one, and write the file after every product."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.tiles", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("tiles.json"), help="the JSON file")
    parser.add_argument("--workload", default=workload_named(None, DEVICE).name, help="article or long")
    args = parser.parse_args()
    pairs = [(name, tile) for name in NAMES for tile in tiles()]
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        failures = dict(zip(pairs, pool.map(partial(failure, args.workload), pairs), strict=True))
    content: dict[str, Any] = {"machine": environment(), "workload": args.workload, "ms": {}, "failures": {}}
    content["failures"] = {", ".join(pair): told for pair, told in failures.items() if told}
    table = markdown_box("product", "best tile", numbers=["torch", "here", "best"])
    for name in NAMES:
        found = content["ms"][name] = measured(name, args.workload, [t for t in tiles() if not failures[name, t]])
        best = min((tile for tile in found if tile != "torch"), key=found.__getitem__)
        table.add_row(name, best, *(f"{found[each]:.4f}" for each in ("torch", "here", best)))
        write_json(args.out, content, indent=1)
    print(f"\n{render(table)}\n\nms a call; {len(content['failures'])} products failed with a tile.")


if __name__ == "__main__":
    main()
