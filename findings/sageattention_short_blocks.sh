#!/usr/bin/env bash
# Versions: sageattention 1.0.6, torch 2.11.0 (cu130), triton 3.6.0, on an NVIDIA H200.
# Needs a GPU. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: without is_causal, sageattn and sageattn_varlen give outputs that are too small if the number of keys is no
# multiple of 64. The last block is filled up with keys of score 0 and values of 0. These take part in the softmax.
#
# Seen (all values are 1, so each output is a weighted mean of ones; scores are near 0):
#     torch 2.11.0+cu130, sageattention 1.0.6, NVIDIA H200
#     sageattn, 64 keys: output 1.00, right
#     sageattn, 77 keys: output 0.60, the values' sum over 128
#     sageattn, 128 keys: output 1.00, right
#     sageattn, 130 keys: output 0.68, the values' sum over 192
#     sageattn with is_causal, 77 keys: output 1.00, right
#     sageattn_varlen, 64 keys: output 1.00, right
#     sageattn_varlen, 77 keys: output 0.60, the values' sum over 128
#
# Why it surprises: the docstrings allow any length, and lengths are rarely multiples of 64. With random scores of 77
# tokens the output is about 30% too small. A weighted mean cannot leave the range of the values. The kernels mask the
# loads of keys and values, and then take the softmax over the whole block. There is no error and no warning.
#
# The source on GitHub masks these scores since August 2025. The newest release on PyPI is 1.0.6.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq sageattention==1.0.6 torch==2.11.0
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from sageattention import sageattn, sageattn_varlen

HEADS, DIM = 2, 64

print(f"torch {torch.__version__}, sageattention {version('sageattention')}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)


def tensors(*shape):
    """Queries and keys with scores near 0, and values of 1."""
    q, k = 0.01 * torch.randn(2, *shape, DIM, device="cuda")
    return q.half(), k.half(), torch.ones(*shape, DIM, device="cuda", dtype=torch.float16)


def judge(name, keys, output):
    low, high = output.min().item(), output.max().item()
    filled = -(-keys // 64) * 64
    if low > 0.99 and high < 1.01:
        outcome = "right"
    elif abs(low - keys / filled) < 0.01 and abs(high - keys / filled) < 0.01:
        outcome = f"the values' sum over {filled}"
    else:
        outcome = f"from {low:.3g} to {high:.3g}"
    print(f"{name}, {keys} keys: output {output.float().mean().item():.2f}, {outcome}")
    outcomes[name, keys] = outcome == "right"


outcomes = {}
for keys in (64, 77, 128, 130):
    judge("sageattn", keys, sageattn(*tensors(1, HEADS, keys)))
judge("sageattn with is_causal", 77, sageattn(*tensors(1, HEADS, 77), is_causal=True))

lengths = [64, 77]
offsets = torch.tensor([0, 64, 141], dtype=torch.int32, device="cuda")
packed = sageattn_varlen(*tensors(sum(lengths), HEADS), offsets, offsets, max(lengths), max(lengths))
for keys, output in zip(lengths, packed.split(lengths), strict=True):
    judge("sageattn_varlen", keys, output)

expected = {(name, keys): name.endswith("is_causal") or keys % 64 == 0 for name, keys in outcomes}
if outcomes != expected:
    sys.exit("changed: other outputs are right")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
