"""Every family of language models that the installed transformers knows, built small from its own config class.

A family is a model type of transformers' causal-LM mapping, or of its masked-LM mapping where the modelling code has
a path without padding. Nothing is downloaded: weights are drawn from a seed.
"""

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from model.huggingface.overrides import OVERRIDES
from model.huggingface.sizes import AT_MOST, HEADS, LAYERS, NESTED, NEVER_NONE, SIZES, SMALL_VOCABULARY

Kind = Literal["decoder", "encoder"]

#: How far each weight is moved at random from its own initialisation, so that nothing is left at zero or one.
JITTER = 0.1


@dataclass(frozen=True)
class Family:
    """A model type, the class that transformers' mapping gives it, and whether its attention is causal.

    `config` is the file of a model's own config (model/huggingface/own.py), "" for the defaults of the class.
    """

    name: str
    class_name: str
    kind: Kind
    config: str = ""


class CannotBuild(Exception):
    """A family that cannot be built small here; the message is one line."""


def first_line(error: BaseException) -> str:
    """Return an exception as one line of at most 160 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {' '.join(lines[:2])}" if lines else type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


@contextmanager
def offline() -> Iterator[None]:
    """Let nothing be fetched from the hub inside; both the variable and what was read from it are restored."""
    from huggingface_hub import constants

    before, variable = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside, and leave torch's generators as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@cache
def all_families() -> tuple[Family, ...]:
    """Return every family in the order of names: causal language models, then encoders with an unpadded path."""
    from transformers.models.auto import modeling_auto

    causal: Mapping[str, str] = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked: Mapping[str, str] = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decoders = [Family(name, class_name, "decoder") for name, class_name in sorted(causal.items())]
    encoders = [
        Family(name, class_name, "encoder") for name, class_name in sorted(masked.items()) if name not in causal
    ]
    return (*decoders, *(family for family in encoders if has_unpadded_path(family)))


def family_named(name: str) -> Family:
    """Return the family of that model type; ValueError names some that exist."""
    for family in all_families():
        if family.name == name:
            return family
    known = [family.name for family in all_families()]
    close = [other for other in known if name.lower()[:4] in other] or known[:5]
    raise ValueError(
        f"unknown language-model family {name!r}; choose one that this transformers has, such as {', '.join(close)}."
    )


def has_unpadded_path(family: Family) -> bool:
    """Tell whether the family says that it attends with FlashAttention, which takes sequences without padding."""
    try:
        chosen = model_class(family)
    except Exception:
        # What does not import is a family all the same, reported as one that cannot be built.
        return True
    return any(getattr(chosen, name, False) for name in ("_supports_flash_attn", "_supports_flash_attn_2"))


def model_class(family: Family) -> type[nn.Module]:
    """Import and return the family's model class."""
    import transformers

    return getattr(transformers, family.class_name)


def config_class(family: Family) -> Any:
    """Import and return the family's own config class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    # A model of several modalities lends its name to the text model's class, whose config is a part of its own.
    own = getattr(model_class(family), "config_class", None)
    return own if own is not None else CONFIG_MAPPING[family.name]


def small_config(family: Family) -> tuple[str, dict[str, Any]]:
    """Return the family's config class, as a dotted name, and the keyword arguments that make it small."""
    if family.config:
        from model.huggingface.own import small_own_config

        return small_own_config(family)
    chosen = config_class(family)
    arguments = small_arguments(chosen)
    if family.kind == "decoder" and hasattr(chosen(**given_of(chosen)), "is_decoder"):
        arguments["is_decoder"] = True
    return f"{chosen.__module__}.{chosen.__qualname__}", arguments


def small_arguments(chosen: Any) -> dict[str, Any]:
    """Return arguments that make a config class small, by the names and values of its defaults."""
    given = given_of(chosen)
    return smaller(chosen(**given), given)


