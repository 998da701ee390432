"""cuDNN's SDPA graph with ragged offsets on a packed batch, through nvidia-cudnn-frontend.

Shapes: T tokens, N sequences, H query heads, H_kv key-value heads, D head dim. A graph is that of B rows of S tokens.

Sequences 2, 4, 3 lie in a graph of B = 4 rows as `lengths` [2, 4, 3, 0] and `starts` [0, 2, 6, 9, 9], which a graph
reads as element offsets: starts times the elements of one token.
https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from collators.batch import PackedBatch
from model.attention.backend import HALF, Backend, Requirement, first_line
from model.attention.case import Case

#: The first cuDNN without the faults of 9.10.0 and 9.10.1 that the frontend names where it refuses these.
LEAST_CUDNN = 91002

#: The rows of the smallest graph, as torch.compile makes another graph for one; its tokens in a row, which spares the
#: frontend's "s_q = s_kv = 1 is not supported"; and in all.
LEAST_ROWS, LEAST_ROW, LEAST_TOKENS = 2, 128, 1024

#: cuDNN reads 16 bytes at once.
ALIGNMENT = 16


@dataclass(frozen=True)
class RaggedContext:
    """`starts` int64 [B+1] and `lengths` int32 [B] on the device, the rows after the last sequence empty; `row` is S.

    B, S and the tokens that backward plans for are rounded up: a plan is made for each, and a batch meets few.
    """

    starts: Tensor
    lengths: Tensor
    row: int
    causal: bool
    window: int | None = None


def rounded(count: int, least: int, parts: int = 1) -> int:
    """Return the next power of two, or of what splits each into `parts`, from `least` on: 5 -> 8, and of 2 parts 6."""
    power = 1 << (count - 1).bit_length()
    step = max(power // 2 // parts, 1)
    return max(-(-count // step) * step, least)


def prepare(batch: PackedBatch, case: Case) -> RaggedContext:
    """Take lengths and offsets from the batch, and add empty rows up to the next power of two."""
    ends = batch.cu_seqlens
    count = ends.shape[0] - 1
    empty = rounded(count, LEAST_ROWS) - count
    starts = pad(ends.long(), (0, empty), value=batch.num_slots)
    lengths = pad(ends.diff(), (0, empty))
    return RaggedContext(starts, lengths, rounded(batch.max_seqlen, LEAST_ROW), case.causal, case.window)


def attend(q: Tensor, k: Tensor, v: Tensor, context: RaggedContext, *, scale: float | None = None) -> Tensor:
    """Run cuDNN's graph on the packed row."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, _ = forward(
        q[0], k[0], v[0], context.starts, context.lengths, context.row, context.causal, context.window or 0, scale
    )
    return out[None]


@dataclass(frozen=True)
class Shape:
    """What a plan depends on; `strides` are the elements from token to token in q, k and v, `window` 0 for none."""

    device: torch.device
    dtype: torch.dtype
    rows: int
    row: int
    heads: int
    kv_heads: int
    head_dim: int
    strides: tuple[int, int, int]
    causal: bool
    window: int
    scale: float

    @property
    def steps(self) -> tuple[int, ...]:
        """Elements of one token in q, k, v, in whatever is as q but packed, as k but packed, and in the logsumexp."""
        return (*self.strides, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.heads)


#: The offsets of a graph, in the order of `Shape.steps`, and its other tensors.
OFFSETS = ("q", "k", "v", "as q", "as k", "stats")
TENSORS = ("q", "k", "v", "out", "stats", "gradient", "dq", "dk", "dv", "lengths")


