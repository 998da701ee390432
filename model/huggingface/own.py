"""A model's own config.json, made small: its layer kinds, windows, experts and rotary scaling are kept."""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.huggingface.families import Family, config_class, first_line, given_of, smaller
from model.huggingface.sizes import HEAD_DIM

#: A config is text of some kilobytes.
LARGEST = 4 * 2**20

#: What a saved config says of itself, and no model reads.
OF_THE_FILE = frozenset(
    {"_name_or_path", "architectures", "auto_map", "dtype", "model_type", "quantization_config", "torch_dtype"}
    | {"transformers_version"}
)

#: Lists with an entry for each of half the dimensions of a head.
BY_HALF_HEAD = ("long_factor", "short_factor")


def own_family(place: str) -> Family:
    """Return the family of a config.json, or of a folder that holds one.

    ValueError, in one line, for a file that is no config, or whose model transformers cannot build by itself.
    """
    path = Path(place)
    path = path / "config.json" if path.is_dir() else path
    content = _content(path)
    model_type = content.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError(f"{path} has no model_type; give the config.json of a transformers model.")
    from transformers import __version__
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

    if model_type not in CONFIG_MAPPING_NAMES:
        remote = "; its auto_map asks for remote code, which is not run" if "auto_map" in content else ""
        raise ValueError(f"{path}: transformers {__version__} has no model_type {model_type!r}{remote}.")
    causal: Mapping[str, str] = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked: Mapping[str, str] = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if model_type not in causal and model_type not in masked:
        raise ValueError(f"{path}: {model_type!r} has no language model in transformers {__version__}.")
    kind: Any = "decoder" if model_type in causal else "encoder"
    family = Family(model_type, (causal if model_type in causal else masked)[model_type], kind, str(path.resolve()))
    try:
        small_own_config(family)
    except Exception as error:
        raise ValueError(f"{path} makes no {model_type} config: {first_line(error)}.") from None
    return family


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a config has at most {LARGEST:,}.")
        content = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8; give the config.json of a transformers model.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is a JSON {type(content).__name__}; a config is an object.")
    return content


def own_config(family: Family) -> tuple[Any, dict[str, Any]]:
    """Return the family's config and its values as the file has them; of several modalities those of the text."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    content = _content(Path(family.config))
    given = {name: value for name, value in content.items() if name not in OF_THE_FILE}
    # A config class adds to the mappings that it is given.
    config = CONFIG_MAPPING[family.name](**copy.deepcopy(given))
    if isinstance(config, config_class(family)):
        return config, given
    return config.get_text_config(), given.get("text_config", {})


def small_own_config(family: Family) -> tuple[str, dict[str, Any]]:
    """Return the class of the family's own config, as a dotted name, and its arguments with small sizes."""
    config, own = own_config(family)
    chosen = type(config)
    arguments = _merged(own, smaller(config, given_of(chosen)))
    if family.kind == "decoder" and hasattr(config, "is_decoder"):
        arguments["is_decoder"] = True
    return f"{chosen.__module__}.{chosen.__qualname__}", arguments


def _merged(own: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    merged = {}
    for name, value in own.items():
        if name in OF_THE_FILE:
            continue
        given = small.get(name, value)
        if isinstance(value, Mapping) and isinstance(given, Mapping):
            given = _merged(value, given)
        if name in BY_HALF_HEAD and isinstance(value, list):
            given = value[: HEAD_DIM // 2]
        if name == "mrope_section" and isinstance(value, list):
            given = [3, 3, 2][: len(value)]
        merged[name] = given
    return merged | {name: value for name, value in small.items() if name not in own}


def changes(family: Family) -> list[str]:
    """Return what was changed to make the config small, as `hidden_size 4096 -> 64`."""
    return [*_changed(own_config(family)[1], small_own_config(family)[1], "")]


def _changed(own: Mapping[str, Any], small: Mapping[str, Any], within: str) -> Iterator[str]:
    for name, value in own.items():
        if name not in small or small[name] == value:
            continue
        if isinstance(value, Mapping) and isinstance(small[name], Mapping):
            yield from _changed(value, small[name], f"{within}{name}.")
        elif isinstance(value, list) and len(value) > 6:
            yield f"{within}{name} of {len(value)} -> {small[name]}"
        else:
            yield f"{within}{name} {value} -> {small[name]}"
