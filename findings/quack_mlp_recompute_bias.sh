#!/usr/bin/env bash
# Versions: quack-kernels 0.6.5, nvidia-cutlass-dsl 4.8.1, torch 2.11.0 (cu130), on an NVIDIA H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: an MLP of quack with recompute=True leaves out both biases under no_grad. With gradients, and without
# recompute, the biases are added. So the model is trained with its biases and evaluated without them.
#
# Seen:
#     quack-kernels 0.6.5, torch 2.11.0+cu130, NVIDIA H200
#     recompute=False, with gradients: right
#     recompute=False, under no_grad: right
#     recompute=True, with gradients: right
#     recompute=True, under no_grad: that of an MLP without biases
#
# Why it surprises: the module accepts bias1 and bias2 with recompute, and a comment in its forward says that biases are
# allowed in inference. recompute saves memory in training, and should not change the output. With gradients a module
# with biases takes the path of torch. Under no_grad it calls mlp_func, which gives the biases to every path but the one
# for recompute: MLPRecomputeFunc in mlp.py has no arguments for them. mlp_func itself leaves them out in training too.
# There is no error and no warning. On 30 November 2026, 0.6.5 was the newest release.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq torch==2.11.0 quack-kernels==0.6.5 \
        "nvidia-cutlass-dsl[cu13]==4.8.1"
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from quack.mlp import MLP
from torch.nn.functional import gelu, linear

WIDTH, HIDDEN, ROWS = 128, 256, 64

print(f"quack-kernels {version('quack-kernels')}, torch {torch.__version__}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
x = torch.randn(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16)


def truth(mlp, biases):
    """The output by torch, in float64."""
    first, second = (mlp.fc1.bias.double(), mlp.fc2.bias.double()) if biases else (None, None)
    hidden = gelu(linear(x.double(), mlp.fc1.weight.double(), first), approximate="tanh")
    return linear(hidden, mlp.fc2.weight.double(), second)


def outcome(recompute, gradients):
    mlp = MLP(WIDTH, HIDDEN, bias1=True, bias2=True, recompute=recompute, tuned=False, device="cuda", dtype=x.dtype)
    torch.nn.init.normal_(mlp.fc1.bias)
    torch.nn.init.normal_(mlp.fc2.bias)
    with torch.set_grad_enabled(gradients):
        found = mlp(x)
    for name, biases in (("right", True), ("that of an MLP without biases", False)):
        right = truth(mlp, biases)
        if (found - right).abs().max() / right.abs().max() < 0.03:
            return name
    return "wrong"


cases = [(recompute, gradients) for recompute in (False, True) for gradients in (True, False)]
outcomes = {case: outcome(*case) for case in cases}
for (recompute, gradients), seen in outcomes.items():
    print(f"recompute={recompute}, {'with gradients' if gradients else 'under no_grad'}: {seen}")
if list(outcomes.values()) != ["right"] * 3 + ["that of an MLP without biases"]:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
