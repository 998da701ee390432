"""A batch gives the same compiled, and batches of other lengths are not compiled again."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from torch._dynamo.utils import counters

from collators import Example
from model.attention import default_device
from model.cells import Cell
from model.decoder import DecoderConfig
from tests.correctness.attention_bench import AttentionBench, AttentionInput, Form
from tests.correctness.drawn import CONFIG
from tests.correctness.workbench import Workbench
from tests.strategies import FORMS, examples

pytestmark = pytest.mark.correctness

#: Sizes of 0 and 1, equal sizes and multiples of a tile may each have a graph of their own: all are met once.
WARM_UP: tuple[Sequence[int], ...] = (
    (130, 9, 31),
    (1,),
    (1, 1),
    (17,),
    (64, 64),
    (2, 3),
    (3, 3, 3),
    (128,),
    (8, 16, 40),
    (5, 1, 77),
)

RAGGED_BATCHES = 30


def sequences(lengths: Sequence[int], config: DecoderConfig, generator: torch.Generator) -> list[Example]:
    """Return sequences of these lengths, without the pad id, every target supervised."""

    def tokens(length: int) -> torch.Tensor:
        return (torch.randint(1, config.vocab_size, (length,), generator=generator) + config.pad_id) % config.vocab_size

    return [Example(tokens(length), tokens(length)) for length in lengths]


def ragged(config: DecoderConfig, generator: torch.Generator) -> list[int]:
    """Return lengths of 2 to 8 sequences."""
    count = int(torch.randint(2, 9, (), generator=generator))
    return torch.randint(1, config.max_length + 1, (count,), generator=generator).tolist()


@pytest.mark.cells(execution=("compiled",))
@given(batch=examples(CONFIG[default_device()]))
def test_a_compiled_batch_equals_the_padded_reference(workbench: Workbench, batch: list[Example]) -> None:
    workbench.check(batch)


def has_dense_inputs(cell: Cell) -> bool:
    """Tell whether the inputs of attention are dense: a compiled block makes NestedTensors inside."""
    return cell.collator.layout != "nested"


@pytest.mark.cells(execution=("compiled",), where=has_dense_inputs)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "expanded"])
def test_compiled_attention_takes_inputs_of_any_strides(attention: AttentionBench, form: Form) -> None:
    """Those of the decoder are slices of one product, whatever the batch."""
    attention.check(AttentionInput((3, 65, 1), form=form))


@pytest.mark.cells(execution=("compiled",), where=has_dense_inputs)
def test_compiled_attention_is_compiled(attention: AttentionBench) -> None:
    """What the tests beside this one rely on: eager, they would show nothing."""
    before = counters["stats"]["unique_graphs"]
    # Alone in a graph of its own: nothing else here has heads of this size.
    attention.check(AttentionInput((3, 2), head_dim=32))
    assert counters["stats"]["unique_graphs"] > before


@pytest.mark.cells(execution=("compiled",), where=has_dense_inputs)
def test_compiled_attention_may_share_keys_and_values_between_heads(attention: AttentionBench) -> None:
    attention.check(AttentionInput((3, 65, 1), form="expanded"))


@pytest.mark.cells(execution=("compiled",), where=has_dense_inputs)
def test_compiled_attention_takes_grouped_heads_and_a_scale_of_its_own(attention: AttentionBench) -> None:
    attention.check(AttentionInput((3, 64, 1), num_heads=4, num_kv_heads=2, sharpness=2.0))


@pytest.mark.cells(execution=("compiled",), where=has_dense_inputs)
def test_compiled_attention_honours_the_window_cap_and_sinks_that_its_backend_declares(
    attention: AttentionBench,
) -> None:
    attention.check(AttentionInput((3, 130, 1), window=4, softcap=1.5, sinks=True))


@pytest.mark.cells(execution=("compiled",))
def test_ragged_batches_after_a_warm_up_are_not_compiled_again(
    workbench: Workbench, record_property: Callable[[str, object], None]
) -> None:
    """The counts are in the report: of a run, and of a JUnit file as properties of the test."""
    compiler, config = workbench.compiler, workbench.config
    assert compiler is not None
    generator = torch.Generator().manual_seed(0)

    def run(lengths: Sequence[int]) -> None:
        batch = workbench.batch(sequences(lengths, config, generator))
        if not workbench.refuses(batch):
            workbench.outcome_of(batch)

    def compiled() -> tuple[int, int]:
        return compiler.compilations, compiler.kernels

    for lengths in WARM_UP:
        run(lengths)
    warm = compiled()
    again = []
    for _ in range(RAGGED_BATCHES):
        lengths = ragged(config, generator)
        before = compiled()
        run(lengths)
        if compiled() != before:
            again.append(lengths)
    record_property("compilations", compiler.compilations)
    record_property("graph_breaks", compiler.graph_breaks)
    assert min(warm) > 0, "nothing was compiled"
    assert not again, (
        f"compiled again, after {warm[0]} graphs and {warm[1]} kernels in the warm-up, for lengths {again}"
    )
    assert not compiler.graph_breaks
