"""torch 2.11, H100: the backward of attention on more than 2^31 elements is wrong (cuDNN) or a wild address (flash).

258 copies of four sequences must give 258 times the same gradients. `python past_32_bits.py cudnn`, `flash`, `varlen`
or `efficient` (which is right); 80 GB of memory are enough.
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
COPIES, BATCH, LENGTH, HEADS, HEAD_DIM = 258, 4, 1023, 16, 128

name = sys.argv[1]
few = [torch.randn(BATCH, LENGTH, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
q, k, v, upstream = (tensor.repeat(COPIES, 1, 1, 1) for tensor in few)
inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
if name == "varlen":
    from torch.nn.attention.varlen import varlen_attn

    offsets = torch.arange(0, COPIES * BATCH * LENGTH + 1, LENGTH, device="cuda", dtype=torch.int32)
    packed = [tensor.flatten(0, 1) for tensor in inputs]
    out = varlen_attn(*packed, offsets, offsets, LENGTH, LENGTH, window_size=(-1, 0)).view_as(q)
else:
    with sdpa_kernel(KERNELS[name]):
        out = scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in inputs), is_causal=True)
    out = out.transpose(1, 2)
gradients = torch.autograd.grad(out, inputs, upstream)
torch.cuda.synchronize()
for tensor, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
    copies = gradient.view(COPIES, BATCH, LENGTH, HEADS, HEAD_DIM)
    worst = [float((copy.float() - copies[0].float()).abs().max()) for copy in copies]
    print(name, tensor, "largest difference from the first copy:", max(worst), "in copy", worst.index(max(worst)))
