#!/usr/bin/env bash
# Versions: torch 2.13.0, flash-attn-4 4.0.0b36, nvidia-cutlass-dsl 4.8.1, quack-kernels 0.6.5, on a CPU (seen with
# triton 3.9.0, Python 3.11).
#
# Behaviour: torch.nn.attention.activate_flash_attention_impl("FA4") accepts flash-attn-4, and every forward then raises
# a ValueError. Torch's adapter unpacks two results of flash_attn.cute.interface._flash_attn_fwd, which returns five.
#
# Seen:
#     FlashAttention-4 itself: 5 results
#     activate_flash_attention_impl("FA4"): accepted
#     torch's adapter: ValueError: too many values to unpack (expected 2)
#
# Why it surprises: neither torch's requirements nor the documentation
# of the function name a version of flash-attn-4. The activation imports the package and checks that it has the
# function. The error comes after the kernel has been compiled, and does not name the versions. 4.0.0b18 returned two
# results. That release does not run with nvidia-cutlass-dsl 4.8.1, which its requirements allow.
# (https://github.com/pytorch/pytorch/issues/190212 reports it. It is closed, but torch 2.13.0 has no fix.)
#
# The tensors here are fake ones of a Hopper GPU, so that flash-attn-4 compiles its kernel and launches nothing. Without
# a GPU torch's dispatcher does not reach the adapter, so the script calls the adapter by its private name.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
# quack imports triton without requiring it.
venv/bin/pip install -qq torch==2.13.0 triton flash-attn-4==4.0.0b36 nvidia-cutlass-dsl==4.8.1 quack-kernels==0.6.5

cat > seen.py <<'PYTHON'
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import _fa4, activate_flash_attention_impl

import flash_attn.cute.interface as flash

options = dict.fromkeys(("cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "seqused_k"))

with FakeTensorMode():
    q, k, v = (torch.empty(1, 128, 2, 64, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    results = len(flash._flash_attn_fwd(q, k, v, causal=True, return_lse=True))
    print(f"FlashAttention-4 itself: {results} results")
    activate_flash_attention_impl("FA4")
    print('activate_flash_attention_impl("FA4"): accepted')
    try:
        _fa4._fa4_run_forward(q, k, v, is_causal=True, window_size_left=-1, window_size_right=-1, **options)
        outcome = "no error"
    except ValueError as error:
        outcome = f"ValueError: {error}"
print(f"torch's adapter: {outcome}")
if results != 5 or outcome != "ValueError: too many values to unpack (expected 2)":
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings about fake tensors are left out; a failure shows them. The variables say which GPU to compile for.
FLASH_ATTENTION_ARCH=sm_90 CUTE_DSL_ARCH=sm_90a FLASH_ATTENTION_NUM_SMS=132 \
    venv/bin/python seen.py 2> log || { cat log; exit 1; }
