#!/usr/bin/env bash
# Versions: flash-attn 2.8.3.post2, torch 2.11.0 (cu130), triton 3.6.0, on an NVIDIA H200.
# Needs a GPU. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: apply_rotary_emb with inplace=True rotates the incoming gradient in place too. If another branch gets the
# same gradient, its gradient is rotated as well. If the gradient is an expanded scalar, as that of a sum, the own
# gradient is wrong. Without inplace all gradients are right.
#
# Seen:
#     torch 2.11.0+cu130, flash-attn 2.8.3.post2, NVIDIA H200
#     inplace=False, added to a branch: gradient right, that of the branch right
#     inplace=False, summed: gradient right
#     inplace=True, added to a branch: gradient right, that of the branch rotated
#     inplace=True, summed: gradient wrong
#
# Why it surprises: the docstring says that inplace applies the rotation to x in place, and nothing of gradients. A
# gradient may be shared with other branches, so the backwards of torch do not write to it. A sum as a loss is common in
# tests, and an added branch is a skip connection. apply_rotary_emb_qkv_, apply_rotary_emb_kv_ and the module
# RotaryEmbedding always work in place, and write to gradients in the same way. There is no error and no warning.
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
from flash_attn.layers.rotary import apply_rotary_emb

LENGTH, HEADS, DIM = 9, 3, 32

print(f"torch {torch.__version__}, flash-attn {version('flash-attn')}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
tensors = torch.randn(2, 2, LENGTH, HEADS, DIM, device="cuda")
upstream = torch.randn(2, LENGTH, HEADS, DIM, device="cuda")
angles = torch.arange(LENGTH)[:, None] * 100.0 ** (-torch.arange(DIM // 2) / (DIM // 2))
cos, sin = angles.cos().to(upstream), angles.sin().to(upstream)


def rotated(x, sin):
    first, second = x.chunk(2, dim=-1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1)


def gradients(inplace, summed):
    """Return the gradients of the rotated tensor and of a branch that is added to it."""
    x, branch = (tensor.clone().requires_grad_() for tensor in tensors)
    # The doubled branch comes first, so that its backward comes last. No leaf is changed in place.
    doubled, copy = branch * 2, x * 1
    out = apply_rotary_emb(copy, cos, sin, inplace=inplace)
    torch.testing.assert_close(out, rotated(x, sin))
    if summed:
        out.sum().backward()
    else:
        (out + doubled).backward(upstream.clone())
    return x.grad, branch.grad


def word(got, right):
    return "right" if torch.allclose(got, right, atol=1e-5) else "wrong"


outcomes = {}
for inplace in (False, True):
    # The gradient of a rotation is the rotation back.
    back = rotated(upstream, -sin)
    got, of_branch = gradients(inplace, summed=False)
    branch = "rotated" if torch.allclose(of_branch, 2 * back, atol=1e-5) else word(of_branch, 2 * upstream)
    outcomes[inplace] = [word(got, back), branch]
    print(f"inplace={inplace}, added to a branch: gradient {outcomes[inplace][0]}, that of the branch {branch}")
    got, _ = gradients(inplace, summed=True)
    outcomes[inplace].append(word(got, rotated(torch.ones_like(upstream), -sin)))
    print(f"inplace={inplace}, summed: gradient {outcomes[inplace][2]}")
if outcomes != {False: ["right"] * 3, True: ["right", "rotated", "wrong"]}:
    sys.exit("changed: other gradients than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
