#!/usr/bin/env bash
# Versions: ai2-olmo-core 3.0.0, torch 2.13.0, on a CPU.
#
# Behaviour: an instance source gives a label mask only if its data has one. The DataCollator stacks the masks that it
# finds and does not count them. If one instance alone of a batch has a mask, the batch has one row of masks. get_labels
# broadcasts that row, so every other instance of the batch is masked like it. With two of four masked, it raises an
# error.
#
# Seen (plain text without a mask, and chat with a mask for 2 of 8 tokens, 8 tokens in a row; "." is not trained on):
#     text alone: 200 of 200 rows of text have all their labels
#     text with a mask that is always true, and chat: 200 of 200 rows of text have all their labels
#     text and chat: 92 of 200 rows of text have all their labels
#     one batch: input_ids (2, 8), label_mask (1, 8)
#         text: 11 12 13 14 15 16 17 18, labels . . . . . 17 18 .
#         chat: 51 52 53 54 55 56 57 58, labels . . . . . 57 58 .
#     four rows, two of text and two of chat: RuntimeError: The size of tensor a (4) must match the size of tensor b (2)
#
# Why it surprises: the label mask of an instance is optional, and the loader takes any instance sources of one sequence
# length. The classes that mix sources promise arbitrary ratios. Nothing says that all of them must have masks. Which
# tokens of a text are trained on depends on its neighbour in the batch. In batches of two there is no error and no
# warning. (A review in https://github.com/allenai/OLMo-core/pull/416 found that masks of packed documents were joined
# in this way, and PackingInstanceSource now counts them. No report of this for batches is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq ai2-olmo-core==3.0.0 torch==2.13.0 numpy==2.4.1

cat > seen.py <<'PYTHON'
import sys

import numpy as np
from olmo_core.data import DataCollator, TokenizerConfig
from olmo_core.data.composable import (
    ComposableDataLoader,
    ConcatAndChunkInstanceSource,
    NumpyDocumentSource,
    ShuffleStrategy,
)
from olmo_core.data.utils import get_labels

LENGTH, ROWS, IGNORED = 8, 200, -100
TOKENIZER = TokenizerConfig(vocab_size=100, eos_token_id=0, pad_token_id=0)
TEXT, CHAT = range(11, 11 + LENGTH), range(51, 51 + LENGTH)


def source(name, row, mask, rows):
    """Write `rows` rows to files, with a label mask or without one, and return them as an instance source."""
    np.array([*row] * rows, dtype=np.uint16).tofile(f"{name}-{rows}.npy")
    masks = None
    if mask is not None:
        np.array(mask * rows, dtype=np.bool_).tofile(f"{name}-{rows}-mask.npy")
        masks = [f"{name}-{rows}-mask.npy"]
    documents = NumpyDocumentSource(
        source_paths=[f"{name}-{rows}.npy"],
        label_mask_paths=masks,
        dtype=np.uint16,
        tokenizer=TOKENIZER,
        work_dir="work",
    )
    return ConcatAndChunkInstanceSource(documents, sequence_length=LENGTH, work_dir="work")


def text(rows, mask=None):
    return source("text" if mask is None else "masked-text", TEXT, mask, rows)


def chat(rows):
    return source("chat", CHAT, [False] * (LENGTH - 2) + [True] * 2, rows)


def batches(*sources, size=2, **order):
    """Yield the batches of an epoch, each of `size` rows, with the labels that are trained on."""
    loader = ComposableDataLoader(
        *sources,
        collator=DataCollator(pad_token_id=TOKENIZER.pad_token_id),
        tokenizer=TOKENIZER,
        work_dir="work",
        global_batch_size=size * LENGTH,
        seed=0,
        display_source_visualization=False,
        **order,
    )
    loader.reshuffle(epoch=1)
    for batch in loader:
        yield batch, get_labels(batch)


def whole(*sources):
    """Return how many rows of text have all their labels, and how many there are."""
    kept = total = 0
    for batch, labels in batches(*sources):
        for tokens, targets in zip(batch["input_ids"].tolist(), labels.tolist()):
            if tokens == [*TEXT]:
                total += 1
                kept += targets == [*TEXT[1:], IGNORED]
    return kept, total


if __name__ == "__main__":
    counts = {
        "text alone": whole(text(ROWS)),
        "text with a mask that is always true, and chat": whole(text(ROWS, [True] * LENGTH), chat(ROWS)),
        "text and chat": whole(text(ROWS), chat(ROWS)),
    }
    for name, (kept, total) in counts.items():
        print(f"{name}: {kept} of {total} rows of text have all their labels")

    batch, labels = next(batches(text(1), chat(1), shuffle=False))
    shapes = [tuple(batch[name].shape) for name in ("input_ids", "label_mask")]
    print(f"one batch: input_ids {shapes[0]}, label_mask {shapes[1]}")
    trained = []
    for tokens, targets in zip(batch["input_ids"].tolist(), labels.tolist()):
        print("    text:" if tokens == [*TEXT] else "    chat:", *tokens, end=", labels ")
        print(*("." if target == IGNORED else target for target in targets))
        trained.append([target for target in targets if target != IGNORED])

    error = None
    try:
        next(batches(text(2), chat(2), size=4, shuffle_strategy=ShuffleStrategy.inter_source))
    except RuntimeError as raised:
        error = str(raised).split(" at ")[0]
    print(f"four rows, two of text and two of chat: RuntimeError: {error}")

    mixed = counts.pop("text and chat")
    if any(count != (ROWS, ROWS) for count in counts.values()):
        sys.exit("changed: labels are missing without a mask or with one for all")
    if mixed[1] != ROWS or not ROWS // 4 < mixed[0] < 3 * ROWS // 4:
        sys.exit("changed: the text beside chat has other labels")
    if shapes != [(2, LENGTH), (1, LENGTH)] or trained != [[17, 18], [57, 58]]:
        sys.exit("changed: the mask of the chat is not that of the text")
    if error is None or "must match" not in error:
        sys.exit("changed: two masks for four rows raise another error or none")
    print("as described")
PYTHON
# What olmo-core logs is left out; a failure shows it.
OMP_NUM_THREADS=1 venv/bin/python seen.py 2> log || { cat log; exit 1; }
