#!/usr/bin/env bash
# Versions: x-transformers 2.31.10, torch 2.13.0, on a CPU.
#
# Behaviour: `attn_orthog_projected_values=True` removes from the output of attention the part that lies along the
# values. `orthog_residual=True` removes from the output of a layer the part that lies along its input. Both first join
# all tokens of a sequence to one vector, and remove the part along that vector. So the output of each token is computed
# from all tokens, in a `Decoder` also from later ones. With `attn_orthog_projected_values_per_head=True` the heads are
# joined too, so it computes the same as without "per head". With a cache each new token is projected alone, so
# generation has other predictions than the model that was trained.
#
# Seen (16 tokens, the last 8 replaced by others; largest change of a prediction among the first 8, and change of the
# last prediction with a cache of the first 15; both relative to the spread of predictions):
#     default: 0.000; with cache 0.000
#     attn_orthog_projected_values: 0.153; with cache 0.329
#     attn_orthog_projected_values_per_head: 0.153; with cache 0.329
#     orthog_residual: 0.179; with cache 0.653
#     largest difference between projected values and those per head: 0.000
#
# Why it surprises: a Decoder is causal, and nothing says that these options end this. In training the model sees the
# tokens that it is to predict. The outputs of a document depend on the length of its row, and on what follows it. The
# name of the second option promises one projection for each head. There is no error and no warning.
# (No report of this is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq x-transformers==2.31.10 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from x_transformers import Decoder, TransformerWrapper

WORDS = 50
CUT = 8


def model(**options):
    """Return a small language model, the same for each call but for `options`."""
    torch.manual_seed(0)
    layers = Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, rotary_pos_emb=True, **options)
    return TransformerWrapper(num_tokens=WORDS, max_seq_len=64, attn_layers=layers).eval()


generator = torch.Generator().manual_seed(0)
first = torch.randint(WORDS, (1, 16), generator=generator)
second = first.clone()
second[:, CUT:] = (first[:, CUT:] + 1) % WORDS
options = (
    "attn_orthog_projected_values",
    "attn_orthog_projected_values_per_head",
    "orthog_residual",
)
later, cached, predictions = {}, {}, {}
with torch.no_grad():
    for name in ("default", *options):
        network = model(**{option: True for option in options if option == name})
        predictions[name] = network(first)
        spread = predictions[name].std()
        later[name] = float((network(second) - predictions[name])[:, :CUT].abs().max() / spread)
        _, cache = network(first[:, :-1], return_intermediates=True)
        last = network(first, cache=cache)[:, -1]
        cached[name] = float((last - predictions[name][:, -1]).abs().max() / spread)
        print(f"{name}: {later[name]:.3f}; with cache {cached[name]:.3f}")
_, whole, heads, _ = predictions.values()
difference = float((whole - heads).abs().max())
print(f"largest difference between projected values and those per head: {difference:.3f}")

if later["default"] > 1e-4 or cached["default"] > 1e-4:
    sys.exit("changed: the default model is not causal")
if any(later[name] < 1e-2 or cached[name] < 1e-2 for name in options):
    sys.exit("changed: a projection is causal")
if difference > 1e-5:
    sys.exit("changed: the projection per head is another")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
