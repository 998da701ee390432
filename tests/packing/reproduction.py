"""A few lines that show a finding, to paste into any Python that has the same transformers."""

import pprint
from typing import Any

from model.huggingface.families import JITTER, Family, first_line, small_config
from model.huggingface.inputs import Way, inputs
from model.huggingface.sizes import SMALL_VOCABULARY

#: Two sequences: the second is looked at.
FIRST, SECOND = 9, 5


def reproduction(family: Family, built: str, way: Way, start: int = 0) -> str:
    """Return a script that hands two sequences to a family's small model and to it one alone, and compares.

    `built` is the `attn_implementation`; positions begin at `start`. ValueError where there is no config.
    """
    try:
        path, arguments = small_config(family)
    except Exception as error:
        raise ValueError(f"{family.name} has no small config: {first_line(error)}.") from error
    module, _, name = path.rpartition(".")
    # A config knows of more than its class takes by name.
    shown = pprint.pformat(arguments, width=110, compact=True, sort_dicts=False)
    return f"""\
import torch
from {module} import {name}
from transformers import {family.class_name}

torch.manual_seed(0)
config = {name}(**{shown}, attn_implementation={built!r})
model = {family.class_name}(config).float().eval()
for weight in model.parameters():
    weight.data += {JITTER} * torch.randn_like(weight)

first, second = torch.randint(8, {SMALL_VOCABULARY}, (1, {FIRST})), torch.randint(8, {SMALL_VOCABULARY}, (1, {SECOND}))
{handed_over(way, start)}
alone = model(input_ids=second, use_cache=False).logits[0]
print("relative error", ((together - alone).norm(dim=-1).max() / alone.norm(dim=-1).max()).item())
"""


def handed_over(way: Way, start: int) -> str:
    """Return the lines that compute the second sequence's logits beside the first."""
    if way.layout == "flattened":
        tokens, where = "torch.cat([first, second], dim=1)", f"[0, {FIRST}:]"
    else:
        zeros = f"torch.zeros(1, {FIRST - SECOND}, dtype=torch.long)"
        pair = f"second, {zeros}" if way.layout == "right" else f"{zeros}, second"
        tokens = f"torch.cat([first, torch.cat([{pair}], dim=1)])"
        where = f"[1, :{SECOND}]" if way.layout == "right" else f"[1, {FIRST - SECOND}:]"
    lines = [f"    input_ids={tokens},", *(f"    {name}={text}," for name, text in literals(way, start).items())]
    return "\n".join(["together = model(", *lines, f").logits{where}"])


def literals(way: Way, start: int) -> dict[str, str]:
    """Return the arguments besides the tokens, as Python."""
    import torch

    sequences = [torch.full((length,), 8) for length in (FIRST, SECOND)]
    texts = {}
    for name, value in inputs(way, sequences, start=start).arguments.items():
        if name in ("input_ids", "labels"):
            continue
        if isinstance(value, torch.Tensor):
            kind = ", dtype=torch.int32" if value.dtype == torch.int32 else ""
            texts[name] = f"torch.tensor({value.tolist()}{kind})"
        else:
            texts[name] = repr(value)
    return texts


def run(script: str) -> float:
    """Run a script of `reproduction` and return the error that it prints, whatever it does to torch's generator."""
    from model.huggingface.families import offline, seeded

    scope: dict[str, Any] = {}
    with offline(), seeded(0):
        exec(compile(script, "<reproduction>", "exec"), scope)
    together, alone = scope["together"], scope["alone"]
    return ((together - alone).norm(dim=-1).max() / alone.norm(dim=-1).max()).item()
