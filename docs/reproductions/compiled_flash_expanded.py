"""torch 2.11: SDPA's flash kernel, compiled, refuses keys and values that share one head's memory.

With keys of stride 0 over the heads (`expand`) what torch.compile expects of the kernel's output or of a gradient has
other strides than what the kernel gives: an AssertionError of its own check ("expected size 2==2, stride 64==4160").
The same call in eager mode works, and so does the compiled one with contiguous keys. Needs a GPU.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend with q, k, v (B, S, H, D)."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    return out.transpose(1, 2)


def normal(heads: int) -> torch.Tensor:
    """Draw (3, 65, heads, 64)."""
    return torch.randn(3, 65, heads, 64, device="cuda", dtype=torch.bfloat16)


q, k, v = normal(2), normal(1).expand(-1, -1, 2, -1), normal(1).expand(-1, -1, 2, -1)
for name, inputs in (("expanded", (q, k, v)), ("contiguous", (q, k.contiguous(), v.contiguous()))):
    for run in (attend, torch.compile(attend, dynamic=True)):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        try:
            torch.autograd.grad(run(*leaves).sum(), leaves)
            print(f"{name}, {'eager' if run is attend else 'compiled'}: works")
        except AssertionError as error:
            print(f"{name}, compiled: {str(error).splitlines()[0]}")
