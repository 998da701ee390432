#!/usr/bin/env bash
# Versions: datatrove 0.10.1, tokenizers 0.23.3, on a CPU.
#
# Behaviour: with save_loss_metadata=True, DocumentTokenizer leaves the characters of no_loss_ranges out of the loss. If
# a range ends at a character that is in no token, the document is cut where the range begins. The rest is dropped. If a
# range begins at such a character, all before it is left out of the loss too. With the post-processor ByteLevel()
# spaces between words are such characters.
#
# Seen (a prompt, a space and an answer; tokens in brackets are left out of the loss):
#     range over the prompt and the space: [Add] [two] [and] [three] [.] The sum is five .
#     range over the prompt: nothing is left
#     range over "two": Add
#     range over " two ": [Add] [two] and three . The sum is five .
# (With ByteLevel(trim_offsets=False), where a space belongs to the next word.)
#     trim_offsets=False, range over the prompt: [Add] [two] [and] [three] [.] The sum is five .
#     trim_offsets=False, range over "two": Add [two] and three . The sum is five .
#     trim_offsets=False, range over " two ": Add [two] and three . The sum is five .
#
# Why it surprises: the documentation says that a range is a start and an end character for which to ignore the loss, to
# ignore a prompt for example. The end is exclusive. The length of the prompt is the natural end, and the next
# character is then a space. The whole document is lost with its answer. ByteLevel trims offsets by default, and
# tokenizers that split at white space have such characters too. Only an eos_token, which replaces the post-processor,
# hides it for ByteLevel. There is no error. A warning that no data is saved comes only if all documents are lost.
# (char_to_token gives None between two tokens as well as past the end. A slice up to None goes to the end, and the
# end means that the last section is dropped. 0.10.1 is the newest release. No report of this is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq datatrove==0.10.1 tokenizers==0.23.3 numpy==2.4.6 humanize loguru

cat > seen.py <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PROMPT, ANSWER = "Add two and three.", "The sum is five."
TEXT = f"{PROMPT} {ANSWER}"
two = TEXT.index("two")
PROMPT_MASKED = "[Add] [two] [and] [three] [.] The sum is five ."
TWO_MASKED = "Add [two] and three . The sum is five ."


def trained(processor):
    """Return a tokenizer that has a token for each word of the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processor
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


def kept(name, tokenizer, start, end):
    """Return the tokens that are written if the characters from `start` to `end` are left out of the loss."""
    tokenizer.save(f"{name}.json")
    step = DocumentTokenizer(f"{name} {start}", f"{name}.json", shuffle_documents=False, save_loss_metadata=True)
    step.run(iter([Document(text=TEXT, id="", metadata={"no_loss_ranges": [(start, end)]})]))
    written = Path(f"{name} {start}/00000_unshuffled.ds")
    tokens = np.frombuffer(written.read_bytes(), np.uint16)
    loss = np.frombuffer(Path(f"{written}.loss").read_bytes(), np.uint8)
    words = [tokenizer.decode([token]).strip() for token in tokens]
    return " ".join(word if on else f"[{word}]" for word, on in zip(words, loss)) or "nothing is left"


ranges = {"the prompt": (0, len(PROMPT)), '"two"': (two, two + 3), '" two "': (two - 1, two + 4)}
trimmed, whole = trained(processors.ByteLevel()), trained(processors.ByteLevel(trim_offsets=False))
space = kept("space", trimmed, 0, len(PROMPT) + 1)
print("range over the prompt and the space:", space)
seen, sound = {}, {}
for of, (start, end) in ranges.items():
    seen[of] = kept("trimmed", trimmed, start, end)
    print(f"range over {of}: {seen[of]}")
for of, (start, end) in ranges.items():
    sound[of] = kept("whole", whole, start, end)
    print(f"trim_offsets=False, range over {of}: {sound[of]}")

if [space, *sound.values()] != [PROMPT_MASKED, PROMPT_MASKED, TWO_MASKED, TWO_MASKED]:
    sys.exit("changed: a range that ends at a token is not right")
if [*seen.values()] != ["nothing is left", "Add", TWO_MASKED.replace("Add", "[Add]")]:
    sys.exit(f"changed: a range that ends at a space gives {seen}")
print("as described")
PYTHON
# What datatrove logs is left out; a failure shows it.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
