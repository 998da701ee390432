"""The decoder's MLP, whose GELU is part of the up-projection where nothing needs what goes into it."""

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """Up to four times the width, GELU in its tanh form (as GPT-2), and back down; both projections have biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, E) to (B, S, E) on any layout."""
        return self.down(self._activated(x))

    def _activated(self, x: Tensor) -> Tensor:
        """Return gelu(up(x)), (B, S, 4E).

        Evaluation on a GPU in 16 bits lets cuBLASLt apply the GELU before it writes the product, which saves reading
        and writing the widest tensor of the model once more. Training needs the product itself for the backward.
        """
        if torch.is_grad_enabled() or not x.is_cuda or x.is_nested or not torch.is_autocast_enabled("cuda"):
            return nn.functional.gelu(self.up(x), approximate="tanh")
        dtype = torch.get_autocast_dtype("cuda")
        # Not a public function, but what torch.compile itself knows it by. On CUDA its GELU is the tanh form; on the
        # CPU it is the exact one, so it is not used there.
        flat = torch._addmm_activation(
            self.up.bias.to(dtype), x.flatten(0, -2).to(dtype), self.up.weight.to(dtype).t(), use_gelu=True
        )
        return flat.unflatten(0, x.shape[:-1])
