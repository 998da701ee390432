"""The fast step computes what the plain decoder does; on a CPU its graphs are calls, and its attention a stand-in."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from collators import CollatorOptions, Example, collator_named
from collators.batch import PackedBatch
from model import fast
from model.attention import REFERENCE, Case
from model.decoder import DecoderConfig
from model.equivalence import differences
from model.fast import FAST_BACKENDS, FastDecoder
from model.models import seeded_model
from model.reference import Outcome, padded_reference, reference_case
from model.steps import loss_of
from tests.correctness.drawn import CONFIG, VARIANTS
from tests.unit.stand_ins import Calls, in_flash_attn_4

pytestmark = pytest.mark.unit

SIZES = CONFIG["cpu"]
(BACKEND,) = FAST_BACKENDS


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    in_flash_attn_4(monkeypatch, Calls().counted)
    # The stand-in asks for the longest length itself; a graph is of rows of any.
    monkeypatch.setattr("tests.unit.stand_ins.LONGEST_IS_EXACT", False)
    # So few slots that a batch fills several times as many.
    monkeypatch.setattr(fast, "SLOTS", 32)
    monkeypatch.setattr(fast, "WARM_UP", 1)


@pytest.fixture
def model() -> FastDecoder:
    return seeded_model(SIZES, BACKEND, device="cpu")


def case(mode: str = "train", causal: bool = True, sizes: DecoderConfig = SIZES) -> Case:
    heads = {"num_heads": sizes.num_heads, "num_kv_heads": sizes.kv_heads, "head_dim": sizes.head_dim}
    return Case("cpu", "packed", None, mode, causal, torch.bfloat16, "compiled", **heads)  # type: ignore[arg-type]


def examples(*lengths: int, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, SIZES.vocab_size, (length + 1,), generator=generator) for length in lengths]
    return [Example(row[:-1], row[1:]) for row in rows]


def packed(given: Sequence[Example]) -> PackedBatch:
    batch = collator_named("packed").build(CollatorOptions(SIZES.max_length, SIZES.pad_id))(given)
    assert isinstance(batch, PackedBatch)
    return batch


def stepped(model: nn.Module, given: Sequence[Example], asked: Case) -> Outcome:
    """Return the outcome of a forward and a backward, as a training loop runs them."""
    batch, training = packed(given), asked.mode == "train"
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        context = BACKEND.prepare(batch, asked)
        logits = model(batch, context)
        loss = loss_of(batch, logits)
    gradients: dict[str, Tensor] = {}
    if training:
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    return Outcome([each.detach() for each in batch.split(logits)], loss.detach(), gradients)


def wrong(model: FastDecoder, given: Sequence[Example], asked: Case) -> list[str]:
    """Return what differs from the reference with the model's parameters, in words."""
    found, outcomes = stepped(model, given, asked), []
    for wide, dtype in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16)):
        plain = seeded_model(model.config, REFERENCE, device="cpu", dtype=wide)
        plain.load_state_dict(model.state_dict())
        outcomes.append(padded_reference(plain, given, reference_case(asked, dtype)))
    told = differences(
        found, outcomes[0], [outcomes[1]], dtype=torch.bfloat16, error_factor=BACKEND.error_factor, config=model.config
    )
    return [str(each) for each in told]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batches_of_any_size_are_computed_as_the_reference_does(model: FastDecoder, mode: str, causal: bool) -> None:
    """The second has the size of the first, the third another, the fourth fills its slots to the last but one."""
    for number, lengths in enumerate([(5, 1, 40), (33, 2, 9), (70,), (31,), (32,)]):
        assert not wrong(model, examples(*lengths, seed=number), case(mode, causal)), lengths


@pytest.mark.parametrize("shape", [name for name in VARIANTS if name != "plain"])
def test_a_decoder_of_another_shape_is_computed_as_the_reference_does(shape: str) -> None:
    sizes = VARIANTS[shape]["cpu"]
    assert not wrong(seeded_model(sizes, BACKEND, device="cpu"), examples(5, 1, 40), case(sizes=sizes))


def test_one_model_trains_and_evaluates_causal_or_not_in_turn(model: FastDecoder) -> None:
    """All of it in rows of one size."""
    for mode, causal in (("eval", True), ("train", True), ("train", False), ("eval", False)):
        assert not wrong(model, examples(5, 1, 40), case(mode, causal)), (mode, causal)


def test_what_a_step_returned_is_not_overwritten_by_the_next(model: FastDecoder) -> None:
    found = stepped(model, examples(5, 9), case())
    kept = [each.clone() for each in (*found.logits, *found.gradients.values())]
    stepped(model, examples(6, 8, seed=1), case())
    assert all(map(torch.equal, kept, (*found.logits, *found.gradients.values())))


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {}], ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_step_after_the_optimiser_has_its_parameters(model: FastDecoder, mode: str, options: dict[str, bool]) -> None:
    """A fused optimiser changes parameters without counting their versions."""
    given, optimizer = examples(20, 3), torch.optim.SGD(model.parameters(), lr=10.0, **options)
    for parameter, gradient in zip(model.parameters(), stepped(model, given, case()).gradients.values(), strict=True):
        parameter.grad = gradient
    optimizer.step()
    assert not wrong(model, given, case(mode))


