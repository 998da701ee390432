#!/usr/bin/env bash
# Versions: transformers 5.24.0, torch 2.13.0, on a CPU (5.17.0 of transformers does the same; 4.53.0 does
# without an attention_mask).
#
# Behaviour: MoshiForCausalLM leaves out the `sliding_window` of its configuration, with either implementation of
# attention, with an attention_mask of ones or without one. MistralForCausalLM of the same sizes keeps it.
#
# Seen:
#     moshi, eager, no attention_mask: another token 0 moves the logits of token 39 by 0.29
#     moshi, eager, attention_mask of ones: another token 0 moves the logits of token 39 by 0.29
#     moshi, sdpa, no attention_mask: another token 0 moves the logits of token 39 by 0.29
#     moshi, sdpa, attention_mask of ones: another token 0 moves the logits of token 39 by 0.29
#     mistral, eager, no attention_mask: another token 0 moves the logits of token 39 by 0
#     mistral, eager, attention_mask of ones: another token 0 moves the logits of token 39 by 0
#     mistral, sdpa, no attention_mask: another token 0 moves the logits of token 39 by 0
#     mistral, sdpa, attention_mask of ones: another token 0 moves the logits of token 39 by 0
#
# Why it surprises: with a window of 4 tokens and 2 layers, token 0 reaches token 6 at most. `sliding_window` is an
# argument of MoshiConfig with a default (3000), and nothing says that the model does not read it. Rows longer than the
# window are computed otherwise than the configuration says, without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq transformers==5.24.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from transformers import MistralConfig, MistralForCausalLM, MoshiConfig, MoshiForCausalLM

SIZES = {"vocab_size": 96, "hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
FAMILIES = {
    "moshi": (MoshiForCausalLM, MoshiConfig, {"ffn_dim": 96, "num_codebooks": 2}),
    "mistral": (MistralForCausalLM, MistralConfig, {"intermediate_size": 96, "num_key_value_heads": 4}),
}

ids = torch.arange(8, 48).unsqueeze(0)
other = ids.clone()
other[0, 0] = 90
ones = {"attention_mask": torch.ones_like(ids)}

reached = set()
for family, (model_class, config_class, sizes) in FAMILIES.items():
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        config = config_class(**SIZES, **sizes, sliding_window=4, attn_implementation=implementation)
        model = model_class(config).eval()
        for words, mask in (("no attention_mask", {}), ("attention_mask of ones", ones)):
            with torch.no_grad():
                before, after = (model(input_ids=row, use_cache=False, **mask).logits[0, -1] for row in (ids, other))
            moved = (after - before).norm().item()
            print(f"{family}, {implementation}, {words}: another token 0 moves the logits of token 39 by {moved:.2g}")
            if moved > 1e-3:
                reached.add((family, implementation, words))
if {family for family, *_ in reached} != {"moshi"} or len(reached) != 4:
    sys.exit(f"changed: token 0 reaches token 39 in {sorted(reached)}")
print("as described")
PYTHON
venv/bin/python seen.py
