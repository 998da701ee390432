"""Show that MoshiForCausalLM leaves out its sliding window, and that eager it was not even causal.

python docs/reproductions/moshi_window.py

With a window of 4 tokens and two layers, token 0 reaches token 6. It moves token 39 all the same in transformers 4.53.0
to 5.24.0 (4.53.0: only without an attention_mask). Up to 5.17.0 at least, eager attention without an attention_mask has
no mask at all, and token 39 moves token 0. Needs nothing but torch and transformers.
"""

import torch
import transformers
from transformers import MoshiConfig, MoshiForCausalLM

sizes = {"vocab_size": 96, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "ffn_dim": 96}
print("transformers", transformers.__version__)
for implementation in ("eager", "sdpa"):
    torch.manual_seed(0)
    config = MoshiConfig(
        **sizes,
        num_hidden_layers=2,
        max_position_embeddings=64,
        num_codebooks=2,
        sliding_window=4,
        attn_implementation=implementation,
    )
    model = MoshiForCausalLM(config).float().eval()
    ids = torch.randint(8, 96, (1, 40))
    for masked in (False, True):
        given = {"attention_mask": torch.ones_like(ids)} if masked else {}
        for changed, seen in ((0, 39), (39, 0)):
            other = ids.clone()
            other[0, changed] = (other[0, changed] + 5) % 96
            with torch.no_grad():
                before, after = (model(input_ids=row, use_cache=False, **given).logits[0, seen] for row in (ids, other))
            print(
                f"{implementation}, {'a mask of ones' if masked else 'no mask'}: another token {changed} moves token "
                f"{seen} by {(after - before).norm().item():.2g}"
            )
