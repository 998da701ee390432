#!/usr/bin/env bash
# Versions: x-transformers 2.31.10, torch 2.13.0, on a CPU.
#
# Behaviour: AutoregressiveWrapper.generate takes prompts of several lengths, and pads them on the left. The mask hides
# as many places at the start of the row as there are pad tokens. With `num_memory_tokens`, the memory tokens stand
# there, before the padding. A shorter prompt loses memory tokens, and sees as many pad tokens instead.
#
# Seen (largest difference of the first new token's logits from those of each prompt alone; mean size of a logit 1.3):
#     no memory tokens: 0.00 0.00 0.00, same tokens generated: [True, True, True]
#     2 memory tokens: 3.06 0.00 2.08, same tokens generated: [False, True, False]
#     2 memory tokens, other values of theirs change the prompt's logits: [False, True, False]
#
# Why it surprises: the README offers memory tokens for decoders, and a list of prompts may have any lengths
# (https://github.com/lucidrains/x-transformers/issues/339). Together they are wrong without an error or a warning. What
# is generated after a prompt depends on the longest prompt of the batch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq x-transformers==2.31.10 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

PROMPTS = [torch.tensor(prompt) for prompt in ([5, 6, 7], [10, 11, 12, 13, 14, 15, 16, 17], [20, 21, 22, 23, 24])]
NEW = 8


def model_with(**options):
    torch.manual_seed(0)
    layers = Decoder(dim=64, depth=2, heads=2, attn_dim_head=64, rotary_pos_emb=True)
    model = TransformerWrapper(num_tokens=50, max_seq_len=32, attn_layers=layers, **options).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return AutoregressiveWrapper(model)


def generated(model, prompts):
    """Return the likeliest tokens after each prompt, and the logits of the first of them."""
    logits = []
    handle = model.net.to_logits.register_forward_hook(lambda module, args, output: logits.append(output[:, -1]))
    tokens = model.generate(prompts, NEW, temperature=0.0)[:, -NEW:]
    handle.remove()
    return tokens, logits[0]


def of_each(model, name):
    """Print and return how far the logits are off, and whether the tokens are the same, for each prompt."""
    together, logits = generated(model, PROMPTS)
    alone = [generated(model, [prompt]) for prompt in PROMPTS]
    off = [f"{(row - one[0]).abs().max().item():.2f}" for row, (_, one) in zip(logits, alone)]
    same = [torch.equal(row, one[0]) for row, (one, _) in zip(together, alone)]
    print(f"{name}: {' '.join(off)}, same tokens generated: {same}")
    return [value == "0.00" for value in off], same


plain = of_each(model_with(), "no memory tokens")
memory = of_each(model_with(num_memory_tokens=2), "2 memory tokens")

# The short prompts do not read the memory tokens, and the longest one does.
model = model_with(num_memory_tokens=2)
_, before = generated(model, PROMPTS)
with torch.no_grad():
    model.net.memory_tokens.normal_()
_, after = generated(model, PROMPTS)
reads = [bool((a - b).abs().max() > 0.01) for a, b in zip(before, after)]
print("2 memory tokens, other values of theirs change the prompt's logits:", reads)

if plain != ([True] * 3, [True] * 3):
    sys.exit("changed: prompts differ without memory tokens")
if memory != ([False, True, False], [False, True, False]) or reads != [False, True, False]:
    sys.exit("changed: other prompts differ with memory tokens")
print("as described")
PYTHON
# What other packages log is left out; a failure shows it.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
