#!/usr/bin/env bash
# Versions: fla-core 0.6.0 (of flash-linear-attention), triton 3.6.0, torch 2.11.0 (cu130), on an NVIDIA H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: the gradient of the values is wrong in parallel_path_attn if values are wider than keys, a sequence has
# more than 512 tokens, and there are two or more heads. Up to 512 tokens it is right, and so it is with equal
# widths.
#
# Seen (2 heads, keys of width 64):
#     fla-core 0.6.0, triton 3.6.0, torch 2.11.0
#     640 tokens, values of width 64: dv right
#     512 tokens, values of width 128: dv right
#     640 tokens, values of width 128: dv wrong
#
# Why it surprises: the function accepts and documents keys of width K and values of width V, and checks each width
# on its own. There is no error and no warning. The kernel that adds the part of later queries finds sequence and
# head in the value gradients with the width of the keys. So it adds to other heads and tokens. The output is linear
# in the values, so the right gradient follows from outputs alone: the script gets the attention weights from values
# of zeros and ones.
#
# An earlier report of such a mix of widths is closed: https://github.com/fla-org/flash-linear-attention/issues/632
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq fla-core==0.6.0 torch==2.11.0 packaging
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
import triton

autotune = triton.autotune


def tune_nothing(configs, **options):
    """To try all configurations of each kernel takes minutes."""
    return autotune([config for config in configs if config.num_warps == 4][:1] or configs[:1], **options)


triton.autotune = tune_nothing

from fla.ops.path_attn import parallel_path_attn  # noqa: E402

HEADS, WIDTH = 2, 64

print(", ".join(f"{name} {version(name)}" for name in ("fla-core", "triton", "torch")))
torch.manual_seed(0)


def relative_error(length, value_width):
    q, k = torch.randn(2, 1, length, HEADS, WIDTH, device="cuda").bfloat16()
    v, do = torch.randn(2, 1, length, HEADS, value_width, device="cuda").bfloat16()
    w = torch.nn.functional.normalize(torch.randn(1, length, HEADS, WIDTH, device="cuda"), dim=-1)
    beta = torch.rand(1, length, HEADS, device="cuda")

    def attend(v):
        return parallel_path_attn(q, k, v, w, beta)[0]

    # With values of zeros and ones, each output is an attention weight.
    ones = torch.eye(length, device="cuda").bfloat16()[None, :, None].expand(1, length, HEADS, length)
    weights = torch.cat([attend(columns.contiguous()) for columns in ones.split(WIDTH, dim=-1)], dim=-1)
    right = torch.einsum("qhk,qhd->khd", weights[0].float(), do[0].float())
    v.requires_grad_()
    (found,) = torch.autograd.grad(attend(v), v, do)
    return ((found[0].float() - right).norm() / right.norm()).item()


outcomes = []
for length, value_width in ((640, 64), (512, 128), (640, 128)):
    outcome = "right" if relative_error(length, value_width) < 0.03 else "wrong"
    print(f"{length} tokens, values of width {value_width}: dv {outcome}")
    outcomes.append(outcome)
if outcomes != ["right", "right", "wrong"]:
    sys.exit("changed: other gradients than described")
print("as described")
PYTHON
# A failure shows what is left out here: warnings.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
