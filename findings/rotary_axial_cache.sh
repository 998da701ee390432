#!/usr/bin/env bash
# Versions: rotary-embedding-torch 0.9.1, torch 2.13.0, on a CPU.
#
# Behaviour: RotaryEmbedding keeps the frequencies that it has computed, and looks them up by their number alone.
# `get_axial_freqs` shifts the positions by `offsets`, but does not tell the cache. So the offsets are left out if the
# cache holds enough positions. If not, the shifted positions are stored as if they started at 0, and later calls
# without offsets get them. This is so with the default `freqs_for`; "pixel" does not use the cache.
#
# Seen (positions that the frequencies stand for; "no cache" is cache_if_possible=False):
#     default: 0 1 2 3; then with offset 4: 0 1 2 3
#     default: with offset 4: 4 5 6 7; then without: 4 5 6 7
#     default: two axes of 3 with offsets 10 and 20: 10 11 12 and 10 11 12
#     no cache: 0 1 2 3; then with offset 4: 4 5 6 7
#     no cache: with offset 4: 4 5 6 7; then without: 0 1 2 3
#     no cache: two axes of 3 with offsets 10 and 20: 10 11 12 and 20 21 22
#     rotate_queries_or_keys(offset=0): right in a new module, wrong after a call with offset 4
#
# Why it surprises: the cache is on by default, and should change the speed alone. With it, positions depend on which
# sequences the module has seen before. The offset of `rotate_queries_or_keys` is right with the cache, until
# `get_axial_freqs` fills it. There is no error and no warning.
# (https://github.com/lucidrains/rotary-embedding-torch/issues/11 reported the same of `rotate_queries_or_keys`, and is
# fixed. No report about `get_axial_freqs` is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq rotary-embedding-torch==0.9.1 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from rotary_embedding_torch import RotaryEmbedding

WIDTH = 8


def positions(rotary, *lengths, offsets=None):
    """Return the positions of each axis for which `rotary` gives the frequencies."""
    frequencies = rotary.get_axial_freqs(*lengths, offsets=offsets)
    # The first frequency of each axis is 1, so it is the position.
    return [frequencies[..., WIDTH * axis].unique().long().tolist() for axis in range(len(lengths))]


def show(values):
    """Return `values` as text."""
    return " and ".join(" ".join(map(str, axis)) for axis in values)


seen = {}
for name, options in (("default", {}), ("no cache", {"cache_if_possible": False})):
    rotary = RotaryEmbedding(WIDTH, **options)
    plain, shifted = positions(rotary, 4), positions(rotary, 4, offsets=(4,))
    print(f"{name}: {show(plain)}; then with offset 4: {show(shifted)}")

    rotary = RotaryEmbedding(WIDTH, **options)
    before, after = positions(rotary, 4, offsets=(4,)), positions(rotary, 4)
    print(f"{name}: with offset 4: {show(before)}; then without: {show(after)}")

    axes = positions(RotaryEmbedding(WIDTH, **options), 3, 3, offsets=(10, 20))
    print(f"{name}: two axes of 3 with offsets 10 and 20: {show(axes)}")
    seen[name] = [plain, shifted, before, after, axes]

queries = torch.randn(1, 1, 4, WIDTH, generator=torch.Generator().manual_seed(0))
expected = RotaryEmbedding(WIDTH, cache_if_possible=False).rotate_queries_or_keys(queries)
rotary, used = RotaryEmbedding(WIDTH), RotaryEmbedding(WIDTH)
used.get_axial_freqs(4, offsets=(4,))
right = [torch.allclose(module.rotate_queries_or_keys(queries), expected, atol=1e-5) for module in (rotary, used)]
new, old = ("right" if value else "wrong" for value in right)
print(f"rotate_queries_or_keys(offset=0): {new} in a new module, {old} after a call with offset 4")

low, high = [[0, 1, 2, 3]], [[4, 5, 6, 7]]
if seen["no cache"] != [low, high, high, low, [[10, 11, 12], [20, 21, 22]]]:
    sys.exit("changed: the positions without the cache are others")
if seen["default"] != [low, low, high, high, [[10, 11, 12], [10, 11, 12]]]:
    sys.exit("changed: the positions with the cache are others")
if right != [True, False]:
    sys.exit("changed: rotate_queries_or_keys rotates in another way")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
