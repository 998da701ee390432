#!/usr/bin/env bash
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0, on a CPU (torch 2.15.0 does the same).
#
# Behaviour: a forward with `adapter_names` that raises an error leaves its names in the LoRA layers. Later calls
# without `adapter_names` use them in place of the active adapter, as long as the batch has as many rows.
#
# Seen (the active adapter is "one"; the failing call has adapter_names=["two", "__base__"] and a wrong token id):
#     before: row 0 by one, row 1 by one
#     after a mixed batch that works: row 0 by one, row 1 by one
#     after a mixed batch that fails: row 0 by two, row 1 by the base model
#     after set_adapter("one"): row 0 by two, row 1 by the base model
#     three rows: an error about `adapter_names`
#
# Why it surprises: a server catches the error of one request, or runs out of memory once, and answers the next request.
# That one is valid and names no adapter, and other weights answer it. Only a batch of another size raises an error.
# The hooks that hand on the names are removed after a bare `yield`, which an error skips.
# (https://github.com/huggingface/peft/issues/3475 reports the error of the other batch size, and is open.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq peft==0.21.2 transformers==5.24.0 torch==2.13.0 numpy==2.4.6

cat > seen.py <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
model = get_peft_model(AutoModelForCausalLM.from_config(config), lora, adapter_name="one")
model.add_adapter("two", lora)
model.eval()
tokens = torch.randint(64, (2, 8))
MIXED = ["two", "__base__"]


@torch.no_grad()
def by(name):
    if name == "the base model":
        with model.disable_adapter():
            return model(input_ids=tokens).logits
    model.set_adapter(name)
    return model(input_ids=tokens).logits


RIGHT = {name: by(name) for name in ("one", "two", "the base model")}
model.set_adapter("one")


@torch.no_grad()
def seen(when):
    logits = model(input_ids=tokens).logits
    rows = []
    for row in (0, 1):
        same = [name for name, right in RIGHT.items() if torch.allclose(logits[row], right[row], atol=1e-5)]
        rows.append(same[0] if len(same) == 1 else "neither")
    print(f"{when}: row 0 by {rows[0]}, row 1 by {rows[1]}")
    return rows


outcomes = [seen("before")]
model(input_ids=tokens, adapter_names=MIXED)
outcomes.append(seen("after a mixed batch that works"))
try:
    model(input_ids=tokens + 64, adapter_names=MIXED)
except IndexError:
    outcomes.append(seen("after a mixed batch that fails"))
model.set_adapter("one")
outcomes.append(seen('after set_adapter("one")'))
try:
    model(input_ids=tokens[[0, 1, 0]])
except ValueError as error:
    assert "Length of `adapter_names`" in str(error), error
    print("three rows: an error about `adapter_names`")
    outcomes.append("error")
if outcomes != [["one", "one"]] * 2 + [["two", "the base model"]] * 2 + ["error"]:
    sys.exit("changed: other adapters than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
