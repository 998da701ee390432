"""Tiny models of transformers, and what they compute of sequences one at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from collators.example import IGNORE_INDEX

LENGTHS = (5, 1, 9, 3)
VOCABULARY = 61
LONGEST = 32

Results = dict[str, Tensor]


def _seeded(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().to(dtype)


def gpt2(dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """Return GPT-2 with learned positions, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCABULARY, "n_positions": LONGEST, "n_embd": 48, "n_layer": 2, "n_head": 3}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    # Wide weights, so that attention is far from uniform and a leak is no rounding.
    spread = {"initializer_range": 0.3}
    return _seeded(lambda: GPT2LMHeadModel(GPT2Config(**{**sizes, **off, **spread, **changes})), dtype)


def llama(dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """Return Llama with rotary positions and two key-value heads for four."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _seeded(lambda: LlamaForCausalLM(LlamaConfig(**{**_GROUPED, **changes})), dtype)


def mistral(dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """Return Mistral with a sliding window of 4 tokens."""
    from transformers import MistralConfig, MistralForCausalLM

    return _seeded(lambda: MistralForCausalLM(MistralConfig(**{**_GROUPED, "sliding_window": 4, **changes})), dtype)


_GROUPED = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LONGEST,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def sequences(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Tensor]:
    """Return ids of one sequence for each of `lengths`, without the pad id."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]


def flattened(ids: Sequence[Tensor], **options: bool) -> dict[str, Any]:
    """Return `ids` as transformers' DataCollatorWithFlattening gives them."""
    from transformers import DataCollatorWithFlattening

    collate = DataCollatorWithFlattening(return_tensors="pt", **options)
    return dict(collate([{"input_ids": one.tolist()} for one in ids]))


def computed(model: nn.Module, inputs: dict[str, Any], *placed: Any, backward: bool = True) -> Results:
    """Return logits (T, V), loss, and with `backward` the gradient of every parameter by name.

    `placed` are arguments without names, before those of `inputs`.
    """
    with torch.set_grad_enabled(backward):
        found = model(*placed, **inputs)
    results = {"logits": found.logits[0].detach(), "loss": found.loss.detach()}
    return results | gradients(model, found.loss) if backward else results


def alone(model: nn.Module, ids: Sequence[Tensor], *, backward: bool = True) -> Results:
    """Return the same from each sequence alone; the loss is the mean over all their targets."""
    rows, total = [], torch.zeros((), dtype=torch.float64)
    count = sum(len(one) - 1 for one in ids)
    with torch.set_grad_enabled(backward):
        for one in ids:
            row = model(input_ids=one[None], use_cache=False).logits[0]
            targets = torch.cat([one[1:], one.new_tensor([IGNORE_INDEX])])
            # transformers computes its loss in float32.
            total = total + cross_entropy(row.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum") / count
            rows.append(row)
    results = {"logits": torch.cat(rows).detach(), "loss": total.detach().float()}
    return results | gradients(model, total) if backward else results


def gradients(model: nn.Module, loss: Tensor) -> Results:
    """Return the gradient of `loss` by every parameter."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def differing(found: Results, expected: Results) -> list[str]:
    """Return what is further off than torch.testing allows in float32, by name.

    The models compute in float64, and transformers' norms, rotations and losses in float32 all the same.
    """
    assert found.keys() == expected.keys()
    names = []
    for name, wanted in expected.items():
        try:
            torch.testing.assert_close(found[name].float(), wanted.float())
        except AssertionError:
            names.append(name)
    return names