def smaller(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that make a config small, by its fields; `given` stay as they are."""
    chosen, values = type(config), config.to_dict()
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name in NESTED:
            part = getattr(config, name)
            arguments[name] = smaller(part, given_of(type(part)))
        elif name in SIZES and (value is not None or name in NEVER_NONE):
            arguments[name] = SIZES[name]
        elif name in AT_MOST and (value is not None or name in NEVER_NONE):
            arguments[name] = min(value or AT_MOST[name], AT_MOST[name])
        elif isinstance(value, float) and "drop" in name:
            arguments[name] = 0.0
        elif name.endswith("_token_id") and isinstance(value, int):
            # Small ids are left to special tokens: inputs are drawn above them.
            arguments[name] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}.get(name, 3)
    if "num_key_value_heads" in arguments:
        arguments["num_key_value_heads"] = small_key_value_heads(values)
    if "qk_rope_head_dim" in arguments and "head_dim" in arguments:
        # Latent attention calls the rotary part of a head so.
        arguments["head_dim"] = arguments["qk_rope_head_dim"]
    # A part that is given makes its defaults known; it is made small as others are.
    whole = {name: value for name, value in given.items() if name not in NESTED}
    computed = {name for name, value in OVERRIDES.get(chosen.__name__, {}).items() if value is None}
    arguments = {**arguments, **small_layers(values), **whole}
    return {name: value for name, value in arguments.items() if name not in computed}


def given_of(chosen: Any) -> dict[str, Any]:
    """Return what the overrides give to a config class."""
    return {name: value for name, value in OVERRIDES.get(chosen.__name__, {}).items() if value is not None}


def small_key_value_heads(values: Mapping[str, Any]) -> int:
    """Return as many key-value heads as leave them what they are: one for each head, a few, or a single one."""
    heads, default = values.get("num_attention_heads"), values["num_key_value_heads"]
    return HEADS if default in (None, heads) else min(default, HEADS // 2)


def small_layers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return as few layers as show each kind that the defaults have, at least two.

    A config describes kinds of layers by lists with an entry a layer. Four sliding layers and a full one, repeated,
    leave one of each.
    """
    counts = {name: values[name] for name in LAYERS if isinstance(values.get(name), int)}
    if not counts:
        return {}
    depth = counts.get("num_hidden_layers", max(counts.values()))
    lists = {
        name: value
        for name, value in values.items()
        if isinstance(value, list | tuple) and len(value) == depth and depth > 2 and name not in SIZES
    }
    kinds: dict[tuple[str, ...], int] = {}
    for layer in range(depth):
        kinds.setdefault(tuple(str(value[layer]) for value in lists.values()), layer)
    chosen = sorted(kinds.values()) if lists else []
    chosen = (chosen if len(chosen) > 1 else [0, 1])[:6]
    arguments: dict[str, Any] = {name: len(chosen) for name in counts}
    return {**arguments, **{name: [value[layer] for layer in chosen] for name, value in lists.items()}}


def build_config(family: Family, implementation: str) -> Any:
    """Return the small config that attends with `implementation`; CannotBuild says why there is none."""
    try:
        path, arguments = small_config(family)
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)(**arguments, attn_implementation=implementation)
    except Exception as error:
        raise CannotBuild(first_line(error)) from error


def build(family: Family, implementation: str, seed: int = 0) -> nn.Module:
    """Return the family's model in float32 and evaluation mode, its weights drawn from `seed`.

    The weights are the same for every implementation. CannotBuild says why there is no model.
    """
    return build_from(family, build_config(family, implementation), seed)


def build_from(family: Family, config: Any, seed: int = 0) -> nn.Module:
    """Return the family's model of a config of its own, as `build` does."""
    try:
        with offline(), seeded(seed):
            model = model_class(family)(config).float().eval()
            jitter(model)
    except Exception as error:
        raise CannotBuild(first_line(error)) from error
    return model


def jitter(model: nn.Module) -> None:
    """Move every weight a little at random; what was left uninitialised is drawn anew."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = JITTER * torch.randn_like(parameter)
            sound = parameter.isfinite() & (parameter.abs() < 1e3)
            parameter.copy_(parameter.where(sound, 0.0) + noise)


def token_ids(lengths: Sequence[int], seed: int) -> list[torch.Tensor]:
    """Return one int64 [length] of random ids for each length, none of them a special token's."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(8, SMALL_VOCABULARY, (length,), generator=generator) for length in lengths]
