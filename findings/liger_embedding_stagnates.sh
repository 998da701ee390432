#!/usr/bin/env bash
# Versions: liger-kernel 0.8.5, torch 2.11.0 (cu130), triton 3.6.0, on an NVIDIA H200.
# Needs a GPU. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: LigerEmbedding adds up the gradient of a token in the type of its weight. In bfloat16 the sum of a frequent
# token stops growing: at 256, to add 1 changes nothing.
#
# Seen (a gradient of 1 for each place of the token):
#     torch 2.11.0+cu130, liger-kernel 0.8.5, NVIDIA H200
#     bfloat16, token at 100 places: gradient 100 (torch: 100)
#     bfloat16, token at 4000 places: gradient 256 (torch: 4000)
#     float32, token at 4000 places: gradient 4000 (torch: 4000)
#
# Why it surprises: the layer stands for torch's Embedding, whose gradient is right in bfloat16 too. Frequent tokens are
# in every batch: spaces, and the first token of a text. Their gradients come out too small by a factor that grows
# with the batch. Rare tokens are right, so a test with few tokens passes. There is no error and no warning. The layer
# is in liger_kernel.transformers.experimental. In the source, its backward adds with an atomic operation in bfloat16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq liger-kernel==0.8.5 torch==2.11.0 packaging
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from liger_kernel.transformers.experimental.embedding import LigerEmbedding

TOKENS, WIDTH, FREQUENT = 11, 64, 3

print(f"torch {torch.__version__}, liger-kernel {version('liger-kernel')}, {torch.cuda.get_device_name()}")


def seen(layer, dtype, places):
    """Return the gradient of the frequent token, which is the number of its places."""
    layer = layer(TOKENS, WIDTH).to("cuda", dtype)
    indices = torch.full((places,), FREQUENT, device="cuda")
    out = layer(indices)
    out.backward(torch.ones_like(out))
    found = layer.weight.grad[FREQUENT].unique().tolist()
    if len(found) != 1 or layer.weight.grad.count_nonzero() != WIDTH:
        sys.exit("changed: the gradient is of several values")
    return found[0]


outcomes = []
for dtype, places in ((torch.bfloat16, 100), (torch.bfloat16, 4000), (torch.float32, 4000)):
    got, control = (seen(layer, dtype, places) for layer in (LigerEmbedding, torch.nn.Embedding))
    name = str(dtype).removeprefix("torch.")
    print(f"{name}, token at {places} places: gradient {got:g} (torch: {control:g})")
    if control != places:
        sys.exit("changed: the gradient of torch is wrong")
    outcomes.append(got / places)
if not (outcomes[0] == outcomes[2] == 1 and outcomes[1] < 0.2):
    sys.exit("changed: other gradients than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
