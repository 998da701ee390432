"""flash-attn with kernels for heads of 64 and 128 only: the backward of `flash_attn_func` zeroes memory behind its own.

For heads of up to 32 the accumulator of dq is made with rows of 32 numbers, and the kernel for 64 clears rows of 64:
the second half of the last row lies behind its end. Results are right, and a tensor that happens to lie there
loses 128 bytes. `flash_attn_varlen_func` makes its accumulator larger, and is not affected. Needs a GPU.
"""

import torch
from flash_attn import flash_attn_func

for head_dim in (16, 32, 64, 128):
    # Every other of many blocks is freed again: what is allocated next lies between those that are left.
    around = [torch.ones(128 << index % 7, dtype=torch.int32, device="cuda") for index in range(700)][::2]
    damaged = 0
    for tokens in (1, 7, 64, 100, 128, 129, 300, 512):
        q, k, v = (
            torch.randn(1, tokens, 4, head_dim, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in "qkv"
        )
        flash_attn_func(q, k, v, causal=True).sum().backward()
        damaged += sum(int((block != 1).sum()) for block in around)
        for block in around:
            block.fill_(1)
    print(f"heads of {head_dim}: {damaged} words of other tensors were overwritten")
