#!/usr/bin/env bash
# Versions: pytorch-forecasting 1.8.0, torch 2.13.0, on a CPU.
#
# Behaviour: MASE divides an error by the mean step between the values of a series. It divides the sum of the steps by
# the number of values. There is one step fewer. So the error of a series of n values is too large by n / (n - 1), and
# in a batch of series of several lengths the short ones weigh more.
#
# Seen (the naive forecast of one step, of a series that rises by 1: its error is the mean step, so MASE is 1):
#     3 values: absolute error 1.0000, MASE 1.5000
#     5 values: absolute error 1.0000, MASE 1.2500
#     101 values: absolute error 1.0000, MASE 1.0100
#     a padded batch of these three: absolute error 1.0000, MASE 1.2533
#
# Why it surprises: the documentation defines the metric with the mean of `all_targets[:, :-1] - all_targets[:, 1:]`.
# That has n - 1 columns. The value 1 is what the metric is read by: below it, a forecast is better than the naive one.
# Here a forecast of a short series looks worse than naive and is not. Padding is not the cause, as one series alone
# has the same value. There is no error and no warning.
# (1.8.0 is the newest release. No report of this is known.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq pytorch-forecasting==1.8.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import torch
from pytorch_forecasting.metrics import MAE, MASE

LENGTHS = [3, 5, 101]


def errors(lengths):
    """Return MAE and MASE of the naive forecast of series of `lengths` values, of which the last is forecast."""
    known = torch.tensor(lengths) - 1
    history = torch.arange(float(max(known))).repeat(len(lengths), 1)
    history = history * (torch.arange(max(known)) < known[:, None])
    target = known[:, None].float()
    forecast = target - 1
    absolute, scaled = MAE(), MASE()
    absolute.update(forecast, target)
    scaled.update(forecast, target, history, known)
    return float(absolute.compute()), float(scaled.compute())


seen = []
for length in LENGTHS:
    absolute, scaled = errors([length])
    seen.append(scaled)
    print(f"{length} values: absolute error {absolute:.4f}, MASE {scaled:.4f}")
    if abs(absolute - 1) > 1e-4:
        sys.exit("changed: the absolute error is not 1")
absolute, together = errors(LENGTHS)
print(f"a padded batch of these three: absolute error {absolute:.4f}, MASE {together:.4f}")

if abs(absolute - 1) > 1e-4 or abs(together - sum(seen) / len(seen)) > 1e-4:
    sys.exit("changed: a batch is not the mean of its series")
if any(abs(scaled - length / (length - 1)) > 1e-4 for length, scaled in zip(LENGTHS, seen)):
    sys.exit(f"changed: the errors are too large by another factor, or right: {seen}")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
OMP_NUM_THREADS=1 venv/bin/python seen.py 2> log || { cat log; exit 1; }
