#!/usr/bin/env bash
# Versions: torchmetrics 1.9.0, transformers 5.24.0, torch 2.13.0, on a CPU.
#
# Behaviour: bert_score and infolm sort the predictions by length, and the references by their own length, to pad less.
# They put the results back with the permutation that sorted them, and not with its inverse. From three texts on, a
# prediction may be compared with the reference of another one. Its score may be in the place of another one. BERTScore
# and InfoLM use the same code.
#
# Seen (a score is looked up among those of each prediction with each reference alone):
#     bert_score, place 0: prediction 2 with reference 2
#     bert_score, place 1: prediction 3 with reference 0
#     bert_score, place 2: prediction 0 with reference 1
#     bert_score, place 3: prediction 1 with reference 3
#     infolm, place 0: prediction 2 with reference 2
#     infolm, place 1: prediction 3 with reference 0
#     infolm, place 2: prediction 0 with reference 1
#     infolm, place 3: prediction 1 with reference 3
#     bert_score, mean of the precisions: 0.72 in one call, 0.86 with each pair alone
#
# Why it surprises: the score of a pair depends on the lengths of the other texts. There is no error and no warning.
# Texts that come in order of length get the right scores, and so do any two texts, as in the examples of the
# documentation. (https://github.com/Lightning-AI/torchmetrics/issues/2728 reports scores that change with further
# texts. https://github.com/Lightning-AI/torchmetrics/pull/3437 proposes a stable sort for it. Here no two predictions
# and no two references have the same length, so that changes nothing.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torchmetrics==1.9.0 transformers==5.24.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torchmetrics.functional.text.bert import bert_score
from torchmetrics.functional.text.infolm import infolm
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

PREDICTIONS = ["we saw a red kite above", "kites", "a kite flew", "the kite came down"]
REFERENCES = ["we saw a kite", "kite", "a kite flies", "the red kite came down again"]
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
WORDS = [*SPECIAL.values(), *sorted({word for text in PREDICTIONS + REFERENCES for word in text.split()})]
PLACES = range(len(PREDICTIONS))

words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
words.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[(token, WORDS.index(token)) for token in ("[CLS]", "[SEP]")]
)
PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL).save_pretrained("model")
size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
torch.manual_seed(0)
model = BertForMaskedLM(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **size))
for weight in model.parameters():
    if weight.dim() > 1:
        torch.nn.init.normal_(weight, std=0.2)
model.save_pretrained("model")


def of_bert_score(predictions, references):
    scores = bert_score(predictions, references, model_name_or_path="model", num_layers=2, max_length=16)
    return scores["precision"].reshape(-1).tolist()


def of_infolm(predictions, references):
    options = {"idf": False, "max_length": 16, "verbose": False, "return_sentence_level_score": True}
    return infolm(predictions, references, "model", **options)[1].reshape(-1).tolist()


def pairs(score):
    """Return the prediction and the reference that each score of one call belongs to, and the mean scores."""
    alone = {(p, r): score([PREDICTIONS[p]], [REFERENCES[r]])[0] for p in PLACES for r in PLACES}
    together = score(PREDICTIONS, REFERENCES)
    found = []
    for value in together:
        (pair,) = [pair for pair, of_pair in alone.items() if abs(of_pair - value) < 1e-4]
        found.append(pair)
    means = [sum(values) / len(values) for values in (together, [alone[place, place] for place in PLACES])]
    return found, means


seen = {"bert_score": pairs(of_bert_score), "infolm": pairs(of_infolm)}
for name, (found, _) in seen.items():
    for place, (prediction, reference) in enumerate(found):
        print(f"{name}, place {place}: prediction {prediction} with reference {reference}")
together, alone = seen["bert_score"][1]
print(f"bert_score, mean of the precisions: {together:.2f} in one call, {alone:.2f} with each pair alone")


def length(text):
    return len(text.split())


def twice(texts):
    """Return which text is in each place after the permutation that sorts by length is applied twice."""
    order = sorted(PLACES, key=lambda at: length(texts[at]))
    return [order[order[place]] for place in PLACES]


expected = list(zip(twice(PREDICTIONS), twice(REFERENCES)))
if [found for found, _ in seen.values()] != [expected, expected] or expected == [(place, place) for place in PLACES]:
    sys.exit(f"changed: the pairs are not {expected}")
print("as described")
PYTHON
# What transformers logs is left out; a failure shows it.
venv/bin/python -W ignore seen.py 2> log || { cat log; exit 1; }
