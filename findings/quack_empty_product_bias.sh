#!/usr/bin/env bash
# Versions: quack-kernels 0.6.5, nvidia-cutlass-dsl 4.8.1, torch 2.13.0, on a CPU (seen with triton 3.9.0, Python 3.11).
#
# Behaviour: if the dimension that is summed over has length 0, gemm_act leaves out the bias and C, and returns zeros.
# gemm adds the bias to the same product, and gemm_add adds C.
#
# Seen (A of (4, 0), B of (0, 8)):
#     gemm with a bias: right
#     gemm_add with C: right
#     gemm_act with a bias: zeros
#     gemm_act with C: zeros
#
# Why it surprises: the docstring of gemm_act promises act(alpha * A @ B + C + bias), and torch.addmm adds its input to
# such a product. A shard or a group of experts that is empty may have one. A comment at the fast path for it in
# gemm_interface.py speaks of a call without bias and C, but the path is taken with them as well. gemm_dact returns
# zeros for its second output there, which is act(preact) and does not depend on the product. There is no error and no
# warning. On 30 November 2026, 0.6.5 was the newest release.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
# quack imports triton without requiring it.
venv/bin/pip install -qq torch==2.13.0 triton quack-kernels==0.6.5 nvidia-cutlass-dsl==4.8.1

cat > seen.py <<'PYTHON'
import sys

import torch
from quack.gemm_interface import gemm, gemm_act, gemm_add

torch.manual_seed(0)
a, b, bias, c = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((4, 0), (0, 8), (8,), (4, 8)))


def by_act(**options):
    _, found = gemm_act(a, b, activation="relu", tuned=False, **options)
    return found


cases = {
    "gemm with a bias": (gemm(a, b, bias=bias, tuned=False), a @ b + bias),
    "gemm_add with C": (gemm_add(a, b, c, tuned=False), a @ b + c),
    "gemm_act with a bias": (by_act(bias=bias), (a @ b + bias).relu()),
    "gemm_act with C": (by_act(C=c), (a @ b + c).relu()),
}
outcomes = []
for name, (found, right) in cases.items():
    outcomes.append("right" if torch.equal(found, right) else "zeros" if not found.any() else "wrong")
    print(f"{name}: {outcomes[-1]}")
if outcomes != ["right", "right", "zeros", "zeros"]:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
