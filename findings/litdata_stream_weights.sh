#!/usr/bin/env bash
# Versions: litdata 0.2.76, torch 2.13.0, on a CPU, in one process.
#
# Behaviour: with batching_method="per_stream", CombinedStreamingDataset fills each batch from one dataset. After a
# batch it draws again until it gets a dataset other than the last. No two batches in a row come from the same one. So
# with two datasets they take turns, whatever the weights are. With more, none gives more than half of the batches.
#
# Seen (900 and 100 sequences, weights 0.9 and 0.1, batches of 5, until one of the datasets runs out):
#     stratified: 198 batches, 90% of sequences from the first dataset; it has 14 of its 900 sequences left
#     per_stream: 41 batches, 51% of sequences from the first dataset; it has 795 of its 900 sequences left
#     per_stream: dataset of each batch: 0101010101010101010101010101010101010101...
# (900, 100 and 100 sequences, weights 0.8, 0.1 and 0.1.)
#     per_stream: batches from each dataset: 32 20 20
#
# Why it surprises: the documentation says that weights are the sampling ratio for the datasets, and that a batch comes
# from a dataset that is selected randomly. The other batching method keeps to the weights. Such batches are meant for
# datasets whose sequences differ in length. A small one is then seen as often as a large one, and ends the epoch while
# most of the large one has not been read. There is no error and no warning.
# (https://github.com/Lightning-AI/litData/pull/438 brought these batches. No report of this is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq litdata==0.2.76 torch==2.13.0
# litdata puts what it works on there, and leaves it.
mkdir scratch
export TMPDIR="$folder/scratch"

cat > seen.py <<'PYTHON'
import itertools
import sys

import torch
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, optimize

BATCH = 5


def sequence(of):
    """Return a sequence that tells its dataset. `of` is the number of the dataset and the length of the sequence."""
    dataset, length = of
    return {"dataset": dataset, "tokens": torch.arange(length)}


def batches(method, names, weights):
    """Return for each batch of an epoch the datasets of its sequences."""
    combined = CombinedStreamingDataset(
        [StreamingDataset(name, shuffle=False) for name in names],
        weights=weights,
        seed=0,
        iterate_over_all=False,
        batching_method=method,
    )
    loader = StreamingDataLoader(combined, batch_size=BATCH, num_workers=0)
    return [batch["dataset"].tolist() for batch in loader]


if __name__ == "__main__":
    # Stratified batches mix the datasets, so that their sequences must have one length.
    for name, dataset, length, count in (
        ("large", 0, 8, 900),
        ("short", 1, 4, 100),
        ("same", 1, 8, 100),
        ("third", 2, 8, 100),
    ):
        made = [(dataset, length)] * count
        optimize(fn=sequence, inputs=made, output_dir=name, chunk_size=100, num_workers=1, verbose=False)

    shares = {}
    for method, other in (("stratified", "same"), ("per_stream", "short")):
        seen = batches(method, ["large", other], [0.9, 0.1])
        first = sum(batch.count(0) for batch in seen)
        shares[method] = first / sum(map(len, seen))
        print(
            f"{method}: {len(seen)} batches, {shares[method]:.0%} of sequences from the first dataset;"
            f" it has {900 - first} of its 900 sequences left"
        )
    turns = "".join(str(batch[0]) for batch in seen)
    print(f"per_stream: dataset of each batch: {turns[:40]}...")
    three = [batch[0] for batch in batches("per_stream", ["large", "same", "third"], [0.8, 0.1, 0.1])]
    counts = [three.count(dataset) for dataset in range(3)]
    print("per_stream: batches from each dataset:", *counts)

    if not 0.85 < shares["stratified"] < 0.95:
        sys.exit(f"changed: stratified batches do not keep to the weights: {shares}")
    if any(one == two for one, two in itertools.pairwise(turns)) or any(a == b for a, b in itertools.pairwise(three)):
        sys.exit(f"changed: a dataset gives two batches in a row: {turns}, {three}")
    print("as described")
PYTHON
# What litdata logs is left out; a failure shows it.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
