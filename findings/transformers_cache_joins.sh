#!/usr/bin/env bash
# Versions: transformers 5.24.0, torch 2.13.0, on a CPU.
#
# Behaviour: DataCollatorWithFlattening puts the documents of a batch into one row, with position_ids that restart. Given
# to `model(**batch)` as it is, a model attends across the documents: it makes an empty cache by default, and looks for
# restarting positions only if there is no cache. With use_cache=False the same batch is right.
#
# Seen:
#     eager: off by 0.4 as the collator gives it, 8e-08 with use_cache=False
#     sdpa: off by 0.4 as the collator gives it, 0 with use_cache=False
#
# Why it surprises: the batch comes from the library's own collator, the model is in training mode, nothing is generated,
# and the cache is empty. There is no error and no warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq transformers==5.24.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from transformers import AutoModelForCausalLM, DataCollatorWithFlattening, LlamaConfig

batch = DataCollatorWithFlattening()([{"input_ids": [*range(1, 6)]}, {"input_ids": [*range(6, 10)]}])
second = batch["input_ids"][:, 5:]
changed = []
for implementation in ("eager", "sdpa"):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).train()
    with torch.no_grad():
        alone = model(input_ids=second).logits

        def off(**more):
            return ((model(**batch, **more).logits[:, 5:] - alone).abs().max() / alone.abs().max()).item()

        given, without = off(), off(use_cache=False)
    print(f"{implementation}: off by {given:.1g} as the collator gives it, {without:.1g} with use_cache=False")
    if given < 1e-3 or without > 1e-5:
        changed.append(implementation)
if changed:
    sys.exit(f"changed: {', '.join(changed)}")
print("as described")
PYTHON
venv/bin/python -W ignore seen.py 2> log || { cat log; exit 1; }
