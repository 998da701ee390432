"""The fast step: the article's decoder, computed with fewer bytes and fewer launches, to the same numbers.

It differs from `model/decoder.py` in four named places:

- `NarrowLinear` has its matrix in 16 bits too: all are cast in one kernel before a step, and the product that makes the
  gradient of a matrix writes it in float32.
- `FusedMlp` has products that apply the GELU, or its gradient, to what they write (`model/products.py`).
- `FusedBlock.attended` takes queries, keys and values as one tensor, so that their gradient is one.
- `Graphs` replays the forward and the backward of a packed row as CUDA graphs, so that the host launches two.

Shapes: T tokens and S slots of a packed row, N sequences.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from collators.batch import PackedBatch
from model import products
from model.attention import Backend
from model.attention import fa4_varlen as fa4
from model.attention.backend import Attend
from model.attention.torch_varlen import VarlenContext
from model.decoder import Block, Decoder, DecoderConfig
from model.mlp import Mlp
from model.products import gradient_before_gelu, gradient_of_matrix, product, product_and_gelu

#: Rows are filled up to a multiple of this many slots: each size is a graph of its own, with gradients of its own.
SLOTS = 128

#: So many sizes are kept, each with the gradients of all parameters. `packed_multiple` makes batches of few sizes.
KEPT = 32

#: How often a step is run before it is captured, as kernels are chosen and compiled by the first calls.
WARM_UP = 3

AttendHeads = Callable[[Tensor, int, VarlenContext], Tensor]


class NarrowProduct(torch.autograd.Function):
    """A linear map computed in 16 bits, whose parameters' gradients are float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, narrow_weight: Tensor, narrow_bias: Tensor
    ) -> Tensor:
        """Return `x` (T, E) times the matrix, plus the bias: (T, F) in 16 bits."""
        ctx.save_for_backward(x, narrow_weight)
        return product(x, narrow_weight, narrow_bias, False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x`, the matrix and the bias."""
        x, narrow_weight = ctx.saved_tensors
        of_bias = gradient.sum(0, dtype=torch.float32)
        return gradient @ narrow_weight, gradient_of_matrix(gradient, x), of_bias, None, None


class NarrowLinear(nn.Module):
    """A linear map of float32 parameters, which it shares with `linear`, that computes with 16-bit copies of them."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.master_weight, self.master_bias = shared(linear.weight), shared(linear.bias)
        self.register_buffer("weight", linear.weight.detach().to(dtype))
        self.register_buffer("bias", linear.bias.detach().to(dtype))

    @property
    def masters(self) -> tuple[Tensor, Tensor]:
        """Its parameters: matrix and bias, float32."""
        return self.master_weight, self.master_bias

    @property
    def copies(self) -> tuple[Tensor, Tensor]:
        """The same in 16 bits."""
        return self.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, E) to (B, T, F) in 16 bits."""
        flat = x.to(self.weight.dtype).flatten(0, -2)
        if torch.is_grad_enabled():
            out: Tensor = NarrowProduct.apply(flat, *self.masters, *self.copies)  # type: ignore[no-untyped-call]
        else:
            out = product(flat, *self.copies, False)
        return out.unflatten(0, x.shape[:-1])


class FusedProducts(torch.autograd.Function):
    """Both products of an MLP and the GELU between them, in 16 bits; gradients of parameters are float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        """Map `x` (T, E) to (T, E). `parameters`: weight and bias of each linear map, then the same in 16 bits."""
        up, up_bias, down, down_bias = parameters[4:]
        inner, activated = product_and_gelu(x, up, up_bias)
        ctx.save_for_backward(x, inner, activated, up, down)
        return product(activated, down, down_bias, False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x`, and of weight and bias of each linear map."""
        x, inner, activated, up, down = ctx.saved_tensors
        before, of_up_bias = gradient_before_gelu(gradient, down, inner)
        of_down, of_down_bias = gradient_of_matrix(gradient, activated), gradient.sum(0, dtype=torch.float32)
        return before @ up, gradient_of_matrix(before, x), of_up_bias, of_down, of_down_bias, *[None] * 4


class FusedMlp(Mlp):
    """An MLP of narrow linear maps whose GELU, and its gradient, are part of products."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, E) to (B, T, E) in 16 bits."""
        maps: tuple[Any, Any] = (self.up, self.down)
        up, down = maps
        flat = x.to(up.weight.dtype).flatten(0, -2)
        if torch.is_grad_enabled():
            out: Tensor = FusedProducts.apply(  # type: ignore[no-untyped-call]
                flat, *up.masters, *down.masters, *up.copies, *down.copies
            )
        else:
            out = product(product(flat, *up.copies, True), *down.copies, False)
        return out.unflatten(0, x.shape[:-1])


def shared(parameter: Tensor) -> nn.Parameter:
    """Return a parameter of the same storage, whose gradient is its own: a graph is captured on it alone."""
    return nn.Parameter(parameter.detach())


class FusedBlock(Block):
    """A block whose attention takes the heads of queries, keys and values as one tensor, with a fused MLP."""

    def __init__(self, config: DecoderConfig, attend: Attend, attend_heads: AttendHeads) -> None:
        super().__init__(config, attend)
        self.attend_heads = attend_heads
        self.mlp = FusedMlp(config.hidden_size)

    def attended(self, heads: Tensor, context: Any, rotation: Tensor | None, rows: Any) -> Tensor:
        """Return what attention makes of the heads; rotated queries and keys are tensors of their own anyway."""
        if rotation is not None:
            return super().attended(heads, context, rotation, rows)
        return self.attend_heads(heads, self.heads[0], context)


@dataclass(frozen=True)
class Row:
    """What a packed row is to a graph: ids and positions (1, S), offsets int32 (N + 1,)."""

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor

    def fill(self, batch: PackedBatch) -> None:
        """Copy a batch into it; the slots after its tokens are a sequence of their own."""
        tokens = batch.num_slots
        for own, theirs in ((self.input_ids, batch.input_ids), (self.position_ids, batch.position_ids)):
            own[:, :tokens].copy_(theirs)
            own[:, tokens:].zero_()
        self.cu_seqlens[:-1].copy_(batch.cu_seqlens)


@dataclass(frozen=True)
class Recording:
    """What a function returned, and what runs it again into the same tensors."""

    results: tuple[Tensor, ...]
    replay: Callable[[], None]


def recorded(function: Callable[[], Sequence[Tensor]], place: "Place | None") -> Recording:
    """Run `function` and record it: as a CUDA graph in a place; on a CPU, without one, it is simply called again."""
    if place is not None:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=place.pool, stream=place.stream):
            results = function()
        return Recording(tuple(each.detach() for each in results), graph.replay)
    kept = tuple(each.detach().clone() for each in function())

    def again() -> None:
        for own, new in zip(kept, function(), strict=True):
            own.copy_(new.detach())

    return Recording(kept, again)


