"""Runs the attention of one cell on drawn queries, keys and values beside the oracle, one sequence at a time.

Shapes: L tokens of a sequence, B sequences, S padded length, T tokens in all, H heads, D head dim.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from collators import CollatorOptions, Example
from collators.batch import Batch, NestedBatch
from collators.collator import Collator
from model.attention import REFERENCE, Backend, Case, Execution, default_device
from model.attention.oracle import RESULTS, Rounding, Truth, oracle
from model.cells import Cell
from model.reference import REFERENCE_COLLATOR, full_precision
from model.tolerance import Mismatch, mismatch
from tests.correctness.wrong import Wrong

#: How a tensor lies in memory. "fused" is a slice of one tensor that holds q, k and v; "heads_first" has the storage of
#: (B, H, S, D); "shifted" is a stretch of a longer buffer that is NaN before and after it, "sliced" one of a buffer
#: that is wider as well; "expanded" has stride 0 over heads, which then share their values, "repeated" stride 0 over
#: the sequences of a rectangle.
Form = Literal["contiguous", "fused", "heads_first", "shifted", "sliced", "expanded", "repeated"]

#: The largest number in padding: what a model leaves there is arbitrary, but finite.
GARBAGE = 1e4

#: So many lengths of a batch a report shows.
SHOWN_LENGTHS = 20


@dataclass(frozen=True)
class AttentionInput:
    """What attention is given: the values follow from `seed`. `sharpness` times 1/sqrt(D) is the scale; None leaves
    the scale out. `window`, `softcap` and `sinks` are those of a case."""

    lengths: tuple[int, ...]
    num_heads: int = 2
    num_kv_heads: int = 2
    head_dim: int = 64
    sharpness: float | None = None
    form: Form = "contiguous"
    gradient_form: Form = "contiguous"
    seed: int = 0
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    def __str__(self) -> str:
        """Return the lengths, the first of very many, and what is not as it is where nothing is said."""
        shown = ", ".join(map(str, self.lengths[:SHOWN_LENGTHS]))
        more = len(self.lengths) - SHOWN_LENGTHS
        others = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "lengths"}
        usual = {each.name: each.default for each in fields(self)}
        said = [f"{name}={value}" for name, value in others.items() if value != usual[name]]
        return ", ".join([f"lengths [{shown}{f' and {more} more' if more > 0 else ''}]", *said])

    @property
    def scale(self) -> float | None:
        """What attend is told: None stands for 1/sqrt(D)."""
        return None if self.sharpness is None else self.sharpness * self.head_dim**-0.5

    def fitted(self, backend: Backend) -> "AttentionInput":
        """Return the nearest input that `backend` declares: heads of its own for every query, of a size that each of
        its builds has, and no window, soft cap or sinks that it does not have."""
        kv_heads = self.num_kv_heads if backend.grouped_query else self.num_heads
        dim = -(-self.head_dim // backend.head_dim_multiple) * backend.head_dim_multiple
        return replace(
            self,
            num_kv_heads=kv_heads,
            head_dim=min(dim, backend.max_head_dim or dim, backend.sure_head_dim or dim),
            window=self.window if backend.windows else None,
            softcap=self.softcap if backend.softcaps else None,
            sinks=self.sinks and backend.sinks,
        )


@dataclass(frozen=True)
class Pieces:
    """One (L, H, D) tensor a sequence, in the dtype of a cell; `sinks` are (H,)."""

    q: tuple[Tensor, ...]
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    gradient: tuple[Tensor, ...]
    sinks: Tensor | None = None


@dataclass(frozen=True)
class Expected:
    """The truth of an input, all tokens in one row of sequences, and what the reference makes of it in the dtype."""

    truth: Truth
    reference: dict[str, Tensor]


def normal(shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw on the CPU, so that a seed gives the same numbers everywhere."""
    return torch.randn(tuple(shape), generator=generator).to(default_device(), dtype)


