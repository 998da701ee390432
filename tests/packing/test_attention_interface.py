"""A flattened row in transformers, attended by a backend of this project, equals each of its sequences alone."""

import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from model.attention import BACKENDS, Backend, backend_named, this_machine
from model.attention.case import Case
from model.huggingface.attention import PREFIX, attending, registered
from model.huggingface.gpt2 import REQUIRES
from model.huggingface.segments import segments_between
from tests.packing.tiny_models import (
    LENGTHS,
    alone,
    computed,
    differing,
    flattened,
    gpt2,
    llama,
    mistral,
    sequences,
)

pytestmark = pytest.mark.packing

Make = Callable[..., nn.Module]

PACKED = [backend for backend in BACKENDS if backend.layout == "packed"]


def runs_here(backend: Backend, dtype: torch.dtype, mode: Any) -> bool:
    case = Case("cpu", "packed", None, mode, True, dtype, "eager", 4, 2, 16)
    return not backend.unsupported_reasons(case)


#: GPT-2 makes its own mask in releases that the timed one does not take either.
MODELS = [llama] if REQUIRES.reasons(this_machine()) else [gpt2, llama]

TRAINING = [backend for backend in PACKED if runs_here(backend, torch.float64, "train")]
EVALUATING = [backend for backend in PACKED if runs_here(backend, torch.float32, "eval")]

#: What the collator may give, and what people give besides; none of it may change a result.
GIVEN: dict[str, tuple[dict[str, bool], dict[str, Any]]] = {
    "positions": ({}, {}),
    "flash_attn_kwargs": ({"return_flash_attn_kwargs": True}, {}),
    "seq_idx": ({"return_seq_idx": True}, {}),
    "without_cache": ({}, {"use_cache": False}),
    "redundant_mask": ({}, {"attention_mask": torch.ones(1, sum(LENGTHS), dtype=torch.long)}),
    "everything": (
        {"return_flash_attn_kwargs": True, "return_seq_idx": True},
        {"attention_mask": torch.ones(1, sum(LENGTHS), dtype=torch.bool), "use_cache": True},
    ),
}


def named(backend: Backend) -> str:
    return backend.name


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    made: nn.Module = request.param(attn_implementation="eager")
    return made


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("backend", TRAINING, ids=named)
def test_a_flattened_row_equals_each_sequence_alone(model: nn.Module, backend: Backend, given: str) -> None:
    options, more = GIVEN[given]
    ids = sequences()
    expected = alone(model, ids)
    with attending(model, backend):
        found = computed(model, flattened(ids, **options) | more)
    assert differing(found, expected) == []


@pytest.mark.parametrize("backend", EVALUATING, ids=named)
@pytest.mark.parametrize("make", MODELS)
def test_an_evaluated_row_equals_each_sequence_alone(make: Make, backend: Backend) -> None:
    made, ids = make(torch.float32, attn_implementation="eager"), sequences()
    expected = alone(made, ids, backward=False)
    with attending(made, backend):
        found = computed(made, flattened(ids), backward=False)
    assert differing(found, expected) == []


@pytest.mark.parametrize("given", GIVEN)
def test_a_name_alone_is_enough_where_layers_are_told_the_segments(given: str) -> None:
    options, more = GIVEN[given]
    ids = sequences()
    expected = alone(llama(attn_implementation="eager"), ids)
    with registered(backend_named("sdpa_loop")) as name:
        found = computed(llama(attn_implementation=name), flattened(ids, **options) | more)
    assert differing(found, expected) == []


def test_layers_that_are_not_told_the_segments_refuse_a_name_alone() -> None:
    ids = {name: value for name, value in flattened(sequences()).items() if name != "position_ids"}
    with registered(backend_named("sdpa_loop")) as name:
        made = llama(attn_implementation=name)
        for layer in made.model.layers:
            layer.register_forward_pre_hook(without_positions, with_kwargs=True)
        with pytest.raises(
            ValueError, match=rf"^{name} does not know the segments, .* run it inside attending\(model, "
        ):
            computed(made, ids)


def without_positions(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value for name, value in kwargs.items() if name != "position_ids"}


def test_full_attention_stays_within_its_sequence() -> None:
    made, ids = llama(attn_implementation="eager", is_causal=False), sequences()
    expected = alone(made, ids)
    with attending(made, backend_named("sdpa_loop")):
        assert differing(computed(made, flattened(ids)), expected) == []


def test_one_sequence_is_a_row_of_one_segment(model: nn.Module) -> None:
    ids = sequences((7,))
    expected = alone(model, ids)
    with attending(model, backend_named("sdpa_loop")):
        found = computed(model, {"input_ids": ids[0][None], "labels": ids[0][None]})
    assert differing(found, expected) == []


