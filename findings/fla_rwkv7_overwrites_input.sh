#!/usr/bin/env bash
# Versions: fla-core 0.6.0 (of flash-linear-attention), triton 3.9.0, torch 2.13.0, on a CPU (Triton's interpreter).
#
# Behaviour: the backward of fused_addcmul_rwkv7 writes a gradient into the hidden states that the caller passed.
# Another function that reads the same tensor, and whose backward runs later, computes with that gradient in place of
# them.
#
# Seen (a linear gate on the same hidden states):
#     gate called after: hidden states changed by backward, gradient of the gate right
#     gate called before: hidden states changed by backward, gradient of the gate wrong
#     by torch, gate called before: hidden states kept by backward, gradient of the gate right
#
# Why it surprises: RWKV7Attention passes its own input to this function. A gate or a feed-forward network beside
# such a layer is then trained with wrong gradients, if it is called first. Torch raises an error if a tensor that a
# backward needs was changed, but a kernel's writes do not count. There is no option, no error and no warning. The
# kernel gets the saved tensor as its output, to save memory. channel_mixing_rwkv7 does the same by default, and has
# an option.
#
# An H200 shows the same, with the compiled kernels, triton 3.6.0 and torch 2.11.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
# fla-core requires none of the others. Triton's interpreter needs numpy.
venv/bin/pip install -qq fla-core==0.6.0 triton==3.9.0 torch==2.13.0 packaging numpy==2.4.6

cat > seen.py <<'PYTHON'
import sys

import torch
import triton

autotune = triton.autotune
# The interpreter cannot measure, so there is one configuration of each kernel.
triton.autotune = lambda configs, **options: autotune(configs[:1], **options)

from fla.ops.rwkv7.fused_addcmul import fused_addcmul_rwkv7, torch_addcmul_rwkv7  # noqa: E402

torch.manual_seed(0)
x, delta, gate_gradient = torch.randn(3, 2, 8, 16)
mixes = torch.randn(6, 1, 1, 16)


def outcome(mix, gate_first):
    hidden = x.clone().requires_grad_() * 1
    before = hidden.detach().clone()
    gate = torch.nn.Linear(16, 16, bias=False)
    if gate_first:
        gated = gate(hidden)
    mixed = mix(hidden, delta, *mixes.unbind())
    if not gate_first:
        gated = gate(hidden)
    (sum(each.sum() for each in mixed) + (gated * gate_gradient).sum()).backward()
    right = torch.einsum("bto,bti->oi", gate_gradient, before)
    kept = "kept" if torch.equal(hidden, before) else "changed"
    return kept, "right" if torch.allclose(gate.weight.grad, right, atol=1e-4) else "wrong"


outcomes = []
for name, mix, gate_first in (
    ("gate called after", fused_addcmul_rwkv7, False),
    ("gate called before", fused_addcmul_rwkv7, True),
    ("by torch, gate called before", torch_addcmul_rwkv7, True),
):
    outcomes.append(outcome(mix, gate_first))
    print(f"{name}: hidden states {outcomes[-1][0]} by backward, gradient of the gate {outcomes[-1][1]}")
if outcomes != [("changed", "right"), ("changed", "wrong"), ("kept", "right")]:
    sys.exit("changed: other results than described")
print("as described")
PYTHON
# Warnings that there is no GPU are left out; a failure shows them.
TRITON_INTERPRET=1 FLA_USE_COMPILE=0 venv/bin/python seen.py 2> log || { cat log; exit 1; }
