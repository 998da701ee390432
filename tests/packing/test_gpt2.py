"""GPT-2 of a workload's sizes, with any attention, computes what each sequence alone gives, compiled and not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, modeling_flash_attention_utils

from collators import CollatorOptions, Example, collator_named
from collators.batch import Batch
from model.attention import Case, this_machine
from model.attention.backend import HALF
from model.compilation import fresh_compiler
from model.decoder import DecoderConfig
from model.equivalence import differences
from model.huggingface.gpt2 import GPT2_BACKENDS, GPT2_REFERENCE, REQUIRES, TOLD, Gpt2, Gpt2Backend
from model.models import seeded_model
from model.reference import Outcome, outcome, padded_reference, summed
from model.steps import autocast, forward
from model.workloads import ARTICLE, SMOKE

OLD = REQUIRES.reasons(this_machine())

pytestmark = [pytest.mark.packing, pytest.mark.skipif(bool(OLD), reason="; ".join(OLD))]

SIZES = DecoderConfig(vocab_size=61, max_length=40, num_layers=3, num_heads=3, head_dim=16)
LENGTHS = (5, 1, 17, 3)


def examples(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, SIZES.vocab_size, (length + 1,), generator=generator) for length in lengths]
    return [Example(row[:-1], row[1:]) for row in rows]


def batch_of(backend: Gpt2Backend, rows: list[Example]) -> Batch:
    collator = collator_named("packed" if backend.layout == "packed" else "pad_longest")
    return collator.build(CollatorOptions(SIZES.max_length, SIZES.pad_id))(rows)


def case_of(backend: Gpt2Backend, dtype: torch.dtype = torch.float32) -> Case:
    side = None if backend.layout == "packed" else "right"
    return Case("cpu", backend.layout, side, "train", True, dtype, "eager", SIZES.num_heads, SIZES.num_heads, 16)


def named(backend: Gpt2Backend) -> str:
    return backend.name


HERE = [backend for backend in GPT2_BACKENDS if not backend.unsupported_reasons(case_of(backend))]


def run(backend: Gpt2Backend, rows: list[Example], dtype: torch.dtype = torch.float32) -> Outcome:
    model, batch = seeded_model(SIZES, backend, device="cpu", dtype=dtype), batch_of(backend, rows)
    # What is not told its device has no numbers here; on a GPU it would lie on the CPU.
    with torch.device("meta"):
        return outcome(model, backend, batch, case_of(backend, dtype))


def reference(rows: list[Example], dtype: torch.dtype) -> Outcome:
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    model = seeded_model(SIZES, GPT2_REFERENCE, device="cpu", dtype=weights)
    return padded_reference(model, rows, case_of(GPT2_REFERENCE, dtype), backend=GPT2_REFERENCE)


def wrong(found: Outcome, rows: list[Example], dtype: torch.dtype = torch.float32) -> list[Any]:
    """Return what of `found`, computed in `dtype`, is further from the reference than the reference's own rounding."""
    return differences(
        found,
        reference(rows, torch.float64),
        [reference(rows, dtype)],
        dtype=dtype,
        error_factor=2.0,
        config=SIZES,
    )


@pytest.mark.parametrize("backend", HERE, ids=named)
def test_a_batch_equals_the_padded_reference(backend: Gpt2Backend) -> None:
    rows = examples()
    assert wrong(run(backend, rows), rows) == []


def test_the_reference_equals_each_sequence_alone() -> None:
    rows = examples()
    model = seeded_model(SIZES, GPT2_REFERENCE, device="cpu", dtype=torch.float64)
    alone = summed(model, GPT2_REFERENCE, rows, case_of(GPT2_REFERENCE, torch.float64), sequences=1)
    found, same = reference(rows, torch.float64), reference(rows, torch.float32)
    assert differences(found, alone, [same], dtype=torch.float64, error_factor=2.0, config=SIZES) == []


def test_rows_that_see_each_other_are_found_wrong() -> None:
    """Positions that run on are one long sequence to transformers."""
    backend = next(backend for backend in HERE if backend.name == "gpt2_hf_sdpa")
    rows = examples()
    whole = [Example(torch.cat([row.input_ids for row in rows]), torch.cat([row.targets for row in rows]))]
    found = run(backend, whole)
    split = Outcome(list(found.logits[0].split(LENGTHS)), found.loss, found.gradients)
    assert wrong(split, rows)


@pytest.mark.parametrize("backend", HERE, ids=named)
def test_training_drops_at_random_and_a_check_does_not(backend: Gpt2Backend) -> None:
    rows, case = examples(), case_of(backend)
    model = seeded_model(SIZES, backend, device="cpu")
    batch = batch_of(backend, rows)
    with torch.random.fork_rng():
        first, second = (forward(model, backend, batch, case).loss for _ in range(2))
    assert first != second
    assert model.training
    checked = [outcome(model, backend, batch, case).loss for _ in range(2)]
    assert torch.equal(*checked)
    assert model.training


@pytest.mark.parametrize("backend", GPT2_BACKENDS, ids=named)
def test_dropout_of_attention_is_left_out_where_there_is_none(backend: Gpt2Backend) -> None:
    # The backends of this project have none.
    assert backend.attention_dropout == (0.1 if backend.inner is None else 0.0)


def test_every_backend_starts_from_the_same_weights() -> None:
    expected = seeded_model(SIZES, GPT2_REFERENCE, device="cpu").state_dict()
    for backend in HERE:
        found = seeded_model(SIZES, backend, device="cpu").state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_step_leaves_nothing_registered() -> None:
    before = dict(AttentionInterface._global_mapping)
    for backend in HERE:
        run(backend, examples())
    assert AttentionInterface._global_mapping == before


