#!/usr/bin/env bash
# Versions: torch 2.13.0, on a CPU (2.14.1 and 2.15.0 do the same).
#
# Behaviour: torch.nested.narrow makes a jagged NestedTensor of padded rows and their lengths. Its sum, mean and max
# over everything count the padding too, and padding gets a gradient. There is no error.
#
# Seen (rows of 2, 4 and 1 tokens that are all 1, with padding that is all 100):
#     sum: 507 of the view, 7 of its sequences, 7 of a contiguous copy
#     mean: 42.25 of the view, 1 of its sequences, 1 of a contiguous copy
#     max: 100 of the view, 1 of its sequences, 1 of a contiguous copy
#     sum of the doubled view: 1014, of its sequences: 14
#     gradient of the mean at the first row: [0.14, 0.14, 0.14, 0.14], of its sequences: [0.14, 0.14, 0.00, 0.00]
#
# Why it surprises: unbind gives sequences without padding, and operations on each element keep it out. A reduction over
# the ragged dimension raises an error for such a view, and one over everything is wrong instead. A mean loss is such a
# reduction. It is right where no row is padded. contiguous() makes it right, which nothing asks for.
# (https://github.com/pytorch/pytorch/issues/196708 is about padding that unbind gives in a batch of two.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch

LENGTHS = torch.tensor([2, 4, 1])

rows = torch.full((3, 4), 100.0)
rows[torch.arange(4) < LENGTHS[:, None]] = 1.0
rows.requires_grad_()
view = torch.nested.narrow(rows, 1, 0, LENGTHS, layout=torch.jagged)
sequences = torch.cat(view.unbind())
copy = view.detach().contiguous()

differs = {}
for name, reduce in (("sum", torch.sum), ("mean", torch.mean), ("max", torch.max)):
    got, expected, copied = reduce(view).item(), reduce(sequences).item(), reduce(copy).item()
    print(f"{name}: {got:g} of the view, {expected:g} of its sequences, {copied:g} of a contiguous copy")
    differs[name] = (got != expected, copied != expected)
doubled, expected = (view * 2).sum().item(), (sequences * 2).sum().item()
print(f"sum of the doubled view: {doubled:g}, of its sequences: {expected:g}")
differs["sum of the doubled view"] = (doubled != expected, False)


def gradient(mean):
    return torch.autograd.grad(mean, rows)[0]


got, expected = gradient(view.mean()), gradient(sequences.mean())
first = [", ".join(f"{value:.2f}" for value in found[0].tolist()) for found in (got, expected)]
print("gradient of the mean at the first row: [{}], of its sequences: [{}]".format(*first))
differs["gradient"] = (not torch.allclose(got, expected), False)
try:
    view.sum(1)
except RuntimeError as error:
    assert "not supported for non-contiguous nested tensors with holes" in str(error), error
else:
    sys.exit("changed: a sum over the ragged dimension raises no error")
if set(differs.values()) != {(True, False)}:
    sys.exit(f"changed: other reductions count the padding: {differs}")
print("as described")
PYTHON
# Prototype warnings of nested tensors are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
