#!/usr/bin/env bash
# Versions: fla-core 0.6.0 (of flash-linear-attention), flash-attn 2.8.3.post2, torch 2.11.0 (cu130), on an NVIDIA
# H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: without `cu_seqlens`, gradients of deltaformer_attn are wrong if the length is above 512 and no multiple
# of 512, its default chunk. Those of the values and of beta are off by a fifth here, those of queries and keys by
# less. The output is right. With `cu_seqlens` of that one sequence, the gradients are right.
#
# Seen (the last 512 tokens of each sequence):
#     fla-core 0.6.0, flash-attn 2.8.3.post2, torch 2.11.0
#     512 tokens: o right, dv right, dbeta right
#     576 tokens with cu_seqlens: o right, dv right, dbeta right
#     576 tokens: o right, dv wrong, dbeta wrong
#
# Why it surprises: a model trains on such lengths with no error and no warning. The forward counts its chunks from
# the first token. Without `cu_seqlens` the backward counts them from the last one, and reads the weights of other
# tokens. It also never writes the value gradients of the first tokens, which are not compared here. With
# `cu_seqlens`, the backward counts chunks like the forward.
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

HEADS, DIM, CHUNK = 2, 64, 512

print(", ".join(f"{name} {version(name)}" for name in ("fla-core", "flash-attn", "torch")))
torch.manual_seed(0)


def relative_errors(length, packed):
    q, k, v, do = torch.randn(4, 1, length, HEADS, DIM, device="cuda").bfloat16()
    beta = torch.rand(1, length, HEADS, device="cuda").bfloat16()
    ends = torch.tensor([0, length], dtype=torch.int32, device="cuda") if packed else None
    results = []
    for truth in (False, True):
        inputs = [(tensor.float() if truth else tensor.clone()).requires_grad_() for tensor in (q, k, v, beta)]
        output = naive_deltaformer_attn(*inputs) if truth else deltaformer_attn(*inputs, cu_seqlens=ends)
        gradients = torch.autograd.grad(output, inputs[2:], do.to(output.dtype))
        # The first tokens are left out: their gradients may come from memory that nothing has written.
        results.append([tensor[:, -CHUNK:].float() for tensor in (output.detach(), *gradients)])
    return [((found - truth).norm() / truth.norm()).item() for found, truth in zip(*results, strict=True)]


outcomes = []
cases = {"512 tokens": (512, False), "576 tokens with cu_seqlens": (576, True), "576 tokens": (576, False)}
for name, case in cases.items():
    outcome = ["right" if error < 0.03 else "wrong" for error in relative_errors(*case)]
    print(f"{name}: " + ", ".join(map(" ".join, zip(("o", "dv", "dbeta"), outcome, strict=True))))
    outcomes.append(outcome)
if outcomes != [["right"] * 3, ["right"] * 3, ["right", "wrong", "wrong"]]:
    sys.exit("changed: other results than described")
print("as described")
PYTHON
# A failure shows what is left out here: warnings.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
