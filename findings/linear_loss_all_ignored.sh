#!/usr/bin/env bash
# Versions: torch 2.13.0, on a CPU (2.14.1 and 2.15.0 do the same).
#
# Behaviour: linear_cross_entropy with options computes the loss in chunks. If ignore_index hides every target of a
# batch, its gradients are nan. The same call without options, and cross_entropy, give gradients of zero. The mean of
# no losses is nan in all three.
#
# Seen (one step of two batches, the second without a target):
#     linear and cross_entropy: losses finite and nan, gradient of the second 0, weights finite
#     linear_cross_entropy, options=None: losses finite and nan, gradient of the second 0, weights finite
#     linear_cross_entropy, with options: losses finite and nan, gradient of the second nan, weights nan
#     linear_cross_entropy, with options, reduction="sum": losses finite and 0, gradient of the second 0, weights finite
#
# Why it surprises: the documentation calls it equivalent to linear and cross_entropy, and says that an ignored target
# "does not contribute to the input gradient". Ragged batches have no target where a cut leaves the prompt alone. Most
# training loops never look at a nan loss. With options, which are there to save memory, one such batch sets every
# weight to nan.
# (https://github.com/pytorch/pytorch/issues/116349 has the nan of cross_entropy, which is intended, and its gradient.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
import torch.nn.functional as F
from torch import nn

TOKENS = torch.randn(2, 6, 8)
TARGETS = torch.tensor([[-100, -100, 3, 1, 4, 1], [-100] * 6])  # the second batch is cut within its prompt
CHUNKS = nn.LinearCrossEntropyOptions(batch_chunk_size=4)


def in_words(value):
    return "nan" if value.isnan().any() else "0" if (value == 0).all() else "finite"


def seen(loss):
    """Return what one step of SGD over the two batches sees."""
    torch.manual_seed(0)
    body, head = nn.Linear(8, 8), nn.Linear(8, 16, bias=False)
    parameters = [*body.parameters(), *head.parameters()]
    losses, gradients = [], []
    for tokens, targets in zip(TOKENS, TARGETS, strict=True):
        value = loss(body(tokens), head.weight, targets)
        losses.append(in_words(value))
        gradients.append(torch.autograd.grad(value, parameters))
    second = in_words(torch.cat([gradient.flatten() for gradient in gradients[1]]))
    for parameter, *both in zip(parameters, *gradients, strict=True):
        parameter.grad = sum(both)
    torch.optim.SGD(parameters, lr=0.1).step()
    weights = in_words(torch.cat([parameter.flatten() for parameter in parameters]))
    return f"losses {losses[0]} and {losses[1]}, gradient of the second {second}, weights {weights}"


def apart(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight), targets)


def fused(**options):
    return lambda x, weight, targets: F.linear_cross_entropy(x, weight, targets, **options)


outcomes = {
    "linear and cross_entropy": seen(apart),
    "linear_cross_entropy, options=None": seen(fused(options=None)),
    "linear_cross_entropy, with options": seen(fused(options=CHUNKS)),
    'linear_cross_entropy, with options, reduction="sum"': seen(fused(options=CHUNKS, reduction="sum")),
}
for name, outcome in outcomes.items():
    print(f"{name}: {outcome}")
left_out = "losses finite and nan, gradient of the second 0, weights finite"
spoilt = "losses finite and nan, gradient of the second nan, weights nan"
summed = "losses finite and 0, gradient of the second 0, weights finite"
if list(outcomes.values()) != [left_out, left_out, spoilt, summed]:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
