#!/usr/bin/env bash
# Versions: torch 2.13.0, on a CPU, one process with gloo.
#
# Behaviour: torch.compile with dynamic=True takes each int of a module that fully_shard shards for a size that may
# change. A comparison of two head counts is then no bool, and scaled_dot_product_attention(enable_gqa=...) refuses it.
# Without fully_shard, or without dynamic=True, the same block works.
#
# Seen:
#     by default: right
#     dynamic=True: right
#     fully_shard: right
#     fully_shard, dynamic=True: Unsupported: argument 'enable_gqa' must be bool, not SymBool
#     fully_shard, dynamic=True, skip_fsdp_guards=False: right
#
# Why it surprises: torch.compile takes the ints of every other module for constants, and sharding changes none of them.
# The message advises to look for the error in the code without torch.compile, where there is none.
# (https://github.com/pytorch/pytorch/pull/194795 has the cause, and another effect: slower kernels.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Attention(nn.Module):
    """Attention with two heads of queries and one of keys and values."""

    def __init__(self):
        super().__init__()
        self.heads, self.kv_heads = 2, 1
        self.map = nn.Linear(16, 32)

    def forward(self, x):
        q, k, v = self.map(x).unflatten(-1, (4, 8)).transpose(1, 2).split((2, 1, 1), dim=1)
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads != self.kv_heads)


def seen(sharded, dynamic, skip):
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(1, 6, 16)
    block = Attention()
    expected = block(x)
    block.compile(fullgraph=True, dynamic=dynamic, backend="eager")
    if sharded:
        fully_shard(block, mesh=mesh)
    try:
        with torch._dynamo.config.patch(skip_fsdp_guards=skip):
            got = block(x)
    except torch._dynamo.exc.Unsupported as error:
        refused = "argument 'enable_gqa' must be bool, not SymBool"
        assert refused in str(error), error
        return f"Unsupported: {refused}"
    torch.testing.assert_close(got, expected)
    return "right"


store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
refused = []
for name, sharded, dynamic, skip in (
    ("by default", False, None, True),
    ("dynamic=True", False, True, True),
    ("fully_shard", True, None, True),
    ("fully_shard, dynamic=True", True, True, True),
    ("fully_shard, dynamic=True, skip_fsdp_guards=False", True, True, False),
):
    outcome = seen(sharded, dynamic, skip)
    print(f"{name}: {outcome}")
    if outcome != "right":
        refused.append(name)
dist.destroy_process_group()
if refused != ["fully_shard, dynamic=True"]:
    sys.exit(f"changed: other settings are refused: {refused}")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
