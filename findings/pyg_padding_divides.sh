#!/usr/bin/env bash
# Versions: torch_geometric 2.8.1, torch 2.13.0, on a CPU.
#
# Behaviour: PerformerAttention, SGFormerAttention and PolynormerAttention take a mask that tells nodes from padding.
# They set the values of the padding to zero, but not its keys. So padding still counts in what the result is divided
# by. SGFormerAttention also weighs each node itself by the number of rows, padded or not. What is computed for a graph
# depends on the size of the largest graph in its batch.
#
# Seen (a graph of 6 nodes in a batch with one of 6, 60 or 600; change of its output, relative to the graph alone):
#     GPSConv, multihead: 0.000 0.000 0.000
#     GPSConv, performer: 0.000 0.005 0.037
#     SGFormer: 0.000 0.034 0.038
#     PolynormerAttention: 0.000 0.018 0.472
#
# Why it surprises: the documentation of the mask says that it indicates the valid nodes of each graph. GPSConv with
# attn_type="multihead" keeps to it. With "performer" the same graph has other outputs in each batch, also in eval mode
# and with nothing random. There is no error and no warning.
# (https://github.com/pyg-team/pytorch_geometric/pull/10045 was about SGFormer attending across graphs. No report of
# this is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torch-geometric==2.8.1 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GPSConv, SGFormer
from torch_geometric.nn.attention import PolynormerAttention
from torch_geometric.utils import to_dense_batch

FEATURES = 16
NODES = 6


class Polynormer(torch.nn.Module):
    """The attention of Polynormer alone, on batches of graphs."""

    def __init__(self):
        super().__init__()
        self.attention = PolynormerAttention(FEATURES, heads=2, head_channels=FEATURES)

    def forward(self, x, edge_index, batch):
        dense, mask = to_dense_batch(x, batch)
        return self.attention(dense, mask)[mask]


def ring(nodes):
    """Return a graph of `nodes` nodes in a ring."""
    first = torch.arange(nodes)
    second = (first + 1) % nodes
    edges = torch.stack([torch.cat([first, second]), torch.cat([second, first])])
    return Data(x=torch.randn(nodes, FEATURES), edge_index=edges)


def change(model, graph, other):
    """Return how much the output of `graph` changes in a batch with `other`, relative to that of `graph` alone."""
    alone, together = (
        model(batch.x, batch.edge_index, batch.batch)[:NODES]
        for batch in (Batch.from_data_list([graph]), Batch.from_data_list([graph, other]))
    )
    return float((together - alone).norm() / alone.norm())


torch.manual_seed(0)
graph = ring(NODES)
others = [ring(nodes) for nodes in (NODES, 60, 600)]
models = {
    "GPSConv, multihead": GPSConv(FEATURES, None, heads=2),
    "GPSConv, performer": GPSConv(FEATURES, None, heads=2, attn_type="performer"),
    "SGFormer": SGFormer(FEATURES, FEATURES, out_channels=4),
    "PolynormerAttention": Polynormer(),
}
seen = {}
with torch.no_grad():
    for name, model in models.items():
        seen[name] = [change(model.eval(), graph, other) for other in others]
        print(f"{name}:", *[f"{value:.3f}" for value in seen[name]])
multihead, *linear = seen.values()
if max(multihead) > 1e-5:
    sys.exit(f"changed: multihead attention depends on the batch: {multihead}")
for same, middle, large in linear:
    if not (same < 1e-5 and 1e-3 < middle < large):
        sys.exit(f"changed: {seen}")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
