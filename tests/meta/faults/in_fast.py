"""Faults of the fast step, whose graphs on a CPU are calls, and of the attention that takes its heads as one tensor."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from collators.batch import PackedBatch
from model import fast, products
from model.attention import fa4_varlen
from model.attention.torch_varlen import VarlenContext
from model.fast import FastDecoder, FusedBlock, Graph, Graphs, Narrow, Replayed, Row
from tests.meta.faults.fault import Faults

FAST = Faults("fast")
inject = FAST.inject

ANY_SIZE = "test_fast.py::test_batches_of_any_size_are_computed_as_the_reference_does"
OF_ANOTHER_SHAPE = "test_fast.py::test_a_decoder_of_another_shape_is_computed_as_the_reference_does"
IN_TURN = "test_fast.py::test_one_model_trains_and_evaluates_causal_or_not_in_turn"
OPTIMISER = "test_fast.py::test_a_step_after_the_optimiser_has_its_parameters"
LOADED = "test_fast.py::test_a_step_has_the_parameters_that_were_loaded"
WRITTEN = "test_fast.py::test_a_step_has_what_was_written_to_the_data_of_parameters"
PUT_IN_PLACE = "test_fast.py::test_a_step_has_the_parameters_that_were_put_in_place_of_others"
TWICE = "test_fast.py::test_a_second_backward_of_a_forward_is_refused"
SCORED = "test_fast.py::test_a_window_and_a_soft_cap_are_those_of_the_batch"
RETURNED = "test_fast.py::test_what_a_step_returned_is_not_overwritten_by_the_next"
MICRO_BATCHES = "test_fast.py::test_gradients_of_two_micro_batches_add_up"
REFUSED = "test_fast.py::test_a_backward_that_is_not_of_the_last_forward_is_refused"

GRADIENT_OF_MATRIX = "test_products.py::test_the_gradient_of_a_matrix_is_float32"
ONE_TILE = "test_products.py::test_a_tile_is_one_object_of_its_own_for_wide_products_and_for_others"


def always(patch: pytest.MonkeyPatch, kind: type, name: str, value: Any) -> None:
    """Let objects of `kind` have this value, whatever is written there."""
    patch.setattr(kind, name, property(lambda owner: value, lambda owner, written: None), raising=False)


def casting_if(patch: pytest.MonkeyPatch, changed: Callable[[list[int], list[int]], bool]) -> None:
    """Cast again only where the versions of all parameters have `changed` from what they were."""
    right = FastDecoder.narrow
    known: dict[int, list[int]] = {}

    def narrow(self: FastDecoder, dtype: torch.dtype) -> Graphs:
        versions = [each._version for each in self.parameters()]
        before = known.setdefault(id(self), versions)
        if dtype in self.running and not changed(before, versions):
            return self.running[dtype].graphs
        known[id(self)] = versions
        return right(self, dtype)

    patch.setattr(FastDecoder, "narrow", narrow)


@inject(OPTIMISER)
def copies_kept_after_a_fused_optimiser(patch: pytest.MonkeyPatch) -> None:
    """16-bit copies are cast again only where a version was counted, and a fused optimiser counts none."""
    casting_if(patch, lambda before, versions: before != versions)


@inject(LOADED)
def copies_kept_after_weights_are_loaded(patch: pytest.MonkeyPatch) -> None:
    """16-bit copies are cast once: weights that are loaded later are not seen."""
    casting_if(patch, lambda before, versions: False)


@inject(WRITTEN)
def copies_kept_after_the_data_of_parameters_is_written(patch: pytest.MonkeyPatch) -> None:
    """16-bit copies are cast again only where a version was counted, and averaged weights are written to `.data`."""
    casting_if(patch, lambda before, versions: before != versions)


@inject(OPTIMISER)
def biases_not_cast_again(patch: pytest.MonkeyPatch) -> None:
    """Matrices are cast again after a step, and biases keep the values that they had at first."""

    def cast(self: Narrow) -> None:
        for linear in self.linears:
            linear.weight.copy_(linear.master_weight.detach())

    patch.setattr(Narrow, "cast", cast)


@inject(PUT_IN_PLACE)
def parameters_that_were_replaced_kept(patch: pytest.MonkeyPatch) -> None:
    """What runs keeps the tensors that it shared at first, though the model has others since."""
    patch.setattr(Narrow, "shares", lambda self, masters: True)


def handing_out(patch: pytest.MonkeyPatch, gradients: Callable[[Graph, Tensor], list[Tensor]]) -> None:
    """Let `gradients(graph, gradient)` return the gradients of all parameters."""
    patch.setattr(Graph, "gradients", gradients)


@inject(ANY_SIZE)
def gradient_of_the_filler_left_in_place(patch: pytest.MonkeyPatch) -> None:
    """Slots that were tokens of a longer batch before keep the gradient of their logits, and add to those of all
    parameters."""

    def gradients(self: Graph, gradient: Tensor) -> list[Tensor]:
        assert self.backward is not None
        self.gradient[:, : gradient.shape[1]].copy_(gradient)
        self.backward.replay()
        return [each.clone() for each in self.backward.results]

    handing_out(patch, gradients)


@inject(MICRO_BATCHES)
def gradients_handed_out_without_a_copy(patch: pytest.MonkeyPatch) -> None:
    """A parameter's gradient is the graph's own tensor, into which the next micro-batch writes before it is added."""
    right = Graph.gradients

    def gradients(self: Graph, gradient: Tensor) -> list[Tensor]:
        right(self, gradient)
        assert self.backward is not None
        return [*self.backward.results]

    handing_out(patch, gradients)


@inject(RETURNED)
def logits_handed_out_without_a_copy(patch: pytest.MonkeyPatch) -> None:
    """The logits of a step are the graph's own tensor, which the next step overwrites."""
    right = Replayed.forward

    def forward(ctx: Any, graphs: Graphs, batch: PackedBatch, context: VarlenContext, *masters: Tensor) -> Tensor:
        right(ctx, graphs, batch, context, *masters)
        own: Tensor = ctx.graph.logits[:, : batch.num_slots]
        return own

    patch.setattr(Replayed, "forward", staticmethod(forward))


