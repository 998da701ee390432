"""What cells are compared with is what it says: in float64 from end to end, alone, complete, and rounded by no more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from collators import COLLATORS, Collator, Example, collator_named
from model.attention import REFERENCE, Backend, backend_named, default_device
from model.attention.oracle import RESULTS, oracle
from model.cells import Cell
from model.decoder import Decoder, DecoderConfig
from model.equivalence import differences
from model.reference import Outcome, outcome, reference_case, solo_oracle, with_backend
from model.tolerance import Mismatch
from tests.correctness.attention_bench import (
    GARBAGE,
    AttentionBench,
    AttentionInput,
    AttentionRun,
    batch_of,
    expected_of,
    pieces_of,
    truth_of,
)
from tests.correctness.drawn import CONFIG, DRAWN, REPRESENTATIVES
from tests.correctness.references import (
    ROUNDINGS,
    Precision,
    References,
    against,
    decoder,
    moved_outcome,
    nudged,
    weight_dtype,
)
from tests.correctness.slots import real_slots
from tests.correctness.workbench import Workbench, open_workbench
from tests.correctness.wrong import Wrong

pytestmark = pytest.mark.unit

DEVICE = default_device()
SIZES = DecoderConfig(vocab_size=13, max_length=8, num_layers=2, num_heads=2, head_dim=8)
LENGTHS = (2, 4, 1, 3)

every_mask = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:]
)


def sequences(lengths: Sequence[int] = LENGTHS) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(1, SIZES.vocab_size, (2, length), generator=generator) for length in lengths]
    return [Example(ids, targets) for ids, targets in drawn]


def cell_of(dtype: torch.dtype, *, causal: bool = True, backend: str = "sdpa_padded") -> Cell:
    layout = backend_named(backend).layout
    collator = collator_named("pad_longest" if layout == "padded" else layout)
    return Cell(backend_named(backend), collator, "train", causal, dtype, "eager", DRAWN, DRAWN)


def opened(dtype: torch.dtype, **options: Any) -> Any:
    """Open the workbench of a small decoder, with references of its own."""
    return open_workbench(cell_of(dtype, **options), SIZES, References())


@dataclass
class Seen:
    """What the modules of a model returned, and what autocast did meanwhile."""

    dtypes: set[torch.dtype]
    autocast: set[bool]
    calls: int = 0


@pytest.fixture
def watched() -> Iterator[Any]:
    """Give a function that watches every module of a model until the test is over."""
    handles: list[Any] = []

    def watch(model: nn.Module) -> Seen:
        seen = Seen(set(), set())

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            found = output if isinstance(output, tuple) else (output,)
            seen.dtypes |= {tensor.dtype for tensor in found if isinstance(tensor, Tensor)}
            seen.autocast.add(torch.is_autocast_enabled(DEVICE))
            seen.calls += 1

        handles.extend(module.register_forward_hook(note) for module in model.modules())
        return seen

    yield watch
    for handle in handles:
        handle.remove()


def tensors_of(found: Outcome) -> dict[str, Tensor]:
    logits = {f"logits of sequence {index}": piece for index, piece in enumerate(found.logits)}
    return {**logits, "loss": found.loss, **found.gradients}


@every_dtype
@every_mask
@pytest.mark.parametrize("of", [Workbench.truth_of, Workbench.oracle_of], ids=["padded", "alone"])
def test_the_truth_is_float64_from_end_to_end(
    dtype: torch.dtype, causal: bool, of: Any, watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, what every module returns, what attention is given, logits, loss and gradients; nothing is autocast."""
    attended: set[torch.dtype] = set()
    right = REFERENCE.attend

    def attend(q: Tensor, k: Tensor, v: Tensor, context: Any, **options: Any) -> Tensor:
        out = right(q, k, v, context, **options)
        attended.update(tensor.dtype for tensor in (q, k, v, out))
        return out

    monkeypatch.setitem(vars(REFERENCE), "attend", attend)
    with opened(dtype, causal=causal) as bench:
        model = bench.reference_model("truth")
        seen = watched(model)
        found = of(bench, sequences())
        weights = dict(bench.model.named_parameters())
    assert seen.calls > SIZES.num_layers, "another model computed it"
    assert seen.dtypes == attended == {torch.float64}
    assert seen.autocast == {False}
    assert {tensor.dtype for tensor in tensors_of(found).values()} == {torch.float64}
    assert found.gradients.keys() == weights.keys()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weights[name].double()), f"{name} is not the cell's"


