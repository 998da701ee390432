"""Faults of what judges: declarations, tolerances and comparisons. A check that cannot fail shows nothing."""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from collators import Batch, Collator, CollatorOptions, Example
from gate.record.cell import chosen_by
from model import reference, tolerance
from model.attention import BACKENDS, REFERENCE, Case, backend_named
from model.cells import Cell
from model.decoder import Decoder
from model.equivalence import Bounds
from model.reference import Outcome
from model.tolerance import Bound, Mismatch
from tests import selection
from tests.correctness import attention_bench, conftest, references, report
from tests.correctness.attention_bench import AttentionBench
from tests.correctness.drawn import DRAWN, REPRESENTATIVES
from tests.correctness.workbench import Workbench
from tests.correctness.wrong import Wrong
from tests.known_failures import KnownFailure
from tests.meta.faults.fault import Faults, attends, everywhere
from tests.selection import SupportStatus

CHECKS = Faults("checks")
inject = CHECKS.inject

TOLERANCE, JUDGE = "test_tolerance.py::", "test_reference_judge.py::"
SELECTED, RED = "test_selected_cells.py::", "test_red_block.py::"
EVAL = "sdpa_loop-packed-eval-causal-bfloat16-eager-drawn"


@inject("test_declarations.py::test_a_backend_supports_what_is_declared_for_it")
def training_no_longer_claimed(patch: pytest.MonkeyPatch) -> None:
    """A backend stops to declare training, and its training cells are gone."""
    patch.setitem(vars(backend_named("sdpa_document_mask")), "modes", ("eval",))


@inject("test_declarations.py::test_a_backend_refuses_what_it_cannot_do")
def grouped_heads_claimed(patch: pytest.MonkeyPatch) -> None:
    """A backend that has no grouped heads declares them."""
    patch.setitem(vars(backend_named("sdpa_nested")), "grouped_query", True)


@inject("test_declarations.py::test_a_backend_supports_what_is_declared_for_it")
def short_batches_refused(patch: pytest.MonkeyPatch) -> None:
    """A backend refuses batches narrower than 4 tokens, which it could compute."""
    patch.setitem(vars(backend_named("sdpa_padded")), "min_keys", 4)


@inject("test_declarations.py::test_a_backend_with_an_error_factor_of_its_own_says_why")
def error_factor_without_a_limit(patch: pytest.MonkeyPatch) -> None:
    """A backend may be 50 times as far off as the reference, and says why."""
    record = vars(backend_named("sdpa_loop"))
    patch.setitem(record, "error_factor", 50.0)
    patch.setitem(record, "error_reason", "adds in another order")


@inject("test_attention.py::test_a_batch_attends_without_gradients_as_each_sequence_alone", EVAL)
def evaluation_differs_from_training(patch: pytest.MonkeyPatch) -> None:
    """Where no gradient is needed another kernel runs, with an error of 2% in one row."""

    def attend(right: Any, q: Tensor, k: Tensor, v: Tensor, context: Any, scale: float | None) -> Tensor:
        out = right(q, k, v, context, scale=scale)
        if torch.is_grad_enabled():
            return out
        return torch.cat([out[:, :-1], out[:, -1:] * 1.02], dim=1)

    attends(patch, "sdpa_loop", attend)


@inject(TOLERANCE + "test_a_batch_with_any_row_moved_by_2_percent_fails")
def rounding_floor_of_a_percent(patch: pytest.MonkeyPatch) -> None:
    """Rounding is taken to leave 5% in every dtype."""
    patch.setattr(tolerance, "rounding_floor", lambda dtype, reduction_length: 0.05)


@inject(TOLERANCE + "test_a_batch_with_one_bad_row_among_10000_fails_at_that_row")
def errors_averaged(patch: pytest.MonkeyPatch) -> None:
    """Errors of rows are averaged before they are compared."""
    right = tolerance._rows
    patch.setattr(tolerance, "_rows", lambda tensor: right(tensor).mean(0, keepdim=True))


@inject(TOLERANCE + "test_a_batch_with_one_number_that_is_not_finite_fails")
def what_is_not_finite_counts_as_zero(patch: pytest.MonkeyPatch) -> None:
    """NaN and infinities are made zero before they are compared."""
    right = tolerance._rows
    patch.setattr(tolerance, "_rows", lambda tensor: right(tensor).nan_to_num(0, 0, 0))