@pytest.mark.parametrize("workload", [SMOKE, ARTICLE], ids=lambda workload: workload.name)
def test_a_workload_names_backends_that_there_are(workload: Any) -> None:
    known = {backend.name: backend for backend in GPT2_BACKENDS}
    for row in workload.rows:
        if row.backend.startswith("gpt2_"):
            assert set(row.executions) <= set(known[row.backend].executions)


# Compiled ----------------------------------------------------------------------------------------


def ragged(number: int) -> list[list[Example]]:
    generator = torch.Generator().manual_seed(5)
    counts = torch.randint(2, 7, (number,), generator=generator).tolist()
    return [examples(torch.randint(1, 40, (count,), generator=generator).tolist(), seed=count) for count in counts]


def compilations(model: Gpt2, backend: Gpt2Backend, compiler: Any) -> list[tuple[int, int]]:
    """Return graphs and graph breaks after each of ten ragged training batches."""
    case = case_of(backend, torch.float32 if torch.float32 in backend.dtypes["cpu"] else torch.bfloat16)
    counted = []
    for rows in ragged(10):
        forward(model, backend, batch_of(backend, rows), case).loss.backward()
        counted.append((compiler.compilations, compiler.graph_breaks))
    return counted


def test_ragged_batches_compile_one_block_once_without_breaks() -> None:
    backend = next(backend for backend in HERE if backend.name == "gpt2_sdpa_document_mask")
    rows = examples()
    with fresh_compiler() as compiler:
        model = seeded_model(SIZES, backend, device="cpu")
        model.compile_blocks()
        assert wrong(outcome(model, backend, batch_of(backend, rows), case_of(backend)), rows) == []
        assert (compiler.compilations, compiler.graph_breaks) == (1, 0)
        # With dropout it is another graph.
        assert compilations(model, backend, compiler) == [(2, 0)] * 10


def plain(block: nn.Module) -> dict[str, Any]:
    """Return what the modules of `block` know besides tensors and modules: compiled code may be guarded on each."""
    return {
        f"{name}.{attribute}": value
        for name, module in block.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
    }


@pytest.mark.parametrize("backend", HERE, ids=named)
def test_blocks_that_are_compiled_know_no_number_of_their_own(backend: Gpt2Backend) -> None:
    """Where torch guards on what is read of a module, each would be a graph: a CPU's does not."""
    model = seeded_model(SIZES, backend, device="cpu")
    model.compile_blocks()
    first, *others = (plain(block) for block in model.gpt2.transformer.h)
    assert [other for other in others if other != first] == []
    assert first


def injected_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Compute what flash_attn_varlen_func does, without its dropout, where flash-attn does not run."""
    assert isinstance(max_seqlen_q, int)
    assert causal
    tokens = torch.arange(q.shape[0], dtype=torch.int32)
    document = torch.searchsorted(cu_seqlens_q[1:].contiguous(), tokens, right=True)
    mask = (document[:, None] == document[None]).tril()
    heads_first = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    # The longest length is used, so that a graph depends on it.
    out = scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=softmax_scale) + 0.0 * max_seqlen_q
    return out[0].transpose(0, 1)


@pytest.fixture
def flash_attention(monkeypatch: pytest.MonkeyPatch) -> Gpt2Backend:
    """Let transformers find flash-attn, and return GPT-2 with it, on the CPU."""
    if old := TOLD.reasons(this_machine()):
        pytest.skip("; ".join(old))
    library = modeling_flash_attention_utils
    injected = {
        "_loaded_implementation": "flash_attention_2",
        "_flash_varlen_fn": injected_varlen,
        "_pad_fn": library._pad_input,
        "_unpad_fn": library._unpad_input,
        "_process_flash_kwargs_fn": library._lazy_define_process_function(injected_varlen),
    }
    for name, value in injected.items():
        monkeypatch.setattr(library, name, value)
    backend = next(backend for backend in GPT2_BACKENDS if backend.name == "gpt2_hf_fa2")
    return replace(backend, dtypes={"cpu": HALF}, requires=(), min_capability=None, probe=list)


def with_flash_attention(backend: Gpt2Backend) -> Gpt2:
    """Return GPT-2 that attends with transformers' FlashAttention-2, which it does not let anybody build on a CPU."""
    built = next(other for other in HERE if other.name == "gpt2_hf_sdpa")
    model = seeded_model(SIZES, built, device="cpu")
    model.gpt2.config._attn_implementation = backend.implementation
    return model


def test_flash_attention_told_its_offsets_equals_the_reference(flash_attention: Gpt2Backend) -> None:
    rows = examples()
    model = with_flash_attention(flash_attention)
    case = case_of(flash_attention, torch.bfloat16)
    found = outcome(model, flash_attention, batch_of(flash_attention, rows), case)
    assert wrong(found, rows, torch.bfloat16) == []


def test_flash_attention_compiles_one_block_once_without_breaks(flash_attention: Gpt2Backend) -> None:
    with fresh_compiler() as compiler:
        model = with_flash_attention(flash_attention)
        model.compile_blocks("eager")
        assert compilations(model, flash_attention, compiler) == [(1, 0)] * 10


def test_flash_attention_not_told_its_offsets_breaks_the_graph(flash_attention: Gpt2Backend) -> None:
    """From positions alone, every layer asks the device whether the row is flattened."""
    batch, case = batch_of(flash_attention, examples()), case_of(flash_attention, torch.bfloat16)
    with fresh_compiler(), autocast(case):
        model = with_flash_attention(flash_attention)
        model.compile_blocks("eager")
        with pytest.raises(torch._dynamo.exc.Unsupported, match="ata-dependent"):
            model(batch, {})
