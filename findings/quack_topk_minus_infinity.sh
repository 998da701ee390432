#!/usr/bin/env bash
# Versions: quack-kernels 0.6.5, nvidia-cutlass-dsl 4.8.1, torch 2.11.0 (cu130), on an NVIDIA H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: if some scores of a row are -inf, topk returns wrong values and indices, and repeats indices. This happens
# although more than k scores are finite. With -1e9 in the same places it is right.
#
# Seen (half of 128 scores are masked, k = 8, the largest 8 are positive):
#     quack-kernels 0.6.5, torch 2.11.0+cu130, NVIDIA H200
#     masked with -1e+09: values right, indices right, rows that repeat an index: 0 of 64
#     masked with -inf: values wrong, indices wrong, rows that repeat an index: 64 of 64
#
# Why it surprises: -inf is the usual mask for experts or tokens that must not be chosen, and torch.topk accepts it. The
# docstring names no limit on the values. The kernel stores the index in the low bits of each value as float32. An
# infinity with such bits is a nan. The sort takes the min and the max of two values, and both of a nan and a number are
# the number. So scores are doubled and others are lost, without an error or a warning.
# On 30 November 2026, 0.6.5 was the newest release.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq torch==2.11.0 quack-kernels==0.6.5 \
        "nvidia-cutlass-dsl[cu13]==4.8.1"
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from quack.topk import topk

ROWS, SCORES, K = 64, 128, 8

print(f"quack-kernels {version('quack-kernels')}, torch {torch.__version__}, {torch.cuda.get_device_name()}")
random = torch.randn(ROWS, SCORES, generator=torch.Generator().manual_seed(0))


def outcome(mask):
    scores = random.clone()
    scores[:, ::2] = mask
    right_values, _ = torch.topk(scores, K)
    assert right_values.min() > 0
    values, indices = (each.cpu() for each in topk(scores.cuda(), K))
    chosen = scores.gather(1, indices.long().clamp(0, SCORES - 1))
    repeats = sum(len(set(row)) < K for row in indices.tolist())
    names = ["right" if torch.allclose(each, right_values, rtol=1e-3) else "wrong" for each in (values, chosen)]
    return f"values {names[0]}, indices {names[1]}, rows that repeat an index: {repeats} of {ROWS}"


outcomes = {mask: outcome(mask) for mask in (-1e9, -torch.inf)}
for mask, seen in outcomes.items():
    print(f"masked with {mask:g}: {seen}")
if outcomes != {
    -1e9: "values right, indices right, rows that repeat an index: 0 of 64",
    -torch.inf: "values wrong, indices wrong, rows that repeat an index: 64 of 64",
}:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
