#!/usr/bin/env bash
# Versions: flash-attn 2.8.3.post2, torch 2.11.0 (cu130), triton 3.6.0, on an NVIDIA H200.
# Needs a GPU. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: layer_norm_fn and rms_norm_fn take a tensor residual_out for the sum of x and the residual. If it is given,
# nothing is written to it, and the function returns x in its place. The gradients are computed from x too, and are
# wrong. The normalized output is right.
#
# Seen:
#     torch 2.11.0+cu130, flash-attn 2.8.3.post2, NVIDIA H200
#     layer_norm_fn: output right, returned sum right, gradient of x right, of the weight right
#     layer_norm_fn with residual_out: output right, returned sum is x, gradient of x wrong, of the weight wrong
#     layer_norm_fn with residual_out: the given tensor is unchanged
#     rms_norm_fn: output right, returned sum right, gradient of x right, of the weight right
#     rms_norm_fn with residual_out: output right, returned sum is x, gradient of x wrong, of the weight wrong
#     rms_norm_fn with residual_out: the given tensor is unchanged
#
# Why it surprises: `out` next to it is filled as its name says. The returned sum is the residual stream, so a block
# that passes this argument drops all blocks before it. The output of the norm itself is right, so the loss only gets
# worse. There is no error and no warning. In the source, one condition both allocates a missing tensor and drops a
# given one.
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
from flash_attn.ops.triton.layer_norm import layer_norm_fn, rms_norm_fn
from torch.nn.functional import layer_norm, rms_norm

ROWS, WIDTH, EPS = 37, 96, 1e-5

print(f"torch {torch.__version__}, flash-attn {version('flash-attn')}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
x, residual, *upstreams = torch.randn(4, ROWS, WIDTH, device="cuda")
weight, bias = torch.randn(2, WIDTH, device="cuda")


def torch_layer_norm(x, weight):
    return layer_norm(x + residual, (WIDTH,), weight, bias, EPS), x + residual


def torch_rms_norm(x, weight):
    return rms_norm(x + residual, (WIDTH,), weight, EPS) + bias, x + residual


def results(norm):
    """Return the output, the sum, and the gradients of x and the weight."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight)]
    outputs = norm(*leaves)
    return *outputs, *torch.autograd.grad(outputs, leaves, upstreams)


outcomes = []
for function, by_torch in ((layer_norm_fn, torch_layer_norm), (rms_norm_fn, torch_rms_norm)):
    right = results(by_torch)
    for given in (None, torch.full_like(x, 7.0)):

        def norm(x, weight, function=function, given=given):
            return function(x, weight, bias, residual=residual, prenorm=True, eps=EPS, residual_out=given)

        got = results(norm)
        good = [torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(got, right, strict=True)]
        words = ["right" if each else "wrong" for each in good]
        if torch.equal(got[1], x):
            words[1] = "is x"
        name = function.__name__ + ("" if given is None else " with residual_out")
        print(f"{name}: output {words[0]}, returned sum {words[1]}, gradient of x {words[2]}, of the weight {words[3]}")
        outcomes.append(words)
        if given is not None:
            unchanged = bool((given == 7.0).all())
            print(f"{name}: the given tensor is {'unchanged' if unchanged else 'written'}")
            outcomes.append(unchanged)
if outcomes != [["right"] * 4, ["right", "is x", "wrong", "wrong"], True] * 2:
    sys.exit("changed: other results than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
