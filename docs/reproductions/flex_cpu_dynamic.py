"""torch 2.13, CPU: compiled FlexAttention fails once a second length makes its shapes dynamic.

The generated C++ names a variable that it never declares (`cur_qSplitSize8`), and the compiler stops.
"""

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

compiled = torch.compile(flex_attention)
for length in (200, 330):
    documents = torch.arange(length) // 50
    mask = create_block_mask(
        lambda b, h, q, k, documents=documents: documents[q] == documents[k], None, None, length, length, device="cpu"
    )
    x = torch.randn(1, 4, length, 32)
    with torch.no_grad():
        compiled(x, x, x, block_mask=mask)
    print("length", length, "compiled")
