#!/usr/bin/env bash
# Versions: accelerate 1.15.0, transformers 5.24.0, torch 2.13.0, on a CPU, one process.
#
# Behaviour: accelerate's loader for a streaming dataset cuts `cu_seq_lens_q` and `cu_seq_lens_k` of a flattened batch
# to their first number. It takes the batch size from the first tensor, which is one row, and keeps as many entries of
# every other tensor. transformers' Trainer uses this loader. With dispatch_batches=False, or with a dataset that is no
# stream, the batch stays whole.
#
# Seen:
#     torch's loader, stream: 12 tokens, cu_seq_lens_q [0, 5, 8, 12]
#     accelerate, list: 12 tokens, cu_seq_lens_q [0, 5, 8, 12]
#     accelerate, stream, dispatch_batches=False: 12 tokens, cu_seq_lens_q [0, 5, 8, 12]
#     accelerate, stream: 12 tokens, cu_seq_lens_q [0]
#     Trainer, stream: 12 tokens, cu_seq_lens_q [0]
#
# Why it surprises: there is one process, so nothing has to be cut. The offsets come from DataCollatorWithFlattening
# itself, with return_flash_attn_kwargs=True. What arrives says that the row holds no sequence at all, and there is no
# error and no warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq accelerate==1.15.0 transformers==5.24.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, IterableDataset
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

EXAMPLES = [{"input_ids": list(range(3, 3 + length))} for length in (5, 3, 4)]
WHOLE = [0, 5, 8, 12]


class Stream(IterableDataset):
    """The three examples, one after the other."""

    def __iter__(self):
        return iter(EXAMPLES)


collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)


def prepared(dataset, **options):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
    return accelerator.prepare(DataLoader(dataset, batch_size=3, collate_fn=collator))


def of_a_trainer(dataset):
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    )
    arguments = TrainingArguments(output_dir="out", per_device_train_batch_size=3, max_steps=1, use_cpu=True)
    return Trainer(model, arguments, data_collator=collator, train_dataset=dataset).get_train_dataloader()


loaders = {
    "torch's loader, stream": DataLoader(Stream(), batch_size=3, collate_fn=collator),
    "accelerate, list": prepared(EXAMPLES),
    "accelerate, stream, dispatch_batches=False": prepared(Stream(), dispatch_batches=False),
    "accelerate, stream": prepared(Stream()),
    "Trainer, stream": of_a_trainer(Stream()),
}
cut = {}
for name, loader in loaders.items():
    (batch,) = loader
    offsets = batch["cu_seq_lens_q"].tolist()
    print(f"{name}: {batch['input_ids'].shape[1]} tokens, cu_seq_lens_q {offsets}")
    if offsets != WHOLE or batch["cu_seq_lens_k"].tolist() != WHOLE:
        cut[name] = offsets
if cut != {"accelerate, stream": [0], "Trainer, stream": [0]}:
    sys.exit(f"changed: other offsets are cut: {cut}")
print("as described")
PYTHON
venv/bin/python seen.py
