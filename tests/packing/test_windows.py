"""A family is seen to keep to its window, and one that leaves it out in any way is seen too."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.attention import backend_named
from model.huggingface.families import Family, all_families, build_config, family_named
from model.huggingface.implementations import Implementation, own
from model.huggingface.sizes import WINDOW
from tests.known_failures import IGNORED_WINDOWS
from tests.packing import windows
from tests.packing.checks import Found
from tests.packing.windows import check_window, reach, windowed

pytestmark = pytest.mark.packing

EAGER, SDPA = (Implementation(name, name, torch.float32) for name in ("eager", "sdpa"))
CPU = torch.device("cpu")

#: A window in every layer, in every other one, only where asked for, of chunks, of a mask of its own, to both sides.
FAMILIES = ("mistral", "cohere2", "qwen2", "llama4_text", "gpt_neo", "modernbert")


def found(name: str, implementation: Implementation = EAGER) -> Found | None:
    return check_window(family_named(name), implementation, CPU)


@pytest.mark.parametrize(
    ("name", "implementation"),
    # GPT-Neo has no attention but its own.
    [(name, each) for name in FAMILIES for each in (EAGER, SDPA) if (name, each) != ("gpt_neo", SDPA)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_family_keeps_to_its_window(name: str, implementation: Implementation) -> None:
    each = found(name, implementation)
    if each is None:
        # ModernBERT of 4.53 does not list the kinds of its layers.
        pytest.skip(f"{name} has no window in every layer in this transformers")
    assert each.state == "right", each
    assert each.mixed < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba", "jamba", "recurrent_gemma", "bamba"])
def test_a_family_without_a_window_in_every_layer_is_left_alone(name: str) -> None:
    each = found(name)
    assert each is None or (each.state, name) == ("refused", "jamba"), each


def test_a_family_whose_implementation_refuses_a_window_says_so() -> None:
    each = found("mistral", own(backend_named("sdpa_document_mask"), "cpu"))
    assert each is not None
    assert each.state == "refused"
    assert "this model's layers see 4 tokens" in each.message


def other_windows(patch: pytest.MonkeyPatch, change: Callable[[int], int]) -> None:
    """Let transformers make its masks of other windows than it is asked for."""
    from transformers import masking_utils

    right = masking_utils.sliding_window_overlay
    patch.setattr(masking_utils, "sliding_window_overlay", lambda window: right(change(window)))


@pytest.mark.parametrize("implementation", [EAGER, SDPA], ids=lambda each: each.name)
@pytest.mark.parametrize("name", ["mistral", "cohere2", "qwen2"])
@pytest.mark.parametrize("change", [lambda w: 10**6, lambda w: w + 1, lambda w: 2 * w], ids=["none", "one", "twice"])
def test_a_window_that_is_left_out_or_too_long_is_found(
    name: str, implementation: Implementation, change: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    other_windows(monkeypatch, change)
    each = found(name, implementation)
    assert each is not None
    assert (each.state, each.mixed > 0.01) == ("wrong", True), each


@pytest.mark.parametrize("layer", [0, 1])
def test_one_layer_that_sees_everything_is_found(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_but_one(config: Any) -> bool:
        if not windowed(config):
            return False
        config.layer_types[layer] = "full_attention"
        return True

    monkeypatch.setattr(windows, "windowed", all_but_one)
    each = found("cohere2")
    assert each is not None
    assert each.state == "wrong", each


def test_a_first_token_that_moves_nothing_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "logits_of", lambda model, batch: [torch.ones(20, 3, dtype=torch.float64)])
    each = found("mistral")
    assert each is not None
    assert (each.state, each.message) == ("wrong", "the first token moves none of those beside it")


@pytest.mark.parametrize(("kind", "wanted"), [("decoder", 3 * (WINDOW - 1)), ("encoder", 3 * WINDOW)])
def test_the_reach_of_a_token_grows_with_the_layers(kind: Any, wanted: int) -> None:
    assert reach(Family("one", "One", kind), SimpleNamespace(num_hidden_layers=3)) == wanted


@pytest.mark.parametrize("past", [True, False])
def test_the_last_token_in_reach_may_move_and_the_next_may_not(past: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two layers of Mistral, which reach 6 tokens on."""
    far, calls = 2 * (WINDOW - 1), iter([0.0, 1.0])

    def logits(model: Any, batch: Any) -> list[Tensor]:
        made = torch.ones(batch.places[0][1].stop, 3, dtype=torch.float64)
        made[: far + 1 + past] += next(calls)
        return [made]

    monkeypatch.setattr(windows, "logits_of", logits)
    each = found("mistral")
    assert each is not None
    assert each.state == ("wrong" if past else "right")


def test_a_window_is_in_use_in_every_layer() -> None:
    for name in ("mistral", "cohere2", "qwen2", "llama4_text"):
        config = build_config(family_named(name), "eager")
        assert windowed(config)
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
        assert kinds in ({"sliding_attention"}, {"chunked_attention"})
        assert WINDOW in (getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None))


def test_every_ignored_window_is_of_a_family() -> None:
    assert {each.family for each in IGNORED_WINDOWS} <= {family.name for family in all_families()}
