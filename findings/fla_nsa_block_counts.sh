#!/usr/bin/env bash
# Versions: fla-core 0.6.0 (of flash-linear-attention), triton 3.9.0, torch 2.13.0, on a CPU (Triton's interpreter).
#
# Behaviour: if `block_counts` of parallel_nsa is an int below the number of blocks in `block_indices`, the output
# uses all blocks. So does the gradient of the queries. The gradients of keys and values leave out the blocks past
# `block_counts`, so they are those of neither number. As a tensor, `block_counts` has its documented effect.
#
# Seen (4 blocks for each query):
#     block_counts=4: o of 4 blocks, dq of 4 blocks, dk of 4 blocks, dv of 4 blocks
#     block_counts=2 in a tensor: o of 2 blocks, dq of 2 blocks, dk of 2 blocks, dv of 2 blocks
#     block_counts=2: o of 4 blocks, dq of 4 blocks, dk of neither, dv of neither
#
# Why it surprises: the docstring calls it the number of selected blocks, as an int or a tensor. There is no error
# and no warning. The kernels of output and queries take an int for the width of `block_indices`. The table for keys
# and values takes the int itself. Without `block_indices`, the selection rounds an int up to a power of two. So
# `block_counts=3` trains with wrong gradients, too.
#
# An H200 shows the same, with the compiled kernels, triton 3.6.0 and torch 2.11.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
# fla-core requires none of the others. Triton's interpreter needs numpy.
venv/bin/pip install -qq fla-core==0.6.0 triton==3.9.0 torch==2.13.0 packaging numpy==2.4.6

cat > seen.py <<'PYTHON'
import sys

import torch
import triton

autotune = triton.autotune
# The interpreter cannot measure, so there is one configuration of each kernel.
triton.autotune = lambda configs, **options: autotune(configs[:1], **options)

from fla.ops.nsa import parallel_nsa  # noqa: E402

TOKENS, HEADS, DIM, SIZE = 96, 16, 16, 16

torch.manual_seed(0)
q, do = torch.randn(2, 1, TOKENS, HEADS, DIM)
k, v = torch.randn(2, 1, TOKENS, 1, DIM)
gate = torch.ones(1, TOKENS, HEADS)
# Each query selects its own block and up to three earlier ones. The others are -1.
blocks = torch.full((1, TOKENS, 1, 4), -1)
for token in range(TOKENS):
    own = token // SIZE
    chosen = [own, *torch.randperm(own)[:3].tolist()]
    blocks[0, token, 0, : len(chosen)] = torch.tensor(chosen)


def by_fla(q, k, v, counts):
    return parallel_nsa(q, k, v, g_slc=gate, block_indices=blocks, block_counts=counts, block_size=SIZE)


def by_torch(q, k, v, number):
    """Attend to earlier tokens of the first `number` blocks of each query."""
    at = torch.arange(TOKENS)
    seen = (blocks[0, :, 0, :number, None] == at // SIZE).any(1) & (at <= at[:, None])
    scores = torch.einsum("qhd,kd->hqk", q[0], k[0, :, 0]) * DIM**-0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,kd->qhd", weights, v[0, :, 0])[None]


def results(attend, counts):
    inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    output = attend(*inputs, counts)
    return [output.detach(), *torch.autograd.grad(output, inputs, do)]


truths = {number: results(by_torch, number) for number in (2, 4)}
every = torch.full((1, TOKENS, 1), 2)
outcomes = []
for name, counts in (("block_counts=4", 4), ("block_counts=2 in a tensor", every), ("block_counts=2", 2)):
    outcome = []
    for index, found in enumerate(results(by_fla, counts)):
        fits = [n for n, truth in truths.items() if (found - truth[index]).norm() < 0.02 * truth[index].norm()]
        outcome.append(f"{fits[0]} blocks" if len(fits) == 1 else "neither")
    print(f"{name}: " + ", ".join(map(" of ".join, zip(("o", "dq", "dk", "dv"), outcome, strict=True))))
    outcomes.append(outcome)
if outcomes != [["4 blocks"] * 4, ["2 blocks"] * 4, ["4 blocks", "4 blocks", "neither", "neither"]]:
    sys.exit("changed: other blocks than described")
print("as described")
PYTHON
# Warnings that there is no GPU are left out; a failure shows them.
TRITON_INTERPRET=1 venv/bin/python seen.py 2> log || { cat log; exit 1; }
