"""torch 2.13, CPU: SDPA on jagged NestedTensors gives wrong gradients where the upstream one has a storage offset.

Its backward takes a contiguous upstream gradient for a buffer that begins where its storage does: a stretch of a longer
tensor gives the gradient of another stretch, without an error.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

values = torch.randn(5, 2, 8, requires_grad=True)
nested = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 2, 5])).transpose(1, 2)
stretch = torch.randn(9, 2, 8)[3:8]
wrong, right = (
    torch.autograd.grad(
        scaled_dot_product_attention(nested, nested, nested).transpose(1, 2).values(),
        values,
        upstream,
        retain_graph=True,
    )[0]
    for upstream in (stretch, stretch.clone())
)
print("largest difference:", float((wrong - right).abs().max()))
