"""How many floating-point operations a step must do, on real tokens only."""

from model.attention import Mode
from model.decoder import DecoderConfig


def step_flops(config: DecoderConfig, lengths: tuple[int, ...], *, mode: Mode, causal: bool) -> float:
    """Return the operations of the matrix products of one step; training counts three times the forward.

    Two for each weight and token, and 4 L^2 H D for the attention of a sequence of L tokens, half of it when
    causal. Padding, norms and activations count nothing (PaLM, appendix B, https://arxiv.org/abs/2204.02311).
    """
    width, kv_width = config.hidden_size, config.kv_heads * config.head_dim
    weights = config.num_layers * width * (width + 2 * kv_width + width + 8 * width) + width * config.vocab_size
    attention = 4 * config.num_layers * width * sum(length**2 for length in lengths)
    forward = 2 * weights * sum(lengths) + attention / (2 if causal else 1)
    return forward * (3 if mode == "train" else 1)
