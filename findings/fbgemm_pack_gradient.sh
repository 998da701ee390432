#!/usr/bin/env bash
# Versions: fbgemm-gpu-cpu 1.9.0, torch 2.14.1, on a CPU (1.8.0 with torch 2.13.0 does the same).
#
# Behaviour: `pack_segments` makes padded rows of jagged ones, and cuts each sequence to `max_length`. Its backward
# writes the gradients of the kept tokens one after the other, and leaves no place for those that were cut off. So after
# a sequence that is cut, each token gets the gradient of a later one, also across sequences. As many rows at the end as
# were cut off are never written, and keep what was in memory before. pack_segments_v2 does the same.
#
# Seen (sequences of 5, 2 and 4 tokens, cut to 3; the loss counts them once, twice and three times):
#     pack_segments, output: right
#     pack_segments, gradient: 1 1 1 2 2 | 3 3 | 3 . . .
#     pack_segments_v2, output: right
#     pack_segments_v2, gradient: 1 1 1 2 2 | 3 3 | 3 . . .
#     jagged_to_padded_dense, output: right
#     jagged_to_padded_dense, gradient: 1 1 1 0 0 | 2 2 | 3 3 3 0
#     pack_segments, nothing cut: gradient right
#
# Why it surprises: the output is right, and other jagged operators that cut sequences have the right gradient. A cut is
# what `max_length` is for. There is no error and no warning. (The dots are the rows that are never written.)
# (https://github.com/pytorch/FBGEMM/pull/5754 is about unwritten rows in the backward for CUDA, and says that tokens
# that were cut off must have gradients of zero. No report about the CPU is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq fbgemm-gpu-cpu==1.9.0 torch==2.14.1 numpy

cat > seen.py <<'PYTHON'
import sys

import fbgemm_gpu  # noqa: F401
import torch

LENGTHS = [5, 2, 4]
CUT = 3

lengths = torch.tensor(LENGTHS)
offsets = torch.tensor([0, *lengths.cumsum(0)])
functions = {
    "pack_segments": lambda tokens, longest: torch.ops.fbgemm.pack_segments(tokens, lengths, longest),
    "pack_segments_v2": lambda tokens, longest: torch.ops.fbgemm.pack_segments_v2(tokens, lengths, longest)[0],
    "jagged_to_padded_dense": lambda tokens, longest: torch.ops.fbgemm.jagged_to_padded_dense(
        tokens, [offsets], [longest]
    ),
}


def seen(function, longest):
    """Return whether the output is right, the gradient of each token, and what it should be."""
    torch.manual_seed(0)
    tokens = torch.randn(sum(LENGTHS), 2, requires_grad=True)
    cut = [sequence[:longest] for sequence in tokens.split(LENGTHS)]
    expected = torch.nn.utils.rnn.pad_sequence(cut, batch_first=True)
    output = function(tokens, longest)
    weights = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    right = torch.autograd.grad((expected * weights).sum(), tokens)[0]
    gradient = torch.autograd.grad((output * weights).sum(), tokens)[0]
    return torch.equal(output, expected), gradient[:, 0].tolist(), right[:, 0].tolist()


kept = sum(min(length, CUT) for length in LENGTHS)
for name, function in functions.items():
    same, gradient, right = seen(function, CUT)
    print(f"{name}, output: {'right' if same else 'wrong'}")
    shifted = gradient[:kept] == [value for value in right if value]
    # What is in rows that were never written changes from run to run.
    shown = [f"{value:g}" for value in gradient[:kept]] + ["."] * (len(gradient) - kept)
    if gradient == right:
        shown = [f"{value:g}" for value in gradient]
    text = " | ".join(" ".join(shown[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True))
    print(f"{name}, gradient: {text}")
    packs = name.startswith("pack")
    if not same or shifted != packs or (gradient == right) == packs:
        sys.exit(f"changed: {name} has another output or gradient")
same, gradient, right = seen(functions["pack_segments"], max(LENGTHS))
if not same or gradient != right:
    sys.exit(f"changed: {gradient} if nothing is cut")
print("pack_segments, nothing cut: gradient right")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
