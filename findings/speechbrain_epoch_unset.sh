#!/usr/bin/env bash
# Versions: speechbrain 1.1.2, torch 2.13.0, on a CPU, in one process.
#
# Behaviour: Brain.fit tells the number of the epoch to a batch_sampler only in distributed training. In one process,
# DynamicBatchSampler stays at its first epoch. Each later epoch has the same batches as the first one, in another
# order. A checkpoint within an epoch does not hold that order. A run that resumes from it takes the order of the
# first epoch, and skips as many batches as were done. So it reads some sequences twice and others never.
#
# Seen (40 sequences, shuffle=True, stopped after 6 batches of epoch 2 and resumed with a new Brain):
#     DynamicBatchSampler: epoch 2 has 23 of its 23 batches from epoch 1; resumed, 9 sequences come twice and 4 never
#     batch_size: epoch 2 has 0 of its 14 batches from epoch 1; resumed, 0 sequences come twice and 0 never
#
# Why it surprises: the documentation of the sampler says that shuffle is for a new order of the examples between
# epochs. The loader that Brain makes is one that saves its position. With batch_size and shuffle=True both hold. There
# is no error and no warning.
# (No report of this is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torch==2.13.0 huggingface_hub hyperpyyaml joblib numpy requests scipy sentencepiece soundfile \
    tqdm
venv/bin/pip install -qq --no-deps speechbrain==1.1.2

cat > seen.py <<'PYTHON'
import importlib.machinery
import random
import sys
import types

import torch

# speechbrain also requires torchaudio, which does not load if its build differs from torch's. Nothing here uses it.
torchaudio = types.ModuleType("torchaudio")
torchaudio.__version__ = "2.11.0"
torchaudio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
sys.modules["torchaudio"] = torchaudio

from speechbrain.core import Brain  # noqa: E402
from speechbrain.dataio.dataset import DynamicItemDataset  # noqa: E402
from speechbrain.dataio.sampler import DynamicBatchSampler  # noqa: E402
from speechbrain.utils.checkpoints import Checkpointer  # noqa: E402
from speechbrain.utils.epoch_loop import EpochCounter  # noqa: E402

DONE = 6
random.seed(0)
LENGTHS = [random.randint(1, 20) for _ in range(40)]


class Stopped(Exception):
    """The run ends here, as where a job is preempted."""


class Recorder(Brain):
    """Keeps the batches of each epoch. If `stops` is set, ends after the checkpoint within epoch 2."""

    def on_stage_start(self, stage, epoch=None):
        self.epoch = epoch
        self.seen[epoch] = []

    def fit_batch(self, batch):
        self.seen[self.epoch].append(sorted(int(number) for number in batch.number))
        return torch.zeros(())

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        if self.stops and self.epoch == 2:
            raise Stopped


def train(folder, options, stops=False):
    data = {str(number): {"number": number} for number in range(len(LENGTHS))}
    dataset = DynamicItemDataset(data, output_keys=["number"])
    epochs = EpochCounter(2)
    brain = Recorder(
        modules={"model": torch.nn.Linear(1, 1)},
        run_opts={"device": "cpu", "ckpt_interval_steps": DONE, "noprogressbar": True},
        checkpointer=Checkpointer(folder, recoverables={"epochs": epochs}),
    )
    brain.seen, brain.stops = {}, stops
    try:
        brain.fit(epochs, dataset, train_loader_kwargs=options(dataset))
    except Stopped:
        pass
    return brain.seen


def dynamic(dataset):
    return {"batch_sampler": DynamicBatchSampler(dataset, 60, num_buckets=3, lengths_list=LENGTHS, shuffle=True)}


def fixed(dataset):
    return {"batch_size": 3, "shuffle": True}


outcomes = {}
for name, options in (("DynamicBatchSampler", dynamic), ("batch_size", fixed)):
    whole = train(f"{name}_whole", options)
    old = sum(batch in whole[1] for batch in whole[2])
    stopped = train(name, options, stops=True)
    assert stopped[2] == whole[2][:DONE]
    resumed = train(name, options)
    assert list(resumed) == [2], list(resumed)
    numbers = [number for batch in stopped[2] + resumed[2] for number in batch]
    twice, never = len(numbers) - len(set(numbers)), len(set(range(len(LENGTHS))) - set(numbers))
    print(
        f"{name}: epoch 2 has {old} of its {len(whole[2])} batches from epoch 1; resumed, {twice} sequences come twice"
        f" and {never} never"
    )
    outcomes[name] = (old == len(whole[2]), twice > 0, never > 0)
if list(outcomes.values()) != [(True, True, True), (False, False, False)]:
    sys.exit(f"changed: other epochs are repeated or resumed at the wrong place: {outcomes}")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
