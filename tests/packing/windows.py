"""Whether a family keeps to the window that its config sets.

A family is compared with itself elsewhere, so that a window that every implementation leaves out is seen here alone.
"""

from typing import Any

import torch

from model.huggingface.families import CannotBuild, Family, build_config, build_from, first_line, offline, token_ids
from model.huggingface.implementations import Implementation
from model.huggingface.inputs import ALONE, inputs
from model.huggingface.sizes import WINDOW
from model.reference import full_precision
from tests.packing.checks import Found, allowance, logits_of

#: Config fields that set a window, in tokens, and the kind of the layers that it is for.
WINDOWS = {
    "attention_chunk_size": "chunked_attention",
    "local_attention": "sliding_attention",
    "sliding_window": "sliding_attention",
    "window_size": "local",
}

#: Config fields that list the kind of each layer, and kinds that see everything.
KINDS, WHOLE = ("layer_types", "attention_layers"), ("full_attention", "global")

#: Tokens that are looked at past what the first one reaches.
PAST = 2 * WINDOW


def windowed(config: Any) -> bool:
    """Let every layer of a small config attend within a window of WINDOW tokens; False where there is no such config.

    One layer that sees everything would carry any token anywhere, and so would a convolution or a recurrent state.
    """
    values = config.to_dict()
    field = next((name for name in WINDOWS if name in values), None)
    if field is None:
        return False
    kinds = next((name for name in KINDS if getattr(config, name, None)), None)
    # Without kinds a window is for all layers, but where another field says for which.
    if kinds is None and field != "sliding_window":
        return False
    if kinds is not None:
        layers = [WINDOWS[field] if kind in WHOLE else kind for kind in getattr(config, kinds)]
        if set(layers) != {WINDOWS[field]}:
            return False
        setattr(config, kinds, layers)
    setattr(config, field, WINDOW)
    # Families that have a window only where they are told so, from some layer on.
    for name, value in (("use_sliding_window", True), ("max_window_layers", 0)):
        if name in values:
            setattr(config, name, value)
    return True


def reach(family: Family, config: Any) -> int:
    """Return how many tokens on the first one reaches through all layers: each sees WINDOW tokens, its own among them.

    An encoder's layers see at most WINDOW tokens to each side.
    """
    return config.num_hidden_layers * (WINDOW - 1 if family.kind == "decoder" else WINDOW)


def check_window(family: Family, implementation: Implementation, device: torch.device) -> Found | None:
    """Exchange the first token of a sequence: no logits may move past its reach. None where the family has no window.

    `mixed` of what was found is how far those logits move, relative to the largest. A first token that does not move
    those beside it shows nothing, and is wrong as well.
    """
    try:
        config = build_config(family, implementation.built)
        if not windowed(config):
            return None
        model = build_from(family, config).to(device, implementation.dtype)
    except CannotBuild as error:
        return Found("refused", message=str(error))
    far = reach(family, config)
    own, other = token_ids([far + PAST], seed=1)[0], token_ids([1], seed=2)[0]
    changed = torch.cat([other, own[1:]])
    try:
        with offline(), full_precision(), torch.no_grad(), implementation.attending(model):
            before, after = (logits_of(model, inputs(ALONE, [tokens]))[0] for tokens in (own, changed))
    except Exception as error:
        return Found("refused", message=first_line(error))
    moved = (after - before).norm(dim=-1) / before.norm(dim=-1).max()
    allowed = allowance(implementation.dtype)
    limit = allowed.factor * allowed.least * torch.finfo(implementation.dtype).eps / 2
    past, beside = float(moved[far + 1 :].max()), float(moved[1:WINDOW].max())
    if not beside > limit:
        return Found("wrong", mixed=past, message="the first token moves none of those beside it")
    return Found("right" if past <= limit else "wrong", mixed=past)
