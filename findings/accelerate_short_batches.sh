#!/usr/bin/env bash
# Versions: accelerate 1.15.0, torch 2.13.0 (1.12.0, 1.13.0 and 1.14.0 of accelerate do the same).
#
# Behaviour: a batch sampler has a `batch_size`, and some of its batches are shorter, as where a budget of tokens closes
# a batch early. Dealt out to two processes with even_batches=False, a round of one batch each reaches them only if the
# last batch of the round has `batch_size` examples, or if the round is the epoch's last. All other rounds are left out.
# There is no error and no warning, and len() counts them.
#
# Seen:
#     one process: [[0, 1], [2, 3], [4, 5], [6, 7, 8], [9], [10, 11]]
#     process 0 of 2, len() 3: [[4, 5], [9]]
#     process 1 of 2, len() 3: [[6, 7, 8], [10, 11]]
#     never seen: [0, 1, 2, 3]
#
# Why it surprises: the documentation of BatchSamplerShard says that even_batches=False is how to allow batches of
# varying size. That is so only where the sampler has no `batch_size`, and torch's BatchSampler has one. A model trained
# so never sees these examples, and nothing but the count of steps shows it. With even_batches=True (the default) 4 of
# 12 examples are lost too, and the two processes get 1 and 2 batches.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq accelerate==1.15.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

TOKENS = [3, 9, 4, 7, 2, 8, 5, 6, 1, 10, 3, 4]


class WithinABudget(BatchSampler):
    """Batches of at most `batch_size` examples and 12 tokens."""

    def __iter__(self):
        batch = []
        for index in self.sampler:
            if len(batch) == self.batch_size or sum(TOKENS[i] for i in [*batch, index]) > 12:
                yield batch
                batch = []
            batch.append(index)
        yield batch

    def __len__(self):
        return sum(1 for _ in self)


def loader():
    examples = range(len(TOKENS))
    return DataLoader(examples, batch_sampler=WithinABudget(SequentialSampler(examples), 3, drop_last=False))


def batches(given):
    return [batch.tolist() for batch in given]


alone = batches(loader())
print("one process:", alone)
seen = set()
for process in range(2):
    dealt = prepare_data_loader(
        loader(), num_processes=2, process_index=process, even_batches=False, put_on_device=False
    )
    got = batches(dealt)
    print(f"process {process} of 2, len() {len(dealt)}:", got)
    seen.update(index for batch in got for index in batch)
lost = sorted(set(range(len(TOKENS))) - seen)
print("never seen:", lost)
if sorted(index for batch in alone for index in batch) != list(range(len(TOKENS))) or lost != [0, 1, 2, 3]:
    sys.exit("changed: other examples are lost, or none")
print("as described")
PYTHON
venv/bin/python seen.py