@functools.lru_cache(maxsize=128)
def pieces_of(given: AttentionInput, dtype: torch.dtype) -> Pieces:
    """Draw the values of `given`, standard normal; what has stride 0 is drawn once."""
    generator = torch.Generator().manual_seed(given.seed)

    def drawn(heads: int, form: Form) -> tuple[Tensor, ...]:
        heads_drawn = 1 if form == "expanded" else heads
        whole = normal((sum(given.lengths), heads_drawn, given.head_dim), generator, dtype).expand(-1, heads, -1)
        split = whole.split(given.lengths)
        return (split[0],) * len(split) if form == "repeated" and len(set(given.lengths)) == 1 else split

    return Pieces(
        # Expanded queries would make all heads alike.
        q=drawn(given.num_heads, "contiguous" if given.form == "expanded" else given.form),
        k=drawn(given.num_kv_heads, given.form),
        v=drawn(given.num_kv_heads, given.form),
        gradient=drawn(given.num_heads, given.gradient_form),
        sinks=normal((given.num_heads,), generator, dtype) if given.sinks else None,
    )


def truth_of(given: AttentionInput, dtype: torch.dtype, *, causal: bool, rounds: tuple[Rounding, ...]) -> Truth:
    """Return the oracle of every sequence, one after the other: values are (T, H, D), noise is (T, H); `dsinks` of all
    sequences together are (H, 1) and (H,)."""
    pieces = pieces_of(given, dtype)
    found: list[Truth | None] = [None] * len(given.lengths)
    for length in dict.fromkeys(given.lengths):
        alike = [index for index, other in enumerate(given.lengths) if other == length]
        stacked = [
            torch.stack([tensors[index] for index in alike])
            for tensors in (pieces.q, pieces.k, pieces.v, pieces.gradient)
        ]
        together = oracle(
            *stacked,
            causal=causal,
            scale=given.scale,
            window=given.window,
            softcap=given.softcap,
            sinks=pieces.sinks,
            rounds=rounds,
        )
        for place, index in enumerate(alike):
            found[index] = Truth(*({name: t[place] for name, t in part.items()} for part in vars(together).values()))
    truths = [truth for truth in found if truth is not None]
    whole = Truth(
        {name: torch.cat([truth.values[name] for truth in truths]) for name in RESULTS},
        {name: torch.cat([truth.noise[name] for truth in truths]) for name in RESULTS},
    )
    if given.sinks:
        # Their sum is rounded once more.
        dsinks = torch.stack([truth.values["dsinks"] for truth in truths]).sum(0)
        noise = torch.stack([dsinks, *(truth.noise["dsinks"] for truth in truths)]).norm(dim=0)
        whole.values["dsinks"], whole.noise["dsinks"] = dsinks[:, None], noise
    return whole


@functools.lru_cache(maxsize=256)
def expected_of(given: AttentionInput, dtype: torch.dtype, causal: bool, rounds: tuple[Rounding, ...] = ()) -> Expected:
    """Return truth and reference of `given`: cells share them. The reference has nothing to trip over."""
    truth = truth_of(given, dtype, causal=causal, rounds=rounds)
    if given.softcap is not None:
        # The reference has no soft cap. Where nothing but the result is rounded, the bound is the narrowest.
        return Expected(truth, {name: value.to(dtype) for name, value in truth.values.items()})
    plain = AttentionRun.of(REFERENCE, REFERENCE_COLLATOR, given, dtype, causal=causal, mode="train", garbage=0.0)
    return Expected(truth, plain.results())


def batch_of(collator: Collator, lengths: Sequence[int]) -> Batch:
    """Collate real examples of `lengths`; their ids do not matter to attention.

    The maximum, to which some collators pad, is the longest of them, or as long as a filler may be: scores of padding
    are computed too.
    """
    ones = [torch.ones(length, dtype=torch.int64) for length in lengths]
    collate = collator.build(CollatorOptions(max(*lengths, CollatorOptions.multiple)))
    return collate([Example(ids, ids) for ids in ones]).to(default_device())


