#!/usr/bin/env bash
# Versions: torch 2.11.0 (cu130, with its cuDNN), on an NVIDIA H200.
# Needs a GPU that cuDNN's attention supports. `PYTHON=/path/to/python` uses that interpreter in place of a new
# environment.
#
# Behaviour: with the cuDNN backend, a query whose keys are all masked attends to every key, as if there were no mask.
# The other two backends give zeros. Such a row also adds to the gradients of all keys and values. Rows that have a key
# are right.
#
# Seen (77 tokens, no key for query 5 and for queries from 40 on):
#     torch 2.11.0+cu130, NVIDIA H200
#     MATH: rows with keys right, rows without keys zeros
#     MATH: gradients of keys and values right, and right if only rows with keys count
#     EFFICIENT_ATTENTION: rows with keys right, rows without keys zeros
#     EFFICIENT_ATTENTION: gradients of keys and values right, and right if only rows with keys count
#     CUDNN_ATTENTION: rows with keys right, rows without keys attend to every key
#     CUDNN_ATTENTION: gradients of keys and values wrong, and right if only rows with keys count
#
# Why it surprises: False in the mask means that a key takes no part. Here these rows read exactly the keys that the
# mask forbids, such as those of other documents or of later tokens. The documented formula
# gives nan there, and https://github.com/pytorch/pytorch/pull/131863 chose zeros. Queries of padding are such rows, and
# a mean over all rows counts them. torch prefers cuDNN on such a GPU, so the result changes with the device. There is
# no error and no warning.
# (https://github.com/pytorch/pytorch/issues/196678 is about NaN in the gradient of queries, at other lengths.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq torch==2.11.0
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

LENGTH, DIM = 77, 64

print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
q, k, v, upstream = torch.randn(4, 1, 2, LENGTH, DIM).half()
mask = torch.rand(1, 1, LENGTH, LENGTH) > 0.4
mask[..., 5, :] = False
mask[..., 40:, :] = False
alive = mask.any(-1, keepdim=True)
masked = ~alive.flatten()


def truth(mask):
    """Attention in float64. Rows without a key are those of the mask `alive`."""
    leaves = [tensor.double().requires_grad_() for tensor in (q, k, v)]
    scores = (leaves[0] @ leaves[1].transpose(-1, -2)) / DIM**0.5
    out = torch.where(mask, scores, -torch.inf).softmax(-1) @ leaves[2]
    return out, leaves


# A row without a key gets all keys here. It is then set to zero, or compared as it is.
every, leaves = truth(mask | ~alive)
expected = every * alive
true_gradients = torch.autograd.grad(expected, leaves[1:], upstream.double())


def close(got, right):
    return bool((got.double().cpu() - right).abs().max() < 0.02 * right.abs().max())


def seen(backend):
    inputs = [tensor.cuda().requires_grad_() for tensor in (q, k, v)]
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(*inputs, attn_mask=mask.cuda())
    gradients = []
    for weight in (upstream, upstream * alive):
        found = torch.autograd.grad(out, inputs[1:], weight.cuda(), retain_graph=True)
        gradients.append(all(map(close, found, true_gradients)))
    with_keys = close(out[..., ~masked, :], expected[..., ~masked, :])
    rows = out[..., masked, :]
    if not rows.any():
        return with_keys, "zeros", *gradients
    return with_keys, "attend to every key" if close(rows, every[..., masked, :]) else "other", *gradients


outcomes = {}
for backend in (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
    outcomes[backend.name] = with_keys, without, *gradients = seen(backend)
    words = ["right" if good else "wrong" for good in (with_keys, *gradients)]
    print(f"{backend.name}: rows with keys {words[0]}, rows without keys {without}")
    print(f"{backend.name}: gradients of keys and values {words[1]}, and {words[2]} if only rows with keys count")
zeros, every_key = (True, "zeros", True, True), (True, "attend to every key", False, True)
if outcomes != {"MATH": zeros, "EFFICIENT_ATTENTION": zeros, "CUDNN_ATTENTION": every_key}:
    sys.exit("changed: other rows or gradients are right")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
