#!/usr/bin/env bash
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0, on a CPU (torch 2.15.0 does the same).
#
# Behaviour: with prompt tuning, p-tuning or CPT, `generate` is right for the first new token alone. From the second on,
# peft puts the virtual tokens into the cache again before each token. With prefix tuning, `generate` leaves out the
# prefix. With transformers 5.23.0 all are right.
#
# Seen (6 new tokens; their logits are compared with a forward over the tokens that were generated):
#     transformers 5.23.0, prompt tuning: 6 of 6 right, with use_cache=False 6 of 6
#     transformers 5.23.0, p-tuning: 6 of 6 right, with use_cache=False 6 of 6
#     transformers 5.23.0, prefix tuning: 6 of 6 right, 0 of 6 as without the prefix
#     transformers 5.24.0, prompt tuning: 1 of 6 right, with use_cache=False 6 of 6
#     transformers 5.24.0, p-tuning: 1 of 6 right, with use_cache=False 6 of 6
#     transformers 5.24.0, prefix tuning: 0 of 6 right, 6 of 6 as without the prefix
#
# Why it surprises: both are the newest releases, peft asks for no version of transformers, and the cache is on by
# default. A forward is right, and so is the loss in training. transformers 5.24.0 calls the argument `cache` that was
# `past_key_values`. peft looks for the old name to tell whether the prompt is in the cache. There is no error. For
# prefix tuning alone a FutureWarning says that `past_key_values` is ignored. No report of it is known.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq peft==0.21.2 transformers==5.23.0 torch==2.13.0 numpy==2.4.6

cat > seen.py <<'PYTHON'
import sys

import torch
import transformers
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

NEW = 6
METHODS = {"prompt tuning": PromptTuningConfig, "p-tuning": PromptEncoderConfig, "prefix tuning": PrefixTuningConfig}
EXPECTED = {
    "5.23.0": {"prompt tuning": (NEW, NEW), "p-tuning": (NEW, NEW), "prefix tuning": (NEW, 0)},
    "5.24.0": {"prompt tuning": (1, NEW), "p-tuning": (1, NEW), "prefix tuning": (0, NEW)},
}[transformers.__version__]


def same(logits, others):  # of how many new tokens
    return sum(torch.allclose(one, other, atol=1e-3) for one, other in zip(logits, others, strict=True))


@torch.no_grad()
def generated(model, use_cache):
    """Return the sequence, and the logits that each new token was chosen by."""
    made = model.generate(
        input_ids=PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=NEW, min_new_tokens=NEW,
        do_sample=False, use_cache=use_cache, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return made.sequences, torch.cat(made.logits)


@torch.no_grad()
def forward(model, sequence):
    read = sequence[:, :-1]
    return model(input_ids=read, attention_mask=torch.ones_like(read)).logits[0, -NEW:]


seen = {}
for name, method in METHODS.items():
    torch.manual_seed(0)
    PROMPT = torch.randint(3, 64, (1, 9))
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    virtual = method(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(AutoModelForCausalLM.from_config(config), virtual)
    for parameter in model.eval().parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sequence, logits = generated(model, use_cache=True)
    right = same(logits, forward(model, sequence))
    print(f"transformers {transformers.__version__}, {name}: {right} of {NEW} right, ", end="")
    if name == "prefix tuning":
        other = same(logits, forward(model.get_base_model(), sequence))
        print(f"{other} of {NEW} as without the prefix")
    else:
        sequence, logits = generated(model, use_cache=False)
        other = same(logits, forward(model, sequence))
        print(f"with use_cache=False {other} of {NEW}")
    seen[name] = (right, other)
if seen != EXPECTED:
    sys.exit(f"changed: {seen} with transformers {transformers.__version__}")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
venv/bin/pip install -qq transformers==5.24.0
venv/bin/python seen.py 2> log || { cat log; exit 1; }
echo "as described"
