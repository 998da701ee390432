"""A model's own config is made small: what decides whether packing is right stays as it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.huggingface.families import build
from model.huggingface.inputs import Way
from model.huggingface.own import changes, own_family, small_own_config
from tests.packing.reproduction import reproduction

pytestmark = pytest.mark.packing

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "torch_dtype": "bfloat16",
}
SLIDING: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 6,
    "layer_types": [*["full_attention"] * 4, *["sliding_attention"] * 2],
    "use_sliding_window": True,
    "sliding_window": 4096,
}


def saved(folder: Path, content: Any) -> str:
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_rotary_scaling_is_kept_and_sizes_are_small(tmp_path: Path) -> None:
    saved(tmp_path, LLAMA)
    # A folder that holds a config stands for it.
    family = own_family(str(tmp_path))
    _, arguments = small_own_config(family)
    assert arguments["rope_scaling"] == LLAMA["rope_scaling"]
    assert (arguments["hidden_size"], arguments["num_attention_heads"], arguments["num_key_value_heads"]) == (64, 4, 2)
    assert "torch_dtype" not in arguments
    assert "hidden_size 4096 -> 64" in changes(family)
    assert not [change for change in changes(family) if change.startswith("rope")]
    assert build(family, "eager").config.rope_parameters["rope_type"] == "llama3"
    assert "'rope_type': 'llama3'" in reproduction(family, "sdpa", Way("flattened"))


def test_each_kind_of_layer_is_kept_and_a_window_is_of_a_few_tokens(tmp_path: Path) -> None:
    config = build(own_family(saved(tmp_path, SLIDING)), "eager").config
    assert config.layer_types == ["full_attention", "sliding_attention"]
    assert config.sliding_window == 4


def test_a_config_of_several_modalities_stands_for_its_text_model(tmp_path: Path) -> None:
    text = {"hidden_size": 640, "num_hidden_layers": 4, "sliding_window": 512}
    family = own_family(saved(tmp_path, {"model_type": "gemma3", "text_config": text}))
    assert build(family, "eager").config.get_text_config().hidden_size == 64


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no json", "is no JSON: "),
        ([1], "is a JSON list; a config is an object."),
        ({"hidden_size": 4}, "has no model_type; give the config.json of a transformers model."),
        ({"model_type": "of_theirs", "auto_map": {}}, "its auto_map asks for remote code, which is not run."),
        ({"model_type": "vit"}, "'vit' has no language model in transformers"),
        ({"model_type": "llama", "num_hidden_layers": "many"}, "makes no llama config: "),
        (" " * 5_000_000, "has 5,000,000 bytes; a config has at most 4,194,304."),
    ],
)
def test_what_is_no_config_is_one_line(content: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json") as refused:
        own_family(saved(tmp_path, content))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read: No such file or directory\.$"):
        own_family(str(tmp_path / "nowhere.json"))
