#!/usr/bin/env bash
# Versions: flash-attn-4 4.0.0b36, nvidia-cutlass-dsl 4.8.1, quack-kernels 0.6.5, torch 2.11.0 (cu130), on an NVIDIA
# H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: if flash_attn_func gets a mask_mod and causal=True, the output is that of the mask_mod alone, so each token
# attends to later ones. The gradients are not those of this output, nor of the two masks together.
#
# Seen (the mask_mod keeps the pairs whose positions are equal modulo 3):
#     flash-attn-4 4.0.0b36, torch 2.11.0+cu130, NVIDIA H200
#     causal=False: output is that of the mask_mod alone, gradients: that of the mask_mod alone
#     causal=True: output is that of the mask_mod alone, gradients: wrong for both
#
# Why it surprises: nothing says that a mask_mod replaces causal=True, and it may be used to add a mask for documents. A
# model then sees its targets, and trains on gradients that do not belong to its loss. There is no error and no warning.
# _resolve_causal_local_window in interface.py drops causal and window_size if there is a mask_mod. The forward gives it
# the mask_mod, the backward does not. The backward then masks causally and leaves out the mask_mod. window_size has the
# same effect as causal. On 30 November 2026, 4.0.0b36 was the newest release.
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

import cutlass.cute as cute
import torch
from flash_attn.cute import flash_attn_func
from torch.nn.functional import scaled_dot_product_attention

LENGTH, HEADS, DIM = 200, 4, 64

print(f"flash-attn-4 {version('flash-attn-4')}, torch {torch.__version__}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
*inputs, upstream = torch.randn(4, 1, LENGTH, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
inputs = [each.requires_grad_() for each in inputs]
position = torch.arange(LENGTH, device="cuda")
third = position % 3 == position[:, None] % 3


@cute.jit
def every_third(batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
    return (kv_idx % 3) == (q_idx % 3)


def truth(mask):
    """The output and the gradients by torch, in float64."""
    exact = [each.detach().double().transpose(1, 2).requires_grad_() for each in inputs]
    right = scaled_dot_product_attention(*exact, attn_mask=mask)
    gradients = torch.autograd.grad(right, exact, upstream.double().transpose(1, 2))
    return right.transpose(1, 2), torch.cat(gradients).transpose(1, 2)


def nearest(found, part):
    """Which truth is it?"""
    for name, right in truths.items():
        if (found - right[part]).abs().max() / right[part].abs().max() < 0.03:
            return name
    return "wrong for both"


truths = {"that of the mask_mod alone": truth(third), "that of both": truth(third.tril())}
outcomes = {}
for causal in (False, True):
    found, *_ = flash_attn_func(*inputs, mask_mod=every_third, causal=causal)
    gradients = torch.cat(torch.autograd.grad(found, inputs, upstream))
    outcomes[causal] = [nearest(found, 0), nearest(gradients, 1)]
    print("causal={}: output is {}, gradients: {}".format(causal, *outcomes[causal]))
if outcomes != {False: ["that of the mask_mod alone"] * 2, True: ["that of the mask_mod alone", "wrong for both"]}:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