def test_a_step_has_what_was_written_to_the_data_of_parameters(model: FastDecoder) -> None:
    """As weights are averaged: no counter tells of it."""
    given = examples(20, 3)
    stepped(model, given, case("eval"))
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data * 2)
    assert not wrong(model, given, case("eval"))


def test_a_step_has_the_parameters_that_were_loaded(model: FastDecoder) -> None:
    given = examples(20, 3)
    stepped(model, given, case("eval"))
    model.load_state_dict({name: one * 2 for name, one in model.state_dict().items()})
    assert not wrong(model, given, case("eval"))


def test_gradients_of_two_micro_batches_add_up(model: FastDecoder) -> None:
    """They are in one size of row, so in the same memory."""
    apart = [stepped(model, examples(7, 9, seed=seed), case()).gradients for seed in (1, 2)]
    for seed in (1, 2):
        batch = packed(examples(7, 9, seed=seed))
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward_loss(model, batch)
        loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, apart[0][name] + apart[1][name]), name


def forward_loss(model: FastDecoder, batch: PackedBatch) -> Tensor:
    return loss_of(batch, model(batch, BACKEND.prepare(batch, case())))


REFUSED = (
    r"keeps the activations of its last forward, for one backward; got a backward of an earlier forward, or a second"
)


def test_a_backward_that_is_not_of_the_last_forward_is_refused(model: FastDecoder) -> None:
    batch = packed(examples(4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        first, last = (forward_loss(model, batch) for _ in range(2))
    with pytest.raises(RuntimeError, match=REFUSED):
        first.backward()
    last.backward()


def test_a_second_backward_of_a_forward_is_refused(model: FastDecoder) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = forward_loss(model, packed(examples(4, 4)))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=REFUSED):
        loss.backward()


def test_a_sequence_longer_than_the_model_is_refused(model: FastDecoder) -> None:
    batch = packed(examples(4, 4))
    model.config = replace(model.config, max_length=3)
    with (
        pytest.raises(
            ValueError, match=r"sequences of up to max_length=3 tokens; got 4\. Make the decoder with a larger"
        ),
        torch.autocast("cpu", torch.bfloat16),
    ):
        forward_loss(model, batch)


def test_a_window_and_a_soft_cap_are_those_of_the_batch(model: FastDecoder) -> None:
    """Each is a graph of its own."""
    given = packed(examples(30, 9))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = []
        for window, softcap in ((None, None), (3, None), (None, 0.5), (3, 0.5), (None, None)):
            asked = replace(case("eval"), window=window, softcap=softcap)
            context = BACKEND.prepare(given, asked)
            found.append(model(given, context))
            plain = seeded_model(SIZES, REFERENCE, device="cpu").attending(BACKEND.attend)
            plain.load_state_dict(model.state_dict())
            # Other roundings alone: the queries of the plain one are cast from float32 matrices.
            assert torch.allclose(found[-1], plain(given, context), atol=0.03), (window, softcap)
    assert torch.equal(found[0], found[-1])
    assert all(not torch.equal(found[0], other) for other in found[1:-1])


def test_sizes_past_those_that_are_kept_are_recorded_again(model: FastDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "KEPT", 2)
    for lengths in [(5,), (5, 6), (5, 6, 7), (5,), (5, 6)]:
        assert not wrong(model, examples(*lengths), case())
        (running,) = model.running.values()
        assert len(running.graphs.made) <= 2


def test_gradients_are_float32_and_parameters_are_those_of_the_plain_decoder(model: FastDecoder) -> None:
    plain = seeded_model(SIZES, REFERENCE, device="cpu")
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    assert list(model.state_dict()) == list(plain.state_dict())
    found = stepped(model, examples(5), case())
    assert {gradient.dtype for gradient in found.gradients.values()} == {torch.float32}


def test_a_model_that_ran_in_inference_mode_is_trained(model: FastDecoder) -> None:
    given = examples(12, 5)
    batch = packed(given)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(batch, BACKEND.prepare(batch, case("eval")))
    assert not wrong(model, given, case())
    assert not wrong(model, given, case("eval"))


def test_a_copy_of_a_model_that_ran_has_steps_and_parameters_of_its_own(model: FastDecoder) -> None:
    given = examples(12, 5)
    stepped(model, given, case())
    copied = deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    assert not wrong(copied, given, case())
    assert not wrong(model, given, case())


def test_a_step_has_the_parameters_that_were_put_in_place_of_others(model: FastDecoder) -> None:
    given = examples(12, 5)
    stepped(model, given, case("eval"))
    model.load_state_dict({name: one * 2 for name, one in model.state_dict().items()}, assign=True)
    assert not wrong(model, given, case("eval"))
    for parameter in model.parameters():
        parameter.data = parameter.data / 2
    assert not wrong(model, given, case("eval"))


def test_a_step_without_autocast_is_refused(model: FastDecoder) -> None:
    batch = packed(examples(3))
    with pytest.raises(ValueError, match=r"needs 16 bits; got no autocast\. Run it in torch\.autocast, or use Decoder"):
        model(batch, BACKEND.prepare(batch, case()))


def test_tied_parameters_are_refused(model: FastDecoder) -> None:
    model.head.weight = model.tokens.weight
    count = len(list(model.parameters()))
    with pytest.raises(ValueError, match=rf"parameters of their own; got {count} for {count + 1}\. Untie them"):
        stepped(model, examples(3), case())
