"""What is timed: the sequences and batches of a workload follow from its seed, and its rows name the cells."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from collators import collator_named
from collators.batch import PaddedBatch
from collators.lengths import distribution_named
from model.attention import MODES, REFERENCE
from model.cells import all_cells
from model.decoder import Decoder, DecoderConfig
from model.flops import step_flops
from model.workloads import ARTICLE, ARTICLE_MODES, SMOKE, WORKLOADS, Row, Workload, workload_named

pytestmark = pytest.mark.unit

SMALL = replace(
    SMOKE,
    config=replace(SMOKE.config, vocab_size=5, max_length=40, pad_id=2),
    batch_size=3,
    num_batches=4,
    multiple=16,
    seed=7,
)


def test_a_workload_has_its_batches_of_sequences_with_the_lengths_of_its_distribution() -> None:
    batches = SMALL.examples()
    assert [len(batch) for batch in batches] == [3, 3, 3, 3]
    lengths = [len(example.input_ids) for batch in batches for example in batch]
    assert lengths == list(SMALL.lengths.draw(12, 40, 7))


def test_a_workload_supervises_every_token_by_the_one_after_it() -> None:
    for batch in SMALL.examples():
        for example in batch:
            assert len(example.targets) == len(example.input_ids)
            assert torch.equal(example.targets[:-1], example.input_ids[1:])


def test_a_workload_draws_every_id_but_that_of_padding() -> None:
    ids = torch.cat([torch.cat([e.input_ids, e.targets]) for batch in SMALL.examples() for e in batch])
    assert set(ids.tolist()) == {0, 1, 3, 4}


def test_a_workload_is_the_same_each_time_and_another_with_another_seed() -> None:
    def ids(workload: Workload) -> list[list[int]]:
        return [example.input_ids.tolist() for batch in workload.examples() for example in batch]

    assert ids(SMALL) == ids(SMALL)
    assert ids(SMALL) != ids(replace(SMALL, seed=8))


def test_a_workload_makes_its_batches_in_order_with_its_padding_and_multiple() -> None:
    examples = SMALL.examples()
    padded = SMALL.batches(collator_named("pad_multiple"), "cpu", examples)
    assert [batch.lengths for batch in padded] == [tuple(len(e.input_ids) for e in batch) for batch in examples]
    for batch in padded:
        assert isinstance(batch, PaddedBatch)
        assert batch.num_slots // len(batch.lengths) % 16 == 0
        assert (batch.num_tokens == batch.num_slots) or bool((batch.input_ids == 2).any())


def test_a_workload_times_the_cells_of_its_rows_in_its_modes_and_dtype() -> None:
    workload = replace(SMALL, rows=(Row("sdpa_loop", "packed", ("eager",)), Row("sdpa_padded", "pad_left")))
    found = {
        (cell.backend.name, cell.collator.name, cell.execution, cell.mode, cell.causal, cell.dtype)
        for cell in all_cells("smoke", "uniform")
        if workload.has(cell)
    }
    rows = [
        ("sdpa_loop", "packed", "eager"),
        ("sdpa_padded", "pad_left", "eager"),
        ("sdpa_padded", "pad_left", "compiled"),
    ]
    assert found == {(*row, mode, causal, torch.float32) for row in rows for mode, causal in ARTICLE_MODES}


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(1, 1, 3), (3, 1, 5), (6, 2, 7), (5, 5, 12)])
@pytest.mark.parametrize("lengths", [(1,), (7,), (2, 4, 3)], ids=str)
def test_a_step_counts_two_operations_for_each_weight_and_token_and_those_of_attention(
    heads: int, kv_heads: int, head_dim: int, lengths: tuple[int, ...]
) -> None:
    config = DecoderConfig(13, 9, num_layers=3, num_heads=heads, head_dim=head_dim, num_kv_heads=kv_heads)
    maps = [each for each in Decoder(config, REFERENCE.attend).modules() if isinstance(each, nn.Linear)]
    products = 2 * sum(each.weight.numel() for each in maps) * sum(lengths)
    # Queries with keys, and probabilities with values: a multiplication and an addition for each pair of tokens.
    attention = 3 * heads * sum(2 * 2 * head_dim * length * length for length in lengths)
    for mode, passes in zip(MODES, (1, 3), strict=True):
        assert step_flops(config, lengths, mode=mode, causal=False) == passes * (products + attention)
        assert step_flops(config, lengths, mode=mode, causal=True) == passes * (products + attention / 2)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_workload_is_found_by_its_name(workload: Workload) -> None:
    # As a command line gives it: equal, and another object.
    assert workload_named("".join([*workload.name]), "cpu") is workload


def test_a_device_has_a_workload_of_its_own_and_takes_other_lengths() -> None:
    assert workload_named(None, "cpu") is SMOKE
    assert workload_named(None, "cuda") is ARTICLE
    bimodal = distribution_named("bimodal")
    assert workload_named(None, "cpu", "bimodal") == replace(SMOKE, lengths=bimodal)
    assert workload_named("article", "cpu", "bimodal") == replace(ARTICLE, lengths=bimodal)


def test_a_workload_takes_lengths_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text("5\n9\n128\n")
    taken = workload_named("smoke", "cpu", str(file))
    assert set(taken.lengths.draw(50, 128, 0)) == {5, 9, 128}
    assert replace(taken, lengths=SMOKE.lengths) == SMOKE


def test_a_workload_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^unknown workload 'nano'; choose one of: smoke, article, long\.$"):
        workload_named("nano", "cpu")
    for lengths in ("", str(tmp_path / "none.txt")):
        with pytest.raises(ValueError, match="is neither a file nor a distribution; distributions are: uniform, "):
            workload_named("smoke", "cpu", lengths)


@pytest.mark.parametrize(
    ("name", "longest", "others"),
    [
        ("smoke", 128, "article takes up to 1024, long takes up to 8192"),
        ("article", 1024, "smoke takes up to 128, long takes up to 8192"),
        ("long", 8192, "smoke takes up to 128, article takes up to 1024"),
    ],
)
def test_a_workload_refuses_lengths_past_its_maximum_and_names_those_that_take_them(
    tmp_path: Path, name: str, longest: int, others: str
) -> None:
    fitting, file = tmp_path / "fitting.txt", tmp_path / "lengths.txt"
    fitting.write_text(f"5\n{longest}\n")
    assert longest in workload_named(name, "cpu", str(fitting)).lengths.draw(2, longest, 0)
    file.write_text(f"5\n{longest + 1}\n")
    match = rf"line 2 .*; got {longest + 1}\..* Workload {name} takes up to {longest}; {others} \(--workload\)\.$"
    with pytest.raises(ValueError, match=match):
        workload_named(name, "cpu", str(file))