@inject(ANY_SIZE)
def positions_of_the_first_batch_kept(patch: pytest.MonkeyPatch) -> None:
    """A graph runs on the positions of the batch that it was recorded with, whatever is put into its row."""
    right = Row.fill

    def fill(self: Row, batch: PackedBatch) -> None:
        before = self.position_ids.clone()
        right(self, batch)
        if before.any():
            self.position_ids.copy_(before)

    patch.setattr(Row, "fill", fill)


@inject(ANY_SIZE)
def filler_joined_to_the_last_sequence(patch: pytest.MonkeyPatch) -> None:
    """Offsets are without the end of the batch: its last sequence sees the filler where attention is not causal."""
    right = Row.fill

    def fill(self: Row, batch: PackedBatch) -> None:
        right(self, batch)
        self.cu_seqlens[-2] = self.cu_seqlens[-1]

    patch.setattr(Row, "fill", fill)


class Chosen(dict[tuple[Any, ...], Graph]):
    """Graphs by less than their keys say: what `shorter` leaves of them."""

    def __init__(self, shorter: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
        super().__init__()
        self.shorter = shorter

    def __contains__(self, key: Any) -> bool:
        return super().__contains__(self.shorter(key))

    def __getitem__(self, key: tuple[Any, ...]) -> Graph:
        return super().__getitem__(self.shorter(key))

    def __setitem__(self, key: tuple[Any, ...], graph: Graph) -> None:
        super().__setitem__(self.shorter(key), graph)


def choosing(patch: pytest.MonkeyPatch, shorter: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
    """Let graphs be chosen by what `shorter` leaves of (slots, offsets, causal, window, soft cap, training)."""
    right = Graphs.run

    def run(self: Graphs, batch: PackedBatch, context: VarlenContext) -> Graph:
        if not isinstance(self.made, Chosen):
            self.made = Chosen(shorter)
        return right(self, batch, context)

    patch.setattr(Graphs, "run", run)


@inject(ANY_SIZE, errors=(RuntimeError,))
def graph_chosen_by_its_slots_alone(patch: pytest.MonkeyPatch) -> None:
    """A batch of as many slots and fewer sequences runs in a graph whose offsets are those of more."""
    choosing(patch, lambda key: (key[0], *key[2:]))


@inject(IN_TURN)
def graph_chosen_whatever_the_mask(patch: pytest.MonkeyPatch) -> None:
    """A row that is not causal is replayed by the graph of one that was."""
    choosing(patch, lambda key: (*key[:2], *key[3:]))


@inject(SCORED)
def graph_chosen_whatever_the_window(patch: pytest.MonkeyPatch) -> None:
    """A batch with a window is replayed by the graph of one without."""
    choosing(patch, lambda key: (*key[:3], *key[4:]))


@inject(IN_TURN)
def graph_of_evaluation_chosen_for_training(patch: pytest.MonkeyPatch) -> None:
    """A training step is replayed by a graph that was recorded without a backward."""
    choosing(patch, lambda key: key[:-1])


@inject(REFUSED)
def backward_of_another_forward_accepted(patch: pytest.MonkeyPatch) -> None:
    """The backward of a forward before the last runs, on the activations of the last."""
    always(patch, Graphs, "runs", 0)


@inject(TWICE)
def second_backward_accepted(patch: pytest.MonkeyPatch) -> None:
    """A forward has as many backwards as are asked for, though the first may overwrite what the second reads."""
    always(patch, Graphs, "runs", 0)


@inject(OF_ANOTHER_SHAPE)
def fused_heads_never_rotated(patch: pytest.MonkeyPatch) -> None:
    """A block takes the heads of queries and keys as one tensor where positions are rotary too, and rotates none."""

    def attended(self: FusedBlock, heads: Tensor, context: Any, rotation: Tensor | None, rows: Any) -> Tensor:
        return self.attend_heads(heads, self.heads[0], context)

    patch.setattr(FusedBlock, "attended", attended)


@inject(ANY_SIZE)
def gradient_taken_through_no_gelu(patch: pytest.MonkeyPatch) -> None:
    """The product that makes the gradient before the GELU leaves the GELU out."""

    def straight(gradient: Tensor, weight: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        own = gradient @ weight
        return own, own.sum(0, dtype=torch.float32)

    patch.setattr(fast, "gradient_before_gelu", straight)


@inject(ANY_SIZE)
def gelu_applied_twice(patch: pytest.MonkeyPatch) -> None:
    """The backward takes the GELU's results for what went into it."""
    right = fast.product_and_gelu

    def twice(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        _, activated = right(x, weight, bias)
        return activated, activated

    patch.setattr(fast, "product_and_gelu", twice)


@inject(ANY_SIZE)
def gradient_of_a_bias_behind_the_gelu(patch: pytest.MonkeyPatch) -> None:
    """The bias of the first product gets the sum of what is behind the GELU's gradient, not before it."""
    right = fast.gradient_before_gelu

    def behind(gradient: Tensor, weight: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        return right(gradient, weight, inner)[0], (gradient @ weight).sum(0, dtype=torch.float32)

    patch.setattr(fast, "gradient_before_gelu", behind)


@inject(ANY_SIZE)
def evaluation_without_the_gelu(patch: pytest.MonkeyPatch) -> None:
    """A product that is asked for the GELU of what it computes returns what it computes."""
    right = fast.product
    patch.setattr(fast, "product", lambda x, weight, bias, with_gelu: right(x, weight, bias, False))


@inject(GRADIENT_OF_MATRIX)
def gradient_of_a_matrix_left_to_autocast(patch: pytest.MonkeyPatch) -> None:
    """Where a backward runs in autocast, the gradient of a matrix is rounded to 16 bits."""
    patch.setattr(products, "gradient_of_matrix", lambda gradient, x: gradient.t().float() @ x.float())


@inject(ONE_TILE)
def tile_made_again_for_each_product(patch: pytest.MonkeyPatch) -> None:
    """Each product gets a tile of its own, and quack may take it for one that was at its address before."""

    def tile(weight: Tensor) -> Any:
        make = inspect.unwrap(products._of_hopper)
        return make(192, 128, 1, 2) if weight.shape[0] > weight.shape[1] else make(128, 208, 2, 1)

    patch.setattr(products, "tile", tile)


def taking_apart(patch: pytest.MonkeyPatch, split: Callable[[Tensor, int, int], tuple[Tensor, ...]]) -> None:
    """Let `split(heads, num_heads, kv_heads)` return the queries, keys and values of one tensor."""

    def of_heads(heads: Tensor, num_heads: int) -> tuple[Tensor, ...]:
        return split(heads, num_heads, (heads.shape[1] - num_heads) // 2)

    patch.setattr(fa4_varlen, "_split", of_heads)


@inject(ANY_SIZE)
def keys_of_one_tensor_a_head_early(patch: pytest.MonkeyPatch) -> None:
    """Where the heads are one tensor, the keys start at the last head of the queries."""
    taking_apart(
        patch,
        lambda heads, queries, keys: (
            heads[:, :queries],
            heads[:, queries - 1 : queries - 1 + keys],
            heads[:, queries + keys :],
        ),
    )


@inject(ANY_SIZE)
def keys_and_values_of_one_tensor_change_places(patch: pytest.MonkeyPatch) -> None:
    """Where the heads are one tensor, the heads behind the queries are taken for values, and the last ones for keys."""
    taking_apart(
        patch,
        lambda heads, queries, keys: (heads[:, :queries], heads[:, queries + keys :], heads[:, queries:][:, :keys]),
    )
