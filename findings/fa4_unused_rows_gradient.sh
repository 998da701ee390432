#!/usr/bin/env bash
# Versions: flash-attn-4 4.0.0b36, nvidia-cutlass-dsl 4.8.1, quack-kernels 0.6.5, torch 2.11.0 (cu130), on an NVIDIA
# H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: in flash_attn_varlen_func, rows that seqused_q and seqused_k leave out, and rows behind the last offset of
# cu_seqlens, get gradients of uninitialised memory. The gradients of the other rows are right.
#
# Seen (freed memory was filled with 777, which is 776 in bfloat16):
#     flash-attn-4 4.0.0b36, torch 2.11.0+cu130, NVIDIA H200
#     rows left out by seqused_q and seqused_k: dq all 776, dk all 776, dv all 776
#     rows behind the last offset: dq all 776, dk all 776, dv all 776
#     rows of the sequences: dq right, dk right, dv right
#
# Why it surprises: the sequences do not depend on these rows, so their gradient is 0. Here it is what was in memory.
# The projections in front of attention multiply it with the row and sum over all rows, so their weights are trained on
# it. Such rows pad a packed row to a fixed size. The docstring names the arguments, but no such care. The gradients are
# allocated with empty_like, and the kernels write the rows in use alone. The output has such rows as well.
# (https://github.com/Dao-AILab/flash-attention/pull/2324, closed, proposed a function that zeroes them for
# FlashAttention-2 and 3.) On 30 November 2026, 4.0.0b36 was the newest release.
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

import torch
from flash_attn.cute import flash_attn_varlen_func
from torch.nn.functional import scaled_dot_product_attention

ROWS, HEADS, DIM = 320, 4, 64
OFFSETS, USED = [0, 100, 260], [60, 160]

print(f"flash-attn-4 {version('flash-attn-4')}, torch {torch.__version__}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
*inputs, upstream = torch.randn(4, ROWS, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
inputs = [each.clone().requires_grad_() for each in inputs]
offsets, used = (torch.tensor(each, device="cuda", dtype=torch.int32) for each in (OFFSETS, USED))
row = torch.arange(ROWS, device="cuda")
in_use = (row < 60) | ((row >= 100) & (row < 260))
upstream[~in_use] = 0


def truth():
    """The gradients by torch, in float64, for each sequence alone."""
    exact = [each.detach().double().requires_grad_() for each in inputs]
    loss = 0
    for start, length in zip(OFFSETS[:-1], USED, strict=True):
        place = slice(start, start + length)
        found = scaled_dot_product_attention(*(each[place].transpose(0, 1) for each in exact)).transpose(0, 1)
        loss = loss + (found * upstream[place]).sum()
    return torch.autograd.grad(loss, exact)


def fill_memory():
    """Write to the memory that torch has in store, the large gaps first."""
    kept = [upstream.new_full((2**power,), 777) for power in range(18, 7, -1) for _ in range(64)]
    del kept


right = truth()
fill_memory()
lengths = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "seqused_q": used, "seqused_k": used}
out, *_ = flash_attn_varlen_func(*inputs, **lengths, max_seqlen_q=160, max_seqlen_k=160)
fill_memory()
gradients = torch.autograd.grad(out, inputs, upstream)
outcomes = []
left_out = (row >= 60) & (row < 100)
for name, rows in (("left out by seqused_q and seqused_k", left_out), ("behind the last offset", row >= 260)):
    seen = ["all 776" if (each[rows] == 776).all() else "other" for each in gradients]
    print("rows {}: dq {}, dk {}, dv {}".format(name, *seen))
    outcomes += seen
seen = []
for gradient, true in zip(gradients, right, strict=True):
    error = (gradient[in_use] - true[in_use]).abs().max() / true.abs().max()
    seen.append("right" if error < 0.03 else "wrong")
print("rows of the sequences: dq {}, dk {}, dv {}".format(*seen))
if outcomes + seen != ["all 776"] * 6 + ["right"] * 3:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
