#!/usr/bin/env bash
# Versions: fla-core 0.6.0 (of flash-linear-attention), triton 3.6.0, torch 2.11.0 (cu130), on an NVIDIA H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: rotary_embedding with `inplace=True` rotates its input many times in the first call for a shape. The
# next call is right. Without `inplace`, the first call is right, too.
#
# Seen:
#     fla-core 0.6.0, triton 3.6.0, torch 2.11.0
#     first call for 1 sequence, in place: wrong
#     second call for 1 sequence, in place: right
#     first call for 2 sequences, in a new tensor: right
#     first call for 3 sequences, in place: wrong
#
# Why it surprises: the docstring says that `inplace` overwrites the input. The first call tries 15 configurations of
# the kernel, many times each, and each run rotates what the run before left. Triton's autotuner can restore such an
# input (`restore_value`). The package asks for that at the cache of its convolution, but not here. There is no error
# and no warning. It happens again for each batch size, number of heads and width of heads, in each process, unless
# results of the tuning are on disk. For that reason the script sets an empty TRITON_CACHE_DIR.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq fla-core==0.6.0 torch==2.11.0 packaging
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from fla.modules.rotary import rotary_embedding

TOKENS, HEADS, DIM = 64, 2, 64

print(", ".join(f"{name} {version(name)}" for name in ("fla-core", "triton", "torch")))
torch.manual_seed(0)
angles = torch.outer(torch.arange(TOKENS), 10000 ** (torch.arange(0, DIM, 2) / -DIM)).cuda()
cos, sin = angles.cos()[:, None], angles.sin()[:, None]


def outcome(sequences, inplace):
    x = torch.randn(sequences, TOKENS, HEADS, DIM, device="cuda")
    left, right = x.chunk(2, dim=-1)
    by_torch = torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)
    found = rotary_embedding(x.clone(), cos[:, 0], sin[:, 0], inplace=inplace)
    return "right" if torch.allclose(found, by_torch, rtol=0, atol=1e-4) else "wrong"


outcomes = []
for when, sequences, inplace in (("first", 1, True), ("second", 1, True), ("first", 2, False), ("first", 3, True)):
    outcomes.append(outcome(sequences, inplace))
    plural = "sequence" if sequences == 1 else "sequences"
    print(f"{when} call for {sequences} {plural}, {'in place' if inplace else 'in a new tensor'}: {outcomes[-1]}")
if outcomes != ["wrong", "right", "right", "wrong"]:
    sys.exit("changed: other results than described")
print("as described")
PYTHON
# A failure shows what is left out here: warnings.
TRITON_CACHE_DIR=$folder/triton "$PYTHON" seen.py 2> log || { cat log; exit 1; }
