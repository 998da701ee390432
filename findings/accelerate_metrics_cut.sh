#!/usr/bin/env bash
# Versions: accelerate 1.15.0, torch 2.13.0, on a CPU, in one process.
#
# Behaviour: gather_for_metrics cuts the last batch of an epoch to len(dataset) % batch_size items along its first
# dimension, also where there is one process. Where a batch holds one value a token, or a sampler makes batches of
# several sizes, most of the last batch is left out. gather() leaves nothing out.
#
# Seen (13 documents of 60 tokens in all, batch_size 4):
#     a value a document: 13 of 13 gathered
#     a value a document, batches of 4, 4, 2 and 3: 11 of 13 gathered
#     a value a token, documents one after the other: 53 of 60 gathered
#     the same with gather(): 60 of 60 gathered
#
# Why it surprises: the documentation says that it drops duplicates "if on a distributed system". With one process there
# are no duplicates. A metric over flattened batches comes out wrong without an error or a warning, and right again
# where batch_size divides the number of documents.
# (https://github.com/huggingface/accelerate/pull/2710 meant to cut nothing where there is one process.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq accelerate==1.15.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

LENGTHS = (3, 6, 2, 7, 4, 5, 3, 6, 2, 7, 4, 3, 8)
DOCUMENTS = [torch.ones(length) for length in LENGTHS]


class Budget:
    """Batches of several sizes, as a budget of tokens makes them; four documents at most."""

    batch_size = 4
    drop_last = False
    sampler = range(len(DOCUMENTS))

    def __iter__(self):
        return iter([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11, 12]])

    def __len__(self):
        return 4


def per_document(documents):
    return torch.stack([document.sum() for document in documents])


accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 1
cut = {}
fours, budget = {"batch_size": 4}, {"batch_sampler": Budget()}
for name, collate, options, gather in (
    ("a value a document", per_document, fours, accelerator.gather_for_metrics),
    ("a value a document, batches of 4, 4, 2 and 3", per_document, budget, accelerator.gather_for_metrics),
    ("a value a token, documents one after the other", torch.cat, fours, accelerator.gather_for_metrics),
    ("the same with gather()", torch.cat, fours, accelerator.gather),
):
    loader = accelerator.prepare(DataLoader(DOCUMENTS, collate_fn=collate, **options))
    got, expected = 0, 0
    for batch in loader:
        got, expected = got + len(gather(batch)), expected + len(batch)
    print(f"{name}: {got} of {expected} gathered")
    if got != expected:
        cut[name] = (got, expected)
if list(cut.values()) != [(11, 13), (53, 60)]:
    sys.exit(f"changed: other batches are cut: {cut}")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
