#!/usr/bin/env bash
# Versions: torch 2.11.0 (cu130), on an NVIDIA H200.
# Needs a GPU. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: varlen_attn returns a logsumexp that requires a gradient, but leaves its gradient out. A loss of the
# logsumexp alone has gradients of zero. A loss of both has the gradients of the output's part.
#
# Seen (sequences of 5, 33 and 70 tokens, against float64):
#     torch 2.11.0+cu130, NVIDIA H200
#     output and logsumexp right, the logsumexp requires a gradient: True
#     loss of the output: gradients of q and k right
#     loss of the logsumexp: gradients of q and k zero
#     loss of both: gradients of q and k those of the output alone
#
# Why it surprises: the documentation of return_aux does not say that the logsumexp has no gradient, and requires_grad
# says that it has one. FlexAttention's logsumexp has a right gradient. A penalty on large logits and a merge of two
# attentions need it. Such a loss trains without that part. There is no error and no warning. In the source, the
# backward takes the gradient of the logsumexp and does not use it.
#
# The source of torch 2.15.0 marks the logsumexp as not differentiable. That release was read, not run. Its
# documentation also gives the shape as (heads, tokens), which it has in 2.11.0 too; there it was the other way round.
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
from torch.nn.attention.varlen import AuxRequest, varlen_attn

LENGTHS, HEADS, DIM = [5, 33, 70], 2, 64
OFFSETS = torch.tensor([0, 5, 38, 108], dtype=torch.int32, device="cuda")

print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
q, k, v, upstream = torch.randn(4, sum(LENGTHS), HEADS, DIM).half()


def by_torch(q, k, v):
    """Each sequence alone."""
    outputs, sums = [], []
    for piece in zip(*(tensor.transpose(0, 1).split(LENGTHS, dim=1) for tensor in (q, k, v)), strict=True):
        scores = piece[0] @ piece[1].transpose(-1, -2) / DIM**0.5
        outputs.append(scores.softmax(-1) @ piece[2])
        sums.append(scores.logsumexp(-1))
    return torch.cat(outputs, dim=1).transpose(0, 1), torch.cat(sums, dim=1)


def by_varlen(q, k, v):
    longest = max(LENGTHS)
    return varlen_attn(q, k, v, OFFSETS, OFFSETS, longest, longest, return_aux=AuxRequest(lse=True))


def results(attend, *tensors):
    """Return the output, the logsumexp, and the gradients of q and k for each of three losses."""
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out, lse = attend(*leaves)
    of_out, of_lse = (out * upstream.to(out)).float().sum(), lse.float().sum()
    losses = {"the output": of_out, "the logsumexp": of_lse, "both": of_out + of_lse}
    return out, lse, {
        name: torch.cat(torch.autograd.grad(loss, leaves[:2], retain_graph=True)).double().cpu()
        for name, loss in losses.items()
    }


def close(got, right):
    return bool((got.double().cpu() - right).abs().max() < 0.01 * right.abs().max())


right_out, right_lse, right = results(by_torch, *(tensor.double() for tensor in (q, k, v)))
out, lse, got = results(by_varlen, *(tensor.cuda() for tensor in (q, k, v)))
if not (close(out, right_out) and close(lse, right_lse)):
    sys.exit("changed: the output or the logsumexp is wrong")
print(f"output and logsumexp right, the logsumexp requires a gradient: {lse.requires_grad}")
outcomes = {}
for name, gradient in got.items():
    if close(gradient, right[name]):
        outcomes[name] = "right"
    elif not gradient.any():
        outcomes[name] = "zero"
    else:
        outcomes[name] = "those of the output alone" if close(gradient, right["the output"]) else "wrong"
    print(f"loss of {name}: gradients of q and k {outcomes[name]}")
if list(outcomes.values()) != ["right", "zero", "those of the output alone"]:
    sys.exit("changed: other gradients than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
