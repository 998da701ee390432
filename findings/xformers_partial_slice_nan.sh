#!/usr/bin/env bash
# Versions: xformers 0.0.35, torch 2.11.0 (cu130), on an NVIDIA H200.
# Needs a GPU. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: Partial.apply cuts rows from an attention of memory_efficient_attention_partial_autograd. If a row that is
# cut off has a large score, the gradients of queries, keys and values are nan. The output is right, and so are the
# gradients with small scores, or if the queries are cut before the attention.
#
# Seen (96 tokens, of which the first 50 are kept):
#     torch 2.11.0+cu130, xformers 0.0.35, NVIDIA H200
#     largest score below 10, cut by apply: output right, gradients right
#     largest score above 100, cut by apply: output right, gradients not finite
#     largest score above 100, queries cut before: output right, gradients right
#
# Why it surprises: the docstring of apply names this very use, a slice of the sequence. A row that is not used should
# have no gradient. The backward gets the logsumexp of a row as if it were a gradient, and for a row that is cut off it
# gets 0. It then computes the exponential of the whole score, which overflows above 88. Times an upstream gradient of
# 0 that is nan. Keys and values are shared by all rows, so these get it too. Scores may grow only late in training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq xformers==0.0.35 torch==2.11.0
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from xformers.ops.fmha.merge_training import memory_efficient_attention_partial_autograd, merge_attentions_autograd

LENGTH, KEPT, HEADS, DIM = 96, 50, 2, 64

print(f"torch {torch.__version__}, xformers {version('xformers')}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
q, k, v, upstream = torch.randn(4, 1, LENGTH, HEADS, DIM)


def by_apply(q, k, v):
    partial = memory_efficient_attention_partial_autograd(q, k, v)
    return merge_attentions_autograd(partial.apply(lambda rows: rows[:, :KEPT]))


def by_queries(q, k, v):
    return merge_attentions_autograd(memory_efficient_attention_partial_autograd(q[:, :KEPT].contiguous(), k, v))


def by_torch(q, k, v):
    q, k, v = (tensor.transpose(1, 2) for tensor in (q[:, :KEPT], k, v))
    return ((q @ k.transpose(-1, -2) / DIM**0.5).softmax(-1) @ v).transpose(1, 2)


def results(attend, leaves):
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = attend(*leaves)
    return out, torch.cat(torch.autograd.grad(out, leaves, upstream[:, :KEPT].to(out)))


def word(got, right):
    if not got.isfinite().all():
        return "not finite"
    off = (got.double().cpu() - right).abs().max()
    return "right" if off < 0.08 * right.abs().max() else "wrong"


outcomes = []
cases = (1, by_apply, "cut by apply"), (7, by_apply, "cut by apply"), (7, by_queries, "queries cut before")
for scale, attend, how in cases:
    inputs = [tensor.bfloat16() for tensor in (q * scale, k * scale, v)]
    scores = torch.einsum("bqhd,bkhd->bhqk", inputs[0].double(), inputs[1].double()) / DIM**0.5
    largest = scores[:, :, KEPT:].max().item()
    size = "below 10" if largest < 10 else "above 100" if largest > 100 else "between"
    right = results(by_torch, [tensor.double() for tensor in inputs])
    got = results(attend, [tensor.cuda() for tensor in inputs])
    words = [word(*pair) for pair in zip(got, right, strict=True)]
    print(f"largest score {size}, {how}: output {words[0]}, gradients {words[1]}")
    outcomes.append([size, *words])
if outcomes != [["below 10", "right", "right"], ["above 100", "right", "not finite"], ["above 100", "right", "right"]]:
    sys.exit("changed: other results than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
