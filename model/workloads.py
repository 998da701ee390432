"""Workloads: model size, batch size, length distribution, and which cells are timed by default."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from collators import Collator, CollatorOptions, Example
from collators.batch import Batch
from collators.lengths import DISTRIBUTIONS, LengthDistribution, distribution_named, read_lengths_file
from model.attention import Device, Execution, Mode
from model.cells import Cell
from model.decoder import DecoderConfig

#: The article evaluates without a causal mask and trains with one; cells compare only so.
ARTICLE_MODES: tuple[tuple[Mode, bool], ...] = (("eval", False), ("train", True))


#: The collators that a backend from outside is timed with.
FOR_OUTSIDE = ("packed", "pad_longest", "nested")


@dataclass(frozen=True)
class Row:
    """Cells that a workload times: a backend on a collator, eager, compiled or both."""

    backend: str
    collator: str
    executions: tuple[Execution, ...] = ("eager", "compiled")


@dataclass(frozen=True)
class Workload:
    """What is timed: `num_batches` batches of `batch_size` sequences.

    `rows` name the cells in their order, each in every (mode, causal) of `modes`. Batches follow from `seed` alone.
    `reference_sequences` is how many sequences at a time the reference can take on one GPU; None means all.
    """

    name: str
    summary: str
    config: DecoderConfig
    batch_size: int
    lengths: LengthDistribution
    dtype: torch.dtype
    rows: tuple[Row, ...]
    modes: tuple[tuple[Mode, bool], ...] = ARTICLE_MODES
    multiple: int = 64
    num_batches: int = 24
    seed: int = 0
    reference_sequences: int | None = None

    def has(self, cell: Cell) -> bool:
        """Tell whether `cell` is one of those the workload times by default."""
        named = any(
            (row.backend, row.collator) == (cell.backend.attention, cell.collator.name)
            and cell.execution in row.executions
            for row in self.rows
        )
        # One from outside is timed with one collator of its layout.
        named |= bool(cell.backend.spec) and cell.collator.name in FOR_OUTSIDE
        return named and (cell.mode, cell.causal) in self.modes and cell.dtype == self.dtype

    def examples(self) -> list[list[Example]]:
        """Return the sequences of every batch; the same on every machine."""
        count = self.num_batches * self.batch_size
        lengths = self.lengths.draw(count, self.config.max_length, self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        vocabulary, pad = self.config.vocab_size, self.config.pad_id
        sequences = []
        for length in lengths:
            tokens = torch.randint(vocabulary - 1, (length + 1,), generator=generator)
            tokens += tokens >= pad
            sequences.append(Example(tokens[:-1], tokens[1:]))
        return [sequences[start : start + self.batch_size] for start in range(0, count, self.batch_size)]

    def batches(self, collator: Collator, device: Device, examples: list[list[Example]]) -> Sequence[Batch]:
        """Return `examples` made into batches by `collator`, on `device`."""
        options = CollatorOptions(self.config.max_length, self.config.pad_id, self.multiple)
        collate = collator.build(options)
        return [collate(batch).to(device) for batch in examples]


EAGER: tuple[Execution, ...] = ("eager",)
COMPILED: tuple[Execution, ...] = ("compiled",)

SMOKE = Workload(
    name="smoke",
    summary="small enough for a laptop without a GPU",
    config=DecoderConfig(vocab_size=256, max_length=128, num_layers=2, num_heads=4, head_dim=32),
    batch_size=8,
    lengths=distribution_named("uniform"),
    dtype=torch.float32,
    # A compiled block costs about 10 s on two cores: one of each layout. FlexAttention is neither compiled nor fused on
    # a CPU, and nobody would run it there.
    rows=(
        Row("sdpa_padded", "pad_fixed", EAGER),
        Row("sdpa_padded", "pad_longest"),
        Row("sdpa_padded", "pad_left", EAGER),
        Row("sdpa_padded", "pad_multiple", EAGER),
        Row("sdpa_padded_math", "pad_longest", EAGER),
        Row("sdpa_padded_flash", "pad_longest", EAGER),
        Row("sdpa_document_mask", "packed"),
        Row("sdpa_document_mask", "packed_multiple", EAGER),
        Row("sdpa_loop", "packed", EAGER),
        Row("sdpa_nested", "nested"),
        Row("xformers_auto", "packed", EAGER),
        Row("gpt2_hf_sdpa_padded", "pad_longest", EAGER),
        Row("gpt2_sdpa_document_mask", "packed", EAGER),
    ),
)

ARTICLE = Workload(
    name="article",
    summary="the article's decoder and lengths, 305 million parameters",
    config=DecoderConfig(vocab_size=1024, max_length=1024, num_layers=24, num_heads=16, head_dim=64),
    batch_size=32,
    lengths=distribution_named("uniform"),
    # Of the first 40 seeds, the one whose 24 batches are the closest to what uniform lengths make one expect, in the
    # mean and the median of their tokens (16,384) and of the sum of squared lengths (11.18 million): within 1%.
    seed=36,
    dtype=torch.bfloat16,
    reference_sequences=4,
    # Every row of its table, and what is as fast, in ten minutes on an H100, compilations included.
    rows=(
        Row("sdpa_padded", "pad_fixed"),
        Row("sdpa_padded", "pad_longest"),
        Row("sdpa_loop", "packed", EAGER),
        Row("sdpa_nested", "nested"),
        Row("torch_varlen", "packed"),
        Row("fa2_varlen", "packed"),
        Row("fa2_varlen", "packed_multiple", COMPILED),
        Row("fa4_varlen", "packed"),
        Row("fast_fa4_varlen", "packed", COMPILED),
        Row("cudnn_ragged", "packed"),
        Row("flashinfer_ragged", "packed", EAGER),
        Row("xformers_auto", "packed"),
        Row("flex_document_mask", "packed", COMPILED),
        # GPT-2 of transformers, causal as it always is: these are trained only, as in the article. Eager, a backend of
        # this project takes what FlashAttention-2 takes there.
        Row("gpt2_hf_sdpa_padded", "pad_longest"),
        Row("gpt2_hf_fa2_padded", "pad_longest", EAGER),
        Row("gpt2_hf_sdpa", "packed", EAGER),
        Row("gpt2_hf_fa2", "packed"),
        Row("gpt2_torch_varlen", "packed", COMPILED),
        Row("gpt2_fa4_varlen", "packed", COMPILED),
        Row("gpt2_xformers_auto", "packed", COMPILED),
        Row("gpt2_flex_document_mask", "packed", COMPILED),
    ),
)

LONG = Workload(
    name="long",
    summary="long tails up to 8,192 tokens, 32 heads of 128 on 8 key-value heads",
    config=DecoderConfig(vocab_size=1024, max_length=8192, num_layers=4, num_heads=32, head_dim=128, num_kv_heads=8),
    batch_size=16,
    lengths=distribution_named("lognormal"),
    dtype=torch.bfloat16,
    reference_sequences=1,
    rows=(
        Row("sdpa_padded", "pad_longest"),
        Row("sdpa_padded_flash", "pad_longest"),
        Row("sdpa_document_mask", "packed", EAGER),
        Row("torch_varlen", "packed"),
        Row("fa2_varlen", "packed"),
        Row("fa4_varlen", "packed"),
        Row("fast_fa4_varlen", "packed", COMPILED),
        Row("cudnn_ragged", "packed"),
        Row("flashinfer_ragged", "packed", EAGER),
        Row("xformers_auto", "packed"),
        Row("flex_document_mask", "packed", COMPILED),
    ),
)

WORKLOADS: tuple[Workload, ...] = (SMOKE, ARTICLE, LONG)

#: What is timed where no workload is asked for.
DEFAULTS: dict[Device, Workload] = {"cpu": SMOKE, "cuda": ARTICLE}


@functools.cache
def workload_named(name: str | None, device: Device, lengths: str | None = None) -> Workload:
    """Return the workload called `name` (None: the default of `device`), on other `lengths` where given.

    `lengths` is the name of a distribution or a file of lengths; ValueError says what was wrong with either.
    """
    if name is None:
        workload = DEFAULTS[device]
    else:
        found = [workload for workload in WORKLOADS if workload.name == name]
        if not found:
            known = ", ".join(workload.name for workload in WORKLOADS)
            raise ValueError(f"unknown workload {name!r}; choose one of: {known}.")
        workload = found[0]
    if lengths is None:
        return workload
    names = [distribution.name for distribution in DISTRIBUTIONS]
    if lengths in names:
        return replace(workload, lengths=distribution_named(lengths))
    if not lengths or not Path(lengths.partition(":")[0]).exists():
        raise ValueError(
            f"--lengths {lengths!r} is neither a file nor a distribution; distributions are: {', '.join(names)}."
        )
    drawn = read_lengths_file(lengths)
    # Drawn once here, so that a length over the model's maximum is an error before anything runs.
    try:
        drawn.draw(workload.batch_size, workload.config.max_length, workload.seed)
    except ValueError as error:
        others = ", ".join(f"{w.name} takes up to {w.config.max_length}" for w in WORKLOADS if w.name != workload.name)
        raise ValueError(
            f"{error} Workload {workload.name} takes up to {workload.config.max_length}; {others} (--workload)."
        ) from None
    return replace(workload, lengths=drawn)
