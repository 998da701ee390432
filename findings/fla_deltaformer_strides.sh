#!/usr/bin/env bash
# Versions: fla-core 0.6.0 (of flash-linear-attention), flash-attn 2.8.3.post2, torch 2.11.0 (cu130), on an NVIDIA
# H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: deltaformer_attn reads queries, keys and values as if they were contiguous. If they are parts of one
# tensor, as after chunk(), the output and all gradients are wrong. Contiguous copies of the same parts give the
# right ones.
#
# Seen (128 tokens, q, k and v of one projection):
#     fla-core 0.6.0, flash-attn 2.8.3.post2, torch 2.11.0
#     contiguous copies: o right, dqkv right, dbeta right
#     parts of one tensor: o wrong, dqkv wrong, dbeta wrong
#
# Why it surprises: to project queries, keys and values at once and to cut the result is common. Functions of torch
# give the same result for any strides. The docstrings ask for no contiguous inputs. Most functions of this package
# make their inputs contiguous; this one does not. Its last step, by flash-attn, reads the strides. There is no error
# and no warning. All that it reads lies within the tensor that is cut.
#
# Without PYTHON, flash-attn is built. That needs nvcc of CUDA 13, a C++ compiler, and an hour or more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq fla-core==0.6.0 torch==2.11.0 packaging
    # flash-attn has no wheels in the index, so this builds it.
    venv/bin/pip install -qq setuptools wheel ninja numpy psutil
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq --no-build-isolation flash-attn==2.8.3.post2
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
import triton

autotune = triton.autotune


def tune_nothing(configs, **options):
    """To try all configurations of each kernel takes minutes."""
    return autotune([config for config in configs if config.num_warps == 4][:1] or configs[:1], **options)


triton.autotune = tune_nothing

from fla.ops.deltaformer import deltaformer_attn  # noqa: E402
from fla.ops.deltaformer.naive import naive_deltaformer_attn  # noqa: E402

TOKENS, HEADS, DIM = 128, 2, 64

print(", ".join(f"{name} {version(name)}" for name in ("fla-core", "flash-attn", "torch")))
torch.manual_seed(0)
projected = torch.randn(1, TOKENS, 3 * HEADS, DIM, device="cuda").bfloat16()
beta = torch.rand(1, TOKENS, HEADS, device="cuda").bfloat16()
do = torch.randn(1, TOKENS, HEADS, DIM, device="cuda").bfloat16()


def results(attend, dtype, contiguous):
    inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (projected, beta)]
    parts = inputs[0].chunk(3, dim=2)
    if contiguous:
        parts = [part.contiguous() for part in parts]
    output = attend(*parts, inputs[1])
    return [output.detach().float(), *(tensor.float() for tensor in torch.autograd.grad(output, inputs, do.to(dtype)))]


truths = results(naive_deltaformer_attn, torch.float32, False)
outcomes = []
for name, contiguous in (("contiguous copies", True), ("parts of one tensor", False)):
    outcome = []
    for found, truth in zip(results(deltaformer_attn, torch.bfloat16, contiguous), truths, strict=True):
        outcome.append("right" if (found - truth).norm() < 0.03 * truth.norm() else "wrong")
    print(f"{name}: " + ", ".join(map(" ".join, zip(("o", "dqkv", "dbeta"), outcome, strict=True))))
    outcomes.append(outcome)
if outcomes != [["right"] * 3, ["wrong"] * 3]:
    sys.exit("changed: other results than described")
print("as described")
PYTHON
# A failure shows what is left out here: warnings.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
