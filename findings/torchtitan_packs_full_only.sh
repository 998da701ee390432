#!/usr/bin/env bash
# Versions: torchtitan 0.3.0, torch 2.13.0, on a CPU.
#
# Behaviour: MMSamplePacker, which packs multimodal samples, hands out only rows that are full to the last token. If the
# lengths never add up to exactly max_seq_length, no row comes before the data ends. Its buffer then grows past
# buffer_size.
#
# Seen (2000 samples, rows of 4096 tokens, buffer_size 100):
#     lengths of 256: 120 rows, at most 99 samples in the buffer
#     lengths of 300: 0 rows, at most 2000 samples in the buffer; flush() then makes 154 rows
#     lengths of 250 to 450, at random: 0 rows, at most 2000 samples in the buffer; flush() then makes 175 rows
#
# Why it surprises: buffer_size reads as a bound, and the class says that incomplete rows wait for future samples.
# Those do not help where a row is as full as it gets. A long dataset is held in memory whole before the first
# step, and an endless one never gives a batch. There is no warning.
# (https://github.com/pytorch/torchtitan/pull/4606 describes it.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torch==2.13.0
# The packer needs none of torchtitan's requirements but torch.
venv/bin/pip install -qq --no-deps torchtitan==0.3.0

cat > seen.py <<'PYTHON'
import random
import sys

import torch
from torchtitan.hf_datasets.multimodal.utils.packing import MMSamplePacker

random.seed(0)
outcomes = {}
for name, lengths in (
    ("lengths of 256", [256]),
    ("lengths of 300", [300]),
    ("lengths of 250 to 450, at random", range(250, 451)),
):
    packer = MMSamplePacker(max_seq_length=4096, buffer_size=100, batch_size=1)
    most = 0
    for _ in range(2000):
        tokens = torch.zeros(random.choice(lengths), dtype=torch.long)
        packer.add_sample({"input_ids": tokens, "labels": tokens, "positions": torch.arange(len(tokens))})
        most = max(most, len(packer._sample_buffer))
    rows = len(packer.packed_samples)
    line = f"{name}: {rows} rows, at most {most} samples in the buffer"
    if rows == 0:
        packer.flush()
        line += f"; flush() then makes {len(packer.packed_samples)} rows"
    print(line)
    outcomes[name] = (rows > 0, most > 100)
if list(outcomes.values()) != [(True, False), (False, True), (False, True)]:
    sys.exit("changed: other rows than described")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