def slots(batch: Batch) -> tuple[int, ...]:
    """Return the shape of a batch's token slots: padded (B, S), packed (1, T), nested (T,)."""
    if isinstance(batch, NestedBatch):
        return (batch.num_slots,)
    width = batch.num_slots // len(batch.lengths) if batch.layout == "padded" else batch.num_slots
    return batch.num_slots // width, width


def filled(batch: Batch, pieces: Sequence[Tensor], garbage: float, seed: int) -> Tensor:
    """Return the dense tensor that `batch.split` cuts into `pieces`: the inverse of it.

    Every slot of no sequence holds garbage between -`garbage` and `garbage`.
    """
    shape = (*slots(batch), *pieces[0].shape[1:])
    buffer = torch.zeros(shape, dtype=pieces[0].dtype, device=pieces[0].device)
    if garbage and batch.num_slots > batch.num_tokens:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(shape, generator=generator).mul_(2 * garbage).sub_(garbage)
        buffer.copy_(noise)
    # Views of the dense tensor: a nested batch's slots are the values of its NestedTensors.
    views = buffer.split(batch.lengths) if isinstance(batch, NestedBatch) else batch.split(buffer)
    for view, piece in zip(views, pieces, strict=True):
        view.copy_(piece)
    return buffer


def laid_out(tensor: Tensor, form: Form) -> Tensor:
    """Return a tensor equal to `tensor` (..., H, D) in another form; a fused one takes all three inputs together."""
    if form == "heads_first":
        return tensor.transpose(-3, -2).contiguous().transpose(-3, -2)
    if form in ("shifted", "sliced"):
        # Longer by numbers that keep rows aligned to 16 bytes; a packed row stays alone, as a stretch of it would not.
        margins = (*(0 if size == 1 else 2 for size in tensor.shape[:-3]), 2, *((1, 8) if form == "sliced" else (0, 0)))
        shape = [size + 2 * margin for size, margin in zip(tensor.shape, margins, strict=True)]
        buffer = torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device)
        places = zip(tensor.shape, margins, strict=True)
        part = buffer[tuple(slice(margin, margin + size) for size, margin in places)]
        return part.copy_(tensor)
    if form == "expanded":
        return tensor[..., :1, :].contiguous().expand_as(tensor)
    return tensor


