#!/usr/bin/env bash
# Versions: torch 2.11.0 (cu130, with its cuDNN), on an NVIDIA H200.
# Needs a GPU. `PYTHON=/path/to/python` uses that interpreter in place of a new environment.
#
# Behaviour: if ctc_loss uses cuDNN, a sequence without targets has a loss of 0 and a gradient of 0. The right loss is
# that of only blanks. Sequences with targets in the same batch are right. So are all sequences without cuDNN.
#
# Seen (targets of 4, 0, 7 and 1 characters):
#     torch 2.11.0+cu130, NVIDIA H200
#     cuDNN, with targets: losses right, gradients right
#     cuDNN, without targets: loss -0.0 in place of 79.7, gradient wrong
#     CUDA without cuDNN, with targets: losses right, gradients right
#     CUDA without cuDNN, without targets: loss 79.7, gradient right
#     CPU, with targets: losses right, gradients right
#     CPU, without targets: loss 79.7, gradient right
#
# Why it surprises: the documentation lists what selects cuDNN: targets on the CPU that are joined, integers of 32 bits,
# full input lengths, and blank 0. Lengths above 0 are not among these, and ctc_loss documents target lengths of zero.
# A batch of speech often has a silent sequence. The model is then never trained to be silent, and the loss looks better
# than it is. Whether this happens depends on where the targets are and on their integer type. There is no error.
# (https://github.com/pytorch/pytorch/pull/23298 made such sequences right for CUDA without cuDNN.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    # A machine may hold torch back for other work.
    touch constraints.txt
    PIP_CONSTRAINT=$folder/constraints.txt venv/bin/pip install -qq torch==2.11.0
    PYTHON=$folder/venv/bin/python
fi

cat > seen.py <<'PYTHON'
import sys

import torch
from torch.nn.functional import ctc_loss

TIME, CLASSES = 30, 9
LENGTHS = torch.tensor([4, 0, 7, 1])
TIMES = torch.full((4,), TIME)
EMPTY = LENGTHS == 0

print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
torch.manual_seed(0)
scores = torch.randn(TIME, 4, CLASSES)
targets = torch.randint(1, CLASSES, (int(LENGTHS.sum()),))
# Memory that is left unwritten would show these numbers.
filled = [torch.full((size,), 7.0, device="cuda") for size in (4, 1080, 4096) for _ in range(64)]
del filled


def losses_of(device, dtype, *arguments):
    """Return the losses, the gradients of their sum, and whether cuDNN computes them."""
    leaf = scores.clone().to(device, dtype).requires_grad_()
    log_probs = leaf.log_softmax(-1)
    losses = ctc_loss(log_probs, *arguments, reduction="none")
    losses.sum().backward()
    return losses.detach().cpu(), leaf.grad.cpu(), "Cudnn" in losses.grad_fn.name()


def right(got, expected):
    return torch.allclose(got.double(), expected, atol=1e-3, rtol=1e-4)


true_losses, true_gradients, _ = losses_of("cpu", torch.float64, targets, TIMES, LENGTHS)
kinds = {
    "cuDNN": ("cuda", torch.float32, targets.int(), TIMES.int(), LENGTHS.int()),
    "CUDA without cuDNN": ("cuda", torch.float32, targets.cuda(), TIMES, LENGTHS),
    "CPU": ("cpu", torch.float32, targets, TIMES, LENGTHS),
}
outcomes = {}
for kind, arguments in kinds.items():
    losses, gradients, by_cudnn = losses_of(*arguments)
    if by_cudnn != (kind == "cuDNN"):
        sys.exit(f"changed: {kind} is computed otherwise")
    words = {}
    for empty in (False, True):
        rows = EMPTY if empty else ~EMPTY
        good = right(losses[rows], true_losses[rows]), right(gradients[:, rows], true_gradients[:, rows])
        words[empty] = ["right" if each else "wrong" for each in good]
        outcomes[kind, empty] = good
    loss, true = losses[EMPTY].item(), true_losses[EMPTY].item()
    shown = f"{loss:.1f}" if outcomes[kind, True][0] else f"{loss:.1f} in place of {true:.1f}"
    print(f"{kind}, with targets: losses {words[False][0]}, gradients {words[False][1]}")
    print(f"{kind}, without targets: loss {shown}, gradient {words[True][1]}")

expected = {(kind, empty): (not (empty and kind == "cuDNN"),) * 2 for kind, empty in outcomes}
if outcomes != expected:
    sys.exit("changed: other losses or gradients are right")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
"$PYTHON" seen.py 2> log || { cat log; exit 1; }
