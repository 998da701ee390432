#!/usr/bin/env bash
# Versions: liger-kernel 0.8.5, torch 2.11.0 (cu130), triton 3.6.0, on an NVIDIA H200.
# Needs a GPU. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: LigerGroupNorm adds up squares in the type of its input. In float16 that sum overflows if a group is large:
# 16384 values with a standard deviation of 4 are enough. The output is then only the bias, and the gradient of the
# input is 0.
#
# Seen (a group of 16384 values, without bias; a norm has an output with a standard deviation of 1):
#     torch 2.11.0+cu130, liger-kernel 0.8.5, NVIDIA H200
#     float16, inputs of 1: output 1.00 (torch: 1.00), gradient right
#     float16, inputs of 4: output 0.00 (torch: 1.00), gradient 0
#     float32, inputs of 4: output 1.00 (torch: 1.00), gradient right
#
# Why it surprises: group norm is used on images, where a group often has more values than these, and the inputs are far
# from the limit of float16. The result of a norm does not depend on the scale of its input. torch's group_norm adds up
# in float32, and so does LigerLayerNorm. The loss of a network with such a layer stays finite. There
# is no error and no warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq liger-kernel==0.8.5 torch==2.11.0 packaging
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from liger_kernel.transformers.group_norm import LigerGroupNorm
from torch.nn.functional import group_norm

CHANNELS, GROUPS, SIZE, EPS = 8, 2, 4096, 1e-6

print(f"torch {torch.__version__}, liger-kernel {version('liger-kernel')}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
values, upstream = torch.randn(2, 2, CHANNELS, SIZE, device="cuda")


def seen(norm, dtype, scale):
    x = (values * scale).to(dtype).requires_grad_()
    y = norm(x)
    y.backward(upstream.to(dtype))
    return y.detach().double(), x.grad.double()


outcomes = []
for dtype, scale in ((torch.float16, 1), (torch.float16, 4), (torch.float32, 4)):
    layer = LigerGroupNorm(CHANNELS, GROUPS, eps=EPS).to("cuda", dtype)

    def by_torch(x, layer=layer):
        return group_norm(x, GROUPS, layer.weight, layer.bias, EPS)

    _, true = seen(lambda x: group_norm(x, GROUPS, eps=EPS), torch.float64, scale)
    spread, gradient = seen(layer, dtype, scale)
    control, control_gradient = seen(by_torch, dtype, scale)
    if (control_gradient - true).abs().max() > 0.02 * true.abs().max():
        sys.exit("changed: the gradient of torch is wrong")
    right = bool((gradient - true).abs().max() < 0.02 * true.abs().max())
    word = "right" if right else "wrong" if gradient.any() else "0"
    spreads = f"{spread.std().item():.2f}", f"{control.std().item():.2f}"
    name = str(dtype).removeprefix("torch.")
    print(f"{name}, inputs of {scale}: output {spreads[0]} (torch: {spreads[1]}), gradient {word}")
    outcomes.append((*spreads, word))
if outcomes != [("1.00", "1.00", "right"), ("0.00", "1.00", "0"), ("1.00", "1.00", "right")]:
    sys.exit("changed: other outputs or gradients than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