@every_dtype
def test_the_reference_of_a_dtype_has_the_weights_of_its_cell_and_rounds_as_its_cell(
    dtype: torch.dtype, watched: Any
) -> None:
    """In fewer bits it would excuse cells that are computed in as few."""
    with opened(dtype) as bench:
        own, cells = bench.reference_model("own"), watched(bench.model)
        seen = watched(own)
        bench.reference_of(sequences(), "own")
        bench.outcome(sequences())
        for name, weight in own.named_parameters():
            assert weight.dtype == weight_dtype(dtype)
            assert torch.equal(weight, dict(bench.model.named_parameters())[name])
    assert seen.calls == cells.calls > 0
    assert (seen.dtypes, seen.autocast) == (cells.dtypes, cells.autocast)


@pytest.mark.parametrize("of", [Workbench.truth_of, Workbench.oracle_of], ids=["padded", "alone"])
def test_the_truth_of_a_cell_is_not_what_the_cell_computes(of: Any) -> None:
    """A cell of the reference's own backend and float32 is still compared with something else."""
    with opened(torch.float32, backend=REFERENCE.name) as bench:
        truth, cell = (tensors_of(found) for found in (of(bench, sequences()), bench.outcome(sequences())))
    same = [name for name, tensor in truth.items() if torch.equal(tensor.float(), cell[name])]
    assert len(same) < len(truth) / 2, f"the cell is compared with itself: {same}"
    assert all((truth[name] - cell[name]).norm() <= 1e-4 * (1 + truth[name].norm()) for name in truth)


