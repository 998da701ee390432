#!/usr/bin/env bash
# Versions: flash-attn-4 4.0.0b36, nvidia-cutlass-dsl 4.8.1, quack-kernels 0.6.5, torch 2.11.0 (cu130), on an NVIDIA
# H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: two score_mods with the same source text share one compiled kernel, even if they read different globals.
# The second gets the output of the first. A value in the closure is seen.
#
# Seen (a bias of SLOPE for each position of distance):
#     flash-attn-4 4.0.0b36, torch 2.11.0+cu130, NVIDIA H200
#     SLOPE is a global, 0.0 then 0.05: right, then that of slope 0.0
#     slope is in the closure, 0.0 then 0.05: right, then right
#
# Why it surprises: torch.compile and Triton notice a global that has changed. Two models of one process, or two modules
# with one template, may differ in a constant alone. utils.hash_callable makes the key of the compiled kernel. It hashes
# the source, the closure and the defaults of the function, but not the globals. The hash is also kept on the function,
# so the global of one function cannot be changed either. There is no error and no warning. It is the same for mask_mod.
# (https://github.com/Dao-AILab/flash-attention/pull/2773 mended the same for defaults.) On 30 November 2026, 4.0.0b36
# was the newest release.
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
torch.manual_seed(0)
inputs = torch.randn(3, 1, LENGTH, HEADS, DIM, device="cuda", dtype=torch.bfloat16).unbind()
position = torch.arange(LENGTH, device="cuda").double()


def with_global():
    @cute.jit
    def score_mod(score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
        return score + (kv_idx - q_idx).to(cutlass.Float32) * SLOPE

    return score_mod


def with_closure(slope):
    @cute.jit
    def score_mod(score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):
        return score + (kv_idx - q_idx).to(cutlass.Float32) * slope

    return score_mod


def outcome(score_mod, slope):
    """Compare with the truth of each slope."""
    found, *_ = flash_attn_func(*inputs, score_mod=score_mod)
    for name, each in (("right", slope), ("that of slope 0.0", 0.0)):
        bias = each * (position - position[:, None])
        exact = scaled_dot_product_attention(*(each.double().transpose(1, 2) for each in inputs), attn_mask=bias)
        if (found.transpose(1, 2) - exact).abs().max() / exact.abs().max() < 0.03:
            return name
    return "wrong"


outcomes = []
for SLOPE in (0.0, 0.05):
    outcomes.append(outcome(with_global(), SLOPE))
outcomes += [outcome(with_closure(slope), slope) for slope in (0.0, 0.05)]
print("SLOPE is a global, 0.0 then 0.05: {}, then {}".format(*outcomes[:2]))
print("slope is in the closure, 0.0 then 0.05: {}, then {}".format(*outcomes[2:]))
if outcomes != ["right", "that of slope 0.0", "right", "right"]:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them. Nothing is taken from a cache on disk.
FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=0 "$PYTHON" seen.py 2> log || { cat log; exit 1; }
