"""Measures three options for the fast step, each alone: python -m tests.studies.step_options --out options.json

- `matmuls`: max-autotune of the matmuls of a block, also of those that GELU or its gradient follows.
- `loss`: the head, the cross entropy and their gradients over chunks of tokens, beside all tokens at once.
- `quack`: GELU, and its gradient with the sum for the bias, as epilogues of quack-kernels 0.6.5. It needs a GPU.

`_ms` are medians of calls in turn, and `_mb` what a call allocates at most (10^6 bytes). `late` counts calls that the
device began before the host had launched them. `difference` is the largest one between the option and float64, relative
to the largest number. A CPU has tiny sizes, and compiles nothing.
"""

import argparse
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, linear

from gate.measure.environment import environment
from gate.measure.timing import timed_steps
from gate.record.files import reason, write_json
from gate.report.markdown import markdown_box, render
from model.attention import default_device
from model.compilation import fresh_compiler
from model.workloads import workload_named

Row = dict[str, Any]
Function = Callable[..., tuple[Tensor, ...]]
DEVICE = default_device()
WORKLOAD = workload_named(None, DEVICE)
#: Width of the model, words of the vocabulary, and the mean number of tokens in a batch.
E, V = WORKLOAD.config.hidden_size, WORKLOAD.config.vocab_size
T = WORKLOAD.batch_size * WORKLOAD.config.max_length // 2
#: Timed calls of a function, and the size of the matrices that are multiplied before each.
ROUNDS, SIZE = (30, 16384) if DEVICE == "cuda" else (3, 64)
#: The seconds that a row has.
ROW_S = 90


