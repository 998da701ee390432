#!/usr/bin/env bash
# Versions: datatrove 0.10.1, tokenizers 0.23.3, torch 2.13.0, on a CPU.
#
# Behaviour: DatatroveFileDataset with return_positions=True reads the ends of documents from the index file. After a
# document without tokens an end is there twice. Positions then do not restart there. They count on from the document
# before, and all later documents of the window start too high as well.
#
# Seen (documents of 3, 2, 4 and 3 tokens, then the same with an empty document after the first; windows of 12):
#     without an empty document: 0 1 2 | 0 1 | 0 1 2 3 | 0 1 2
#     with an empty document: 0 1 2 | 3 4 | 3 4 5 6 | 3 4 5
#     with an empty document at the end: 0 1 2 | 0 1 | 0 1 2 3 | 0 1 2
#
# Why it surprises: the documentation says that positions represent the index of the token within its document. Its
# tokenizer step writes empty documents. A text of white space is one for a tokenizer that splits at it. So is a
# document that no_loss_ranges covers, even with an eos token. The tokens of the window are the same with and without
# the empty document. Code that cuts a row into documents at position 0 sees one document from there to the end of the
# window. There is no error and no warning.
# (Each restart is a jump back by the length of the document before, and is written at its index. Of two at one index
# the second stays, which is that of the empty document. 0.10.1 is the newest release. No report of this is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq datatrove==0.10.1 tokenizers==0.23.3 torch==2.13.0 numpy==2.4.6 humanize loguru

cat > seen.py <<'PYTHON'
import sys

from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.utils.dataset import DatatroveFileDataset
from tokenizers import Tokenizer, models, pre_tokenizers

TEXTS = ["11 12 13", "21 22", "31 32 33 34", "41 42 43"]
LENGTHS = [len(text.split()) for text in TEXTS]
RIGHT = [position for length in LENGTHS for position in range(length)]

tokenizer = Tokenizer(models.WordLevel({str(token): token for token in range(100)}, unk_token="0"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer.save("tokenizer.json")


def window(name, texts):
    """Return the tokens and the positions of the first window of the documents `texts`."""
    step = DocumentTokenizer(name, "tokenizer.json", shuffle_documents=False)
    step.run(Document(text=text, id="") for text in texts)
    # A window has one token more than seq_len, for the targets.
    dataset = DatatroveFileDataset(
        f"{name}/00000_unshuffled.ds", seq_len=sum(LENGTHS) - 1, return_positions=True
    )
    return dataset[0]["input_ids"].tolist(), dataset[0]["positions"].tolist()


def shown(positions):
    rest = iter(positions)
    return " | ".join(" ".join(str(next(rest)) for _ in range(length)) for length in LENGTHS)


tokens, without = window("without", TEXTS)
print("without an empty document:", shown(without))
same, empty = window("empty", [TEXTS[0], " ", *TEXTS[1:]])
print("with an empty document:", shown(empty))
last_tokens, last = window("last", [*TEXTS, " "])
print("with an empty document at the end:", shown(last))

if not without == last == RIGHT:
    sys.exit("changed: positions without an empty document between others are not right")
if not tokens == same == last_tokens:
    sys.exit("changed: the windows have other tokens")
if empty == RIGHT:
    sys.exit("changed: positions restart after an empty document")
if empty != [position + LENGTHS[0] * (slot >= LENGTHS[0]) for slot, position in enumerate(RIGHT)]:
    sys.exit(f"changed: positions are wrong in another way: {empty}")
print("as described")
PYTHON
# What datatrove logs is left out; a failure shows it.
OMP_NUM_THREADS=1 venv/bin/python seen.py 2> log || { cat log; exit 1; }
