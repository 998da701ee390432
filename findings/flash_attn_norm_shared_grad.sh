#!/usr/bin/env bash
# Versions: flash-attn 2.8.3.post2, torch 2.11.0 (cu130), triton 3.6.0, on an NVIDIA H200.
# Needs a GPU. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: layer_norm_fn and rms_norm_fn return one tensor as the gradients of x and of its residual. If both are
# leaves, their .grad share memory. A second backward adds to that memory twice, so both gradients are wrong.
#
# Seen:
#     torch 2.11.0+cu130, flash-attn 2.8.3.post2, NVIDIA H200
#     layer_norm_fn(x, residual), one batch: gradients share memory, x right, residual right
#     layer_norm_fn(x, residual), two batches: gradients share memory, x first + 2 * second, residual first + 2 * second
#     layer_norm_fn(x + residual), one batch: gradients apart, x right, residual right
#     layer_norm_fn(x + residual), two batches: gradients apart, x right, residual right
#
# Why it surprises: to accumulate gradients over batches is common, and so are two leaves: learned prompts and learned
# positions, or a memory that is optimized. To scale or clip .grad in place does so twice as well. One backward is
# right, so tests with one batch pass. The same holds for x1. There is no error and no warning. In the source, the
# backward kernel writes one gradient, and its wrapper passes this on under two names.
#
# Without PYTHON, pip builds flash-attn. That needs nvcc of CUDA 13, a C++ compiler, and up to two hours.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    export PIP_CONSTRAINT=$folder/constraints.txt
    venv/bin/pip install -qq torch==2.11.0 einops packaging psutil ninja setuptools wheel
    venv/bin/pip install -qq --no-build-isolation flash-attn==2.8.3.post2
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from flash_attn.ops.triton.layer_norm import layer_norm_fn

ROWS, WIDTH, EPS = 37, 96, 1e-5

print(f"torch {torch.__version__}, flash-attn {version('flash-attn')}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
weight, bias = torch.randn(2, WIDTH, device="cuda")
inputs = torch.randn(2, ROWS, WIDTH, device="cuda")
batches = torch.randn(2, ROWS, WIDTH, device="cuda")


def by_argument(x, residual):
    return layer_norm_fn(x, weight, bias, residual=residual, eps=EPS)


def by_sum(x, residual):
    return layer_norm_fn(x + residual, weight, bias, eps=EPS)


def by_torch(x, residual):
    return torch.nn.functional.layer_norm(x + residual, (WIDTH,), weight, bias, EPS)


def gradients(norm, upstreams):
    """Accumulate over the upstream gradients, as over batches."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    for upstream in upstreams:
        norm(*leaves).backward(upstream)
    return [leaf.grad for leaf in leaves]


def word(got, first, second):
    for name, right in (("right", first + second), ("first + 2 * second", first + 2 * second)):
        if torch.allclose(got, right, atol=1e-4):
            return name
    return "wrong"


outcomes = []
first, second = (gradients(by_torch, [upstream])[0] for upstream in batches)
for norm, name in ((by_argument, "layer_norm_fn(x, residual)"), (by_sum, "layer_norm_fn(x + residual)")):
    for count, batch in ((1, "one batch"), (2, "two batches")):
        got = gradients(norm, batches[:count])
        shared = "share memory" if got[0].data_ptr() == got[1].data_ptr() else "apart"
        words = [word(gradient, first, second * (count == 2)) for gradient in got]
        print(f"{name}, {batch}: gradients {shared}, x {words[0]}, residual {words[1]}")
        outcomes.append((shared, *words))
double = "first + 2 * second"
if outcomes != [
    ("share memory", "right", "right"), ("share memory", double, double),
    ("apart", "right", "right"), ("apart", "right", "right"),
]:
    sys.exit("changed: other gradients than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
