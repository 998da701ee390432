#!/usr/bin/env bash
# Versions: flash-attn-4 4.0.0b36, nvidia-cutlass-dsl 4.8.1, quack-kernels 0.6.5, torch 2.11.0 (cu130), on an NVIDIA
# H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: if the values of one sequence of a packed row are nan or inf, flash_attn_varlen_func gives an output of nan
# to the sequence before it as well. The sequence after it is right.
#
# Seen (lengths 65, 64 and 70):
#     flash-attn-4 4.0.0b36, torch 2.11.0+cu130, NVIDIA H200
#     values of the sequence in the middle are nan: first nan, last right
#     values of the sequence in the middle are inf: first nan, last right
#     values of the sequence in the middle are finite: first right, last right
#
# Why it surprises: sequences of a packed row are to be independent, and one bad sample is often left out of the loss
# afterwards. Here its neighbour has a loss of nan too, depending on the order in the row. The kernel loads keys and
# values in tiles, also the rows behind the end of a sequence, which are those of the next one. The probability of these
# rows is 0, but 0 times nan is nan. The docstring says that such rows must be finite only for the last page of a paged
# cache. FlashAttention-2 fills the rows of values behind the end with zeros.
# In the backward, keys that are nan reach the gradient of q before them, and queries that are nan those of k and v.
# (https://github.com/Dao-AILab/flash-attention/issues/2374, open when read, reports it for caches with seqused_k.)
# On 30 November 2026, 4.0.0b36 was the newest release.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq torch==2.11.0 flash-attn-4==4.0.0b36 \
        "nvidia-cutlass-dsl[cu13]==4.8.1" quack-kernels==0.6.5
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version
from itertools import accumulate

import torch
from flash_attn.cute import flash_attn_varlen_func
from torch.nn.functional import scaled_dot_product_attention

LENGTHS, HEADS, DIM = [65, 64, 70], 4, 64

print(f"flash-attn-4 {version('flash-attn-4')}, torch {torch.__version__}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
q, k, v = torch.randn(3, sum(LENGTHS), HEADS, DIM, device="cuda", dtype=torch.bfloat16)
ends = torch.tensor([0, *accumulate(LENGTHS)], device="cuda", dtype=torch.int32)
pieces = zip(*(tensor.double().transpose(0, 1).split(LENGTHS, dim=1) for tensor in (q, k, v)), strict=True)
truth = [scaled_dot_product_attention(*piece).transpose(0, 1) for piece in pieces]


def outcome(fill=None):
    values = v.clone()
    if fill is not None:
        values.split(LENGTHS)[1].fill_(fill)
    found, *_ = flash_attn_varlen_func(
        q, k, values, cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=max(LENGTHS), max_seqlen_k=max(LENGTHS)
    )
    names = []
    for place in (0, 2):
        seen = found.split(LENGTHS)[place]
        if seen.isnan().all():
            names.append("nan")
        else:
            error = (seen - truth[place]).abs().max() / truth[place].abs().max()
            names.append("right" if error < 0.03 else "wrong")
    return "first {}, last {}".format(*names)


outcomes = {"nan": outcome(torch.nan), "inf": outcome(torch.inf), "finite": outcome()}
for name, seen in outcomes.items():
    print(f"values of the sequence in the middle are {name}: {seen}")
if list(outcomes.values()) != ["first nan, last right"] * 2 + ["first right, last right"]:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
