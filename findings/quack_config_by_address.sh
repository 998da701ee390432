#!/usr/bin/env bash
# Versions: quack-kernels 0.6.5, nvidia-cutlass-dsl 4.8.1, torch 2.11.0 (cu130), on an NVIDIA H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: gemm_act(config=...) knows a GemmConfig by its address. After one is dropped, another may get its address.
# The kernel of the first then runs in place of that of the second.
#
# Seen (two configurations of tile_n 192 and 128):
#     quack-kernels 0.6.5, torch 2.11.0+cu130, NVIDIA H200
#     tile_n 128, first configuration kept: another kernel, result right
#     tile_n 128, at the address of the first: the kernel of tile_n 192, result right
#
# Why it surprises: GemmConfig is a frozen dataclass, so it can be hashed and compared by its fields. The argument is
# there to pin a configuration. A loop that makes and times one after the other drops each before the next, and may time
# the first several times. An invalid configuration is accepted at such an address; elsewhere it raises a ValueError.
# The results are right, and there is no warning. Eager calls keep what they found out by the shapes of the tensors and
# id(config), without a reference to the object (__call__ in quack/epilogue/frontend.py). A comment there says that
# configurations are constants of modules in practice. The documentation of the argument asks for nothing of the kind.
# On 30 November 2026, 0.6.5 was the newest release.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq torch==2.11.0 quack-kernels==0.6.5 \
        "nvidia-cutlass-dsl[cu13]==4.8.1"
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from quack.gemm_config import GemmConfig
from quack.gemm_interface import gemm_act
from torch.profiler import ProfilerActivity, profile

OPTIONS = {"tile_m": 128, "pingpong": True, "cluster_m": 1, "cluster_n": 1, "is_dynamic_persistent": False}

print(f"quack-kernels {version('quack-kernels')}, torch {torch.__version__}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
x = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
weight = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16)
bias = torch.randn(512, device="cuda", dtype=torch.bfloat16)
right = torch.addmm(bias.double(), x.double(), weight.double().T).relu()


def kernels(config):
    """Return the names of the kernels that ran, and whether the result is right."""
    options = {"bias": bias, "activation": "relu", "tuned": False, "config": config}
    gemm_act(x, weight.T, **options)  # compiles
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        _, found = gemm_act(x, weight.T, **options)
        torch.cuda.synchronize()
    names = {event.key for event in seen.key_averages() if "MMA" in event.key}
    error = (found - right).abs().max() / right.abs().max()
    return names, "right" if error < 0.03 else "wrong"


def outcome(names):
    return "the kernel of tile_n 192" if names == first_names else "another kernel"


first = GemmConfig(tile_n=192, **OPTIONS)
address = id(first)
first_names, first_result = kernels(first)
assert first_names and first_result == "right", (first_names, first_result)
names, result = kernels(GemmConfig(tile_n=128, **OPTIONS))
outcomes = [(outcome(names), result)]
del first
others = []
while id(second := GemmConfig(tile_n=128, **OPTIONS)) != address:
    others.append(second)
    if len(others) == 400_000:
        sys.exit("undecided: no object got the address of the first")
names, result = kernels(second)
outcomes.append((outcome(names), result))
for place, (kernel, result) in zip(("first configuration kept", "at the address of the first"), outcomes, strict=True):
    print(f"tile_n 128, {place}: {kernel}, result {result}")
if outcomes != [("another kernel", "right"), ("the kernel of tile_n 192", "right")]:
    sys.exit("changed: another outcome than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