class Graph:
    """A graph of cuDNN that is being described; `plan` makes it ready to run. Dimensions are (B, H, S, D)."""

    def __init__(self, shape: Shape, handle: Any) -> None:
        self.cudnn = cudnn = library()
        self.shape = shape
        kinds = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF}
        self.kind, self.wide = kinds[shape.dtype], cudnn.data_type.FLOAT
        self.graph = cudnn.pygraph(
            io_data_type=self.kind,
            intermediate_data_type=self.wide,
            compute_data_type=self.wide,
            handle=handle,
        )
        rows, int32, int64 = shape.rows, cudnn.data_type.INT32, cudnn.data_type.INT64
        self.offsets = {
            name: self._vector(f"{name} offsets", rows + 1, int64, len(TENSORS) + at) for at, name in enumerate(OFFSETS)
        }
        self.lengths = self._vector("lengths", rows, int32, TENSORS.index("lengths"))
        q, kv = (shape.heads, shape.head_dim), (shape.kv_heads, shape.head_dim)
        #: Heads, elements of a head, offsets and dtype of each tensor.
        self.layouts = {
            "q": (*q, "q", self.kind),
            "k": (*kv, "k", self.kind),
            "v": (*kv, "v", self.kind),
            "out": (*q, "as q", self.kind),
            "stats": (shape.heads, 1, "stats", self.wide),
            "gradient": (*q, "as q", self.kind),
            "dq": (*q, "as q", self.kind),
            "dk": (*kv, "as k", self.kind),
            "dv": (*kv, "as k", self.kind),
        }

    def _vector(self, name: str, length: int, kind: Any, uid: int) -> Any:
        # uids start at 1.
        return self.graph.tensor(name=name, dim=[length, 1, 1, 1], stride=[1, 1, 1, 1], data_type=kind, uid=uid + 1)

    def _geometry(self, name: str) -> tuple[list[int], list[int]]:
        heads, width, offsets, _ = self.layouts[name]
        step = self.shape.steps[OFFSETS.index(offsets)]
        return [self.shape.rows, heads, self.shape.row, width], [self.shape.row * step, width, step, 1]

    def given(self, name: str) -> Any:
        """Return the tensor of this name, which the graph reads."""
        *_, offsets, kind = self.layouts[name]
        dim, stride = self._geometry(name)
        tensor = self.graph.tensor(name=name, dim=dim, stride=stride, data_type=kind, uid=TENSORS.index(name) + 1)
        tensor.set_ragged_offset(self.offsets[offsets])
        return tensor

    def written(self, name: str, tensor: Any) -> None:
        """Say that `tensor` is the one of this name, which the graph writes."""
        *_, offsets, kind = self.layouts[name]
        dim, stride = self._geometry(name)
        tensor.set_output(True).set_data_type(kind).set_dim(dim).set_stride(stride).set_uid(TENSORS.index(name) + 1)
        tensor.set_ragged_offset(self.offsets[offsets])

    def masks(self) -> dict[str, Any]:
        """Return what forward and backward ask alike: where sequences end, which keys a query sees, and the scale."""
        shape = self.shape
        # Queries and keys of a sequence are as many, so that the diagonal is the same from either corner. The left
        # bound counts the token itself, the right one does not.
        window = shape.window if shape.window < shape.row else 0
        right = 0 if shape.causal else window - 1 if window else None
        return {
            "attn_scale": shape.scale,
            "use_padding_mask": True,
            "seq_len_q": self.lengths,
            "seq_len_kv": self.lengths,
            "diagonal_alignment": self.cudnn.diagonal_alignment.TOP_LEFT,
            "diagonal_band_left_bound": window or None,
            "diagonal_band_right_bound": right,
        }

    def plan(self) -> "Plan":
        """Choose a kernel; cuDNN's error says what it does not take."""
        graph, modes = self.graph, self.cudnn.heur_mode
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([modes.A, modes.FALLBACK])
        graph.check_support()
        graph.build_plans()
        return Plan(graph, self.shape, graph.get_workspace_size())


@dataclass(frozen=True)
class Plan:
    """A graph that runs, and the bytes that it needs for itself."""

    graph: Any
    shape: Shape
    workspace_bytes: int

    def run(self, starts: Tensor, lengths: Tensor, tensors: dict[str, Tensor]) -> None:
        """Run on the current stream; `tensors` are those of the graph by name."""
        offsets = offsets_of(starts, self.shape.steps)
        workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device=starts.device)
        addresses = {TENSORS.index(name) + 1: tensor.data_ptr() for name, tensor in tensors.items()}
        addresses[TENSORS.index("lengths") + 1] = lengths.data_ptr()
        first, apart = offsets.data_ptr(), offsets.stride(0) * offsets.element_size()
        addresses |= {len(TENSORS) + at + 1: first + at * apart for at in range(len(OFFSETS))}
        with on(self.shape.device) as handle:
            self.graph.execute(addresses, workspace.data_ptr(), handle)


