#!/usr/bin/env bash
# Versions: torch 2.13.0, on a CPU (2.14.1 and 2.15.0 do the same).
#
# Behaviour: softmax over the ragged dimension of a jagged NestedTensor is right, but its gradient is wrong. The
# backward takes dimension 1 of the NestedTensor for dimension 1 of the values, which have no batch dimension. So it
# computes the gradient of a softmax over features. There is no error.
#
# Seen (against each sequence alone):
#     softmax(dim=1), over tokens: result right, gradient off by 259%
#     the same, against the gradient of a softmax over features: equal
#     softmax(dim=-1), over features: result right, gradient right
#     softmax(dim=2), over features: result right, IndexError in the backward
#     softmax(dim=1) of padded rows: result right, gradient right
#
# Why it surprises: the result is right, so every test without a backward passes. Softmax over the tokens of a sequence
# is how attention pooling weighs them. Such a layer trains with a wrong gradient, and the loss may still go down.
# Dimension 2 is the last one, yet it gives another outcome than dimension -1.
# (https://github.com/pytorch/pytorch/pull/132170 added the softmax over tokens. It has no backward of its own.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from torch.nn.utils.rnn import pad_sequence

LENGTHS = [3, 1, 4]
OFFSETS = torch.tensor([0, 3, 4, 8])

torch.manual_seed(0)
scores = torch.randn(8, 2, requires_grad=True)  # two heads of pooling
upstream = torch.randn(8, 2)


def nested(dim):
    return torch.nested.nested_tensor_from_jagged(scores, OFFSETS).softmax(dim).values()


def padded(dim):
    rows = pad_sequence(scores.split(LENGTHS), batch_first=True, padding_value=-torch.inf).softmax(dim)
    return torch.cat([row[:length] for row, length in zip(rows, LENGTHS, strict=True)])


def alone(dim):
    return torch.cat([piece.softmax(dim) for piece in scores.split(LENGTHS)])


def gradient(result):
    return torch.autograd.grad(result, scores, upstream)[0]


def compared(got, expected, name):
    off = ((got - expected).norm() / expected.norm()).item()
    return f"{name} right" if off < 1e-5 else f"{name} off by {off:.0%}"


def outcome(call, dim, alone_dim):
    result, expected = call(dim), alone(alone_dim)
    seen = compared(result, expected, "result")
    try:
        return f"{seen}, {compared(gradient(result), gradient(expected), 'gradient')}"
    except IndexError:
        return f"{seen}, IndexError in the backward"


weights = nested(1).detach()
over_features = weights * (upstream - (weights * upstream).sum(1, keepdim=True))
equal = torch.allclose(gradient(nested(1)), over_features, atol=1e-6)
outcomes = {
    "softmax(dim=1), over tokens": outcome(nested, 1, 0),
    "the same, against the gradient of a softmax over features": "equal" if equal else "different",
    "softmax(dim=-1), over features": outcome(nested, -1, -1),
    "softmax(dim=2), over features": outcome(nested, 2, -1),
    "softmax(dim=1) of padded rows": outcome(padded, 1, 0),
}
for name, seen in outcomes.items():
    print(f"{name}: {seen}")
wrong, equal, *others = outcomes.values()
if not wrong.startswith("result right, gradient off by") or equal != "equal":
    sys.exit("changed: another gradient over tokens than described")
right = "result right, gradient right"
if others != [right, "result right, IndexError in the backward", right]:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Prototype warnings of nested tensors are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
