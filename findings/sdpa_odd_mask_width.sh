#!/usr/bin/env bash
# Versions: torch 2.11.0 (cu130) with cuDNN 9.19, on an NVIDIA H200.
# Needs a GPU where torch chooses cuDNN. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: scaled_dot_product_attention with an additive padding mask takes 1.8 to 2.0 times as long at an odd width as
# at the next even one. Causal attention without a mask takes the same time at both. The inputs are in bfloat16, with 32
# sequences, 16 heads of 64 and a mask of (32, 1, 1, width), without gradients. Torch chooses cuDNN by itself.
#
# Seen:
#     torch 2.11.0+cu130, cuDNN 91900, NVIDIA H200
#     with a mask, 513 and 514: 0.43 and 0.23 ms (1.8 times)
#     with a mask, 1001 and 1002: 1.04 and 0.56 ms (1.9 times)
#     with a mask, 1003 and 1004: 1.04 and 0.56 ms (1.9 times)
#     with a mask, 1023 and 1024: 1.04 and 0.52 ms (2.0 times)
#     causal without a mask, 513 and 514: 0.10 and 0.10 ms (1.0 times)
#     causal without a mask, 1001 and 1002: 0.21 and 0.22 ms (1.0 times)
#     causal without a mask, 1003 and 1004: 0.21 and 0.21 ms (1.0 times)
#     causal without a mask, 1023 and 1024: 0.21 and 0.21 ms (1.0 times)
#     kernel: cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1_cga1x1x1_kernel0_0
#
# Why it surprises: one more column of padding makes attention faster. A batch that is padded to its longest sequence
# has an odd width in half of the cases. There is no warning, and the documentation of the function names no such width.
# `pad_to_multiple_of=8` of a tokenizer avoids it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq torch==2.11.0
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import statistics
import sys

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

BATCH, HEADS, DIM = 32, 16, 64
CALLS = 10

print(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}")


def attention(width, masked):
    """A call of attention, and the name of its longest kernel."""
    fused = torch.randn(BATCH, width, 3, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    q, k, v = (each.transpose(1, 2) for each in fused.unbind(2))
    mask = None
    if masked:
        lengths = torch.linspace(width // 2, width, BATCH, device="cuda").long()
        padding = torch.arange(width, device="cuda") >= lengths[:, None]
        mask = torch.zeros(BATCH, 1, 1, width, device="cuda", dtype=torch.bfloat16)
        mask.masked_fill_(padding[:, None, None], -torch.inf)

    def call():
        scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not masked)

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return call, max(profiler.key_averages(), key=lambda event: event.device_time_total).key


def medians(calls):
    """Milliseconds of each call, measured by turns."""
    times = [[] for _ in calls]
    for _ in range(20):
        for call, taken in zip(calls, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(CALLS):
                call()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end) / CALLS)
    return [statistics.median(taken) for taken in times]


kernels, as_described = set(), True
for masked in (True, False):
    for odd in (513, 1001, 1003, 1023):
        (call, kernel), (next_call, next_kernel) = attention(odd, masked), attention(odd + 1, masked)
        kernels |= {kernel, next_kernel}
        ms, next_ms = medians([call, next_call])
        ratio = ms / next_ms
        name = "with a mask" if masked else "causal without a mask"
        print(f"{name}, {odd} and {odd + 1}: {ms:.2f} and {next_ms:.2f} ms ({ratio:.1f} times)")
        as_described &= ratio > 1.4 if masked else ratio < 1.15
for kernel in sorted(kernels):
    print(f"kernel: {kernel}")
if not as_described or not all("cudnn" in kernel for kernel in kernels):
    sys.exit("changed: other times or kernels than described")
print("as described")
PYTHON
# A failure shows what is left out here: warnings of the profiler.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