def compiled(function: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
    """Return `function`, compiled for fixed shapes; a CPU compiles nothing."""
    return torch.compile(function, dynamic=False, mode=mode) if DEVICE == "cuda" else function


def compared(variants: Mapping[str, Function], dtype: torch.dtype, *shapes: tuple[int, ...]) -> Row:
    """Return the row of functions that compute the same, on random tensors. The first is the truth too, in float64."""
    tensors = [(torch.randn(shape, device=DEVICE) * shape[-1] ** -0.25).to(dtype) for shape in shapes]
    truth = next(iter(variants.values()))(*(each.double() for each in tensors))
    row: Row = {}
    for name, function in variants.items():
        found = [function(*tensors) for _ in range(3)][-1]
        errors = [(ours - true).abs().max() / true.abs().max() for ours, true in zip(found, truth, strict=True)]
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function(*tensors)
            row[f"{name}_mb"] = round((torch.cuda.max_memory_allocated() - before) / 1e6)
    # After a long matmul the device is as hot as in a step, and the host is ahead.
    left, out = torch.randn(2, SIZE, SIZE, device=DEVICE).bfloat16()
    pairs = [(partial(torch.mm, left, left, out=out), partial(own, *tensors)) for own in variants.values()]
    samples = timed_steps(lambda call: call(), [call for pair in ROUNDS * pairs for call in pair], DEVICE)
    times, calls = samples.times_ms[1::2], zip(samples.lead_ms[1::2], samples.device_ms[1::2], strict=True)
    medians = {f"{name}_ms": round(median(times[at :: len(variants)]), 4) for at, name in enumerate(variants)}
    late = sum(lead < took for lead, took in calls)
    return medians | row | {"late": late, "difference": float(f"{max(errors).item():.1e}")}


def up(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return what goes into the GELU, which its backward needs, and what comes out, (T, 4E) each."""
    return (inner := linear(x, weight, bias)), gelu(inner, approximate="tanh")


def down_backward(gradient: Tensor, weight: Tensor, inner: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of what goes into the GELU (T, 4E) and of its bias (4E), from that of the MLP (T, E)."""
    own = torch.ops.aten.gelu_backward(gradient @ weight, inner, approximate="tanh")
    return own, own.sum(0, dtype=torch.float32)


def by_quack(tuned: bool, function: Function, left: Tensor, right: Tensor, third: Tensor) -> tuple[Tensor, ...]:
    """Return what `function`, with a GELU, does: by quack with its default tile, or with the best of its tuner."""
    if function is up:
        gemm_act = import_module("quack.gemm_interface").gemm_act
        return gemm_act(left, right.T, bias=third, activation="gelu_tanh_approx", tuned=tuned)
    found = import_module("quack.epilogue.library").dact_dbias_mod("gelu_tanh_approx")(left, right, third, tuned=tuned)
    return found["D"], found["dwb"]


def part_loss(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Return what the tokens of `x` (tokens, E) add to the mean loss of all T, a 0-d tensor. float64 stays float64."""
    with torch.autocast(DEVICE, torch.bfloat16):
        return cross_entropy(linear(x, weight, bias).to(x.dtype), targets, reduction="sum") / T


def loss(of_part: Callable[..., Tensor], first: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the loss, and its gradients to `tensors`: x (tokens, E) from token `first` on, weight (V, E), bias (V)."""
    leaves = [each.detach().requires_grad_() for each in tensors]
    total = of_part(*leaves, torch.arange(first, first + len(leaves[0]), device=DEVICE) % V)
    return total.detach(), *torch.autograd.grad(total, leaves)


def loss_of_chunks(of_part: Callable[..., Tensor], chunks: int, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """Return what `loss` does. A chunk gets its gradients before the next one gets its logits."""
    of_x, sums = torch.empty_like(x), [torch.zeros_like(each) for each in (x[0, 0], *parameters)]
    for first, own, part in zip(range(0, T, T // chunks), of_x.chunk(chunks), x.chunk(chunks), strict=True):
        total, gradient, *more = loss(of_part, first, part, *parameters)
        own.copy_(gradient)
        torch._foreach_add_(sums, [total, *more])
    return sums[0], of_x, *sums[1:]


def rows_of(part: str) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of `compared` for each row of a part."""
    if part == "loss":
        once = compiled(part_loss)
        beside = {"plain": partial(loss, part_loss, 0), "compiled": partial(loss, once, 0)}
        chunks = {n: beside | {"option": partial(loss_of_chunks, once, n)} for n in (2, 4, 8)}
        return {f"{n} chunks": (own, torch.float32, (T, E), (V, E), (V,)) for n, own in chunks.items()}
    cases: list[tuple[Any, ...]] = [("down backward, GELU, bias", down_backward, (T, E), (E, 4 * E), (T, 4 * E))]
    cases += [("up, GELU", up, (T, E), (4 * E, E), (4 * E,))]
    options: dict[str, Any] = {f", tuned={tuned}": partial(partial, by_quack, tuned) for tuned in (False, True)}
    if part == "matmuls":
        options = {"": partial(compiled, mode="max-autotune-no-cudagraphs")}
        for name, size, out in (("up", E, 4 * E), ("down", 4 * E, E), ("qkv", E, 3 * E), ("projection", E, E)):
            cases += [(f"{name}, forward", lambda x, w, bias: (linear(x, w, bias),), (T, size), (out, size), (out,))]
            cases += [(f"{name}, gradient of x", lambda gradient, w: (gradient @ w,), (T, out), (out, size))]
            cases += [(f"{name}, gradient of weight", lambda gradient, x: (gradient.t() @ x,), (T, out), (T, size))]
    return {
        name + how: ({"plain": own, "compiled": compiled(own), "option": option(own)}, torch.bfloat16, *shapes)
        for name, own, *shapes in cases
        for how, option in options.items()
    }


def measured(part: str, name: str) -> Row:
    """Return what a row measured, or why there is nothing. max-autotune gets the kernels for Hopper too."""
    torch.manual_seed(0)
    torch._inductor.config.triton.enable_persistent_tma_matmul = True
    try:
        with fresh_compiler():
            return compared(*rows_of(part)[name])
    except Exception as error:
        return {"error": reason(error)[:300]}


def measure(part: str, until: float) -> Iterator[Row]:
    """Measure the rows of a part in a process; after a row that fails, another process goes on with the next one."""
    names = [*rows_of(part)]
    while names and time.monotonic() < until:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.setsid) as worker:
            group, row = worker.submit(os.getpid).result(), Row()
            while names and "error" not in row:
                name, limit_s = names.pop(0), min(ROW_S, until - time.monotonic())
                try:
                    row = worker.submit(measured, part, name).result(limit_s)
                except (TimeoutError, BrokenExecutor) as error:
                    row = {"error": f"{type(error).__name__} within {limit_s:.0f} s"}
                yield {"row": name, **row}
            # Compile workers outlive a process that was killed.
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
    yield from ({"row": name, "error": "no time was left"} for name in names)


def main() -> None:
    """Measure the parts one after the other, each in a share of the minutes; write the file after every row."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.step_options", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--parts", default="matmuls,loss,quack", help="separated by commas")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all parts together")
    args = parser.parse_args()
    if not {*args.parts.split(",")} <= {"matmuls", "loss", "quack"}:
        parser.error(f"--parts are matmuls, loss and quack; got {args.parts}.")
    quack = [each.version for each in metadata.distributions(name="quack-kernels")]
    content: Row = {"machine": environment(), "quack-kernels": quack, "T": T, "E": E, "V": V}
    parts, end = args.parts.split(","), time.monotonic() + 60 * args.minutes
    for left, part in zip(range(len(parts), 0, -1), parts, strict=True):
        rows = content[part] = []
        for row in measure(part, (end + (left - 1) * time.monotonic()) / left):
            rows.append(row)
            print(f"{part}:", *(f"{key} {value}" for key, value in row.items()), flush=True)
            write_json(args.out, content, indent=1)
        whole = [row for row in rows if "error" not in row]
        table = markdown_box("row", numbers=[key for row in whole[:1] for key in row][1:])
        for row in whole:
            table.add_row(*map(str, row.values()))
        print(f"\n{render(table)}\n", flush=True)


if __name__ == "__main__":
    main()