@inject(TOLERANCE + "test_a_batch_with_one_bad_row_among_10000_fails_at_that_row")
def worst_row_is_the_mean_row(patch: pytest.MonkeyPatch) -> None:
    """What is held to the bound is the mean of the rows' errors, not the largest."""
    right = Bound.mismatch

    def mismatch(self: Bound, actual: Tensor, error_factor: float) -> Mismatch | None:
        mean = (tolerance._rows(actual) - self.rows).norm(dim=1).mean()
        return right(self, actual, error_factor) if mean > self.allowed(error_factor) else None

    patch.setattr(Bound, "mismatch", mismatch)


@inject(TOLERANCE + "test_a_batch_may_be_twice_as_many_times_off_as_the_error_factor_where_noise_is_not_known")
def decoder_factor_doubled(patch: pytest.MonkeyPatch) -> None:
    """Through a decoder a cell may be four times as many times off as its factor says, not twice."""
    patch.setattr(tolerance, "DECODER_FACTOR", 4.0)


@inject(TOLERANCE + "test_a_step_with_one_wrong_tensor_names_it", links=("flash-attention#1023",), errors=(ValueError,))
def truth_compared_with_itself(patch: pytest.MonkeyPatch) -> None:
    """The tensor that is compared with the truth is the truth."""
    right = Bound.mismatch
    patch.setattr(Bound, "mismatch", lambda self, actual, factor: right(self, self.rows.reshape(self.shape), factor))


def not_compared(patch: pytest.MonkeyPatch, left_out: Callable[[str], bool]) -> None:
    """Let tensors of these names pass."""
    right = Bound.mismatch
    patch.setattr(
        Bound, "mismatch", lambda self, actual, factor: None if left_out(self.name) else right(self, actual, factor)
    )


@inject(TOLERANCE + "test_a_step_with_one_wrong_tensor_names_it", errors=(ValueError,))
def gradients_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Only logits and loss are compared."""
    not_compared(patch, lambda name: name.startswith("gradient"))


@inject(TOLERANCE + "test_a_step_with_one_wrong_tensor_names_it", errors=(ValueError,))
def loss_not_compared(patch: pytest.MonkeyPatch) -> None:
    """The loss is left out of the comparison."""
    not_compared(patch, lambda name: name == "loss")


@inject(JUDGE + "test_a_workbench_is_red_for_every_tensor_of_an_outcome_by_its_name")
def biases_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Gradients of tensors of one dimension are left out of the comparison."""
    not_compared(patch, lambda name: name.endswith(".bias"))


def seen_as(patch: pytest.MonkeyPatch, made: Callable[[Bounds, Outcome], Outcome]) -> None:
    """Compare what `made` returns of the truth and of what a cell computed."""
    right = Bounds.differences
    patch.setattr(Bounds, "differences", lambda self, actual, factor: right(self, made(self, actual), factor))


@inject(TOLERANCE + "test_a_step_with_one_wrong_token_names_its_sequence_and_position", errors=(ValueError,))
def last_sequence_not_compared(patch: pytest.MonkeyPatch) -> None:
    """The logits of the last sequence are left out of the comparison."""
    seen_as(
        patch, lambda bounds, actual: replace(actual, logits=[*actual.logits[:-1], bounds.truth.logits[-1].double()])
    )


@inject(TOLERANCE + "test_a_step_without_one_gradient_is_refused")
def gradients_of_one_side_alone_left_out(patch: pytest.MonkeyPatch) -> None:
    """Only the parameters are compared that the cell and the reference both have."""

    def common(bounds: Bounds, actual: Outcome) -> Outcome:
        return replace(
            actual,
            gradients={name: actual.gradients.get(name, wanted) for name, wanted in bounds.truth.gradients.items()},
        )

    seen_as(patch, common)


@inject(JUDGE + "test_a_step_is_compared_in_every_parameter_of_either_side")
def gradients_that_are_none_pass(patch: pytest.MonkeyPatch) -> None:
    """A parameter whose gradient is None is skipped in the comparison."""

    def filled(bounds: Bounds, actual: Outcome) -> Outcome:
        gradients = {
            name: bounds.truth.gradients[name] if gradient is None else gradient
            for name, gradient in actual.gradients.items()
        }
        return replace(actual, gradients=gradients)

    seen_as(patch, filled)