@functools.cache
def forward_plan(shape: Shape) -> Plan:
    """Return the plan of a forward, made once."""
    with on(shape.device) as handle:
        graph = Graph(shape, handle)
        out, stats = graph.graph.sdpa(
            name="forward",
            **{name: graph.given(name) for name in ("q", "k", "v")},
            **graph.masks(),
            generate_stats=True,
            # One kernel for every mask: where cuDNN is left to choose, it chooses by the mask.
            implementation=graph.cudnn.attention_implementation.COMPOSITE,
        )
        graph.written("out", out)
        graph.written("stats", stats)
        return graph.plan()


@functools.cache
def backward_plan(shape: Shape, tokens: int) -> Plan:
    """Return the plan of a backward on at most so many tokens, made once: its float32 dq is that large, not B x S."""
    with on(shape.device) as handle:
        graph = Graph(shape, handle)
        gradients = graph.graph.sdpa_backward(
            name="backward",
            **{name: graph.given(name) for name in ("q", "k", "v", "stats")},
            o=graph.given("out"),
            dO=graph.given("gradient"),
            **graph.masks(),
            max_total_seq_len_q=tokens,
            max_total_seq_len_kv=tokens,
        )
        for name, tensor in zip(("dq", "dk", "dv"), gradients, strict=True):
            graph.written(name, tensor)
        return graph.plan()


def offsets_of(starts: Tensor, steps: tuple[int, ...]) -> Tensor:
    """Return the element offsets of each of `steps`, int64 [len(steps), at least B+1], each row aligned."""
    padded = torch.empty(len(steps), starts.shape[0] + starts.shape[0] % 2, dtype=torch.int64, device=starts.device)
    torch.mul(_column(steps, starts.device), starts, out=padded[:, : starts.shape[0]])
    return padded


@functools.cache
def _column(steps: tuple[int, ...], device: torch.device) -> Tensor:
    # Copied to the device once: a copy in every layer would wait for it.
    return torch.tensor(steps, dtype=torch.int64, device=device)[:, None]


def is_aligned(tensor: Tensor) -> bool:
    """Tell whether a tensor (T, H, D) begins, and each of its tokens, where cuDNN can read."""
    return tensor.data_ptr() % ALIGNMENT == 0 and tensor.stride(0) * tensor.element_size() % ALIGNMENT == 0


