"""How far off a batch may be follows from the decoder, and for its loss from what rounding does to the logits."""

import math

import pytest
import torch
from torch import nn

from model.attention import REFERENCE
from model.decoder import Decoder, DecoderConfig
from model.equivalence import differences, reduction_length
from model.reference import Outcome
from model.tolerance import DECODER_FACTOR, rounding_floor

pytestmark = pytest.mark.unit

CONFIG = DecoderConfig(vocab_size=3, max_length=7, num_layers=3, num_heads=2, head_dim=5)

#: Of five tokens in two sequences, L2 norms 3, 4, 12, 0 and 13: their mean is 6.4.
LOGIT_ERRORS = ([[3.0, 0.0, 0.0], [0.0, 0.0, -4.0]], [[0.0, 12.0, 0.0], [0.0, 0.0, 0.0], [5.0, -12.0, 0.0]])


def outcome(loss: float, logit_error: float = 0.0) -> Outcome:
    logits = [logit_error * torch.tensor(errors, dtype=torch.float64) for errors in LOGIT_ERRORS]
    return Outcome(logits, torch.tensor(loss, dtype=torch.float64), {})


def test_a_batch_is_reduced_over_the_inputs_of_every_product_there_and_back() -> None:
    """Every linear map adds up its inputs, a score the head dim, and an output of attention the keys."""
    blocks = Decoder(CONFIG, REFERENCE.attend).blocks
    linear = sum(module.in_features for module in blocks.modules() if isinstance(module, nn.Linear))
    attention = CONFIG.num_layers * (CONFIG.head_dim + CONFIG.max_length)
    assert reduction_length(CONFIG) == 2 * (linear + attention)


@pytest.mark.parametrize("moved", [-0.25, 0.0, 0.25], ids=["below", "exact", "above"])
def test_the_loss_of_a_batch_has_the_bound_of_its_logits_and_of_the_reference(moved: float) -> None:
    truth, reference = outcome(2.0), outcome(2.0 + moved, logit_error=1e-3)
    (found,) = differences(outcome(9.0), truth, [reference], dtype=torch.float32, error_factor=3.0, config=CONFIG)
    assert (found.name, found.row, found.error) == ("loss", None, 7.0)
    floor = 2.0 * rounding_floor(torch.float32, reduction_length(CONFIG))
    # Logits move the loss by at most sqrt(2) times the norm of their error; the truth's size is 2.
    bound = DECODER_FACTOR * 3.0 * (abs(moved) + math.sqrt(2) * 6.4e-3) + floor
    assert found.allowed == pytest.approx(bound, rel=1e-12)
