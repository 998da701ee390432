"""torch 2.11 to 2.13 on a CPU: SDPA on NestedTensors cannot be checkpointed, as the forward raises an error.

`torch.utils.checkpoint` asks what autograd saves for its sizes; SDPA on jagged NestedTensors saves NestedTensors of the
older, strided kind on a CPU, and these have no sizes: a RuntimeError that asks to file an issue. The same call without
`checkpoint` works, and so does a checkpointed linear map of NestedTensors.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


def attend(values: torch.Tensor) -> torch.Tensor:
    """Attend within sequences of 2 and 3 tokens, two heads of 8."""
    nested = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 2, 5]), min_seqlen=2, max_seqlen=3)
    q = nested.unflatten(-1, (2, 8)).transpose(1, 2)
    return scaled_dot_product_attention(q, q, q).values()


values = torch.randn(5, 16, requires_grad=True)
for name, run in (("alone", attend), ("checkpointed", lambda given: checkpoint(attend, given, use_reentrant=False))):
    try:
        (gradient,) = torch.autograd.grad(run(values).sum(), values)
        print(f"{name}: gradient of {tuple(gradient.shape)}")
    except RuntimeError as error:
        print(f"{name}: {error}")
