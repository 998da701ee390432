#!/usr/bin/env bash
# Versions: local-attention 1.11.2, torch 2.13.0, on a CPU.
#
# Behaviour: with `autopad`, LocalAttention pads a sequence with zeros to a multiple of the window, and cuts the result
# to the old length. Without a mask nothing hides the padding. If attention is not causal, the last tokens attend to
# zero keys and take in zero values. LocalMHA always sets `autopad`. With a mask of ones the same call is right.
#
# Seen (11 tokens, window 4, all values are 1, so each token must get 1):
#     causal, no mask: 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00
#     not causal, mask of ones: 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00
#     not causal, no mask: 1.00 1.00 1.00 1.00 0.92 0.96 0.94 0.94 0.94 0.91 0.91
#     LocalMHA, no mask against a mask of ones: 12 tokens off by 0 %, 11 tokens off by 14 %
#
# Why it surprises: the sequences of the call have one length and no padding, so there is nothing to mask. The zeros are
# the module's own. What the last tokens get depends on how far the length is from a multiple of the window. There is no
# error and no warning. The README says that `autopad` pads "the mask" too, and uses it with causal attention alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq local-attention==1.11.2 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from local_attention import LocalAttention
from local_attention.transformer import LocalMHA

WINDOW, LENGTH = 4, 11

torch.manual_seed(0)
queries, keys = torch.randn(2, 1, 2, LENGTH, 8)
values = torch.ones_like(queries)
mask_of_ones = torch.ones(1, LENGTH, dtype=torch.bool)
cases = {
    "causal, no mask": ({"causal": True}, {}),
    "not causal, mask of ones": ({}, {"mask": mask_of_ones}),
    "not causal, no mask": ({}, {}),
}
wrong = {}
for name, (options, masks) in cases.items():
    attention = LocalAttention(WINDOW, autopad=True, dim=8, **options)
    received = attention(queries, keys, values, **masks).mean(dim=(0, 1, 3))
    print(f"{name}:", *[f"{value:.2f}" for value in received.tolist()])
    wrong[name] = [at for at, value in enumerate(received.tolist()) if abs(value - 1) > 0.01]

layer = LocalMHA(dim=16, window_size=WINDOW, dim_head=8, heads=2)
off = {}
for length in (12, LENGTH):
    tokens = torch.randn(1, length, 16)
    masked = layer(tokens, mask=torch.ones(1, length, dtype=torch.bool))
    off[length] = ((layer(tokens) - masked).abs().max() / masked.abs().max()).item()
print(
    "LocalMHA, no mask against a mask of ones:",
    ", ".join(f"{length} tokens off by {100 * value:.0f} %" for length, value in off.items()),
)

# The tokens whose window, or the one after it, holds padding.
near = list(range((LENGTH // WINDOW - 1) * WINDOW, LENGTH))
if wrong != {"causal, no mask": [], "not causal, mask of ones": [], "not causal, no mask": near}:
    sys.exit(f"changed: other tokens get other values: {wrong}")
if off[12] > 1e-5 or off[LENGTH] < 0.01:
    sys.exit(f"changed: LocalMHA is off by {off}")
print("as described")
PYTHON
venv/bin/python seen.py 2> log || { cat log; exit 1; }