@inject(JUDGE + "test_a_parameter_that_gets_no_gradient_is_an_error_and_not_left_out")
def parameters_that_nothing_reads_have_a_gradient(patch: pytest.MonkeyPatch) -> None:
    """Where no gradient reaches a parameter, in the cell and in the reference, zeros are compared with zeros."""
    right = torch.autograd.grad
    filled = functools.partial(right, allow_unused=True, materialize_grads=True)
    patch.setattr(torch.autograd, "grad", filled)


@inject(JUDGE + "test_a_parameter_that_gets_no_gradient_is_an_error_and_not_left_out")
def frozen_parameters_left_out(patch: pytest.MonkeyPatch) -> None:
    """What a step computes has gradients of the parameters that are trained, and of no others."""
    right = Decoder.named_parameters

    def named_parameters(self: Decoder, *args: Any, **options: Any) -> Any:
        return ((name, each) for name, each in right(self, *args, **options) if each.requires_grad)

    patch.setattr(Decoder, "named_parameters", named_parameters, raising=False)


@inject(JUDGE + "test_each_sequence_of_the_oracle_is_alone_without_padding_or_mask")
def oracle_is_the_padded_reference(patch: pytest.MonkeyPatch) -> None:
    """What proves the reference is the reference."""

    def oracle(model: Decoder, examples: Sequence[Any], case: Case) -> Outcome:
        return reference.padded_reference(model, examples, replace(case, dtype=torch.float64))

    everywhere(patch, reference.solo_oracle, oracle)


@inject(JUDGE + "test_each_sequence_of_the_oracle_is_alone_without_padding_or_mask")
def oracle_has_the_mask_of_the_reference(patch: pytest.MonkeyPatch) -> None:
    """Each sequence is alone, under a mask that the reference's own code makes."""
    patch.setitem(vars(reference.ORACLE), "prepare", lambda batch, case: REFERENCE.prepare(batch, case))


@inject(JUDGE + "test_the_truth_is_float64_from_end_to_end")
def truth_in_float32(patch: pytest.MonkeyPatch) -> None:
    """The model of the truth has the cell's float32 weights and computes in float32."""
    right = reference.with_backend
    everywhere(patch, right, lambda model, backend, dtype: right(model, backend, torch.float32))
    own = Workbench.reference_case
    patch.setattr(
        Workbench, "reference_case", lambda self, precision: replace(own(self, precision), dtype=torch.float32)
    )


@inject(JUDGE + "test_the_truth_of_a_cell_is_not_what_the_cell_computes")
def truth_is_the_reference_in_the_dtype_of_the_cell(patch: pytest.MonkeyPatch) -> None:
    """The workbench compares the reference with itself."""
    patch.setattr(Workbench, "reference_model", lambda self, precision, number=0: self.model)
    patch.setattr(Workbench, "reference_case", lambda self, precision: self.case)


@inject(JUDGE + "test_the_reference_of_a_dtype_has_the_weights_of_its_cell_and_rounds_as_its_cell")
def reference_in_16_bits(patch: pytest.MonkeyPatch) -> None:
    """The reference that sizes the bounds of a float32 cell is autocast to bfloat16."""
    right = Workbench.reference_case

    def reference_case(self: Workbench, precision: str) -> Case:
        found = right(self, precision)
        narrowed = precision == "own" and found.dtype == torch.float32
        return replace(found, dtype=torch.bfloat16) if narrowed else found

    patch.setattr(Workbench, "reference_case", reference_case)


@inject(JUDGE + "test_a_nudged_decoder_has_weights_that_differ_by_half_a_unit_in_the_last_place")
def nudges_of_64_half_units(patch: pytest.MonkeyPatch) -> None:
    """Weights are moved by 64 half units in the last place, which is no rounding, and widens every bound."""
    right = references.nudged

    def nudged(model: Decoder, dtype: torch.dtype, seed: int) -> Decoder:
        moved = right(model, dtype, seed)
        with torch.no_grad():
            for far, own in zip(moved.parameters(), model.parameters(), strict=True):
                far.sub_(own).mul_(64).add_(own)
        return moved

    everywhere(patch, right, nudged)