def by_tokens(tensor: Tensor) -> Tensor:
    """Return `tensor` (T, H, D), or a copy where the heads of a token do not lie side by side: plans are for these."""
    _, heads, width = tensor.shape
    beside = tensor.stride(2) == 1 and tensor.stride(1) == width and tensor.stride(0) >= heads * width
    return tensor if beside and is_aligned(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def packed(tensor: Tensor) -> Tensor:
    """Return `tensor` (T, H, D) without gaps between tokens, or a copy that has none."""
    return (
        tensor if tensor.is_contiguous() and is_aligned(tensor) else tensor.clone(memory_format=torch.contiguous_format)
    )


def shape_of(tensors: list[Tensor], lengths: Tensor, row: int, causal: bool, window: int, scale: float) -> Shape:
    """Return the shape of a plan for q, k and v."""
    q, k, _ = tensors
    strides = tuple(tensor.stride(0) for tensor in tensors)
    sizes = lengths.shape[0], row, q.shape[1], k.shape[1], q.shape[2]
    return Shape(q.device, q.dtype, *sizes, strides, causal, window, scale)  # type: ignore[arg-type]


@torch.library.custom_op("varlen_gate::cudnn_ragged_forward", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    lengths: Tensor,
    row: int,
    causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the output (T, H, D) and the logsumexp of each query's scores, float32 (T, H)."""
    tensors = [by_tokens(tensor) for tensor in (q, k, v)]
    out, stats = forward_shapes(q, k, v, starts, lengths, row, causal, window, scale)
    plan = forward_plan(shape_of(tensors, lengths, row, causal, window, scale))
    plan.run(starts, lengths, dict(zip(("q", "k", "v", "out", "stats"), (*tensors, out, stats), strict=True)))
    return out, stats


@forward.register_fake
def forward_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    lengths: Tensor,
    row: int,
    causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return tensors like the results of `forward`."""
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("varlen_gate::cudnn_ragged_backward", mutates_args=())
def backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    stats: Tensor,
    starts: Tensor,
    lengths: Tensor,
    row: int,
    causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    # With gaps between tokens, the kernel ends in an illegal instruction (cuDNN 9.19, H200).
    tensors = [packed(tensor) for tensor in (q, k, v)]
    dq, dk, dv = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
    tokens = rounded(q.shape[0], LEAST_TOKENS, parts=4)
    plan = backward_plan(shape_of(tensors, lengths, row, causal, window, scale), tokens)
    # A plan is for one layout of the upstream gradient and does not notice another: the backward of torch's own cuDNN
    # SDPA is wrong there (docs/reproductions/cudnn_gradient_strides.py).
    given = (*tensors, packed(out), stats, packed(gradient), dq, dk, dv)
    plan.run(starts, lengths, dict(zip(TENSORS[:-1], given, strict=True)))
    return dq, dk, dv


@backward.register_fake
def backward_shapes(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors like the results of `backward`."""
    dq, dk, dv = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
    return dq, dk, dv


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep for the backward what it reads."""
    tensors, ctx.options = inputs[:5], inputs[5:]
    q, k, v, starts, lengths = tensors
    ctx.save_for_backward(q, k, v, *output, starts, lengths)


def differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Return a gradient for each argument of `forward`; the logsumexp has none, as nothing uses it."""
    return (*backward(gradient, *ctx.saved_tensors, *ctx.options), *[None] * 6)


forward.register_autograd(differentiate, setup_context=keep)


@functools.cache
def library() -> ModuleType:
    """Return nvidia-cudnn-frontend's module."""
    import cudnn

    return cudnn


#: A handle belongs to a device, and to a thread: backward runs in one of its own.
_HANDLES = threading.local()


@contextmanager
def on(device: torch.device) -> Iterator[Any]:
    """Make `device` the current one, and yield a handle for its current stream."""
    handles: dict[Any, Any] = vars(_HANDLES)
    with torch.cuda.device(device):
        if device not in handles:
            handles[device] = library().create_handle()
        library().set_stream(handle=handles[device], stream=torch.cuda.current_stream(device).cuda_stream)
        yield handles[device]


def probe() -> list[str]:
    """Return why cuDNN cannot be reached, or an empty list."""
    try:
        found = library().backend_version()
    # The frontend raises a RuntimeError where it finds no cuDNN.
    except (ImportError, OSError, RuntimeError) as error:
        return [f"nvidia-cudnn-frontend does not load ({first_line(error)}); install it beside a CUDA build of torch"]
    if found < LEAST_CUDNN:
        return [f"needs cuDNN {LEAST_CUDNN} or newer; {found} is installed (upgrade torch)"]
    return []


BACKEND = Backend(
    name="cudnn_ragged",
    layout="packed",
    summary="cuDNN SDPA graph with ragged offsets",
    prepare=prepare,
    attend=attend,
    dtypes={"cuda": HALF},
    max_head_dim=128,
    head_dim_multiple=8,
    grouped_query=True,
    windows=True,
    # cuDNN has ragged offsets from here on.
    min_capability=(9, 0),
    kernels={"cuda": ("varlen_gate::cudnn_ragged_forward",)},
    requires=(Requirement("nvidia-cudnn-frontend", "1.23", "pip install nvidia-cudnn-frontend"),),
    probe=probe,
    plans_by_shape=True,
)
