#!/usr/bin/env bash
# Versions: torchtune 0.6.1, torchao 0.10.0, datasets 5.2.0, torch 2.13.0, on a CPU.
#
# Behaviour: PackedDataset keeps the first label of each document. Where labels are the tokens, as in
# TextCompletionDataset, the recipes' shift by one makes the last token of a document predict the first token of the
# next one. The mask that separates the documents is right.
#
# Seen:
#     token 11 -> target 12
#     token 12 -> target 20 (of the next document)
#     token 20 -> target 21
#     token 21 -> target 22
#
# Why it surprises: the block mask hides the documents from each other, so the target cannot be predicted from anything
# in the row. Each document adds one such target. There is no option to leave it out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torchtune==0.6.1 torchao==0.10.0 datasets==5.2.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

from torchtune.data import padded_collate_packed
from torchtune.datasets import PackedDataset

documents = [[11, 12], [20, 21, 22]]
samples = [{"tokens": tokens, "labels": list(tokens)} for tokens in documents]
batch = padded_collate_packed([PackedDataset(samples, max_seq_len=5)[0]])
tokens, labels, mask = (batch[key][0].tolist() for key in ("tokens", "labels", "mask"))
crossing = []
for at, target in enumerate(labels[1:]):
    # The token that is to predict the target does not see the target's document.
    apart = not mask[at + 1][at]
    print(f"token {tokens[at]} -> target {target}{' (of the next document)' if apart else ''}")
    if apart and target != -100:
        crossing.append((tokens[at], target))
if crossing != [(12, 20)]:
    sys.exit(f"changed: targets across documents are {crossing}")
print("as described")
PYTHON
# A progress bar and what torchao says about missing kernels are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
