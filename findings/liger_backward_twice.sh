#!/usr/bin/env bash
# Versions: liger-kernel 0.8.5, triton 3.9.0, torch 2.13.0, on a CPU (Triton's interpreter).
#
# Behaviour: LigerCrossEntropyLoss and LigerFusedLinearCrossEntropyLoss multiply their saved gradient by the incoming
# one in place. With retain_graph=True, a second backward starts from that product. If the loss has a factor of 3, the
# second gradient is 3 times too large.
#
# Seen (each gradient as a multiple of the right one):
#     cross_entropy of torch, factor 3: first backward 1, second 1
#     LigerCrossEntropyLoss, factor 1: first backward 1, second 1
#     LigerCrossEntropyLoss, factor 3: first backward 1, second 3
#     LigerFusedLinearCrossEntropyLoss, factor 1: first backward 1, second 1
#     LigerFusedLinearCrossEntropyLoss, factor 3: first backward 1, second 3
#
# Why it surprises: retain_graph is for a second backward, such as one for each of several losses with a common part. A
# factor is common too: a weight, a division by accumulated batches, or the scale of float16 training. torch raises an
# error if a saved tensor was changed, but does not see a change by a Triton kernel. A comment in the source says that
# several backwards work with such a kernel. The package warns of retain_graph for SwiGLU only. There is no error.
# (https://github.com/linkedin/Liger-Kernel/issues/272 is about the input, which the forward overwrites.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
# liger-kernel imports packaging without requiring it. Triton's interpreter needs numpy.
venv/bin/pip install -qq liger-kernel==0.8.5 triton==3.9.0 torch==2.13.0 packaging numpy==2.4.6

cat > seen.py <<'PYTHON'
import sys

import torch
from liger_kernel.transformers import LigerCrossEntropyLoss, LigerFusedLinearCrossEntropyLoss
from torch.nn.functional import cross_entropy

torch.manual_seed(0)
hidden, head = torch.randn(6, 16), torch.randn(32, 16)
targets = torch.tensor([1, 2, 3, -100, 4, 5])


def by_torch(x):
    return cross_entropy(x @ head.T, targets)


def by_liger(x):
    return LigerCrossEntropyLoss()(x @ head.T, targets)


def by_fused(x):
    return LigerFusedLinearCrossEntropyLoss()(head, x, targets)


def gradients(loss_of, factor, count):
    """Differentiate one loss several times."""
    x = hidden.clone().requires_grad_()
    loss = factor * loss_of(x)
    return [torch.autograd.grad(loss, x, retain_graph=True)[0].clone() for _ in range(count)]


def multiple(got, right):
    """Return which multiple of the right gradient was found."""
    found = ((got * right).sum() / (right * right).sum()).item()
    torch.testing.assert_close(got, found * right)
    return round(found, 3)


cases = {
    "cross_entropy of torch, factor 3": (by_torch, 3),
    "LigerCrossEntropyLoss, factor 1": (by_liger, 1),
    "LigerCrossEntropyLoss, factor 3": (by_liger, 3),
    "LigerFusedLinearCrossEntropyLoss, factor 1": (by_fused, 1),
    "LigerFusedLinearCrossEntropyLoss, factor 3": (by_fused, 3),
}
outcomes = []
right, = gradients(by_torch, 1, 1)
for name, (loss_of, factor) in cases.items():
    first, second = (multiple(got, factor * right) for got in gradients(loss_of, factor, 2))
    print(f"{name}: first backward {first:g}, second {second:g}")
    outcomes.append((first, second))
if outcomes != [(1, 1), (1, 1), (1, 3), (1, 1), (1, 3)]:
    sys.exit("changed: other multiples than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
TRITON_INTERPRET=1 venv/bin/python seen.py 2> log || { cat log; exit 1; }
