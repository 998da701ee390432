#!/usr/bin/env bash
# Versions: fla-core 0.6.0 (of flash-linear-attention), triton 3.6.0, torch 2.11.0 (cu130), on an NVIDIA H200.
# Needs a GPU of the Hopper generation. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: with FLA_INTRACARD_CP=1, long sequences are cut into parts that are computed at once. If a batch has two
# such sequences, the output and the final state of the second are wrong. One long sequence in a batch is right.
#
# Seen (in inference mode with the variable, against no_grad, which does not cut):
#     fla-core 0.6.0, triton 3.6.0, torch 2.11.0
#     lengths [7, 25000]: outputs right, right; final states right, right
#     lengths [25000, 7, 25000]: outputs right, right, wrong; final states right, right, wrong
#
# Why it surprises: the variable is documented for inference with `cu_seqlens`, and nothing limits it to one long
# sequence. There is no error and no warning. The first pass summarizes each part. It finds the ends of all parts in
# one list, which joins the lists of the long sequences. The first has one end more than parts, and the pass does not
# skip it. So the parts of the second sequence are off by one: its first one is what lies between the two sequences.
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
from triton.runtime.autotuner import Autotuner

initialize = Autotuner.__init__


def tune_nothing(self, fn, names, configs, *rest, **options):
    """To try all configurations of each kernel takes minutes."""
    chosen = [config for config in configs if config.num_warps == 4][:1] or configs[:1]
    initialize(self, fn, names, chosen, *rest, **options)


Autotuner.__init__ = tune_nothing

from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # noqa: E402

HEADS, DIM = 2, 64

print(", ".join(f"{name} {version(name)}" for name in ("fla-core", "triton", "torch")))
torch.manual_seed(0)


def outcome(lengths):
    tokens = sum(lengths)
    q, k, v = torch.randn(3, 1, tokens, HEADS, DIM, device="cuda")
    q, k = (torch.nn.functional.normalize(each, dim=-1).bfloat16() for each in (q, k))
    v = v.bfloat16()
    # The state keeps what it got over the whole sequence.
    decay = -1e-5 * torch.rand(1, tokens, HEADS, device="cuda")
    beta = torch.full((1, tokens, HEADS), 1e-3, device="cuda").bfloat16()
    start = torch.randn(len(lengths), HEADS, DIM, DIM, device="cuda")
    ends = torch.tensor([0, *lengths], device="cuda").cumsum(0)
    results = []
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            output, states = chunk_gated_delta_rule(
                q, k, v, decay, beta, initial_state=start, output_final_state=True, cu_seqlens=ends
            )
        results.append((output[0].float().split(lengths), states.unbind()))
    return [
        [
            "right" if (found - truth).norm() < 0.03 * truth.norm() else "wrong"
            for found, truth in zip(*both, strict=True)
        ]
        for both in zip(*results, strict=True)
    ]


outcomes = []
for lengths in ([7, 25000], [25000, 7, 25000]):
    outcomes.append(outcome(lengths))
    outputs, states = map(", ".join, outcomes[-1])
    print(f"lengths {lengths}: outputs {outputs}; final states {states}")
if outcomes != [[["right", "right"]] * 2, [["right", "right", "wrong"]] * 2]:
    sys.exit("changed: other results than described")
print("as described")
PYTHON
# A failure shows what is left out here: warnings.
FLA_INTRACARD_CP=1 "$PYTHON" seen.py 2> log || { cat log; exit 1; }
