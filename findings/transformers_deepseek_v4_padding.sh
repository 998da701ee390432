#!/usr/bin/env bash
# Versions: transformers 5.24.0, torch 2.13.0, on a CPU (torch 2.15.0 does the same).
#
# Behaviour: the compressed attention layers of DeepSeek-V4 do not get the attention mask. In a batch padded on the
# left, their compressed entries hold padding. A shorter prompt attends to that padding, and with more padding no longer
# to its own earlier tokens. Its logits depend on the longest prompt, and on the id of the padding.
#
# Seen (one layer; a prompt of 16 tokens against the same prompt without padding; 4 tokens are compressed to one; the
# lines of heavily_compressed_attention say the same as those of compressed_sparse_attention):
#     sliding_attention, 0 columns of padding: right; reads the padding: no, its own first token: no
#     sliding_attention, 4 columns of padding: right; reads the padding: no, its own first token: no
#     sliding_attention, 16 columns of padding: right; reads the padding: no, its own first token: no
#     compressed_sparse_attention, 0 columns of padding: right; reads the padding: no, its own first token: yes
#     compressed_sparse_attention, 4 columns of padding: wrong; reads the padding: yes, its own first token: yes
#     compressed_sparse_attention, 16 columns of padding: wrong; reads the padding: yes, its own first token: no
#
# Why it surprises: `generate` takes prompts of different lengths with padding on the left, and the mask is given.
# Layers with a sliding window alone keep the padding out. How many entries a query may read follows from its position,
# which starts at 0 with its prompt. The entries start with the first column of the batch. There is no error.
# (https://github.com/huggingface/transformers/issues/45938 asks about padding inside an entry, and is open.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq transformers==5.24.0 torch==2.13.0 numpy==2.4.6

cat > seen.py <<'PYTHON'
import sys

import torch
from transformers import AutoModelForCausalLM, DeepseekV4Config

WINDOW, COMPRESSED = "sliding_attention", ["compressed_sparse_attention", "heavily_compressed_attention"]


def model_of(kind):
    config = DeepseekV4Config(
        vocab_size=64, hidden_size=32, moe_intermediate_size=16, num_hidden_layers=1, num_attention_heads=4,
        head_dim=16, q_lora_rank=16, num_experts_per_tok=2, n_routed_experts=4, layer_types=[kind],
        mlp_layer_types=["moe"], compress_rates=dict.fromkeys(COMPRESSED, 4), sliding_window=8, o_groups=2,
        o_lora_rank=16, index_n_heads=2, index_head_dim=16, index_topk=64, hc_mult=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def logits(model, prompt, padding, padding_id=0):
    """Return the logits of the token after the prompt, in a batch with a prompt that is longer by `padding`."""
    row = torch.cat([torch.full((padding,), padding_id), prompt])
    longer = torch.randint(1, 64, row.shape, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, len(row), dtype=torch.long)
    mask[0, :padding] = 0
    made = model.generate(
        input_ids=torch.stack([row, longer]), attention_mask=mask, max_new_tokens=1, do_sample=False,
        return_dict_in_generate=True, output_logits=True, pad_token_id=0,
    )  # fmt: skip
    return made.logits[0][0]


prompt = torch.randint(2, 64, (16,), generator=torch.Generator().manual_seed(0))
changed_first = prompt.clone()
changed_first[0] = 1
changed = []
for kind in (WINDOW, *COMPRESSED):
    model = model_of(kind)
    alone = logits(model, prompt, 0)
    for padding in (0, 4, 16):
        padded = logits(model, prompt, padding)
        off = ((padded - alone).abs().max() / alone.std()).item()
        value = "right" if off < 1e-3 else "wrong" if off > 0.05 else f"off by {off:.2g}"
        of_padding = not torch.equal(logits(model, prompt, padding, padding_id=7), padded)
        of_first = not torch.equal(logits(model, changed_first, padding), padded)
        print(f"{kind}, {padding} columns of padding: {value}", end="")
        words = ["yes" if read else "no" for read in (of_padding, of_first)]
        print("; reads the padding: {}, its own first token: {}".format(*words))
        expected = (False, kind != WINDOW) if padding == 0 or kind == WINDOW else (True, padding == 4)
        if (of_padding, of_first) != expected or (value == "wrong") != of_padding or value.startswith("off"):
            changed.append(f"{kind} with {padding} columns")
if changed:
    sys.exit(f"changed: {', '.join(changed)}")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
