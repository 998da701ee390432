"""Runs one cell beside the reference on drawn batches; everything slow is built once a cell."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from collators import CollatorOptions, Example
from collators.collator import Collate
from model.attention import REFERENCE, Backend, Case, default_device
from model.cells import Cell
from model.compilation import fresh_compiler
from model.decoder import Decoder, DecoderConfig, seeded_decoder
from model.equivalence import differences
from model.reference import Outcome, outcome, padded_reference, solo_oracle, with_backend
from tests.correctness.drawn import CONFIG

#: How many tensors the report of a red cell names.
SHOWN = 6


@dataclass(frozen=True, repr=False)
class Workbench:
    """The cell's decoder, and the same weights in the reference: in float64 and in the cell's own dtype."""

    cell: Cell
    case: Case
    collate: Collate
    model: Decoder
    reference: Decoder
    truth: Decoder
    compile_errors: list[TorchDynamoException] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<workbench of {self.cell.id}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # Hypothesis would print every field of a dataclass, models included.
        printer.text(repr(self))

    def outcome(self, examples: Sequence[Example]) -> Outcome:
        """Return what the cell computes of `examples`.

        What does not compile is not compiled again: Hypothesis would spend minutes looking for a smaller example.
        """
        if self.compile_errors:
            raise self.compile_errors[0]
        batch = self.collate(examples).to(self.case.device)
        try:
            return outcome(self.model, self.cell.backend, batch, self.case)
        except TorchDynamoException as error:
            self.compile_errors.append(error)
            raise

    def truth_of(self, examples: Sequence[Example]) -> Outcome:
        """Return what the padded reference computes in float64."""
        return padded_reference(self.truth, examples, replace(self.case, dtype=torch.float64))

    def oracle_of(self, examples: Sequence[Example]) -> Outcome:
        """Return what each sequence alone gives in float64."""
        return solo_oracle(self.truth, examples, self.case)

    def check(self, examples: Sequence[Example]) -> None:
        """Fail, with all that is needed to look into it, where the cell is not the reference.

        A batch whose shape the backend says it refuses must be refused.
        """
        if self.cell.backend.batch_reasons(self.collate(examples)):
            with pytest.raises(ValueError, match=self.cell.backend.name):
                self.outcome(examples)
            return
        found = differences(
            self.outcome(examples),
            self.truth_of(examples),
            padded_reference(self.reference, examples, self.case),
            dtype=self.cell.dtype,
            error_factor=self.cell.backend.error_factor,
            config=self.model.config,
        )
        if found:
            lengths = [example.input_ids.numel() for example in examples]
            again = f"pytest -m correctness --compiled=all --cells '{self.cell.id}'"
            # Logits and loss first: gradients are wrong wherever they are.
            found.sort(key=lambda mismatch: mismatch.name.startswith("gradient"))
            lines = [f"{self.cell.id} differs from the reference on lengths {lengths}:", *map(str, found[:SHOWN])]
            if len(found) > SHOWN:
                lines.append(f"... and {len(found) - SHOWN} tensors more")
            raise AssertionError("\n  ".join([*lines, f"again: {again}"]))


def decoder(config: DecoderConfig, backend: Backend, dtype: torch.dtype = torch.float32) -> Decoder:
    """Return a decoder with the same weights at every call, its queries and keys larger so that attention is peaked."""
    model = seeded_decoder(config, backend.attend, device=default_device(), dtype=dtype)
    with torch.no_grad():
        for block in model.blocks:
            block.qkv.weight.mul_(3)
            block.qkv.bias.mul_(3)
    return model


def workbench_of(cell: Cell, config: DecoderConfig | None = None) -> Workbench:
    """Build the models of `cell`, in the sizes of this device unless others are given."""
    device = default_device()
    config = config or CONFIG[device]
    parameters = cell.dtype if cell.dtype == torch.float64 else torch.float32
    model = decoder(config, cell.backend, parameters)
    if cell.execution == "compiled":
        model.compile_blocks()
    return Workbench(
        cell=cell,
        case=cell.case(device, config),
        collate=cell.collator.build(CollatorOptions(config.max_length, config.pad_id)),
        model=model,
        reference=with_backend(model, REFERENCE, parameters),
        truth=with_backend(model, REFERENCE, torch.float64),
    )


def compiler_for(cell: Cell) -> AbstractContextManager[object]:
    """Return a context in which the cell may compile; it leaves no compiled code behind."""
    return fresh_compiler() if cell.execution == "compiled" else nullcontext()
