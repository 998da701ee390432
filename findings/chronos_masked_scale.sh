#!/usr/bin/env bash
# Versions: chronos-forecasting 2.3.2, transformers 5.24.0, torch 2.13.0, on a CPU.
#
# Behaviour: Chronos2Model and ChronosBoltModelForForecasting take a mask that tells which values of the context are
# missing. The network does not see those values, but the mean and the scale that normalize the series are computed from
# them too. So the forecast depends on what is written in the padding, and on how much padding there is.
#
# Seen (64 values between 2 and 4, models with random weights; mean of the median forecast):
#     Chronos2Model: alone 3.00, with 64 hidden zeros 1.51, with 64 hidden values of 100 51.71
#     Chronos2Model, with 64 nan: as alone, with the mask or without
#     ChronosBoltModelForForecasting: alone 3.00, with 64 hidden zeros 1.51, with 64 hidden values of 100 51.68
#     ChronosBoltModelForForecasting, with 64 nan: as alone, with the mask or without
#
# Why it surprises: the documentation of Chronos2Model says that `context_mask` is a "Binary mask tensor of same shape
# as context indicating which values are valid (1) vs missing (0)". For future covariates with a mask it allows "an
# arbitrary dummy value". The normalization knows missing values as nan alone. So a batch that is padded with zeros, and
# has a mask, gets forecasts drawn to zero. There is no error and no warning. The pipelines of the package pad with nan,
# so they do not meet this. No report of this is known.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq chronos-forecasting==2.3.2 transformers==5.24.0 torch==2.13.0

cat > seen.py <<'PYTHON'
import math
import sys

import torch
from chronos.chronos2.config import Chronos2CoreConfig
from chronos.chronos2.model import Chronos2Model
from chronos.chronos_bolt import ChronosBoltModelForForecasting
from transformers import T5Config

VALUES = PADDING = 64

patches = dict(context_length=256, input_patch_size=16, input_patch_stride=16, quantiles=[0.1, 0.5, 0.9])
sizes = dict(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0)
torch.manual_seed(0)
config = Chronos2CoreConfig(
    **sizes, chronos_config=dict(patches, output_patch_size=16, use_reg_token=True, use_arcsinh=True)
)
second = Chronos2Model(config).eval()
config = T5Config(**sizes, decoder_start_token_id=0, initializer_factor=0.05)
config.chronos_config = dict(patches, prediction_length=16, use_reg_token=True)
bolt = ChronosBoltModelForForecasting(config).eval()

series = 3 + torch.sin(torch.arange(VALUES) / 5)[None]
mask = torch.cat([torch.zeros(1, PADDING), torch.ones(1, VALUES)], dim=1)


def padded(value):
    return torch.cat([torch.full((1, PADDING), value), series], dim=1)


for model, option in ((second, "context_mask"), (bolt, "mask")):

    def forecast(context, model=model, **masks):
        with torch.no_grad():
            return model(context, **masks).quantile_preds[0, 1]

    name, hidden = type(model).__name__, {option: mask}
    alone, zeros, hundreds = forecast(series), forecast(padded(0.0), **hidden), forecast(padded(100.0), **hidden)
    means = [float(found.mean()) for found in (alone, zeros, hundreds)]
    text = "alone {:.2f}, with 64 hidden zeros {:.2f}, with 64 hidden values of 100 {:.2f}".format(*means)
    print(f"{name}: {text}")
    if not (means[0] > means[1] + 1 and means[2] > means[0] + 10):
        sys.exit(f"changed: the forecasts of {name} are others: {means}")
    for masks in (hidden, {}):
        if not torch.allclose(forecast(padded(math.nan), **masks), alone, atol=1e-3):
            sys.exit(f"changed: with nan, the forecast of {name} is not as alone")
    print(f"{name}, with 64 nan: as alone, with the mask or without")
print("as described")
PYTHON
# Warnings are left out; a failure shows them.
venv/bin/python seen.py 2> log || { cat log; exit 1; }
