#!/usr/bin/env bash
# Versions: torch 2.13.0, on a CPU, one process with gloo (2.15.0 does the same).
#
# Behaviour: fully_shard keeps the gathered parameters of the root after a forward, for the backward. If no backward
# follows, as in an evaluation, nobody frees them. After an optimiser step the next forward still computes with them.
# The step changed the shards alone. With reshard_after_forward=True the next forward sees the step.
#
# Seen (loss after: a backward, a forward without gradients, a step):
#     no wrapper: 4.00 before the step, 1.44 after it
#     fully_shard: 4.00 before the step, 4.00 after it
#     fully_shard, reshard_after_forward=True: 4.00 before the step, 1.44 after it
#     fully_shard, the forward after the step: 4.00 before the step, 1.44 after it
#
# Why it surprises: the forward without gradients changes no parameter, and yet a later loss depends on it. There is no
# error and no warning. The documentation tells of reshard_after_forward as a choice between memory and communication.
# (https://github.com/pytorch/pytorch/issues/131965 says that the root is kept by design, and not what follows from it.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torch==2.13.0 numpy

cat > seen.py <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))


def losses(wrap=lambda model: None, evaluate_first=True):
    """Return the loss before and after a step, with an evaluation before the step or after it."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    model(torch.ones(1, 1)).square().sum().backward()

    def evaluate():
        with torch.no_grad():
            return model(torch.ones(1, 1)).square().sum().item()

    before = evaluate() if evaluate_first else 4.0
    optimizer.step()
    return [round(before, 2), round(evaluate(), 2)]


def sharded(**options):
    return lambda model: fully_shard(model, mesh=mesh, **options)


outcomes = {
    "no wrapper": losses(),
    "fully_shard": losses(sharded()),
    "fully_shard, reshard_after_forward=True": losses(sharded(reshard_after_forward=True)),
    "fully_shard, the forward after the step": losses(sharded(), evaluate_first=False),
}
for name, (before, after) in outcomes.items():
    print(f"{name}: {before:.2f} before the step, {after:.2f} after it")
stale = outcomes.pop("fully_shard")
dist.destroy_process_group()
if stale[1] != stale[0] or any(after >= before for before, after in outcomes.values()):
    sys.exit("changed: another forward sees the step")
print("as described")
PYTHON
# What torch logs is left out; a failure shows it.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