@inject(JUDGE + "test_other_roundings_are_of_weights_that_references_nudge_once_each")
def nudges_add_up(patch: pytest.MonkeyPatch) -> None:
    """Each rounding starts from the weights of the one before, so that the fourth is three nudges away."""
    right = references.nudged

    def nudged(model: Decoder, dtype: torch.dtype, seed: int) -> Decoder:
        for number in range(1, seed + 1):
            model = right(model, dtype, number)
        return model

    everywhere(patch, right, nudged)


@inject(JUDGE + "test_a_batch_is_compared_with_more_roundings_of_the_reference_where_one_is_exact_by_luck")
def sixteen_roundings(patch: pytest.MonkeyPatch) -> None:
    """A cell is red only where sixteen roundings of the reference are too near: one of so many is far off."""
    patch.setattr(references, "ROUNDINGS", 16)


@inject(JUDGE + "test_another_rounding_is_as_far_off_as_it_is_from_the_truth_of_its_own_weights")
def nudged_reference_compared_with_the_truth_of_other_weights(patch: pytest.MonkeyPatch) -> None:
    """What other weights give counts as a rounding, though it has another truth."""
    everywhere(patch, references.moved_outcome, lambda truth, rounded, wanted: rounded)


@inject(JUDGE + "test_the_truth_of_attention_is_that_of_each_sequence_alone")
def truth_of_attention_is_the_reference(patch: pytest.MonkeyPatch) -> None:
    """Attention is compared with what the padded reference gives in the cell's dtype."""
    right = attention_bench.expected_of

    def expected_of(*args: Any) -> Any:
        found = right(*args)
        values = {name: value.double() for name, value in found.reference.items()}
        return replace(found, truth=replace(found.truth, values=values))

    everywhere(patch, right, expected_of)


