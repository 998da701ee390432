#!/usr/bin/env bash
# Versions: liger-kernel 0.8.5, triton 3.9.0, torch 2.13.0, on a CPU (Triton's interpreter).
#
# Behaviour: LigerFusedLinearCrossEntropyLoss gives the weight and the bias of its linear map a gradient only if the
# hidden states need one too. With hidden states of a frozen model the loss can be differentiated, backward() runs
# without an error, and both gradients are None.
#
# Seen:
#     hidden states that need a gradient: loss right, gradients right
#     hidden states of a frozen model: loss right, gradients None
#
# Why it surprises: to train only the output head is common, and torch's linear map and cross_entropy train it. Here the
# loss has a grad_fn and is right, but an optimizer skips parameters whose gradient is None. The head stays as it
# was, without an error or a warning.
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
import torch.nn.functional as F
from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

torch.manual_seed(0)
hidden, head, bias = torch.randn(6, 16), torch.randn(32, 16), torch.randn(32)
targets = torch.tensor([1, 2, 3, -100, 4, 5])


def seen(loss_of, frozen):
    """Return the loss, and the gradients of the head's weight and bias."""
    x = hidden.clone().requires_grad_(not frozen)
    weight, added = head.clone().requires_grad_(), bias.clone().requires_grad_()
    loss = loss_of(x, weight, added)
    loss.backward()
    return loss.detach(), weight.grad, added.grad


def by_torch(x, weight, added):
    return F.cross_entropy(F.linear(x, weight, added), targets)


def by_liger(x, weight, added):
    return LigerFusedLinearCrossEntropyLoss()(weight, x, targets, added)


outcomes = {}
for frozen in (False, True):
    loss, *gradients = seen(by_torch, frozen)
    liger_loss, *liger_gradients = seen(by_liger, frozen)
    torch.testing.assert_close(liger_loss, loss)
    if all(gradient is None for gradient in liger_gradients):
        outcome = "None"
    else:
        torch.testing.assert_close(liger_gradients, gradients)
        outcome = "right"
    name = "hidden states of a frozen model" if frozen else "hidden states that need a gradient"
    print(f"{name}: loss right, gradients {outcome}")
    outcomes[frozen] = outcome
if outcomes != {False: "right", True: "None"}:
    sys.exit("changed: other gradients than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
TRITON_INTERPRET=1 venv/bin/python seen.py 2> log || { cat log; exit 1; }
