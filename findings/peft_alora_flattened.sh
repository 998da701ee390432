#!/usr/bin/env bash
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0, on a CPU.
#
# Behaviour: an activated LoRA (aLoRA) begins at its invocation tokens. peft looks for their last occurrence in each
# row, and turns the adapter on from there to the end of the row. A row of DataCollatorWithFlattening holds several
# documents, and each has its invocation tokens. Only the last document gets the adapter. All others are computed by the
# base model.
#
# Seen (largest difference of the logits from those of each document alone; mean size of a logit 0.1):
#     padded: 0.000 0.000 0.000
#     flattened: 0.447 0.526 0.000
#     flattened, from the base model alone: 0.000 0.000 0.402
#     flattened, gradient that a document gives the adapter: 0.0 0.0 0.7
#
# Why it surprises: every document has the invocation tokens, as the documentation asks. The same documents in a padded
# batch are right, and so is plain LoRA on a flattened one. `alora_offsets` cannot help, as it holds one number a row.
# There is no error and no warning, and a training run learns from one document of each row.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq peft==0.21.2 transformers==5.24.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM

INVOCATION = [60, 61]
DOCUMENTS = [[5, 6, 7, *INVOCATION, 8, 9], [10, 11, *INVOCATION, 12], [13, 14, 15, *INVOCATION, 16]]
LENGTHS = [len(document) for document in DOCUMENTS]

torch.manual_seed(0)
base = LlamaForCausalLM(
    LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
)


def adapted(**options):
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **options))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def alone(model):
    return [model(input_ids=torch.tensor([document])).logits[0] for document in DOCUMENTS]


def padded(model):
    rows = [torch.tensor(document) for document in DOCUMENTS]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model(input_ids=ids, attention_mask=mask).logits
    return [row[:length] for row, length in zip(logits, LENGTHS)]


def flattened(model):
    batch = DataCollatorWithFlattening()([{"input_ids": document} for document in DOCUMENTS])
    # Without a cache, which makes documents see each other whatever the adapter.
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    return logits[0].split(LENGTHS)


def difference(given, expected):
    return [f"{(a - b).abs().max().item():.3f}" for a, b in zip(given, expected)]


with torch.no_grad():
    of_base = alone(base)
    plain = adapted(r=4)
    lora = difference(flattened(plain), alone(plain))
base = plain.unload()

model = adapted(r=4, alora_invocation_tokens=INVOCATION)
with torch.no_grad():
    expected = alone(model)
    seen = {
        "padded": difference(padded(model), expected),
        "flattened": difference(flattened(model), expected),
        "flattened, from the base model alone": difference(flattened(model), of_base),
    }
weights = [weight for weight in model.parameters() if weight.requires_grad]
gradients = [
    torch.autograd.grad(logits.square().sum(), weights, retain_graph=True, allow_unused=True)
    for logits in flattened(model)
]
learned = [max(g.abs().max().item() for g in of_document) for of_document in gradients]

for name, values in seen.items():
    print(f"{name}:", *values)
print("flattened, gradient that a document gives the adapter:", *(f"{value:.1f}" for value in learned))
if lora != ["0.000"] * 3:
    sys.exit(f"changed: plain LoRA differs on a flattened row: {lora}")
same = [[value == "0.000" for value in values] for values in seen.values()]
if same != [[True, True, True], [False, False, True], [True, True, False]]:
    sys.exit("changed: other documents get the adapter")
if [value == 0 for value in learned] != [True, True, False]:
    sys.exit(f"changed: other documents give the adapter a gradient: {learned}")
print("as described")
PYTHON
# Warnings of transformers about names are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
