"""Runs one cell beside the reference on drawn batches; everything slow is built once a cell."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from collators import Batch, CollatorOptions, Example
from collators.collator import Collate
from model.attention import Case, default_device
from model.cells import Cell
from model.compilation import Compiler, fresh_compiler
from model.decoder import DecoderConfig
from model.models import ProvedModel
from model.reference import Outcome, full_precision, outcome, padded_reference, reference_case, solo_oracle
from model.steps import forward
from model.tolerance import Mismatch
from tests.correctness.drawn import CONFIG
from tests.correctness.references import (
    Precision,
    Reference,
    References,
    against,
    content,
    decoder,
    moved_outcome,
    weight_dtype,
)
from tests.correctness.wrong import Wrong

#: Beside four roundings of the reference a bound was at most three times as large as beside one.
FAR = 8.0


@dataclass(frozen=True, repr=False)
class Workbench:
    """The cell's decoder, and the same weights in the reference: in float64 and in the cell's own dtype."""

    cell: Cell
    case: Case
    collate: Collate
    model: ProvedModel
    references: References
    compiler: Compiler | None = None
    compile_errors: list[TorchDynamoException] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<workbench of {self.cell.id}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # Hypothesis would print every field of a dataclass, models included.
        printer.text(repr(self))

    @property
    def config(self) -> DecoderConfig:
        """Sizes of the decoder."""
        return self.model.config

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Return `examples` as the cell's collator makes them, on the device."""
        return self.collate(examples).to(self.case.device)

    def refuses(self, batch: Batch) -> bool:
        """Tell whether the backend says that it does not take a batch of this shape."""
        return bool(self.cell.backend.batch_reasons(batch))

    def outcome(self, examples: Sequence[Example]) -> Outcome:
        """Return what the cell computes of `examples`."""
        return self.outcome_of(self.batch(examples))

    def outcome_of(self, batch: Batch, num_targets: int | None = None) -> Outcome:
        """Return what the cell computes of `batch`, one of several micro-batches where `num_targets` is given.

        What does not compile is not compiled again: Hypothesis would spend minutes looking for a smaller example.
        """
        if self.compile_errors:
            raise self.compile_errors[0]
        try:
            return outcome(self.model, self.cell.backend, batch, self.case, num_targets)
        except TorchDynamoException as error:
            self.compile_errors.append(error)
            raise

    def every_slot(self, batch: Batch) -> torch.Tensor:
        """Return the logits in the layout of `batch`, those of padding too, without a backward."""
        with full_precision(), torch.set_grad_enabled(self.case.mode == "train"):
            return forward(self.model, self.cell.backend, batch, self.case).logits.detach()

    def logits_of(self, batch: Batch) -> list[torch.Tensor]:
        """Return the logits of each sequence, without a backward."""
        return batch.split(self.every_slot(batch))

    def reference_model(self, precision: Precision, number: int = 0) -> ProvedModel:
        """Return the decoder that attends as the reference does: of the cell's weights, or from 1 on of nudged ones."""
        made = self.references.truth if precision == "truth" else self.references.reference
        return made(self.config, self.case.dtype, number)

    def reference_case(self, precision: Precision) -> Case:
        """Return what the reference is asked for: in float64 for the truth, else in the cell's dtype."""
        return reference_case(self.case, torch.float64 if precision == "truth" else self.case.dtype)

    def once(
        self,
        name: str,
        compute: Callable[[ProvedModel, Case], Any],
        examples: Sequence[Example],
        precision: Precision,
        *inputs: Hashable,
        number: int = 0,
    ) -> Any:
        """Return what `compute` makes of the reference's model and case, kept under `name`, `examples`, `inputs`."""
        case = self.reference_case(precision)
        return self.references.once(
            lambda: compute(self.reference_model(precision, number), case),
            *(name, self.config, self.case.dtype if number else weight_dtype(self.case.dtype), number),
            *(case, content(examples), *inputs),
        )

    def reference_of(self, examples: Sequence[Example], precision: Precision, number: int = 0) -> Outcome:
        """Return what the padded reference computes of `examples`."""
        return self.once(
            "padded", lambda model, case: padded_reference(model, examples, case), examples, precision, number=number
        )

    def truth_of(self, examples: Sequence[Example]) -> Outcome:
        """Return what the padded reference computes in float64."""
        return self.reference_of(examples, "truth")

    def oracle_of(self, examples: Sequence[Example]) -> Outcome:
        """Return what each sequence alone gives in float64."""
        return self.once("alone", lambda model, case: solo_oracle(model, examples, case), examples, "truth")

    def differences(self, actual: Outcome, reference: Reference[Outcome]) -> list[Mismatch]:
        """Return every tensor of `actual` that is further from the truth than the cell may be."""

        def compare(truth: Outcome, known: list[Outcome]) -> list[Mismatch]:
            bounds = self.references.bounds(truth, known, self.cell.dtype, self.config)
            return bounds.differences(actual, self.cell.backend.error_factor)

        return against(reference, moved_outcome, compare)

    def assert_none(self, found: Sequence[Mismatch]) -> None:
        """Fail where tensors differ from the reference."""
        # Logits and loss first: gradients are wrong wherever they are.
        if ordered := sorted(found, key=lambda mismatch: mismatch.name.startswith("gradient")):
            raise Wrong("differs from the reference", ordered)

    def wrong(self, actual: Outcome, examples: Sequence[Example]) -> list[Mismatch]:
        """Return every tensor of `actual` that is not what the padded reference computes of `examples`."""
        return self.differences(actual, lambda precision, number: self.reference_of(examples, precision, number))

    def far_off(self, actual: Outcome, examples: Sequence[Example]) -> list[Mismatch]:
        """Return every tensor of `actual` that is `FAR` times as far off as one rounding of the reference allows."""
        known = self.references.bounds(
            self.truth_of(examples), [self.reference_of(examples, "own")], self.cell.dtype, self.config
        )
        return known.differences(actual, FAR * self.cell.backend.error_factor)

    def assert_right(self, actual: Outcome, examples: Sequence[Example]) -> None:
        """Fail where `actual` is not what the reference computes of `examples`."""
        self.assert_none(self.wrong(actual, examples))

    def check(self, examples: Sequence[Example]) -> None:
        """Fail where the cell is not the reference; a batch whose shape the backend refuses must be refused."""
        batch = self.batch(examples)
        if self.refuses(batch):
            with pytest.raises(ValueError, match=self.cell.backend.name):
                self.outcome_of(batch)
            return
        self.assert_right(self.outcome_of(batch), examples)


@contextmanager
def open_workbench(
    cell: Cell, config: DecoderConfig | None = None, references: References | None = None
) -> Iterator[Workbench]:
    """Build the model of `cell`, in the sizes of this device unless others are given; no compiled code is left behind.

    Cells that share `references` share what they are compared with.
    """
    device = default_device()
    config = config or CONFIG[device]
    references = references or References()
    case = cell.case(device, config)
    bench = Workbench(
        cell=cell,
        case=case,
        collate=cell.collator.build(CollatorOptions(config.max_length, config.pad_id)),
        model=references.model(config, cell.backend, weight_dtype(case.dtype)),
        references=references,
    )
    if cell.execution == "eager":
        yield bench
        return
    with fresh_compiler() as compiler:
        model = decoder(config, cell.backend, weight_dtype(case.dtype))
        model.compile_blocks()
        yield replace(bench, model=model, compiler=compiler)
