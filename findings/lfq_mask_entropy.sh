#!/usr/bin/env bash
# Versions: vector-quantize-pytorch 1.32.0, torch 2.13.0, on a CPU.
#
# Behaviour: LFQ trains with an entropy loss of two parts. One asks for a sure choice of code for each token. The other
# asks for an even use of all codes, by the entropy of the choices averaged over the batch. With a mask of tokens, the
# average is left out: the tokens and the codebooks share one axis, which is taken for that of the codebooks. So the
# second part equals the first. With the default `diversity_gamma=1.` they cancel: the loss is 0 for any input, and has
# no gradient. With `diversity_gamma=2.` the loss is minus the first part, so it asks for unsure choices. A mask that
# is all True does the same. A mask of whole sequences is right.
#
# Seen (96 tokens of 8 features, entropy loss, entropy of each choice, entropy of the average, norm of the gradient):
#     no mask: -2.928, 2.324, 5.251, 0.139
#     all True: 0.000, 2.324, 2.324, 0.000
#     with 32 tokens of padding: 0.000, 2.324, 2.324, 0.000
#     mask of the sequence: -2.928, 2.324, 5.251, 0.139
#     diversity_gamma=2., no mask: -8.179; all True: -2.324; direction of the gradients: -0.56
#
# Why it surprises: the mask tells tokens from padding, and the commitment loss of the same forward takes it per token.
# A mask that hides nothing should change nothing. The documentation of the module says that "an entropy penalty is used
# to encourage utilization". With a mask there is none, so sequences of different lengths are trained without it. There
# is no error and no warning.
# (https://github.com/lucidrains/vector-quantize-pytorch/issues/188 was about the commitment loss with such a mask, and
# is fixed. No report about the entropy is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq vector-quantize-pytorch==1.32.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from vector_quantize_pytorch import LFQ

FEATURES = 8
TOKENS = 96


def entropies(tokens, mask, **options):
    """Return the entropy loss, its two parts, and its gradient for `tokens`."""
    quantizer = LFQ(dim=FEATURES, codebook_size=2**FEATURES, entropy_loss_weight=1.0, **options)
    tokens = tokens.clone().requires_grad_()
    result, parts = quantizer(tokens, mask=mask, inv_temperature=1.0, return_loss_breakdown=True)
    result.entropy_aux_loss.backward()
    numbers = (result.entropy_aux_loss, parts.per_sample_entropy, parts.batch_entropy)
    return [float(number.detach()) for number in numbers], tokens.grad


torch.manual_seed(0)
tokens = torch.randn(1, TOKENS, FEATURES)
padded = torch.cat([tokens, torch.zeros(1, 32, FEATURES)], dim=1)
every = torch.ones(1, TOKENS, dtype=torch.bool)
real = torch.arange(padded.shape[1])[None] < TOKENS
inputs = {
    "no mask": (tokens, None),
    "all True": (tokens, every),
    "with 32 tokens of padding": (padded, real),
    "mask of the sequence": (tokens, every[:, 0]),
}
seen = {}
for name, (values, mask) in inputs.items():
    numbers, gradient = entropies(values, mask)
    seen[name] = [*numbers, float(gradient.norm())]
    print(f"{name}:", ", ".join(f"{number:.3f}" for number in seen[name]))

(plain, *_), right = entropies(tokens, None, diversity_gamma=2.0)
(masked, *_), wrong = entropies(tokens, every, diversity_gamma=2.0)
cosine = float(torch.nn.functional.cosine_similarity(right.flatten(), wrong.flatten(), dim=0))
print(f"diversity_gamma=2., no mask: {plain:.3f}; all True: {masked:.3f}; direction of the gradients: {cosine:.2f}")


def close(first, second):
    return all(abs(one - other) < 1e-4 for one, other in zip(first, second, strict=True))


loss, sure, even, norm = seen["no mask"]
if not (close([loss], [sure - even]) and even > sure + 1 and norm > 1e-2):
    sys.exit("changed: the entropies without a mask are others")
if not close(seen["mask of the sequence"], seen["no mask"]):
    sys.exit("changed: a mask of the sequence changes the entropies")
if not all(close(seen[name], [0, sure, sure, 0]) for name in ("all True", "with 32 tokens of padding")):
    sys.exit("changed: a mask of tokens has other entropies")
if not (close([masked], [-sure]) and plain < masked - 1 and cosine < 0.5):
    sys.exit("changed: diversity_gamma=2. has another loss")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
