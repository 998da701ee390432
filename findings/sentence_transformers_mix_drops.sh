#!/usr/bin/env bash
# Versions: sentence-transformers 6.2.0, datasets 5.2.0, transformers 5.24.0, torch 2.13.0, on a CPU.
#
# Behaviour: NoDuplicatesBatchSampler puts no text twice into a batch. Texts that occur often fill more and smaller
# batches at the end of a pass. The length of the sampler does not count them. ProportionalBatchSampler takes as many
# batches from each dataset as the length says, and leaves out the rest. Those are pairs of the texts that occur most
# often.
#
# Seen (20 epochs, batches of 8; 80 questions, of which 20 are the same with other answers; 80 titles, all different):
#     questions alone: 1600 of 1600 pairs, in 401 batches; the lengths of the sampler: 200
#     titles alone: 1600 of 1600 pairs, in 200 batches; the lengths of the sampler: 200
#     both, BatchSampler: 1600 of 1600 questions, 1600 of 1600 titles
#     both, NoDuplicatesBatchSampler: 1399 of 1600 questions, 1600 of 1600 titles
#         of the question with 20 answers: 199 of 400 pairs
#         of the questions with one answer: 1200 of 1200 pairs
#
# Why it surprises: the documentation of ProportionalBatchSampler says that all samples from each dataset are used.
# The batches are not dropped by choice: drop_last is False, and one dataset alone has all of its pairs. Proportional is
# the default for several datasets. The trainer takes the same length as the number of steps, so that nothing looks
# missing. There is no error and no warning.
# (https://github.com/huggingface/sentence-transformers/pull/2877 tells that the length is too low here, and mends the
# case of a length that is too high. No report of lost pairs is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq sentence-transformers==6.2.0 datasets==5.2.0 transformers==5.24.0 torch==2.13.0 numpy==2.4.1

cat > seen.py <<'PYTHON'
import sys

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler, ProportionalBatchSampler
from torch.utils.data import BatchSampler, ConcatDataset, RandomSampler

BATCH, EPOCHS, ONCE, OFTEN = 8, 20, 60, 20


def pairs(anchors, name):
    positives = [f"{name} {number}" for number in range(len(anchors))]
    return Dataset.from_dict({"anchor": anchors, "positive": positives})


QUESTIONS = pairs([f"question {number}" for number in range(ONCE)] + ["the one that many ask"] * OFTEN, "answer")
TITLES = pairs([f"title {number}" for number in range(ONCE + OFTEN)], "text")


def without_duplicates(dataset, generator):
    return NoDuplicatesBatchSampler(dataset, batch_size=BATCH, drop_last=False, generator=generator, seed=0)


def random(dataset, generator):
    return BatchSampler(RandomSampler(dataset, generator=generator), batch_size=BATCH, drop_last=False)


def mixed(make):
    """Return the set of rows of each epoch: first the questions, and then the titles."""
    generator = torch.Generator().manual_seed(0)
    samplers = [make(dataset, generator) for dataset in (QUESTIONS, TITLES)]
    mixture = ProportionalBatchSampler(ConcatDataset([QUESTIONS, TITLES]), samplers, generator=generator, seed=0)
    for epoch in range(EPOCHS):
        mixture.set_epoch(epoch)
        yield {row for batch in mixture for row in batch}


pairs_of = {"questions": QUESTIONS, "titles": TITLES}
complete = EPOCHS * (ONCE + OFTEN)
for name, dataset in pairs_of.items():
    sampler = without_duplicates(dataset, torch.Generator().manual_seed(0))
    read = batches = 0
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        made = list(sampler)
        batches += len(made)
        read += len({row for batch in made for row in batch})
    print(f"{name} alone: {read} of {complete} pairs, in {batches} batches; the lengths of the sampler: ", end="")
    print(EPOCHS * len(sampler))
    if read != complete:
        sys.exit("changed: a dataset alone leaves out pairs")

counts = {}
for name, make in {"BatchSampler": random, "NoDuplicatesBatchSampler": without_duplicates}.items():
    once = often = titles = 0
    for rows in mixed(make):
        once += sum(row < ONCE for row in rows)
        often += sum(ONCE <= row < len(QUESTIONS) for row in rows)
        titles += sum(row >= len(QUESTIONS) for row in rows)
    counts[name] = (once, often, titles)
    print(f"both, {name}: {once + often} of {complete} questions, {titles} of {complete} titles")
print(f"    of the question with {OFTEN} answers: {often} of {EPOCHS * OFTEN} pairs")
print(f"    of the questions with one answer: {once} of {EPOCHS * ONCE} pairs")

if counts["BatchSampler"] != (EPOCHS * ONCE, EPOCHS * OFTEN, complete):
    sys.exit("changed: plain batches leave out pairs")
if (once, titles) != (EPOCHS * ONCE, complete) or often > EPOCHS * OFTEN * 3 // 4:
    sys.exit("changed: other pairs are left out, or none")
print("as described")
PYTHON
# What the libraries log is left out; a failure shows it.
OMP_NUM_THREADS=1 venv/bin/python seen.py 2> log || { cat log; exit 1; }
