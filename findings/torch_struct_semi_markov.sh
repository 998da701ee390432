#!/usr/bin/env bash
# Versions: torch-struct 0.5 (the newest release, of 2021), torch 2.13.0, on a CPU.
#
# Behaviour: with `lengths`, SemiMarkovCRF computes a sequence as if it could have no segment of two or more tokens that
# goes on after the end of the shortest sequence of the batch. So the longer sequences have a wrong partition function,
# and wrong marginals, entropies and best segmentations. The shortest has the right ones. LinearChainCRF is right.
#
# Seen (a sequence of 8 tokens in a batch with one of 8, 6, 4 or 2; log partition function, alone and in the batch):
#     LinearChainCRF: alone 12.20, in the batch 12.20 12.20 12.20 12.20
#     SemiMarkovCRF: alone 12.85, in the batch 12.85 12.29 11.90 11.55
#     SemiMarkovCRF, marginals: as alone, differ, differ, differ
#     SemiMarkovCRF, the shortest: as alone, as alone, as alone, as alone
#
# Why it surprises: the documentation of `lengths` says that they are "integers for length masking". One minimum over
# the batch bounds what is prepared for long segments of each sequence. A loss is a difference to the partition
# function, so it can fall below 0. There is no error and no warning.
# (https://github.com/harvardnlp/pytorch-struct/issues/110 reports it for the best segmentation and for losses, and
# https://github.com/harvardnlp/pytorch-struct/pull/114 has a fix that no release contains.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torch-struct==0.5 torch==2.13.0 numpy

cat > seen.py <<'PYTHON'
import sys

import torch
from torch_struct import LinearChainCRF, SemiMarkovCRF

TOKENS = 8
CLASSES = 3
SEGMENT = 4  # a segment has fewer tokens than this


def values(kind, scores, lengths):
    """Return the log partition function and the marginals of each sequence."""
    found = kind(scores.clone(), lengths=torch.tensor(lengths))
    return found.partition.detach(), found.marginals.detach()


def same(first, second):
    return torch.allclose(first, second, atol=1e-4)


shapes = {LinearChainCRF: (CLASSES, CLASSES), SemiMarkovCRF: (SEGMENT, CLASSES, CLASSES)}
changed = []
for kind, shape in shapes.items():
    name = kind.__name__
    torch.manual_seed(0)
    scores = torch.randn(2, TOKENS - 1, *shape)
    alone, marginals_alone = values(kind, scores[:1], [TOKENS])
    partitions, marginals, shortest = [], [], []
    for length in (8, 6, 4, 2):
        together, marginals_together = values(kind, scores, [TOKENS, length])
        partitions.append(float(together[0]))
        marginals.append("as alone" if same(marginals_together[0], marginals_alone[0]) else "differ")
        short, _ = values(kind, scores[1:, : length - 1], [length])
        shortest.append("as alone" if same(together[1], short[0]) else "differs")
    text = " ".join(f"{value:.2f}" for value in partitions)
    print(f"{name}: alone {float(alone[0]):.2f}, in the batch {text}")
    if kind is SemiMarkovCRF:
        print(f"{name}, marginals: {', '.join(marginals)}")
        print(f"{name}, the shortest: {', '.join(shortest)}")
    right = [abs(value - float(alone[0])) < 1e-3 for value in partitions]
    described = [True] * 4 if kind is LinearChainCRF else [True, False, False, False]
    if right != described or [word == "as alone" for word in marginals] != described or "differs" in shortest:
        changed.append(name)
if changed:
    sys.exit(f"changed: other results of {changed}")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
