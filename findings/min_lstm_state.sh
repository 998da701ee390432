#!/usr/bin/env bash
# Versions: minGRU-pytorch 0.2.1, torch 2.13.0, on a CPU.
#
# Behaviour: minLSTM returns its state, so that a sequence can go on in a later call. If that call has two tokens or
# more, the layer adds 0.5 to the state before it uses it. So a sequence in pieces has other outputs than the whole
# sequence. In a call with one token the state is used as it is. minGRU is right for pieces of any size.
#
# Seen (12 tokens; largest difference in each piece from the outputs of the whole sequence):
#     minGRU, pieces of 1: as the whole sequence
#     minGRU, pieces of 4: as the whole sequence
#     minLSTM, pieces of 1: as the whole sequence
#     minLSTM, pieces of 4: 0.00 0.35 0.36
#     minLSTM, a piece of 4 after a state: as 4 pieces of 1 after that state plus 0.5
#
# Why it surprises: a returned state is for the next call. The layer applies to it the function that makes the output of
# its linear map positive, which adds 0.5. But the returned state is positive already. Whoever trains on long sequences
# in pieces, or continues a text with several tokens, meets this. There is no error and no warning.
# (https://github.com/lucidrains/minGRU-pytorch/issues/9 was about this in minGRU, and is fixed there.
# https://github.com/lucidrains/minGRU-pytorch/pull/17 brought minLSTM, and asks which of the two is right.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq minGRU-pytorch==0.2.1 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from minGRU_pytorch.minGRU import minGRU
from minGRU_pytorch.minLSTM import minLSTM


def pieces(layer, tokens, size, state=None):
    """Return the outputs of `tokens` in pieces of `size`, and the last state."""
    outputs = []
    for piece in tokens.split(size, 1):
        output, state = layer(piece, state, return_next_prev_hidden=True)
        outputs.append(output)
    return torch.cat(outputs, 1), state


seen = []
with torch.no_grad():
    for kind in (minGRU, minLSTM):
        torch.manual_seed(0)
        layer, tokens = kind(16), torch.randn(2, 12, 16)
        for size in (1, 4):
            difference = (pieces(layer, tokens, size)[0] - layer(tokens)).abs()
            seen.append([float(part.max()) for part in difference.split(size, 1)])
            same = max(seen[-1]) < 1e-4
            words = "as the whole sequence" if same else " ".join(f"{value:.2f}" for value in seen[-1])
            print(f"{kind.__name__}, pieces of {size}: {words}")
    _, state = pieces(layer, tokens[:, :4], 1)
    after = pieces(layer, tokens[:, 4:8], 4, state)[0]
    shifted = pieces(layer, tokens[:, 4:8], 1, state + 0.5)[0]
*right, wrong = seen
if max(map(max, right)) > 1e-4:
    sys.exit(f"changed: minGRU, or pieces of one token: {right}")
if not (wrong[0] < 1e-4 and min(wrong[1:]) > 0.1):
    sys.exit(f"changed: minLSTM with pieces of 4: {wrong}")
if not torch.allclose(after, shifted, atol=1e-4):
    sys.exit("changed: the state is not larger by 0.5")
print("minLSTM, a piece of 4 after a state: as 4 pieces of 1 after that state plus 0.5")
print("as described")
PYTHON
venv/bin/python seen.py 2> log || { cat log; exit 1; }
