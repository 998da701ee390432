#!/usr/bin/env bash
# Versions: mosaicml-streaming 0.13.0, transformers 4.57.6 (the newest that it allows), torch 2.13.0, on a CPU.
#
# Behaviour: the state of a StreamingDataLoader holds how many samples were read. The loader takes that from the shape
# of each batch. It is the length of the first value of a dict, or of the first item of a list. A batch that
# DataCollatorWithFlattening makes is one row, so it counts as one document. In a list of documents, the tokens of the
# first document are counted. A resumed epoch then starts too early or too late.
#
# Seen (12 documents, batches of 2, state saved after 3 batches, which is 6 documents):
#     padded: the state says 6; after it come [6, 7, 8, 9, 10, 11]
#     flattened: the state says 3; after it come [3, 4, 5, 6, 7, 8, 9, 10, 11]; read twice: [3, 4, 5]
#     a list of documents: the state says 11; after it come [11]; never read: [6, 7, 8, 9, 10]
#
# Why it surprises: the documentation promises deterministic resumption in the middle of an epoch. It also says that the
# loader works exactly like torch's, which takes any collate_fn. There is no error and no warning. Only where the state
# points past the end of the dataset does the resumed run raise an error.
# (No report of this is known. https://github.com/mosaicml/streaming/issues/763 asks why the dataset does not count.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
# streaming leaves lock files in the temporary folder.
export TMPDIR="$folder"
python3 -m venv venv
# The clients of cloud storage and torchvision, which streaming also requires, are not needed here.
venv/bin/pip install -qq torch==2.13.0 transformers==4.57.6 brotli catalogue numpy pillow python-snappy tqdm xxhash zstd
venv/bin/pip install -qq --no-deps mosaicml-streaming==0.13.0

cat > seen.py <<'PYTHON'
import sys
import types

import numpy as np
import torch
from transformers import DataCollatorWithFlattening

# Only these datasets import torchvision.
sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # noqa: E402

LENGTHS = (3, 5, 2, 4, 6, 2, 3, 5, 4, 2, 6, 3)
with MDSWriter(out="documents", columns={"input_ids": "ndarray:int64"}) as writer:
    for number, length in enumerate(LENGTHS):
        # The tokens of a document are its number.
        writer.write({"input_ids": np.full(length, number)})


def tensors(documents):
    return [torch.from_numpy(document["input_ids"].copy()) for document in documents]


def padded(documents):
    rows = torch.nn.utils.rnn.pad_sequence(tensors(documents), batch_first=True, padding_value=-1)
    return {"input_ids": rows}


def flattened(documents):
    return DataCollatorWithFlattening()([{"input_ids": tokens.tolist()} for tokens in tensors(documents)])


def numbers(batch):
    rows = batch if isinstance(batch, list) else batch["input_ids"]
    return sorted({int(number) for row in rows for number in row} - {-1})


def loader(collate):
    dataset = StreamingDataset(local="documents", shuffle=False, batch_size=2)
    return StreamingDataLoader(dataset, batch_size=2, collate_fn=collate)


outcomes = {}
for name, collate in (("padded", padded), ("flattened", flattened), ("a list of documents", tensors)):
    first = loader(collate)
    batches = iter(first)
    before = [number for _ in range(3) for number in numbers(next(batches))]
    assert before == [0, 1, 2, 3, 4, 5], before
    state = first.state_dict()
    del batches, first
    resumed = loader(collate)
    resumed.load_state_dict(state)
    after = [number for batch in resumed for number in numbers(batch)]
    del resumed
    twice = sorted(set(before) & set(after))
    never = sorted(set(range(len(LENGTHS))) - set(before) - set(after))
    line = f"{name}: the state says {state['sample_in_epoch']}; after it come {after}"
    line += f"; read twice: {twice}" if twice else ""
    line += f"; never read: {never}" if never else ""
    print(line)
    outcomes[name] = (twice, never)
if list(outcomes.values()) != [([], []), ([3, 4, 5], []), ([], [6, 7, 8, 9, 10])]:
    sys.exit("changed: other documents are read twice or never")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
