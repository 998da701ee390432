#!/usr/bin/env bash
# Versions: quack-kernels 0.6.5, nvidia-cutlass-dsl 4.8.1, torch 2.11.0 (cu130), on an NVIDIA H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: topk returns the wrong indices for some of the top k if these have both signs. The values are right. The
# gradient goes to the wrong scores too, because it is scattered by the indices.
#
# Seen (128 scores in float32, k = 16, by how many scores are positive):
#     quack-kernels 0.6.5, torch 2.11.0+cu130, NVIDIA H200
#     0 positive: values right, indices right, gradient right
#     2 positive: values right, indices wrong, gradient wrong
#     16 positive: values right, indices right, gradient right
#
# Why it surprises: the docstring promises the indices of the values, and x.gather(1, indices) should give the values.
# Scores of a router usually have both signs. Bits of the index are stored in the low bits of each value, inverted if it
# is positive. The kernel then splits the top k over several threads. To decode an index, a thread looks at the sign of
# topk_vals[i], the i-th of all, and not at that of the value it holds. An index with the wrong sign is mirrored.
# It does not happen if one thread has the whole row, as with 64 scores and k = 8. There is no error and no warning.
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

ROWS, SCORES, K = 32, 128, 16

print(f"quack-kernels {version('quack-kernels')}, torch {torch.__version__}, {torch.cuda.get_device_name()}")


def outcome(positive):
    """Compare topk with that of torch: scores that are far apart, the last ones positive."""
    scores = -0.125 * torch.arange(1, SCORES + 1, device="cuda").repeat(ROWS, 1)
    scores[:, SCORES - positive :] += 100
    scores.requires_grad_()
    right_values, right_indices = torch.topk(scores, K)
    (right_gradient,) = torch.autograd.grad(right_values, scores, torch.ones_like(right_values))
    values, indices = topk(scores, K)
    (gradient,) = torch.autograd.grad(values, scores, torch.ones_like(values))
    same = {
        "values": torch.allclose(values, right_values, rtol=1e-3),
        "indices": torch.equal(indices.long(), right_indices),
        "gradient": torch.equal(gradient, right_gradient),
    }
    return ", ".join(f"{name} {'right' if right else 'wrong'}" for name, right in same.items())


outcomes = {positive: outcome(positive) for positive in (0, 2, 16)}
for positive, seen in outcomes.items():
    print(f"{positive} positive: {seen}")
right = "values right, indices right, gradient right"
if outcomes != {0: right, 2: "values right, indices wrong, gradient wrong", 16: right}:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
