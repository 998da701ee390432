#!/usr/bin/env bash
# Versions: liger-kernel 0.8.5, triton 3.9.0, torch 2.13.0, on a CPU (Triton's interpreter).
#
# Behaviour: LigerCrossEntropyLoss gives nan if the first 32768 logits of a row are all -inf. Its kernel reads a row in
# blocks of that size, and the first block has no largest value. With one logit fewer the loss is right, and so it is if
# the last logits are masked.
#
# Seen (40000 tokens in the vocabulary):
#     first 32767 masked: loss right, gradient right
#     first 32768 masked: loss nan, gradient nan
#     last 32768 masked: loss right, gradient right
#
# Why it surprises: -inf for a part of the vocabulary is common: one modality or language of a shared vocabulary, or a
# list of labels. torch's cross_entropy is right for it. Such a loss stays right here until the mask reaches a whole
# first block, so tests with a small vocabulary pass. There is no error. In the source, the running sum is scaled by the
# exponential of the old maximum less the new one, and both are -inf.
#
# flash-attn 2.8.3.post2 has the same cause at blocks of 16384:
# https://github.com/Dao-AILab/flash-attention/issues/1930 reports it.
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
from liger_kernel.transformers import LigerCrossEntropyLoss
from torch.nn.functional import cross_entropy

VOCABULARY, BLOCK = 40000, 32768

torch.manual_seed(0)
logits = torch.randn(3, VOCABULARY)
kept = torch.tensor([33000, -100, 39999]), torch.tensor([10, -100, 7000])
cases = {
    f"first {BLOCK - 1} masked": (slice(0, BLOCK - 1), kept[0]),
    f"first {BLOCK} masked": (slice(0, BLOCK), kept[0]),
    f"last {BLOCK} masked": (slice(VOCABULARY - BLOCK, None), kept[1]),
}


def seen(loss_of, masked, targets):
    leaf = logits.clone()
    leaf[:, masked] = -torch.inf
    leaf.requires_grad_()
    # The product makes a copy, which the loss may overwrite.
    loss = loss_of(leaf * 1, targets)
    loss.backward()
    return loss.detach(), leaf.grad


def word(got, right):
    if torch.allclose(got, right, atol=1e-5):
        return "right"
    return "nan" if got.isnan().any() else "wrong"


outcomes = []
for name, case in cases.items():
    rights = seen(cross_entropy, *case)
    words = [word(got, right) for got, right in zip(seen(LigerCrossEntropyLoss(), *case), rights, strict=True)]
    print(f"{name}: loss {words[0]}, gradient {words[1]}")
    outcomes.append(words)
if outcomes != [["right"] * 2, ["nan"] * 2, ["right"] * 2]:
    sys.exit("changed: other losses or gradients than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
TRITON_INTERPRET=1 venv/bin/python seen.py 2> log || { cat log; exit 1; }