@every_mask
def test_each_sequence_of_the_oracle_is_alone_without_padding_or_mask(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, Any, bool]] = []

    def prepare(batch: Any, case: Any) -> Any:
        raise AssertionError("the oracle is prepared as the reference is")

    def attend(q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        asked.append((q.shape[0], q.shape[1], context.mask, context.is_causal))
        return REFERENCE.attend(q, k, v, context)

    monkeypatch.setitem(vars(REFERENCE), "prepare", prepare)
    case = reference_case(cell_of(torch.float64, causal=causal).case(DEVICE, SIZES), torch.float64)
    model = with_backend(decoder(SIZES, REFERENCE), replace(REFERENCE, attend=attend), torch.float64)
    found = solo_oracle(model, sequences(), case)
    assert asked == [(1, length, None, causal) for length in LENGTHS for _ in range(SIZES.num_layers)]
    assert [len(logits) for logits in found.logits] == list(LENGTHS)


class Unused(Decoder):
    """A decoder with a parameter that nothing reads."""

    def __init__(self, config: DecoderConfig, attend: Any) -> None:
        super().__init__(config, attend)
        self.unused = nn.Parameter(torch.ones(3))


class Detached(Decoder):
    """A decoder whose embedding no gradient reaches."""

    def __init__(self, config: DecoderConfig, attend: Any) -> None:
        super().__init__(config, attend)
        self.tokens.register_forward_hook(lambda module, inputs, output: output.detach())


class Frozen(Decoder):
    """A decoder with a parameter that is not trained."""

    def __init__(self, config: DecoderConfig, attend: Any) -> None:
        super().__init__(config, attend)
        self.head.bias.requires_grad_(False)


def outcome_of(model: Decoder) -> Outcome:
    with opened(torch.float32, backend=REFERENCE.name) as bench:
        return outcome(model, REFERENCE, bench.batch(sequences()), bench.case)


@pytest.mark.parametrize("kind", [Unused, Detached, Frozen])
def test_a_parameter_that_gets_no_gradient_is_an_error_and_not_left_out(kind: type[Decoder]) -> None:
    """What is left out of an outcome is compared with nothing."""
    with torch.device(DEVICE), pytest.raises(RuntimeError, match=r"not require grad|not have been used"):
        outcome_of(kind(SIZES, REFERENCE.attend))


def test_an_outcome_has_a_gradient_of_every_parameter() -> None:
    model = decoder(SIZES, REFERENCE)
    found = outcome_of(model)
    assert {name: tensor.shape for name, tensor in found.gradients.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["sdpa_padded", "sdpa_document_mask"])
def test_a_workbench_is_red_for_every_tensor_of_an_outcome_by_its_name(dtype: torch.dtype, backend: str) -> None:
    """The whole way that a cell goes: each tensor in turn twice as large, all others right."""
    batch = sequences()
    with opened(dtype, backend=backend) as bench:
        right = bench.outcome(batch)
        bench.assert_right(right, batch)
        for name in tensors_of(right):
            wrong = doubled(right, name)
            with pytest.raises(Wrong) as caught:
                bench.assert_right(wrong, batch)
            (found,) = caught.value.found
            assert found.name.startswith(name) or found.name == f"gradient of {name}"


def doubled(right: Outcome, name: str) -> Outcome:
    return Outcome(
        [piece * (1 + (name == f"logits of sequence {index}")) for index, piece in enumerate(right.logits)],
        right.loss * (1 + (name == "loss")),
        {key: tensor * (1 + (name == key)) for key, tensor in right.gradients.items()},
    )


def test_a_step_is_compared_in_every_parameter_of_either_side() -> None:
    """One that only the reference has, one that only the cell has, and one whose gradient is None."""
    right = outcome_of(decoder(SIZES, REFERENCE))
    fewer = {name: tensor for name, tensor in right.gradients.items() if name != "head.bias"}
    without: dict[str, Any] = {**right.gradients, "head.bias": None}
    sides = [(right.gradients, fewer), (fewer, right.gradients), (without, right.gradients)]
    for actual, truth in sides:
        reference = replace(right, gradients=truth)
        with pytest.raises((ValueError, AttributeError)):
            differences(
                replace(right, gradients=actual),
                reference,
                [reference],
                dtype=torch.float32,
                error_factor=2,
                config=SIZES,
            )


def test_a_batch_is_compared_with_more_roundings_of_the_reference_where_one_is_exact_by_luck() -> None:
    """By hand: the first rounding is off by 0, the others by 1, 2 and 3."""
    asked: list[tuple[str, int]] = []

    def reference(precision: Precision, number: int) -> float:
        asked.append((precision, number))
        return 10.0 * number + (number if precision == "own" else 0.0)

    def compare(truth: float, known: list[float], off: float) -> list[Mismatch]:
        bound = max(abs(each - truth) for each in known)
        return [] if off <= bound else [Mismatch("value", None, off, bound)]

    def found(off: float) -> list[Mismatch]:
        asked.clear()
        return against(reference, lambda truth, own, wanted: truth + own - wanted, lambda t, k: compare(t, k, off))

    assert found(0.0) == []
    assert asked == [("truth", 0), ("own", 0)]
    assert found(2.0) == []
    assert {number for _, number in asked} == {0, 1, 2}
    assert found(3.5) == [Mismatch("value", None, 3.5, 3.0)]
    assert {number for _, number in asked} == set(range(ROUNDINGS)) == {0, 1, 2, 3}


def test_another_rounding_is_as_far_off_as_it_is_from_the_truth_of_its_own_weights() -> None:
    """By hand: what moving the weights does to the truth, 100 here, is no rounding and widens no bound."""

    def of(value: float) -> Outcome:
        one = torch.tensor([value], dtype=torch.float64)
        return Outcome([one, one + 1], one[0] + 2, {"weight": one + 3})

    moved = moved_outcome(of(5.0), of(100.25), of(100.0))
    assert [tensor.item() for tensor in tensors_of(moved).values()] == [5.25, 6.25, 7.25, 8.25]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_nudged_decoder_has_weights_that_differ_by_half_a_unit_in_the_last_place(dtype: torch.dtype) -> None:
    config = CONFIG[DEVICE]
    own = decoder(config, REFERENCE, weight_dtype(dtype))
    moved = [nudged(own, dtype, seed) for seed in (1, 1, 2)]
    half = torch.finfo(dtype).eps / 2
    for name, weight in own.named_parameters():
        first, again, other = (dict(each.named_parameters())[name] for each in moved)
        assert torch.equal(first, again)
        change = (first.double() - weight.double()).detach().abs() / weight.detach().double().abs().clamp_min(1e-300)
        # Weights are rounded to their own dtype after the move.
        assert float(change.max()) <= half + torch.finfo(weight.dtype).eps / 2
        if weight.dtype != dtype:
            assert half / 2 < float(change.max())
            assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_other_roundings_are_of_weights_that_references_nudge_once_each(dtype: torch.dtype) -> None:
    references = References()
    models = [references.reference(SIZES, dtype, number) for number in range(ROUNDINGS)]
    assert [references.reference(SIZES, dtype, number) for number in range(ROUNDINGS)] == models
    half = torch.finfo(dtype).eps / 2 + torch.finfo(torch.float32).eps / 2
    for number, model in enumerate(models):
        truth = references.truth(SIZES, dtype, number)
        for (name, weight), wide, own in zip(
            model.named_parameters(), truth.parameters(), models[0].parameters(), strict=True
        ):
            assert torch.equal(weight.double(), wide), name
            assert bool(((weight - own).abs() <= half * own.abs()).all()), name
    assert len({model.head.weight.detach().numpy(force=True).tobytes() for model in models}) == ROUNDINGS


def test_what_is_kept_of_a_batch_is_of_its_tokens_its_targets_and_their_order() -> None:
    examples = sequences()
    first, *others = examples
    changed = first.input_ids % (SIZES.vocab_size - 1) + 1
    with opened(torch.float32) as bench:
        kept = bench.truth_of(examples)
        assert bench.truth_of([replace(first, targets=first.targets.clone()), *others]) is kept
        for batch in (
            [Example(changed, first.targets), *others],
            [Example(first.input_ids, changed), *others],
            examples[::-1],
            others,
        ):
            assert bench.truth_of(batch) is not kept


GIVEN = AttentionInput((3, 1, 3, 5), num_heads=4, num_kv_heads=2, head_dim=8, sharpness=2.0)


@every_dtype
@every_mask
def test_the_truth_of_attention_is_that_of_each_sequence_alone(dtype: torch.dtype, causal: bool) -> None:
    """Sequences of one length are computed together, and a cell's dtype has no part in it."""
    found = truth_of(GIVEN, dtype, causal=causal, rounds=())
    pieces = pieces_of(GIVEN, dtype)
    alone = [
        oracle(*each, causal=causal, scale=GIVEN.scale)
        for each in zip(pieces.q, pieces.k, pieces.v, pieces.gradient, strict=True)
    ]
    expected = expected_of(GIVEN, dtype, causal)
    for name in RESULTS:
        wanted = torch.cat([each.values[name] for each in alone])
        noise = torch.cat([each.noise[name] for each in alone])
        for truth in (found, expected.truth):
            assert truth.values[name].dtype == truth.noise[name].dtype == torch.float64
            torch.testing.assert_close(truth.values[name], wanted, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(truth.noise[name], noise, rtol=1e-12, atol=1e-12)
        assert expected.reference[name].dtype == dtype


@pytest.mark.parametrize("collator", COLLATORS, ids=lambda collator: collator.name)
def test_attention_of_any_collator_is_given_little_padding(collator: Collator) -> None:
    """One that pads to a maximum too: a run that names it would not end, as scores of padding are computed."""
    batch = batch_of(collator, GIVEN.lengths)
    assert batch.num_slots <= 8 * len(GIVEN.lengths)
    assert batch.lengths == GIVEN.lengths


@pytest.mark.parametrize(
    "collator", [collator_named(name) for name in REPRESENTATIVES["padding"]], ids=lambda collator: collator.name
)
def test_slots_of_no_sequence_hold_large_numbers_and_give_no_gradient(collator: Collator) -> None:
    """Zeros would hide that they are seen: what a model leaves there is arbitrary."""
    backend = next(each for each in (REFERENCE, backend_named("sdpa_document_mask")) if each.layout == collator.layout)
    run = AttentionRun.of(backend, collator, GIVEN, torch.float32, causal=False, mode="train")
    padding = ~real_slots(run.batch).view(run.inputs[0].shape[:2])
    for tensor in run.inputs:
        held = tensor[padding].abs()
        assert held.max() <= GARBAGE
        assert held.mean() > GARBAGE / 4
    assert run.gradient[padding].count_nonzero() == 0
    assert len({tuple(tensor[padding].flatten().tolist()) for tensor in run.inputs}) == 3


@pytest.mark.parametrize("copy", range(3))
def test_every_copy_of_a_batch_is_compared(copy: int) -> None:
    cell = cell_of(torch.float32, backend="sdpa_document_mask")
    given, tokens = AttentionInput((3, 3)), 6

    def attend(q: Tensor, k: Tensor, v: Tensor, context: Any, **options: Any) -> Tensor:
        grown = torch.ones(q.shape[1])
        grown[copy * tokens : (copy + 1) * tokens] = 1.1
        return cell.backend.attend(q, k, v, context, **options) * grown[:, None, None].to(q)

    AttentionBench(cell).check_copies(given, 3)
    with pytest.raises(Wrong, match=f"copy {copy} differs from each sequence alone"):
        AttentionBench(replace(cell, backend=replace(cell.backend, attend=attend))).check_copies(given, 3)


def scaled_gradient(tensor: Tensor, by: float) -> Tensor:
    """Return `tensor`, whose gradient is `by` times what it was."""
    return tensor.detach() + by * (tensor - tensor.detach())


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_attention_is_red_for_every_result_by_its_name(dtype: torch.dtype, name: str) -> None:
    """The whole way that a cell goes: one result 10 percent too large, the others right."""
    backend = backend_named("sdpa_document_mask")

    def attend(q: Tensor, k: Tensor, v: Tensor, context: Any, **options: Any) -> Tensor:
        inputs = [scaled_gradient(t, 1.1 if name == d else 1) for t, d in ((q, "dq"), (k, "dk"), (v, "dv"))]
        out = backend.attend(*inputs, context, **options)
        return out + 0.1 * out.detach() if name == "out" else out

    cell = cell_of(dtype, backend=backend.name)
    AttentionBench(cell).check(GIVEN)
    wrong = replace(cell, backend=replace(backend, attend=attend))
    with pytest.raises(Wrong) as caught:
        AttentionBench(wrong).check(GIVEN)
    assert {found.name.split(" of ")[0] for found in caught.value.found} == {name}


def test_a_batch_that_a_backend_says_it_refuses_must_be_refused() -> None:
    cell = cell_of(torch.float32)
    record: Backend = replace(cell.backend, min_keys=9)
    with pytest.raises(
        AssertionError, match=r"must refuse this batch by its batch_reasons, but takes it: lengths \(3, 1, 3, 5\)"
    ):
        AttentionBench(replace(cell, backend=Lenient(**vars(record)))).check(GIVEN)
    with (
        open_workbench(replace(cell, backend=Lenient(**vars(record))), SIZES) as bench,
        pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"),
    ):
        bench.check(sequences())


@dataclass(frozen=True)
class Lenient(Backend):
    """A backend that takes the batches that it says it refuses."""

    def prepared(self, batch: Any, case: Any) -> Any:
        return self.prepare(batch, case)
