#!/usr/bin/env bash
# Versions: pytorch-forecasting 1.8.0, torch 2.13.0, on a CPU.
#
# Behaviour: the layers LSTM and GRU take sequences of length 0. Such a sequence should return the state that it was
# given. It returns the given state of another sequence: the first sequence of length 0 gets that of the first of the
# batch, and so on. The LSTM also returns the hidden state in place of the cell state. If all lengths are 0, both states
# are zeros. TemporalFusionTransformer uses the layer so: its forecast without a history depends on the batch.
#
# Seen (lengths 4, 0, 2, 0; then forecasts of one sample of series a, beside a sample of series a, b or c):
#     LSTM: sequence 1 returns hidden 0 as hidden, hidden 0 as cell
#     LSTM: sequence 3 returns hidden 1 as hidden, hidden 1 as cell
#     LSTM, the other sequences: as alone
#     GRU: sequence 1 returns hidden 0 as hidden
#     GRU: sequence 3 returns hidden 1 as hidden
#     GRU, the other sequences: as alone
#     LSTM, all lengths 0: zeros
#     TemporalFusionTransformer, history of 0 steps: 3 distinct forecast(s)
#     TemporalFusionTransformer, history of 1 step: 1 distinct forecast(s)
#
# Why it surprises: the module says that it "can handle sequences of length 0", and `lengths` that it "can contain
# zeros". `masked_scatter` fills the chosen places with the first values of its source, not with those at the same
# places. The cell is filled from the hidden state. Without a given state all is zero, which is right.
# TemporalFusionTransformer makes the state from the static features of each series. With `min_encoder_length=0` it
# forecasts a new series from them, and takes those of another series. There is no error and no warning. No report of
# this is known.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq pytorch-forecasting==1.8.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import sys

import pandas
import torch
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.models.nn.rnn import GRU, LSTM

lengths = torch.tensor([4, 0, 2, 0])
torch.manual_seed(0)
x, hidden, cell = torch.randn(4, 4, 3), torch.randn(1, 4, 5), torch.randn(1, 4, 5)
given = {f"{name} {i}": state[0, i] for name, state in (("hidden", hidden), ("cell", cell)) for i in range(4)}
outcomes = []


def run(layer, x, state, **options):
    """Return the last states as a tuple."""
    last = layer(x, state if len(state) == 2 else state[0], **options)[1]
    return last if len(state) == 2 else (last,)


for kind, state in ((LSTM, (hidden, cell)), (GRU, (hidden,))):
    layer, name = kind(3, 5, batch_first=True), kind.__name__
    last = run(layer, x, state, lengths=lengths, enforce_sorted=False)
    for i, length in enumerate(lengths.tolist()):
        if length:
            alone = run(layer, x[i : i + 1, :length], tuple(part[:, i : i + 1].contiguous() for part in state))
            torch.testing.assert_close([part[:, i] for part in last], [part[:, 0] for part in alone])
            continue
        found = [next((key for key in given if torch.equal(given[key], part[0, i])), "other") for part in last]
        words = ", ".join(f"{key} as {part}" for key, part in zip(found, ("hidden", "cell"), strict=False))
        print(f"{name}: sequence {i} returns {words}")
        outcomes.append(found)
    print(f"{name}, the other sequences: as alone")
if outcomes != [["hidden 0"] * 2, ["hidden 1"] * 2, ["hidden 0"], ["hidden 1"]]:
    sys.exit(f"changed: {outcomes}")
empty = LSTM(3, 5, batch_first=True)(x, (hidden, cell), lengths=0 * lengths)[1]
if any(part.any() for part in empty):
    sys.exit("changed: with lengths of 0 alone, the states are not zeros")
print("LSTM, all lengths 0: zeros")
table = pandas.DataFrame([{"series": s, "step": t, "y": "abc".index(s) + t % 3 / 2} for s in "abc" for t in range(8)])
data = TimeSeriesDataSet(
    table, "step", "y", ["series"], min_encoder_length=0, max_encoder_length=4, max_prediction_length=2,
    static_categoricals=["series"], time_varying_known_reals=["step"], time_varying_unknown_reals=["y"],
)  # fmt: skip
model = TemporalFusionTransformer.from_dataset(data, hidden_size=8, attention_head_size=1, dropout=0.0).eval()
samples, _ = next(iter(data.to_dataloader(train=False, batch_size=len(data))))
series, history = samples["groups"][:, 0], samples["encoder_lengths"]
for steps, words in ((0, "0 steps"), (1, "1 step")):
    forecasts = []
    for other in range(3):
        chosen = [int(torch.where((series == s) & (history == n))[0][0]) for s, n in ((other, 4), (0, steps))]
        batch = {key: value[chosen] if torch.is_tensor(value) else value for key, value in samples.items()}
        with torch.no_grad():
            forecasts.append(model(batch)["prediction"][1].flatten())
    count = len({tuple(forecast.mul(1e4).round().tolist()) for forecast in forecasts})
    print(f"TemporalFusionTransformer, history of {words}: {count} distinct forecast(s)")
    if count != (1 if steps else 3):
        sys.exit(f"changed: {count} forecasts")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
