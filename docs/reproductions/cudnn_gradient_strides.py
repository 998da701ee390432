"""torch 2.11, cuDNN 9.19, H100: one upstream gradient in two layouts gives two gradients through SDPA's cuDNN kernel.

The same numbers, once with stride 0 over the heads and then contiguous, in one process: the gradients differ by as much
as they are large, without an error. The plan of the first backward seems to be used again for the second.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

q, k, v, upstream = (torch.randn(2, 65, 2, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(4))
inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
expanded = upstream[:, :1].expand_as(upstream)

for kernel in (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
    with sdpa_kernel(kernel):
        out = scaled_dot_product_attention(*inputs)
    first, second = (
        torch.autograd.grad(out, inputs, layout, retain_graph=True) for layout in (expanded, expanded.contiguous())
    )
    differences = [float((a - b).abs().max()) for a, b in zip(first, second, strict=True)]
    print(kernel.name, "largest differences in dq, dk, dv:", differences)
