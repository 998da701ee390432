#!/usr/bin/env bash
# Versions: fla-core 0.6.0 (of flash-linear-attention), triton 3.9.0, torch 2.13.0, on a CPU.
#
# Behaviour: prepare_sequence_ids counts the sequences that have tokens. After an empty sequence, its ids are too
# small by one. prepare_token_indices is built on it and has the same ids. prepare_chunk_indices has the right ones.
#
# Seen (the sequence of each token, by each of the three):
#     offsets [0, 2, 5, 6]: sequences [0, 0, 1, 1, 1, 2], tokens [0, 0, 1, 1, 1, 2], chunks [0, 0, 1, 1, 1, 2]
#     offsets [0, 2, 2, 5, 6]: sequences [0, 0, 1, 1, 1, 2], tokens [0, 0, 1, 1, 1, 2], chunks [0, 0, 2, 2, 2, 3]
#
# Why it surprises: an id is there to look up the offsets or the state of its sequence. It finds those of another
# one. An id counts the tokens at position 0, and an empty sequence has no such token. Other parts of the package
# allow for empty sequences: prepare_chunk_indices_static asks for them as padding. parallel_nsa uses the token
# indices, so all queries after an empty sequence get wrong outputs. It does not refuse such offsets. There is no
# error and no warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
# fla-core requires none of the others.
venv/bin/pip install -qq fla-core==0.6.0 triton==3.9.0 torch==2.13.0 packaging

cat > seen.py <<'PYTHON'
import sys

import torch
from fla.ops.utils import prepare_chunk_indices, prepare_sequence_ids, prepare_token_indices

outcomes = []
for offsets in ([0, 2, 5, 6], [0, 2, 2, 5, 6]):
    ends = torch.tensor(offsets)
    right = torch.repeat_interleave(torch.arange(len(offsets) - 1), ends.diff())
    ids = {
        "sequences": prepare_sequence_ids(ends),
        "tokens": prepare_token_indices(ends)[:, 0],
        # With chunks of one token, a chunk is a token.
        "chunks": prepare_chunk_indices(ends, 1)[:, 0],
    }
    print(f"offsets {offsets}: " + ", ".join(f"{name} {found.tolist()}" for name, found in ids.items()))
    outcomes.append([torch.equal(found, right) for found in ids.values()])
if outcomes != [[True] * 3, [False, False, True]]:
    sys.exit("changed: other ids than described")
print("as described")
PYTHON
# Warnings that there is no GPU are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
