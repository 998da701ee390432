#!/usr/bin/env bash
# Versions: fla-core 0.6.0 (of flash-linear-attention), triton 3.9.0, torch 2.13.0, on a CPU (Triton's interpreter).
#
# Behaviour: with `output_cache=True`, token_shift never writes the cache of an empty sequence. It returns what was
# in memory. The gradient of that sequence's cache is not written either. Other sequences are right.
#
# Seen (torch fills new memory with nan):
#     lengths [5, 2, 3]: caches right, right, right; gradients right, right, right
#     lengths [5, 0, 3]: caches right, nan, right; gradients right, nan, right
#
# Why it surprises: the cache is said to hold the last token, to be fed to the next call. A sequence that got no new
# token still has its last one, and the caller passed it as `cache`. Other parts of the package allow for empty
# sequences: prepare_chunk_indices_static asks for them as padding. The kernel writes at the last token of a
# sequence, and the tensors come from torch.empty. There is no error and no warning.
#
# torch.use_deterministic_algorithms(True) makes torch fill new memory with nan. Without it, any values may appear.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
# fla-core requires none of the others. Triton's interpreter needs numpy.
venv/bin/pip install -qq fla-core==0.6.0 triton==3.9.0 torch==2.13.0 packaging numpy==2.4.6

cat > seen.py <<'PYTHON'
import sys

import torch
import triton

autotune = triton.autotune
# The interpreter cannot measure, so there is one configuration of each kernel.
triton.autotune = lambda configs, **options: autotune(configs[:1], **options)

from fla.modules.token_shift import token_shift  # noqa: E402

torch.use_deterministic_algorithms(True)
torch.manual_seed(0)


def outcomes(lengths):
    ends = torch.tensor([0, *lengths]).cumsum(0)
    x, cache = torch.randn(1, sum(lengths), 16), torch.randn(len(lengths), 16, requires_grad=True)
    shifted, new_cache = token_shift(x, ends, cache=cache, output_cache=True)
    shifted_gradient, cache_gradient = torch.randn_like(shifted), torch.randn_like(new_cache)
    (gradient,) = torch.autograd.grad((shifted, new_cache), cache, (shifted_gradient, cache_gradient))
    for i, length in enumerate(lengths):
        # An empty sequence passes its cache on.
        last = x[0, ends[i + 1] - 1] if length else cache.detach()[i]
        right = shifted_gradient[0, ends[i]] if length else cache_gradient.view(len(lengths), -1)[i]
        yield tuple(
            "nan" if found.isnan().all() else "right" if torch.allclose(found, truth) else "wrong"
            for found, truth in ((new_cache.detach().view(len(lengths), -1)[i], last), (gradient[i], right))
        )


seen = {}
for lengths in ([5, 2, 3], [5, 0, 3]):
    seen[lengths[1]] = list(outcomes(lengths))
    caches, gradients = zip(*seen[lengths[1]], strict=True)
    print(f"lengths {lengths}: caches {', '.join(caches)}; gradients {', '.join(gradients)}")
if seen != {2: [("right", "right")] * 3, 0: [("right", "right"), ("nan", "nan"), ("right", "right")]}:
    sys.exit("changed: other results than described")
print("as described")
PYTHON
# Warnings that there is no GPU are left out; a failure shows them.
TRITON_INTERPRET=1 venv/bin/python seen.py 2> log || { cat log; exit 1; }
