#!/usr/bin/env bash
# Versions: transformers 5.17.0, torch 2.13.0, on a CPU. It is mended in transformers 5.24.0.
#
# Behaviour: MoshiForCausalLM with attn_implementation="eager" and no attention_mask attends to later tokens. Another
# last token moves the logits of the first. With a mask of ones, or with "sdpa", it does not.
#
# Seen:
#     eager, no attention_mask: another last token moves the first logits by 0.13; the loss is 4.5669
#     eager, attention_mask of ones: another last token moves the first logits by 0; the loss is 4.5810
#     sdpa, no attention_mask: another last token moves the first logits by 0; the loss is 4.5810
#     sdpa, attention_mask of ones: another last token moves the first logits by 0; the loss is 4.5810
#
# Why it surprises: the model is causal by name, and attention_mask is optional, so rows without padding often come
# without one. A model trained so can read the very token that it is to predict.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq transformers==5.17.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from transformers import MoshiConfig, MoshiForCausalLM

ids = torch.arange(8, 48).unsqueeze(0)
other = ids.clone()
other[0, -1] = 90
ones = {"attention_mask": torch.ones_like(ids)}

leaks = []
for implementation in ("eager", "sdpa"):
    torch.manual_seed(0)
    model = MoshiForCausalLM(
        MoshiConfig(
            vocab_size=96,
            hidden_size=64,
            head_dim=16,
            num_attention_heads=4,
            num_hidden_layers=2,
            ffn_dim=96,
            num_codebooks=2,
            max_position_embeddings=64,
            attn_implementation=implementation,
        )
    ).eval()
    for words, masks in (("no attention_mask", {}), ("attention_mask of ones", ones)):
        with torch.no_grad():
            before = model(input_ids=ids, labels=ids, **masks)
            after = model(input_ids=other, **masks)
        moved = (after.logits - before.logits)[0, 0].norm().item()
        print(
            f"{implementation}, {words}: another last token moves the first logits by {moved:.2g}; "
            f"the loss is {before.loss:.4f}"
        )
        if moved > 1e-3:
            leaks.append((implementation, words))
if leaks != [("eager", "no attention_mask")]:
    sys.exit(f"changed: later tokens are read in {leaks}")
print("as described")
PYTHON
venv/bin/python seen.py