@dataclass(frozen=True)
class Place:
    """Where the graphs of one model are captured: a stream of the current GPU, and memory that they share."""

    stream: torch.cuda.Stream = field(default_factory=torch.cuda.Stream)
    pool: Any = field(default_factory=torch.cuda.graph_pool_handle)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Run on its stream: what comes before a CUDA graph must not be on the default one."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)


@dataclass(frozen=True)
class Graph:
    """One size of row: its inputs, its logits (1, S, vocabulary), and in training how the gradients of all parameters
    follow from the `gradient` of the logits."""

    row: Row
    forward: Recording
    gradient: Tensor
    backward: Recording | None

    @property
    def logits(self) -> Tensor:
        """The logits of the last replay."""
        return self.forward.results[0]

    def gradients(self, gradient: Tensor) -> list[Tensor]:
        """Return the gradients of all parameters, as tensors that no later replay overwrites."""
        assert self.backward is not None
        tokens = gradient.shape[1]
        self.gradient[:, :tokens].copy_(gradient)
        self.gradient[:, tokens:].zero_()
        self.backward.replay()
        own = [torch.empty_like(each) for each in self.backward.results]
        torch._foreach_copy_(own, self.backward.results)
        return own


@dataclass
class Graphs:
    """Recordings of `body`, which maps a row and its context to logits; one for each size that was met.

    All share memory. So a backward must be that of the last forward, and only once: what another one kept is
    overwritten.
    """

    body: Callable[[Row, VarlenContext], Tensor]
    parameters: Sequence[Tensor]
    longest: int
    made: dict[tuple[Any, ...], Graph] = field(default_factory=dict)
    place: Place | None = None
    runs: int = 0

    def run(self, batch: PackedBatch, context: VarlenContext) -> Graph:
        """Replay the forward of `batch`, and return its graph."""
        step = min(SLOTS, self.longest)
        # At least one slot more, which makes the sequence that fills the row up.
        slots, training = (batch.num_slots // step + 1) * step, torch.is_grad_enabled()
        key = (slots, len(batch.cu_seqlens), context.causal, context.window, context.softcap, training)
        if key not in self.made:
            if len(self.made) == KEPT:
                self.made.clear()
                self.place = None
            self.made[key] = self._recorded(batch, context, slots, training)
        graph = self.made[key]
        graph.row.fill(batch)
        graph.forward.replay()
        self.runs += 1
        return graph

    def _recorded(self, batch: PackedBatch, context: VarlenContext, slots: int, training: bool) -> Graph:
        like = batch.input_ids
        if like.is_cuda and self.place is None:
            self.place = Place()
        ids, positions = (like.new_zeros((1, slots)) for _ in range(2))
        offsets = torch.full((len(batch.cu_seqlens) + 1,), slots, dtype=torch.int32, device=like.device)
        row, told = Row(ids, positions, offsets), replace(context, cu_seqlens=offsets, max_seqlen=self.longest)
        row.fill(batch)
        last: dict[str, Tensor] = {}

        def forward() -> tuple[Tensor]:
            last["logits"] = self.body(row, told)
            return (last["logits"],)

        def backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(last["logits"], self.parameters, gradient)

        with self.place.beside() if self.place else nullcontext():
            for _ in range(WARM_UP):
                (logits,) = forward()
                gradient = torch.zeros_like(logits)
                if training:
                    backward()
        ahead = recorded(forward, self.place)
        return Graph(row, ahead, gradient, recorded(backward, self.place) if training else None)


class Replayed(torch.autograd.Function):
    """Logits of a packed row by a graph, whose backward is a graph too."""

    @staticmethod
    def forward(ctx: Any, graphs: Graphs, batch: PackedBatch, context: VarlenContext, *masters: Tensor) -> Tensor:
        """Return logits (1, T, vocabulary)."""
        with torch.enable_grad():
            ctx.graph = graphs.run(batch, context)
        ctx.graphs, ctx.run = graphs, graphs.runs
        return ctx.graph.logits[:, : batch.num_slots].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all parameters."""
        if ctx.run != ctx.graphs.runs:
            raise RuntimeError(
                "the fast step keeps the activations of its last forward, for one backward; got a backward of an "
                "earlier forward, or a second one. Run one backward after each forward, or use Decoder."
            )
        ctx.graphs.runs += 1
        return None, None, None, *ctx.graph.gradients(gradient)


@dataclass(frozen=True)
class Narrow:
    """The decoder in 16 bits: its graphs, and its linear maps."""

    graphs: Graphs
    linears: Sequence[NarrowLinear]

    def shares(self, masters: Sequence[Tensor]) -> bool:
        """Tell whether its parameters lie where `masters` do."""
        return [each.data_ptr() for each in self.graphs.parameters] == [each.data_ptr() for each in masters]

    def cast(self) -> None:
        """Cast the parameters of all linear maps: no counter tells of every way in which they may have changed.

        A fused optimiser counts nothing (findings/fused_step_unseen.sh), nor does what is written to `.data`.
        """
        copies: list[Tensor] = [each for linear in self.linears for each in linear.copies]
        masters: list[Tensor] = [each for linear in self.linears for each in linear.masters]
        with torch.no_grad():
            torch._foreach_copy_(copies, masters)


class FastDecoder(Decoder):
    """The decoder of the fast step: parameters, and numbers to the tolerance, are those of `Decoder`.

    Its parameters are float32. The decoder that runs shares them, computes with `NarrowLinear`, and has `FusedBlock`s.
    Hooks on modules of this one are not called.
    """

    def __init__(self, config: DecoderConfig, attend: Attend, attend_heads: AttendHeads) -> None:
        super().__init__(config, attend)
        self.attend, self.attend_heads = attend, attend_heads
        self.compiled = False
        # Not modules of this one: parameters are its own alone.
        self.running: dict[torch.dtype, Narrow] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: it makes graphs of its own."""
        return self.__dict__ | {"running": {}}

    def compile_blocks(self) -> None:
        """Let the blocks that run be compiled, as `Decoder` compiles its own."""
        self.compiled = True
        self.running.clear()

    def forward(self, batch: PackedBatch, context: VarlenContext) -> Tensor:  # type: ignore[override]
        """Return logits (1, T, vocabulary); a backward must come before the next forward.

        ValueError without autocast.
        """
        device = batch.input_ids.device.type
        if not torch.is_autocast_enabled(device):
            raise ValueError("the fast step needs 16 bits; got no autocast. Run it in torch.autocast, or use Decoder.")
        if batch.max_seqlen > self.config.max_length:
            raise ValueError(
                f"the fast step takes sequences of up to max_length={self.config.max_length} tokens; got "
                f"{batch.max_seqlen}. Make the decoder with a larger max_length."
            )
        training = torch.is_grad_enabled()
        # What is kept for later steps must be usable outside of inference mode too.
        with torch.inference_mode(False), torch.set_grad_enabled(training):
            graphs = self.narrow(torch.get_autocast_dtype(device))
            if not training:
                return graphs.run(batch, context).logits[:, : batch.num_slots].clone()
            logits: Tensor = Replayed.apply(graphs, batch, context, *self.parameters())  # type: ignore[no-untyped-call]
            return logits

    def narrow(self, dtype: torch.dtype) -> Graphs:
        """Return the graphs of the decoder in `dtype`, whose matrices are those of this one."""
        running, masters = self.running.get(dtype), list(self.parameters())
        if running is None or not running.shares(masters):
            # Parameters may have been moved, or others put in their place.
            decoder = self._narrow_decoder(dtype)
            parameters = list(decoder.parameters())
            if len(parameters) != len(masters):
                raise ValueError(
                    f"the fast step takes modules with parameters of their own; got {len(masters)} for "
                    f"{len(parameters)}. Untie them, or use Decoder."
                )
            linears = [module for module in decoder.modules() if isinstance(module, NarrowLinear)]
            graphs = Graphs(decoder.__call__, parameters, self.config.max_length)
            running = self.running[dtype] = Narrow(graphs, linears)
        running.cast()
        return running.graphs

    def _narrow_decoder(self, dtype: torch.dtype) -> Decoder:
        with torch.device("meta"):
            decoder = Decoder(self.config, self.attend)
            decoder.blocks = nn.ModuleList(FusedBlock(self.config, self.attend, self.attend_heads) for _ in self.blocks)
        for name, own in self.named_modules():
            if isinstance(own, nn.Linear):
                decoder.set_submodule(name, NarrowLinear(own, dtype))
                continue
            module = decoder.get_submodule(name)
            for key, parameter in own.named_parameters(recurse=False):
                module.register_parameter(key, shared(parameter))
            for key, buffer in own.named_buffers(recurse=False):
                module.register_buffer(key, buffer, persistent=False)
        if self.compiled:
            decoder.compile_blocks()
        return decoder


@dataclass(frozen=True)
class FastBackend(Backend):
    """A packed backend in the decoder of the fast step."""

    attend_heads: AttendHeads = field(kw_only=True)


def fast(inner: Backend, attend_heads: AttendHeads) -> FastBackend:
    """Return `inner` in the decoder of the fast step."""

    def probe() -> list[str]:
        return [*inner.probe(), *products.probe()]

    changed: dict[str, Any] = {
        "name": f"fast_{inner.name}",
        "summary": f"the fast step, {inner.summary}",
        "executions": ("compiled",),
        # FSDP2 shards parameters, which it copies whole.
        "wrappers": ("ddp",),
        "requires": (*inner.requires, products.REQUIREMENT),
        "probe": probe,
    }
    return FastBackend(**inner.claims() | changed, attend_heads=attend_heads)


FAST_BACKENDS: tuple[FastBackend, ...] = (fast(fa4.BACKEND, fa4.attend_heads),)
