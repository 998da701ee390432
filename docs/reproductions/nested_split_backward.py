"""torch 2.13, CPU: the backward of an uneven `split` of a jagged NestedTensor crashes the process (SIGSEGV).

`chunk` is fine, which is why the decoder chunks its fused projection.
"""

import torch

values = torch.randn(9, 48, requires_grad=True)
nested = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 2, 6, 9]))
first, second, third = nested.split([16, 16, 16], dim=-1)
(first + second + third).values().sum().backward()
print("no crash")
