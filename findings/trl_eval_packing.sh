#!/usr/bin/env bash
# Versions: trl 1.16.0, transformers 5.24.0, accelerate 1.15.0, datasets 5.2.0, torch 2.13.0, on a CPU.
#
# Behaviour: SFTConfig(packing=False, eval_packing=True) packs the evaluation's documents into rows, but the collator
# follows `packing` alone. It gives these rows no position_ids, and a mask of ones. Each document then reads those
# before it, and its first token is a target too.
#
# Seen:
#     each document alone: loss 4.6869, 9 targets
#     packing=False, eval_packing=False: loss 4.6869, 9 targets in rows of 5, no position_ids
#     packing=True, eval_packing=False: loss 4.6869, 9 targets in rows of 12, position_ids
#     packing=True, eval_packing=True: loss 4.6869, 9 targets in rows of 12, position_ids
#     packing=False, eval_packing=True: loss 3.7919, 11 targets in rows of 12, no position_ids
#
# Why it surprises: each option is documented, and the other settings agree on the loss. This one gives another loss for
# the same model and the same documents, without an error or a warning. The rows hold the lengths of their documents
# (`seq_lengths`), which the collator does not use then.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq trl==1.16.0 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

DOCUMENTS = [[3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14]]

words = models.WordLevel({f"word{number}": number for number in range(32)}, unk_token="word0")
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(words), unk_token="word0", eos_token="word1", pad_token="word2"
)
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.2,
    )
).eval()
with torch.no_grad():
    losses = [
        F.cross_entropy(model(input_ids=torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="none")
        for ids in DOCUMENTS
    ]
alone = torch.cat(losses).mean().item()
print(f"each document alone: loss {alone:.4f}, {len(torch.cat(losses))} targets")

documents = Dataset.from_dict({"input_ids": DOCUMENTS})
others = {}
for packing, eval_packing in ((False, False), (True, False), (True, True), (False, True)):
    arguments = SFTConfig(
        output_dir="out",
        packing=packing,
        eval_packing=eval_packing,
        max_length=12,
        per_device_eval_batch_size=3,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model, args=arguments, train_dataset=documents, eval_dataset=documents, processing_class=tokenizer
    )
    batch = next(iter(trainer.get_eval_dataloader()))
    loss = trainer.evaluate()["eval_loss"]
    setting = f"packing={packing}, eval_packing={eval_packing}"
    print(
        f"{setting}: loss {loss:.4f}, {(batch['labels'][:, 1:] != -100).sum()} targets in rows of "
        f"{batch['input_ids'].shape[1]}, {'position_ids' if 'position_ids' in batch else 'no position_ids'}"
    )
    if abs(loss - alone) > 1e-4:
        others[setting] = loss
if list(others) != ["packing=False, eval_packing=True"]:
    sys.exit(f"changed: other losses than that of each document alone: {others}")
print("as described")
PYTHON
# Progress bars and the trainer's own logs are left out; a failure shows them.
venv/bin/python seen.py 2> log | grep -v "^{" || { cat log; exit 1; }