@inject(JUDGE + "test_attention_is_red_for_every_result_by_its_name")
def gradients_of_values_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Attention is compared in its output and in two of three gradients."""
    right = attention_bench.mismatches
    everywhere(patch, right, lambda results, *rest: right({n: t for n, t in results.items() if n != "dv"}, *rest))


@inject(JUDGE + "test_a_workbench_is_red_for_every_tensor_of_an_outcome_by_its_name")
def gradients_pass_where_logits_are_right(patch: pytest.MonkeyPatch) -> None:
    """Gradients count only where logits or loss are wrong as well."""
    right = Workbench.assert_none

    def assert_none(self: Workbench, found: Sequence[Mismatch]) -> None:
        if any(not each.name.startswith("gradient") for each in found):
            right(self, found)

    patch.setattr(Workbench, "assert_none", assert_none)


@inject(JUDGE + "test_a_batch_that_a_backend_says_it_refuses_must_be_refused")
def refusals_taken_at_their_word(patch: pytest.MonkeyPatch) -> None:
    """A batch that a backend says it refuses is not handed to it."""
    patch.setattr(AttentionBench, "_check_refused", lambda self, run: None)


@inject(SELECTED + "test_a_run_without_names_requires_the_backends_of_every_model")
def required_backends_without_gpt2(patch: pytest.MonkeyPatch) -> None:
    """`--require` without names leaves out the backends of GPT-2."""
    patch.setattr(selection, "ALL_BACKENDS", BACKENDS)


def parametrized(patch: pytest.MonkeyPatch, faulty: Callable[..., Any]) -> None:
    """Let `faulty`, which is given the right function, say what the parameters of tests are."""
    right = selection.parameters
    everywhere(patch, right, functools.partial(faulty, right))


@inject(SELECTED + "test_a_cell_that_is_required_is_skipped_nowhere")
def what_is_proved_is_never_required(patch: pytest.MonkeyPatch) -> None:
    """`--require` reaches what is timed alone: a cell that cannot be proved here is skipped, and the run is green."""

    def faulty(right: Any, cells: Any, config: Any, device: Any, test: str, *, require: Any) -> list[Any]:
        timed = [cell for cell in cells if cell.workload != DRAWN]
        return right(cells, config, device, test, require=require if timed else ())

    parametrized(patch, faulty)


@inject(SELECTED + "test_only_the_backends_that_are_required_by_name_are_skipped_nowhere")
def one_required_backend_requires_all(patch: pytest.MonkeyPatch) -> None:
    """`--require=NAME` is `--require`."""
    names = {backend.name for backend in selection.ALL_BACKENDS}

    def faulty(right: Any, *args: Any, require: Any) -> list[Any]:
        return right(*args, require=names if require else ())

    parametrized(patch, faulty)


@inject(SELECTED + "test_a_known_failure_is_strict_whatever_pytest_is_told")
def known_failures_may_pass(patch: pytest.MonkeyPatch) -> None:
    """What is known to fail may pass, and nobody hears that it was mended."""

    def faulty(right: Any, *args: Any, **options: Any) -> list[Any]:
        params = right(*args, **options)
        for param in params:
            for decorator in param.marks:
                decorator.mark.kwargs.pop("strict", None)
        return params

    parametrized(patch, faulty)


@inject(SELECTED + "test_a_failure_that_comes_and_goes_is_no_failure_that_is_expected")
def failures_that_come_and_go_are_expected(patch: pytest.MonkeyPatch) -> None:
    """A failure that is known in one tensor is an expected failure of the whole test."""
    right = selection.support_status

    def support_status(cell: Cell, config: Any, device: Any, test: str = "") -> SupportStatus:
        found = right(cell, config, device, test)
        known = any(failure.strikes(cell, device, test) for failure in selection.KNOWN_FAILURES)
        return SupportStatus("known failure", ("broken",)) if known and found.state == "supported" else found

    everywhere(patch, right, support_status)


@inject(SELECTED + "test_a_cell_that_is_required_is_skipped_nowhere")
def what_is_unavailable_is_undeclared(patch: pytest.MonkeyPatch) -> None:
    """A cell that this machine cannot run is no test, so that no option can require it."""
    right = selection.support_status

    def support_status(*args: Any) -> SupportStatus:
        found = right(*args)
        return SupportStatus("undeclared", found.reasons) if found.state == "unavailable" else found

    everywhere(patch, right, support_status)


@inject(SELECTED + "test_every_dtype_mode_mask_and_layout_that_a_backend_takes_is_proved")
def a_dtype_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """What is proved has no 16-bit cells."""
    right = selection.drawn_candidates
    patch.setattr(
        selection,
        "drawn_candidates",
        lambda *args: [cell for cell in right(*args) if cell.dtype not in (torch.bfloat16, torch.float16)],
    )


@inject(SELECTED + "test_cells_of_evaluation_are_distinct_where_they_stand_otherwise")
def evaluation_that_stands_otherwise_left_out(patch: pytest.MonkeyPatch) -> None:
    """Properties of the decoder are proved in training alone, where some backend cannot train."""
    right = selection.distinct_cells
    everywhere(patch, right, lambda *args: [cell for cell in right(*args) if cell.mode == "train"])


@inject(SELECTED + "test_a_run_of_one_collator_loses_no_property")
def only_representatives_are_proved(patch: pytest.MonkeyPatch) -> None:
    """A property that is proved on one collator of each layout is proved on no other, whatever `--collator` names."""
    patch.setattr(
        selection,
        "represented",
        lambda cells, of_each, config: [each for each in cells if each.collator.name in REPRESENTATIVES[of_each]],
    )


@inject(SELECTED + "test_a_run_of_one_collator_keeps_its_own_tests")
def tests_without_cells_left_out(patch: pytest.MonkeyPatch) -> None:
    """`--collator` leaves tests of cells alone, and not those of the collator that it names."""
    patch.setattr(selection, "is_of_a_part", lambda item: False)


@inject(SELECTED + "test_a_run_of_one_backend_loses_no_test_of_it")
def one_backend_is_proved_on_one_collator(patch: pytest.MonkeyPatch) -> None:
    """A run of one backend proves it on the first collator of each layout."""
    right = selection.candidates

    def candidates(config: pytest.Config, *args: Any) -> list[Cell]:
        first = REPRESENTATIVES["layout"]
        found = right(config, *args)
        return [cell for cell in found if not config.getoption("backend") or cell.collator.name in first]

    patch.setattr(selection, "candidates", candidates)


@inject("test_marks.py::test_every_test_has_the_mark_of_its_folder_and_no_other")
def a_module_without_its_mark(patch: pytest.MonkeyPatch) -> None:
    """A module of tests has no mark, and is run only where none is asked for."""
    patch.delattr(sys.modules["tests.unit.test_lengths"], "pytestmark")


@inject("test_marks.py::test_a_run_of_a_mark_has_every_test_of_its_folder")
def a_folder_is_left_out(patch: pytest.MonkeyPatch) -> None:
    """Where one mark is asked for, its own folder is left out as well."""

    def ignored(collection_path: Path, config: pytest.Config) -> bool | None:
        return True if collection_path.name == config.getoption("markexpr") == "unit" else None

    patch.setattr(selection, "pytest_ignore_collect", ignored)


@inject(RED + "test_a_block_says_what_is_worst_how_often_on_what_and_how_to_run_it_again")
def the_best_tensor_first(patch: pytest.MonkeyPatch) -> None:
    """The first line names the tensor that is least off."""
    right = report.block

    def block(label: str, failure: report.Failure, again: str) -> str:
        turned = [Wrong(error.what, error.found[::-1]) if isinstance(error, Wrong) else error for error in failure.runs]
        return right(label, replace(failure, runs=tuple(turned)), again)

    everywhere(patch, right, block)


@inject(RED + "test_the_first_batch_that_fails_is_run_five_times_and_every_failure_counted")
def a_failure_counts_for_every_run(patch: pytest.MonkeyPatch) -> None:
    """Of five runs of which one failed, the report says that five did."""
    right = report.repeated

    def repeated(failure: report.Failure, again: Any) -> report.Failure:
        found = right(failure, again)
        return replace(found, runs=tuple(error or found.runs[0] for error in found.runs))

    patch.setattr(report, "repeated", repeated)


@inject(RED + "test_what_is_known_excuses_what_comes_and_goes_in_its_own_tensors_alone")
def one_known_tensor_excuses_all(patch: pytest.MonkeyPatch) -> None:
    """A batch with an error in a tensor that is known to come and go is excused, whatever else is wrong with it."""

    def excused(failure: report.Failure, known: Any) -> bool:
        found = [each.name for error in failure.errors if isinstance(error, Wrong) for each in error.found]
        return not failure.repeats and any(map(known.fluctuates, found))

    everywhere(patch, report.excused, excused)


@inject(RED + "test_what_is_known_excuses_what_comes_and_goes_in_its_own_tensors_alone")
def what_repeats_is_excused(patch: pytest.MonkeyPatch) -> None:
    """An error in a tensor that is known to come and go is excused where it stays."""
    right = report.excused
    everywhere(patch, right, lambda failure, known: right(replace(failure, runs=(*failure.runs, None)), known))


@inject(RED + "test_a_failure_repeats_where_every_run_fails_alike")
def an_address_makes_an_error_another(patch: pytest.MonkeyPatch) -> None:
    """Two errors are the same only where all that they say is, addresses of objects included."""
    everywhere(patch, report.fingerprint, lambda error: (type(error), str(error)))


@inject(RED + "test_a_failure_repeats_where_every_run_fails_alike")
def another_error_is_the_same(patch: pytest.MonkeyPatch) -> None:
    """A batch repeats where each run fails, in whatever tensor and by however much."""
    everywhere(patch, report.fingerprint, type)


@inject(RED + "test_a_search_ends_with_a_batch_that_is_small")
def no_batch_is_small(patch: pytest.MonkeyPatch) -> None:
    """Hypothesis goes on to look for a smaller batch than one of eight tokens."""
    patch.setattr(report, "SMALL_TOKENS", 0)


@inject(RED + "test_the_smallest_batch_that_fails_is_kept_and_run_as_often")
def the_last_batch_is_reported(patch: pytest.MonkeyPatch) -> None:
    """The report names the last batch that failed, not the smallest."""
    right = report.Hunt._met

    def met(self: report.Hunt, error: BaseException, given: Any, again: Any) -> None:
        try:
            right(self, error, given, again)
        finally:
            if self.failure is not None and self.failure.given is not given:
                self.failure = report.Failure(given, (error,))

    patch.setattr(report.Hunt, "_met", met)


@inject(RED + "test_a_command_has_every_option_that_the_batch_depends_on")
def the_command_has_no_seed(patch: pytest.MonkeyPatch) -> None:
    """What the report says to run draws other batches."""
    right = conftest.again
    everywhere(patch, right, lambda item: right(item).partition(" --hypothesis-seed")[0])


@inject(RED + "test_same_is_every_bit")
def what_is_close_is_the_same(patch: pytest.MonkeyPatch) -> None:
    """Isolation, padding and repeats are compared up to a tolerance."""

    def same(name: str, was: Tensor, now: Tensor) -> None:
        if not torch.allclose(was, now.to(was)):
            raise Wrong("must be bitwise equal", [Mismatch(name, None, 1.0, 0.0)])

    everywhere(patch, report.assert_same, same)


@inject(JUDGE + "test_attention_of_any_collator_is_given_little_padding")
def attention_padded_to_a_million(patch: pytest.MonkeyPatch) -> None:
    """A collator that pads to a maximum is given one that no sequence has, and a run that names it does not end."""

    def batch_of(collator: Collator, lengths: Sequence[int]) -> Batch:
        ones = [torch.ones(length, dtype=torch.int64) for length in lengths]
        return collator.build(CollatorOptions(2**20))([Example(each, each) for each in ones])

    everywhere(patch, attention_bench.batch_of, batch_of)


@inject(JUDGE + "test_what_is_kept_of_a_batch_is_of_its_tokens_its_targets_and_their_order")
def targets_no_part_of_what_is_kept(patch: pytest.MonkeyPatch) -> None:
    """What was right for a batch is taken for what is right for the same tokens with other targets."""
    right = references.content
    everywhere(patch, right, lambda examples: right([Example(each.input_ids, each.input_ids) for each in examples]))


@inject(RED + "test_what_is_known_excuses_what_comes_and_goes_in_its_own_tensors_alone")
def another_error_beside_a_known_tensor_is_excused(patch: pytest.MonkeyPatch) -> None:
    """A batch that raises in one run is excused where another run is off in a tensor that comes and goes."""

    def excused(failure: report.Failure, known: Any) -> bool:
        found = [each.name for error in failure.errors if isinstance(error, Wrong) for each in error.found]
        return bool(found) and not failure.repeats and all(map(known.fluctuates, found))

    everywhere(patch, report.excused, excused)


@inject("test_timed_selection.py::test_one_of_several_patterns_is_enough")
def only_the_first_pattern_counts(patch: pytest.MonkeyPatch) -> None:
    """Of several globs of `--cells` the first alone chooses cells."""
    right = chosen_by
    everywhere(patch, right, lambda cell_id, patterns: right(cell_id, patterns and patterns.partition(",")[0]))


@inject("test_known_failures.py::test_a_known_failure_strikes_any_of_several_values_on_its_device_in_its_tests")
def a_backend_whose_name_begins_another_is_struck(patch: pytest.MonkeyPatch) -> None:
    """A known failure of one backend strikes those that its name begins with, too, and so they may fail."""

    def strikes(self: KnownFailure, cell: Cell, device: str, test: str) -> bool:
        return test in self.tests and device == self.device and all(cell.key[f] in v for f, v in self.matches.items())

    patch.setattr(KnownFailure, "strikes", strikes)


@inject("test_forms.py::test_every_form_of_keys_lies_in_memory_in_a_way_of_its_own")
def a_form_is_the_contiguous_one(patch: pytest.MonkeyPatch) -> None:
    """Inputs that are to have their heads first in memory are contiguous, and prove nothing new."""
    right = attention_bench.laid_out
    everywhere(patch, right, lambda tensor, form: tensor if form == "heads_first" else right(tensor, form))


@inject("test_reference_judge.py::test_slots_of_no_sequence_hold_large_numbers_and_give_no_gradient")
def padding_of_attention_holds_zeros(patch: pytest.MonkeyPatch) -> None:
    """Slots of no sequence hold zeros in the place of garbage: who sees them is not found."""
    right = attention_bench.filled
    patch.setattr(attention_bench, "filled", lambda batch, pieces, garbage, seed: right(batch, pieces, 0.0, seed))
