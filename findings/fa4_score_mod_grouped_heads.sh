#!/usr/bin/env bash
# Versions: flash-attn-4 4.0.0b36, nvidia-cutlass-dsl 4.8.1, quack-kernels 0.6.5, torch 2.11.0 (cu130), on an NVIDIA
# H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: with a score_mod that reads positions or heads, and fewer heads of k and v than of q, flash_attn_func has
# wrong gradients of q, k and v. The output is right. With as many heads the gradients are right.
#
# Seen (4 heads of q, a bias of 0.01 for each position of distance):
#     flash-attn-4 4.0.0b36, torch 2.11.0+cu130, NVIDIA H200
#     4 heads of k and v: output right, dq right, dk right, dv right
#     2 heads of k and v: output right, dq wrong, dk wrong, dv wrong
#
# Why it surprises: both features are supported, and nothing says that they exclude each other. Relative position biases
# and ALiBi are such score_mods. Training goes on with gradients of another bias, without an error or a warning. The
# backward kernel for Hopper computes the scores again. There it gives the score_mod the numbers of a query packed with
# its group (apply_score_mod in flash_bwd_sm90.py passes qhead_per_kvhead): the position is divided by the size of the
# group. But only the forward may pack queries, and it passes 1 if it does not. pack_gqa=False changes nothing.
# flash_attn_varlen_func is wrong in the same way. On 30 November 2026, 4.0.0b36 was the newest release.
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

import cutlass
import cutlass.cute as cute
import torch
from flash_attn.cute import flash_attn_func
from torch.nn.functional import scaled_dot_product_attention

LENGTH, HEADS, DIM = 200, 4, 64

print(f"flash-attn-4 {version('flash-attn-4')}, torch {torch.__version__}, {torch.cuda.get_device_name()}")


@cute.jit
def add_distance(score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
    return score + (kv_idx - q_idx).to(cutlass.Float32) * 0.01


@cute.jit
def add_distance_backward(gradient, score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
    return gradient


def outcome(kv_heads):
    torch.manual_seed(0)
    shapes = [(1, LENGTH, heads, DIM) for heads in (HEADS, kv_heads, kv_heads, HEADS)]
    *inputs, upstream = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    position = torch.arange(LENGTH, device="cuda").double()
    exact = [each.double().transpose(1, 2).requires_grad_() for each in inputs]
    bias = 0.01 * (position - position[:, None])
    right = scaled_dot_product_attention(*exact, attn_mask=bias, enable_gqa=True)
    right = [right, *torch.autograd.grad(right, exact, upstream.double().transpose(1, 2))]
    inputs = [each.requires_grad_() for each in inputs]
    found, *_ = flash_attn_func(*inputs, score_mod=add_distance, score_mod_bwd=add_distance_backward)
    found = [found, *torch.autograd.grad(found, inputs, upstream)]
    names = []
    for name, seen, true in zip(("output", "dq", "dk", "dv"), found, right, strict=True):
        error = (seen.transpose(1, 2) - true).abs().max() / true.abs().max()
        names.append(f"{name} {'right' if error < 0.03 else 'wrong'}")
    return ", ".join(names)


outcomes = {kv_heads: outcome(kv_heads) for kv_heads in (4, 2)}
for kv_heads, seen in outcomes.items():
    print(f"{kv_heads} heads of k and v: {seen}")
expected = {4: "output right, dq right, dk right, dv right", 2: "output right, dq wrong, dk wrong, dv wrong"}
if outcomes != expected:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
