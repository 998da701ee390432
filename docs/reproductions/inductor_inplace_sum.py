"""torch.compile writes into the buffer that it sums: a bias gradient is off by some percent, and another one each run.

In the backward of an MLP, Inductor makes one Triton kernel of the gradient through GELU and of its sum over tokens, the
bias gradient. The kernel loads a tile of `in_out_ptr0`, adds the result up, and stores it over what it loaded. Where a
tile has fewer elements than the program has threads, Triton gives an element to threads of several warps: all of them
load it, one stores it. A warp that loads late sums what was stored already. Inductor puts a barrier before such a
store only where the index itself is broadcast (https://github.com/triton-lang/triton/issues/1615).

It needs a kernel that was compiled for few tokens (two, say) and serves more later, and an autotuner that picks eight
warps for a tile of 64 x 2. The second line of what is printed is the same without in-place buffers: no sum differs.
Seen with torch 2.11.0+cu130 and triton 3.6.0 on an H200. Needs a GPU.
"""

import time

import torch
import torch._inductor.config
from torch import nn

#: Tokens: what the kernels are compiled for comes first.
TOKENS = (2, 91, 23, 129)
RUNS = 24
SECONDS = 20.0


class Block(nn.Module):
    """A norm and an MLP, as in any transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(128), nn.Linear(128, 512), nn.Linear(512, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x)), approximate="tanh"))


def gradients(model: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of every parameter, in bfloat16 autocast."""
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = model(x)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(out, parameters, upstream), strict=True))


for inplace in (True, False):
    different: dict[str, int] = {}
    most, runs, end = 0.0, 0, time.monotonic() + SECONDS
    torch._dynamo.reset()
    with torch._inductor.config.patch(inplace_buffers=inplace):
        torch.manual_seed(0)
        model = nn.Sequential(Block(), Block()).cuda()
        for block in model:
            block.compile(dynamic=True)
        while time.monotonic() < end:
            for tokens in TOKENS:
                x, upstream = torch.randn(2, 1, tokens, 128, device="cuda")
                found = [gradients(model, x, upstream) for _ in range(RUNS)]
                runs += RUNS
                for name in found[0]:
                    each = torch.stack([one[name].flatten() for one in found])
                    usual = each.median(0).values
                    if off := int((each != usual).any(1).sum()):
                        different[name] = different.get(name, 0) + off
                        most = max(most, float(((each - usual).norm(dim=1) / usual.norm()).max()))
    print(f"in-place buffers {inplace}: of {runs} runs differ {different or 'none'}, by up to {most:.1%} of their norm")