def test_a_row_may_be_given_as_embeddings() -> None:
    """(1, T, C) in the place of (1, T), where layers are told nothing else."""
    made, ids = llama(attn_implementation="eager"), sequences((7,))
    for layer in made.model.layers:
        layer.register_forward_pre_hook(without_positions, with_kwargs=True)
    embeddings = made.get_input_embeddings()(ids[0][None]).detach()
    expected = alone(made, ids, backward=False)
    with attending(made, backend_named("sdpa_loop")):
        found = computed(made, {"inputs_embeds": embeddings, "labels": ids[0][None]}, backward=False)
    assert differing(found, expected) == []


def test_positions_that_are_given_by_place_tell_the_segments(model: nn.Module) -> None:
    ids = sequences()
    expected = alone(model, ids)
    given = flattened(ids)
    names = list(inspect.signature(model.forward).parameters)
    placed = [given.pop(name, None) for name in names[: names.index("position_ids") + 1]]
    with attending(model, backend_named("sdpa_loop")):
        found = computed(model, given, *placed)
    assert differing(found, expected) == []


@pytest.mark.parametrize("given", ["positions", "flash_attn_kwargs", "seq_idx", "nothing"])
def test_what_is_made_of_a_row_lies_where_the_row_does(model: nn.Module, given: str) -> None:
    """What is not told its device has no numbers here; on a GPU it would lie on the CPU."""
    if given == "nothing":
        ids = sequences((7,))
        row = {"input_ids": ids[0][None], "labels": ids[0][None]}
    else:
        ids = sequences()
        row = flattened(ids, **GIVEN[given][0])
    expected = alone(model, ids)
    with attending(model, backend_named("sdpa_document_mask")), torch.device("meta"):
        found = computed(model, row)
    assert differing(found, expected) == []


def test_a_sequence_does_not_see_another(model: nn.Module) -> None:
    ids = sequences()
    changed = [ids[0], *sequences(LENGTHS[1:], seed=1)]
    with attending(model, backend_named("sdpa_document_mask")):
        before, after = (computed(model, flattened(row), backward=False)["logits"] for row in (ids, changed))
    assert torch.equal(before[: LENGTHS[0]], after[: LENGTHS[0]])
    assert not torch.equal(before, after)


def test_attention_registered_without_its_mask_leaks_and_is_seen_to(model: nn.Module) -> None:
    """What one gets who registers transformers' own attention under a name of one's own, and no mask."""
    ids = sequences()
    expected = alone(model, ids)
    AttentionInterface.register("injected", AttentionInterface._global_mapping["sdpa"])
    try:
        model.config._attn_implementation = "injected"
        found = computed(model, flattened(ids) | {"use_cache": False})
    finally:
        model.config._attn_implementation = "eager"
        AttentionInterface._global_mapping.pop("injected")
    assert {"logits", "loss"} <= set(differing(found, expected))


def test_layers_without_the_mask_of_the_backend_refuse(model: nn.Module) -> None:
    with attending(model, backend_named("sdpa_loop")) as name:
        AttentionMaskInterface._global_mapping.pop(name)
        with pytest.raises(ValueError, match=r"needs the mask of its own mask function; .*Attention got none"):
            computed(model, flattened(sequences()))


def moved(segments: Any, case: Case) -> Any:
    """Context of a row whose first two segments are taken for one."""
    offsets = segments.cu_seqlens
    joined = segments_between(torch.cat([offsets[:1], offsets[2:]]), segments.num_slots)
    return backend_named("sdpa_loop").prepare(joined, case)


def test_segments_that_are_off_by_one_are_seen(model: nn.Module) -> None:
    ids = sequences()
    expected = alone(model, ids)
    with attending(model, replace(backend_named("sdpa_loop"), prepare=moved)):
        found = computed(model, flattened(ids))
    assert "logits" in differing(found, expected)


def test_nothing_is_left_when_a_backend_is_done_with(model: nn.Module) -> None:
    mappings = (AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping)
    before = [dict(mapping) for mapping in mappings]
    hooks = len(model._forward_pre_hooks), len(model._forward_hooks)
    # It stops in the middle: no labels are no loss.
    with pytest.raises(AttributeError), attending(model, backend_named("sdpa_loop")):
        computed(model, {"input_ids": sequences((3,))[0][None]})
    assert [dict(mapping) for mapping in mappings] == before
    assert model.config._attn_implementation == "eager"
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == hooks


def test_a_backend_registered_twice_is_there_until_the_first_ends() -> None:
    backend = backend_named("sdpa_loop")
    with registered(backend) as name:
        first = AttentionInterface._global_mapping[name]
        with registered(backend):
            assert AttentionInterface._global_mapping[name] != first
        assert AttentionInterface._global_mapping[name] == first
    assert name not in AttentionInterface._global_mapping


@pytest.mark.parametrize("backend", PACKED, ids=named)
def test_transformers_takes_no_name_for_its_own_flash_attention(backend: Backend) -> None:
    with registered(backend) as name:
        assert name.startswith(PREFIX)
        assert "flash" not in name


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.layout != "packed"], ids=named)
def test_a_backend_of_another_layout_is_refused(backend: Backend) -> None:
    with (
        pytest.raises(ValueError, match=f"^{backend.name} takes {backend.layout} batches; .*packed"),
        registered(backend),
    ):
        pass