def inputs_of(batch: Batch, given: AttentionInput, pieces: Pieces, garbage: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v in the layout of `batch` and the form of `given`, dense."""
    q, k, v = (
        filled(batch, tensors, garbage, given.seed + 1 + index)
        for index, tensors in enumerate((pieces.q, pieces.k, pieces.v))
    )
    if given.form == "fused":
        heads = (given.num_heads, given.num_kv_heads, given.num_kv_heads)
        q, k, v = torch.cat([q, k, v], dim=-2).split(heads, dim=-2)
    elif given.form == "expanded":
        # Garbage is then that of the first head.
        k, v = laid_out(k, "expanded"), laid_out(v, "expanded")
    elif given.form == "repeated":
        alike = batch.layout == "padded" and batch.num_slots == batch.num_tokens
        q, k, v = (tensor[:1].expand_as(tensor) if alike else tensor for tensor in (q, k, v))
    else:
        q, k, v = (laid_out(tensor, given.form) for tensor in (q, k, v))
    return q, k, v


@dataclass(frozen=True)
class AttentionRun:
    """Everything that one call of `attend` and its backward need, so that they can be repeated."""

    backend: Backend
    batch: Batch
    case: Case
    inputs: tuple[Tensor, Tensor, Tensor]
    gradient: Tensor
    scale: float | None
    sinks: Tensor | None = None

    @classmethod
    def of(
        cls,
        backend: Backend,
        collator: Collator,
        given: AttentionInput,
        dtype: torch.dtype,
        *,
        causal: bool,
        mode: Literal["eval", "train"],
        execution: Execution = "eager",
        garbage: float = GARBAGE,
    ) -> "AttentionRun":
        """Collate, and fill the batch's slots with the values of `given`; no gradient comes from padding."""
        batch, pieces = batch_of(collator, given.lengths), pieces_of(given, dtype)
        case = Case(
            device=default_device(),
            layout=collator.layout,
            padding_side=collator.padding_side,
            mode=mode,
            causal=causal,
            dtype=dtype,
            execution=execution,
            num_heads=given.num_heads,
            num_kv_heads=given.num_kv_heads,
            head_dim=given.head_dim,
            window=given.window,
            softcap=given.softcap,
            sinks=given.sinks,
        )
        inputs = inputs_of(batch, given, pieces, garbage)
        gradient = laid_out(filled(batch, pieces.gradient, 0.0, 0), given.gradient_form)
        return cls(backend, batch, case, inputs, gradient, given.scale, pieces.sinks)

    def outputs(self, times: int) -> list[Tensor]:
        """Return what attention gives each of `times` times that it is called on one context, without a backward."""
        with full_precision(), torch.set_grad_enabled(self.case.mode == "train"):
            context = self.backend.prepared(self.batch, self.case)
            sinks = {} if self.sinks is None else {"sinks": self.sinks}
            made = [
                self.backend.attend(*map(self._nested, self.inputs), context, scale=self.scale, **sinks)
                for _ in range(times)
            ]
            return [self._real("out", self._dense(out).detach()) for out in made]

    def results(self) -> dict[str, Tensor]:
        """Return the output and in training the gradients of q, k and v, all real tokens in one row: (T, H, D); and of
        the sinks, (H, 1)."""
        training = self.case.mode == "train"
        leaves = [tensor.detach().requires_grad_(training) for tensor in self.inputs]
        sinks = {} if self.sinks is None else {"sinks": self.sinks.detach().requires_grad_(training)}
        with full_precision(), torch.set_grad_enabled(training):
            context = self.backend.prepared(self.batch, self.case)
            out = self._dense(self.backend.attend(*map(self._nested, leaves), context, scale=self.scale, **sinks))
            # A NestedTensor's gradient is given to its values.
            gradients = torch.autograd.grad(out, [*leaves, *sinks.values()], self.gradient) if training else ()
        found = zip(RESULTS, (out.detach(), *gradients), strict=False)
        results = {name: self._real(name, tensor) for name, tensor in found}
        return {**results, "dsinks": gradients[-1][:, None]} if sinks and training else results

    def _nested(self, tensor: Tensor) -> Tensor:
        return self.batch.rows.nested(tensor) if isinstance(self.batch, NestedBatch) else tensor

    def _dense(self, out: Tensor) -> Tensor:
        if not isinstance(self.batch, NestedBatch):
            return out
        self.batch.split(out)
        return out.values()

    def _real(self, name: str, tensor: Tensor) -> Tensor:
        expected = self.inputs[max(RESULTS.index(name) - 1, 0)]
        if (tensor.shape, tensor.dtype) != (expected.shape, expected.dtype):
            raise AssertionError(
                f"{name} of {self.backend.name} is {tuple(tensor.shape)} {tensor.dtype}; "
                f"expected {tuple(expected.shape)} {expected.dtype}."
            )
        batch = self.batch
        return torch.cat(list(tensor.split(batch.lengths) if isinstance(batch, NestedBatch) else batch.split(tensor)))


def reduction_length(given: AttentionInput) -> int:
    """Return how many terms are added in a score and over the keys or queries, of all heads of a group; in the gradient
    of a sink over all queries."""
    added = sum(given.lengths) if given.sinks else max(given.lengths)
    return given.head_dim + added * (given.num_heads // given.num_kv_heads)


def mismatches(
    results: dict[str, Tensor], expected: Expected, given: AttentionInput, dtype: torch.dtype, error_factor: float
) -> list[Mismatch]:
    """Return every tensor of `results` that is further from the truth than allowed; names say where it is worst."""
    found = [
        mismatch(
            name,
            tensor,
            expected.truth.values[name],
            [expected.reference[name]],
            dtype=dtype,
            error_factor=error_factor,
            reduction_length=reduction_length(given),
            scale=expected.truth.noise[name],
        )
        for name, tensor in results.items()
    ]
    return [placed(mismatch, given) for mismatch in found if mismatch is not None]


def placed(found: Mismatch, given: AttentionInput) -> Mismatch:
    """Return `found` with its row in words: sequence, position and head."""
    if found.row is None:
        return found
    if found.name == "dsinks":
        return Mismatch(f"dsinks of head {found.row}", None, found.error, found.allowed)
    token, head = divmod(found.row, given.num_kv_heads if found.name in ("dk", "dv") else given.num_heads)
    for sequence, length in enumerate(given.lengths):
        if token < length:
            name = f"{found.name} of sequence {sequence}, position {token}, head {head}"
            return Mismatch(name, None, found.error, found.allowed)
        token -= length
    raise AssertionError("the worst row lies past the last sequence")


@dataclass(frozen=True, repr=False)
class AttentionBench:
    """The attention call of one cell, without a decoder around it."""

    cell: Cell

    def __repr__(self) -> str:
        return f"<attention of {self.cell.id}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def run(self, given: AttentionInput) -> AttentionRun:
        """Return the cell's attention of `given`, ready to run."""
        cell = self.cell
        options: dict[str, Any] = {"causal": cell.causal, "mode": cell.mode, "execution": cell.execution}
        return AttentionRun.of(cell.backend, cell.collator, given, cell.dtype, **options)

    def refuses(self, given: AttentionInput) -> bool:
        """Tell whether the backend says that it takes no batch of this shape."""
        return bool(self.cell.backend.batch_reasons(batch_of(self.cell.collator, given.lengths)))

    def expected(self, given: AttentionInput) -> Expected:
        """Return what every sequence alone gives, and the reference."""
        rounds = self.cell.backend.rounds.get(default_device(), ())
        return expected_of(given, self.cell.dtype, self.cell.causal, rounds)

    def check(self, given: AttentionInput) -> None:
        """Fail where a sequence of the batch is not what it is alone.

        A batch whose shape the backend says it refuses must be refused.
        """
        cell = self.cell
        given = given.fitted(cell.backend)
        run = self.run(given)
        if cell.backend.batch_reasons(run.batch):
            self._check_refused(run)
            return
        if found := self.differences(given, run.results()):
            raise Wrong("differs from each sequence alone", found, on=str(given))

    def differences(self, given: AttentionInput, results: dict[str, Tensor]) -> list[Mismatch]:
        """Return every tensor of `results` that is further from the truth of `given` than the cell may be."""
        return mismatches(results, self.expected(given), given, self.cell.dtype, self.cell.backend.error_factor)

    def check_copies(self, given: AttentionInput, copies: int) -> None:
        """Fail where a batch that holds `given` again and again differs from it anywhere.

        For batches too large to have a truth of their own; the sequences of `given` are of one length.
        """
        cell = self.cell
        given = given.fitted(cell.backend)
        pieces = pieces_of(given, cell.dtype)
        batch = batch_of(cell.collator, given.lengths * copies)
        inputs = (
            filled(batch, pieces.q * copies, GARBAGE, given.seed + 1),
            filled(batch, pieces.k * copies, GARBAGE, given.seed + 2),
            filled(batch, pieces.v * copies, GARBAGE, given.seed + 3),
        )
        gradient = filled(batch, pieces.gradient * copies, 0.0, 0)
        results = replace(self.run(given), batch=batch, inputs=inputs, gradient=gradient).results()
        tokens = sum(given.lengths)
        for copy in range(copies):
            part = {name: tensor[copy * tokens : (copy + 1) * tokens] for name, tensor in results.items()}
            if found := self.differences(given, part):
                raise Wrong(f"copy {copy} differs from each sequence alone", found, on=f"copies of {given}")

    def _check_refused(self, run: AttentionRun) -> None:
        try:
            run.results()
        except ValueError as error:
            if self.cell.backend.name in str(error):
                return
            raise
        raise AssertionError(
            f"{self.cell.id} must refuse this batch by its batch_reasons, but takes it: lengths {run.batch.lengths}."
        )
