"""torch 2.11: compiled FlexAttention finds no kernel for grouped heads and a block mask on a short row.

Up to 127 queries it takes its decoding kernel. With two query heads a key-value head, and a document mask on a row of
68 tokens whose length is dynamic, no configuration of that kernel is left: an InductorError, "No choices exist for
backend". Without a block mask each of these works. Needs a GPU.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

compiled = torch.compile(flex_attention, dynamic=True)
for kv_heads in (4, 2):
    for tokens in (200, 68):
        documents = (torch.arange(tokens, device="cuda") >= 3).int()

        def same(batch: Tensor, head: Tensor, q: Tensor, kv: Tensor, documents: Tensor = documents) -> Tensor:
            """Tell whether a query and a key are of one document."""
            return documents[q] == documents[kv]

        mask = create_block_mask(same, None, None, tokens, tokens, device="cuda")
        q, k, v = (
            torch.randn(1, heads, tokens, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, kv_heads, kv_heads)
        )
        for tensor in (q, k, v):
            torch._dynamo.mark_static(tensor, [1, 3])
        torch._dynamo.reset()
        try:
            compiled(q, k, v, block_mask=mask, enable_gqa=True)
            print(f"{tokens} tokens, 4 heads on {kv_heads}: works")
        except Exception as error:
            print(f"{tokens} tokens, 4 heads on {kv_heads}: {str(error).splitlines()[0]}")