# What backends do not do -------------------------------------------------------------------------


def refusal(made: nn.Module, inputs: dict[str, Any], backend: str = "sdpa_loop") -> str:
    """Return what running `made` says, which is one line of a ValueError."""
    with attending(made, backend_named(backend)) as name, pytest.raises(ValueError) as caught:  # noqa: PT011
        computed(made, inputs)
    text = str(caught.value)
    assert text.startswith(name)
    assert "\n" not in text
    return text


def test_a_sliding_window_shorter_than_a_sequence_is_refused() -> None:
    text = refusal(mistral(), flattened(sequences()))
    assert "this model's layers see 4 tokens" in text
    assert "The longest sequence has 9; cut it to 4." in text


def test_a_sliding_window_that_hides_nothing_is_none() -> None:
    made, ids = mistral(sliding_window=9, attn_implementation="eager"), sequences()
    expected = alone(made, ids)
    with attending(made, backend_named("sdpa_loop")):
        assert differing(computed(made, flattened(ids)), expected) == []


def test_dropout_is_refused_in_training_and_only_there() -> None:
    made, inputs = llama(attention_dropout=0.1), flattened(sequences())
    assert "has no dropout; LlamaAttention asks for 0.1" in refusal(made.train(), inputs)
    with attending(made.eval(), backend_named("sdpa_loop")):
        computed(made, inputs)


def test_padded_rows_are_refused() -> None:
    ids = torch.stack(sequences((6, 6)))
    assert "got a batch of 2 rows" in refusal(llama(), {"input_ids": ids, "labels": ids})
    mask = torch.ones(1, sum(LENGTHS), dtype=torch.long)
    mask[0, -1] = 0
    assert "takes no padding" in refusal(llama(), flattened(sequences()) | {"attention_mask": mask})


def test_steps_from_a_cache_are_refused() -> None:
    made, ids = llama(), sequences((6,))[0][None]
    with attending(made, backend_named("sdpa_loop")) as name:
        cache = made(input_ids=ids).past_key_values
        with pytest.raises(
            ValueError, match=f"^{name} takes whole sequences, not steps from a cache; got 6 .* 12 keys"
        ):
            made(input_ids=ids, past_key_values=cache)


def test_other_needs_of_a_layer_are_refused_by_name() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Gemma2Config(vocab_size=61, head_dim=16, intermediate_size=96, pad_token_id=0, **sizes)
    text = refusal(Gemma2ForCausalLM(config), flattened(sequences()))
    assert "does not support soft-capped scores, which Gemma2Attention needs (softcap)" in text


def test_a_model_that_attends_by_itself_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"vocab_size": 61, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 1, "pad_token_id": 0}
    text = refusal(MambaForCausalLM(MambaConfig(**sizes)), {"input_ids": flattened(sequences())["input_ids"]})
    assert "was not asked for a mask by MambaForCausalLM" in text


@pytest.mark.parametrize(
    "work",
    [
        lambda mask: torch.zeros(1) + mask,
        lambda mask: mask[:, :, :, :2],
        lambda mask: (1.0 - mask) * -1.0,
        lambda mask: mask.to(torch.bool),
        lambda mask: mask.shape[-1],
    ],
    ids=["added", "cut", "inverted", "moved", "measured"],
)
@pytest.mark.parametrize("told", [False, True], ids=["by_name", "attending"])
def test_a_model_that_works_on_the_mask_itself_is_refused(work: Callable[[Any], Any], told: bool) -> None:
    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        work(kwargs["attention_mask"])

    backend = backend_named("sdpa_loop")
    with registered(backend) as name:
        made = llama(attn_implementation=name)
        made.model.layers[0].register_forward_pre_hook(before, with_kwargs=True)
        with (
            attending(made, backend) if told else nullcontext(),
            pytest.raises(ValueError, match=f"^{name} makes no mask, but this model reads or changes the mask itself"),
        ):
            computed(made, flattened(sequences()))


def test_what_a_backend_does_not_do_here_is_refused() -> None:
    text = refusal(llama(torch.float32), flattened(sequences()), "flex_document_mask")
    assert "no backward on the CPU" in text


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"cu_seq_lens_q": torch.tensor([0, 5, 17])}, "must rise from 0 to the 18 tokens of the row; got [0, 5, 17]"),
        ({"cu_seq_lens_q": torch.tensor([0, 9, 5, 18])}, "must rise from 0 to the 18 tokens"),
        ({"position_ids": torch.arange(9).expand(2, 9)}, "position_ids must have the shape of the row, (1, 18)"),
    ],
)
def test_segments_that_do_not_fit_the_row_are_refused(inputs: dict[str, Any], says: str) -> None:
    made = llama()
    row = {"input_ids": flattened(sequences())["input_ids"]}
    with attending(made, backend_named("sdpa_loop")), pytest.raises(ValueError, match=re.escape(says)):
        made(**row, **inputs)
