#!/usr/bin/env bash
# Versions: lm-eval 0.4.13, transformers 5.24.0, accelerate 1.15.0, torch 2.13.0, on a CPU.
#
# Behaviour: `HFLM.loglikelihood` runs the model once for all requests with the same tokens but the last. The requests
# may cut these tokens into context and continuation at different places. The logits kept are those of the longest
# continuation. A shorter one is looked up from their start, where other tokens stand, and not from their end. With
# logits_cache=False the numbers are right.
#
# Seen (sum of the log-probabilities of a continuation, and whether it is the likeliest):
#     "a b c" + "d e g": alone -1.92 True, together -1.92 True, together without cache -1.92 True
#     "a b c d" + "e g": alone -1.22 True, together -12.33 True, together without cache -1.22 True
#     "a b c d e" + "g": alone -0.75 True, together -4.17 True, together without cache -0.75 True
#     "a b c d e" + "h": alone -5.13 False, together -1.53 False, together without cache -5.13 False
#     "g" + "a b": alone -6.46 False, together -6.46 False, together without cache -6.46 False
#
# Why it surprises: the cache is on by default and is there to save time. With it the log-likelihood of a request
# depends on the other requests of the call, also with batch_size=1. After "a b c d e", "g" is the likelier of two
# choices if each is scored alone, and "h" together. There is no error and no warning.
# (https://github.com/EleutherAI/lm-evaluation-harness/issues/2984 shows such requests in the training set of
# Winogrande, where they raised an error. https://github.com/EleutherAI/lm-evaluation-harness/pull/2987 removed the
# error, and corrected only whether a continuation is the likeliest.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq lm-eval==0.4.13 transformers==5.24.0 accelerate==1.15.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
WORDS = [*SPECIAL.values(), *"abcdefgh"]

words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL)
size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
torch.manual_seed(154)
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=32, **size))
for weight in model.parameters():
    if weight.dim() > 1:
        torch.nn.init.normal_(weight, std=0.3)


def scores(requests, **options):
    harness = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1, **options)
    instances = [
        Instance("loglikelihood", {}, (context, " " + rest), at) for at, (context, rest) in enumerate(requests)
    ]
    return harness.loglikelihood(instances, disable_tqdm=True)


# The model goes on from "a b c" with "d", "e" and "g", each the likeliest token.
REQUESTS = [("a b c", "d e g"), ("a b c d", "e g"), ("a b c d e", "g"), ("a b c d e", "h"), ("g", "a b")]
alone = [scores([request])[0] for request in REQUESTS]
together = scores(REQUESTS)
uncached = scores(REQUESTS, logits_cache=False)


def shown(score):
    return f"{score[0]:.2f} {score[1]}"


for (context, rest), *of_request in zip(REQUESTS, alone, together, uncached):
    one, cached, plain = map(shown, of_request)
    print(f'"{context}" + "{rest}": alone {one}, together {cached}, together without cache {plain}')


def same(some, others):
    return [abs(a[0] - b[0]) < 1e-3 for a, b in zip(some, others)]


if same(together, alone) != [True, False, False, False, True] or not all(same(uncached, alone)):
    sys.exit("changed: other requests are scored wrongly")
if not [second for _, second in alone] == [second for _, second in together] == [True, True, True, False, False]:
    sys.exit("changed: the second results differ")
print("as described")
PYTHON
# What lm-eval and transformers log is left out; a failure shows it.
venv/bin/python -W ignore seen.py 2> log || { cat log; exit 1; }
