"""What stands in for kernels that this machine may not have, so that what is handed to them can be seen.

Each has the real function's signature, refuses what the kernel refuses or would misread, and computes the result from
its arguments alone, in float64. Shapes: L tokens of a sequence, T tokens in all, H heads, D head dim.
"""

import ctypes
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask
from torch.nn.functional import gelu
from torch.overrides import TorchFunctionMode

from model import products
from model.attention import cudnn_ragged, flashinfer_ragged, flex_document_mask, torch_varlen, xformers
from model.attention.backend import FLOAT, HALF

Function = Callable[..., Any]

#: The kernels that `sdpa_kernel` can leave SDPA to choose from, and how torch tells that one is left.
SDPA_KERNELS: dict[str, Callable[[], bool]] = {
    "flash": torch.backends.cuda.flash_sdp_enabled,
    "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
    "math": torch.backends.cuda.math_sdp_enabled,
}

#: Whether kernels may be told of no longer sequence than there is.
LONGEST_IS_EXACT = True

#: The largest head of those that are left alone: what their backends have declared, not read from a release of torch.
MOST_OF_A_HEAD = {"flash": 256, "cudnn": 128}


@dataclass(frozen=True)
class StandIn:
    """`install` puts it in the place of the real function for one test, told what counts its calls. `sdpa` names the
    kernels that SDPA must be left to choose from; without any, SDPA must not be called."""

    name: str
    install: Callable[[pytest.MonkeyPatch, Callable[[Function], Function]], None] = lambda patch, counted: None
    sdpa: frozenset[str] = frozenset()


@dataclass
class Calls:
    """How often stand-ins were called."""

    count: int = 0

    def counted(self, function: Function) -> Function:
        """Return `function`, whose calls count."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            return function(*arguments, **options)

        return call


def put(patch: pytest.MonkeyPatch, modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Put modules that hold these names in the place of whatever is installed; a package comes before what is in it."""
    made: dict[str, types.ModuleType] = {}
    for name, held in modules.items():
        made[name] = types.ModuleType(name)
        vars(made[name]).update(held)
        package, _, own = name.rpartition(".")
        if package:
            vars(made[package])[own] = made[name]
        patch.setitem(sys.modules, name, made[name])


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None, changed: Function | None = None
) -> tuple[Tensor, Tensor]:
    """Return softmax(changed(scale * q k^T) + bias) v and the logsumexp of its rows.

    q is (..., H, L, D), k and v may have fewer heads; `changed` is what a kernel does to scores.
    """
    assert q.dtype == k.dtype == v.dtype, f"q, k and v have one dtype; got {q.dtype}, {k.dtype}, {v.dtype}"
    assert scale is None or type(scale) is float, f"the scale is a float or None; got {scale!r}"
    wide = [tensor.double() for tensor in (q, k, v)]
    keys, values = (tensor.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3) for tensor in wide[1:])
    scores = (q.shape[-1] ** -0.5 if scale is None else scale) * wide[0] @ keys.mT
    biased = (scores if changed is None else changed(scores)) + bias.double()
    return (biased.softmax(-1) @ values).to(q.dtype), biased.logsumexp(-1).float()


def bias_of(visible: Tensor) -> Tensor:
    """Return 0 where `visible` and -inf elsewhere."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, -torch.inf)


def distances(length: int, device: torch.device) -> Tensor:
    """Return how far after its key each query comes, (L, L)."""
    tokens = torch.arange(length, device=device)
    return tokens[:, None] - tokens[None, :]


def one_by_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    window: tuple[int, int],
    scale: float | None,
    changed: Function | None = None,
) -> Tensor:
    """Return attention of sequences that lie one after the other, (T, H, D); -1 leaves a side of the window open."""
    left, right = window
    pieces = (tensor.transpose(0, 1).split(list(lengths), dim=1) for tensor in (q, k, v))
    found = []
    for q_piece, k_piece, v_piece in zip(*pieces, strict=True):
        after = distances(q_piece.shape[1], q.device)
        visible = ((after <= left) | (left < 0)) & ((-after <= right) | (right < 0))
        found.append(attention(q_piece, k_piece, v_piece, bias_of(visible), scale, changed)[0])
    return torch.cat(found, dim=1).transpose(0, 1)


def check_heads(q: Tensor, k: Tensor, v: Tensor, dtypes: Sequence[torch.dtype], ndim: int) -> None:
    """Refuse what no CUDA kernel takes."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        assert tensor.ndim == ndim, f"{name} has {ndim} dimensions; got {tuple(tensor.shape)}"
        assert tensor.dtype in dtypes, f"{name} is of {dtypes}; got {tensor.dtype}"
        assert tensor.stride(-1) == 1, f"the last dimension of {name} is contiguous; got strides {tensor.stride()}"
        assert tensor.shape[-1] == q.shape[-1], f"{name} has the head dim of q; got {tensor.shape[-1]}"
    assert k.shape == v.shape, f"k and v have one shape; got {tuple(k.shape)} and {tuple(v.shape)}"


def check_head_dim(q: Tensor, most: int | None, multiple: int = 8) -> None:
    """Refuse heads (..., D) that a CUDA kernel has no code for: of more than `most` numbers, or no `multiple`."""
    found = q.shape[-1]
    assert most is None or found <= most, f"head dims are at most {most}; got {found}"
    assert found % multiple == 0, f"head dims are multiples of {multiple}; got {found}"


def varlen(
    tensors: tuple[Tensor, Tensor, Tensor],
    offsets: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    window: tuple[int, int],
    scale: float | None,
    softcap: float = 0.0,
) -> Tensor:
    """Return what FlashAttention's varlen kernels compute, whoever wraps them."""
    q, k, v = tensors
    check_heads(q, k, v, HALF, 3)
    assert q.shape[1] % k.shape[1] == 0, f"{q.shape[1]} query heads share {k.shape[1]} heads of keys"
    check_head_dim(q, 256)
    for side, cu_seqlens, most, tokens in zip("qk", offsets, longest, (q.shape[0], k.shape[0]), strict=True):
        assert cu_seqlens.dtype == torch.int32, f"offsets of {side} are int32; got {cu_seqlens.dtype}"
        assert cu_seqlens.is_contiguous(), f"offsets of {side} are contiguous; got strides {cu_seqlens.stride()}"
        found = cu_seqlens.tolist()
        assert (found[0], found[-1]) == (0, tokens), f"offsets of {side} go from 0 to {tokens}; got {found}"
        # A tensor would be asked of the device in every layer, and is another graph for every value.
        assert type(most) is int, f"the longest of {side} is a Python int; got {type(most).__name__}"
        wanted = max(end - start for start, end in pairwise(found))
        # Shorter, queries past it are never computed; longer, tiles are visited for nothing.
        assert most == wanted or (most > wanted and not LONGEST_IS_EXACT), (
            f"the longest of {side} is {wanted}; got {most}"
        )
    assert offsets[0].tolist() == offsets[1].tolist(), "queries and keys lie between the same offsets"
    assert [type(side) for side in window] == [int, int], f"a window has two Python ints; got {window!r}"
    # torch compares it with (-1, 0), which a list never equals.
    assert isinstance(window, tuple), f"a window is a tuple; got {window!r}"
    lengths = offsets[0].diff().tolist()
    changed = (lambda scores: softcap * torch.tanh(scores / softcap)) if softcap else None
    return one_by_one(q, k, v, lengths, window, scale, changed)


def flash_attn_varlen_func(
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
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """Stand in for flash-attn 2.7 and later."""
    assert (dropout_p, alibi_slopes, return_attn_probs, block_table) == (0.0, None, False, None)
    assert type(softcap) is float, f"a soft cap is a float, 0.0 for none; got {softcap!r}"
    assert type(causal) is bool, f"causal is a bool; got {causal!r}"
    window = (window_size[0], 0) if causal else window_size
    sides = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    return varlen((q, k, v), *sides, window, softmax_scale, softcap)


def varlen_attn_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Stand in for `torch.nn.attention.varlen.varlen_attn` of torch 2.11."""
    assert return_aux is None
    return varlen((query, key, value), (cu_seq_q, cu_seq_k), (max_q, max_k), window_size, scale)


def varlen_attn_2_12(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Stand in for that of torch 2.12 and later, where grouped heads are asked for."""
    assert cu_seq_k is not None
    assert return_aux is None
    assert enable_gqa or query.shape[1] == key.shape[1], "grouped heads are asked for"
    return varlen((query, key, value), (cu_seq_q, cu_seq_k), (max_q, max_k), window_size, scale)


class GraphTensor:
    """Stands in for a tensor of cuDNN's graph: what was said of it."""

    def __init__(
        self, dim: Sequence[int] = (), stride: Sequence[int] = (), data_type: Any = None, uid: int = 0
    ) -> None:
        self.dim, self.stride, self.data_type, self.uid = list(dim), list(stride), data_type, uid
        self.ragged: GraphTensor | None = None
        self.output = False

    def set_ragged_offset(self, offsets: "GraphTensor") -> "GraphTensor":
        self.ragged = offsets
        return self

    def set_output(self, output: bool) -> "GraphTensor":
        self.output = output
        return self

    def set_data_type(self, data_type: torch.dtype) -> "GraphTensor":
        self.data_type = data_type
        return self

    def set_dim(self, dim: Sequence[int]) -> "GraphTensor":
        self.dim = list(dim)
        return self

    def set_stride(self, stride: Sequence[int]) -> "GraphTensor":
        self.stride = list(stride)
        return self

    def set_uid(self, uid: int) -> "GraphTensor":
        self.uid = uid
        return self


@dataclass(frozen=True)
class Addresses:
    """What a graph is executed on: the address of each tensor, by its uid."""

    by_uid: Mapping[int, int]

    def read(self, tensor: GraphTensor, shape: Sequence[int], stride: Sequence[int], start: int = 0) -> Tensor:
        """Return the memory of a part of `tensor`, from its element `start`; it is written to as well."""
        address = self.by_uid[tensor.uid]
        assert address % 16 == 0, f"tensor {tensor.uid} lies at an address that 16 divides; got {address}"
        size = tensor.data_type.itemsize
        extent = 1 + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
        memory = (ctypes.c_char * (extent * size)).from_address(address + start * size)
        return torch.frombuffer(memory, dtype=tensor.data_type).as_strided(tuple(shape), tuple(stride))

    def vector(self, tensor: GraphTensor, data_type: torch.dtype) -> list[int]:
        """Return the numbers of lengths or offsets."""
        assert tensor.data_type == data_type, f"tensor {tensor.uid} is {data_type}; got {tensor.data_type}"
        return self.read(tensor, tensor.dim[:1], tensor.stride[:1]).tolist()

    def rows(self, tensor: GraphTensor, lengths: Sequence[int]) -> list[Tensor]:
        """Return the rows of `tensor`, (H, L, D) of each length."""
        rows, heads, longest, width = tensor.dim
        assert tensor.ragged is not None
        offsets = self.vector(tensor.ragged, torch.int64)
        assert len(offsets) == rows + 1, f"{rows} rows lie between {rows + 1} offsets; got {len(offsets)}"
        assert len(lengths) == rows, f"{rows} rows have as many lengths; got {len(lengths)}"
        assert max(lengths) <= longest, f"rows of {longest} tokens hold the longest; got {max(lengths)}"
        step = tensor.stride[2]
        assert tensor.stride[1:] == [width, step, 1], f"heads of a token lie side by side; got {tensor.stride}"
        ends = [start + length * step for start, length in zip(offsets, lengths, strict=False)]
        assert ends == offsets[1:], f"offsets count elements: of {lengths} tokens, {step} each; got {offsets}"
        return [
            self.read(tensor, (heads, length, width), tensor.stride[1:], start)
            for start, length in zip(offsets, lengths, strict=False)
            if length
        ]


@dataclass
class RaggedGraph:
    """Stands in for `cudnn.pygraph` of nvidia-cudnn-frontend: it reads and writes memory by its address, as cuDNN."""

    io_data_type: torch.dtype
    intermediate_data_type: torch.dtype
    compute_data_type: torch.dtype
    handle: Any
    run: Callable[[Addresses, list[int]], None] | None = None
    lengths: GraphTensor | None = None
    built: list[str] = field(default_factory=list)

    def tensor(
        self, *, name: str, dim: Sequence[int], stride: Sequence[int], data_type: torch.dtype, uid: int
    ) -> GraphTensor:
        assert uid > 0, f"{name} has a uid of its own; got {uid}"
        return GraphTensor(dim, stride, data_type, uid)

    def _masked(
        self,
        dim: Sequence[int],
        *,
        attn_scale: float,
        use_padding_mask: bool,
        seq_len_q: GraphTensor,
        seq_len_kv: GraphTensor,
        diagonal_alignment: str,
        diagonal_band_left_bound: int | None,
        diagonal_band_right_bound: int | None,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what makes the scaled and masked scores (H, L, L) of queries and keys."""
        assert type(attn_scale) is float, f"the scale is a float; got {attn_scale!r}"
        assert use_padding_mask, "ragged offsets come with a padding mask"
        assert seq_len_q is seq_len_kv
        assert diagonal_alignment == "top left"
        assert dim[2] > 1, "cuDNN refuses rows of one token"
        assert dim[3] % 8 == 0, f"head dims are multiples of 8; got {dim[3]}"
        self.lengths = seq_len_q
        left, right = diagonal_band_left_bound, diagonal_band_right_bound
        assert left is None or left > 0, f"a left bound counts the token itself; got {left}"

        def scores(q: Tensor, k: Tensor) -> Tensor:
            after = distances(q.shape[-2], q.device)
            seen = (after < (left or after.numel() + 1)) & (-after <= (after.numel() if right is None else right))
            return (attn_scale * q @ k.mT).masked_fill(~seen, -torch.inf)

        return scores

    def sdpa(
        self,
        *,
        name: str,
        q: GraphTensor,
        k: GraphTensor,
        v: GraphTensor,
        generate_stats: bool,
        implementation: str,
        **masks: Any,
    ) -> tuple[GraphTensor, GraphTensor]:
        assert generate_stats
        assert implementation == "composite"
        scored = self._masked(q.dim, **masks)
        out, stats = GraphTensor(), GraphTensor()

        def run(addresses: Addresses, lengths: list[int]) -> None:
            for rows in zip(*(addresses.rows(each, lengths) for each in (q, k, v, out, stats)), strict=True):
                queries, keys, values = self._wide(*rows[:3])
                scores = scored(queries, keys)
                rows[3].copy_(scores.softmax(-1) @ values)
                rows[4].copy_(scores.logsumexp(-1, keepdim=True))

        self.run, self.tensors = run, (q, k, v, out, stats)
        return out, stats

    def sdpa_backward(
        self,
        *,
        name: str,
        q: GraphTensor,
        k: GraphTensor,
        v: GraphTensor,
        o: GraphTensor,
        dO: GraphTensor,
        stats: GraphTensor,
        max_total_seq_len_q: int,
        max_total_seq_len_kv: int,
        **masks: Any,
    ) -> list[GraphTensor]:
        scored = self._masked(q.dim, **masks)
        scale, gradients = masks["attn_scale"], [GraphTensor() for _ in range(3)]
        given = (q, k, v, o, dO, stats)

        def run(addresses: Addresses, lengths: list[int]) -> None:
            most = min(max_total_seq_len_q, max_total_seq_len_kv)
            assert sum(lengths) <= most, f"the workspace holds {most} tokens; got {sum(lengths)}"
            for rows in zip(*(addresses.rows(each, lengths) for each in (*given, *gradients)), strict=True):
                queries, keys, values = self._wide(*rows[:3])
                out, upstream, logsumexp = (row.double() for row in rows[3:6])
                weights = (scored(queries, keys) - logsumexp).exp()
                slopes = weights * (upstream @ values.mT - (upstream * out).sum(-1, keepdim=True))
                found = scale * slopes @ keys, scale * slopes.mT @ queries, weights.mT @ upstream
                for row, gradient in zip(rows[6:], found, strict=True):
                    row.copy_(gradient.unflatten(0, (row.shape[0], -1)).sum(1))

        self.run, self.tensors = run, (*given, *gradients)
        return gradients

    def _wide(self, q: Tensor, *others: Tensor) -> list[Tensor]:
        return [tensor.double().repeat_interleave(q.shape[0] // tensor.shape[0], dim=0) for tensor in (q, *others)]

    def _builds(self, step: str, *before: str) -> None:
        assert self.built == [*before], f"{step} follows {before}; got {self.built}"
        self.built.append(step)

    def validate(self) -> None:
        self._builds("validate")
        assert self.intermediate_data_type == self.compute_data_type == torch.float32
        assert len({tensor.uid for tensor in self.tensors} - {0}) == len(self.tensors), "every tensor has its own uid"
        for tensor in self.tensors:
            assert tensor.ragged is not None, f"tensor {tensor.uid} has ragged offsets"
            assert tensor.data_type == (torch.float32 if tensor.dim[3] == 1 else self.io_data_type)

    def build_operation_graph(self) -> None:
        self._builds("operations", "validate")

    def create_execution_plans(self, modes: Sequence[str]) -> None:
        self._builds("plans", "validate", "operations")

    def check_support(self) -> None:
        self._builds("support", "validate", "operations", "plans")

    def build_plans(self) -> None:
        self._builds("built", "validate", "operations", "plans", "support")

    def get_workspace_size(self) -> int:
        return 16

    def execute(self, addresses: Mapping[int, int], workspace: int, handle: Any) -> None:
        assert self.built[-1] == "built"
        assert self.run is not None
        assert self.lengths is not None
        given = Addresses(addresses)
        self.run(given, given.vector(self.lengths, torch.int32))


def in_cudnn(patch: pytest.MonkeyPatch, counted: Callable[[Function], Function]) -> None:
    """Put an nvidia-cudnn-frontend in the place of whatever is installed."""
    module = types.ModuleType("cudnn")
    vars(module)["data_type"] = types.SimpleNamespace(
        BFLOAT16=torch.bfloat16, HALF=torch.float16, FLOAT=torch.float32, INT32=torch.int32, INT64=torch.int64
    )
    vars(module)["diagonal_alignment"] = types.SimpleNamespace(TOP_LEFT="top left")
    vars(module)["attention_implementation"] = types.SimpleNamespace(COMPOSITE="composite")
    vars(module)["heur_mode"] = types.SimpleNamespace(A="A", FALLBACK="fallback")

    class Graph(RaggedGraph):
        execute = counted(RaggedGraph.execute)

    vars(module)["pygraph"] = Graph

    @contextmanager
    def on(device: torch.device) -> Iterator[str]:
        yield "handle"

    patch.setattr(cudnn_ragged, "library", lambda: module)
    patch.setattr(cudnn_ragged, "on", on)
    for name in ("forward_plan", "backward_plan"):
        patch.setattr(cudnn_ragged, name, functools.cache(inspect.unwrap(getattr(cudnn_ragged, name))))


class RaggedWrapper:
    """Stands in for FlashInfer's `BatchPrefillWithRaggedKVCacheWrapper`, of 0.6.1."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        assert float_workspace_buffer.dtype == torch.uint8
        assert float_workspace_buffer.numel() == 128 * 1024 * 1024
        assert kv_layout == "NHD"
        self.device = float_workspace_buffer.device
        self.lengths: list[int] = []

    def plan(
        self,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        *,
        causal: bool = False,
        logits_soft_cap: float | None = None,
        sm_scale: float | None = None,
        q_data_type: torch.dtype = torch.float16,
    ) -> None:
        assert num_qo_heads % num_kv_heads == 0, f"{num_qo_heads} query heads share {num_kv_heads} heads of keys"
        assert head_dim_qk in (64, 128, 256), f"FA3 has heads of 64, 128 and 256; got {head_dim_qk}"
        for ends in (qo_indptr, kv_indptr):
            assert ends.dtype == torch.int32, f"offsets are int32; got {ends.dtype}"
            assert ends.device.type == "cpu", f"a plan is made on the host; got offsets on {ends.device}"
            assert ends[0] == 0, f"offsets start at 0; got {ends.tolist()}"
        assert qo_indptr.tolist() == kv_indptr.tolist(), "queries and keys lie between the same offsets"
        assert type(causal) is bool, f"causal is a bool; got {causal!r}"
        self.heads, self.head_dim, self.dtype = (num_qo_heads, num_kv_heads), head_dim_qk, q_data_type
        self.lengths, self.window = qo_indptr.diff().tolist(), (-1, 0 if causal else -1)
        self.scale, self.softcap = sm_scale, logits_soft_cap

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self.lengths, "a plan comes before a run"
        check_heads(q, k, v, HALF, 3)
        for tensor, heads in ((q, self.heads[0]), (k, self.heads[1]), (v, self.heads[1])):
            planned = sum(self.lengths), heads, self.head_dim
            assert tensor.shape == planned, f"the plan is for {planned}; got {tuple(tensor.shape)}"
            assert tensor.dtype == self.dtype, f"the plan is for {self.dtype}; got {tensor.dtype}"
            assert tensor.device == self.device, f"the plan is for {self.device}; got {tensor.device}"
            # What TMA takes, where another tensor is read wrong without an error.
            assert tensor.data_ptr() % 16 == 0, "a tensor begins where 16 divides its address"
            assert all(step > 0 and step % 8 == 0 for step in tensor.stride()[:2]), f"got strides {tensor.stride()}"
        cap = self.softcap
        changed = (lambda scores: cap * torch.tanh(scores / cap)) if cap else None
        return one_by_one(q, k, v, self.lengths, self.window, self.scale, changed)


@dataclass
class Event:
    """Stands in for an event of CUDA: `query` tells whether the GPU has come to it."""

    come: bool = True

    def query(self) -> bool:
        return self.come


def in_flashinfer(patch: pytest.MonkeyPatch, counted: Callable[[Function], Function]) -> None:
    """Put a FlashInfer in the place of whatever is installed."""

    class Wrapper(RaggedWrapper):
        run = counted(RaggedWrapper.run)

    put(patch, {"flashinfer": {"BatchPrefillWithRaggedKVCacheWrapper": Wrapper}})
    patch.setattr(flashinfer_ragged, "after_now", lambda device: Event())
    patch.setattr(flashinfer_ragged, "_UNREAD", [])
    # No test keeps the workspace of another.
    patch.setattr(flashinfer_ragged, "workspace", functools.cache(inspect.unwrap(flashinfer_ragged.workspace)))


@dataclass(frozen=True)
class BlockDiagonalMask:
    """Stands in for xFormers' mask of that name."""

    lengths: tuple[int, ...]
    device: torch.device
    causal: bool = False

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int],
        kv_seqlen: Sequence[int] | None = None,
        *,
        device: torch.device | None = None,
    ) -> "BlockDiagonalMask":
        """Return the mask of sequences of these lengths."""
        assert all(type(length) is int for length in q_seqlen), f"lengths are Python ints; got {q_seqlen}"
        # A string "cpu" is no torch.device to xFormers; without one it makes the mask on the current GPU.
        assert isinstance(device, torch.device), f"the device is a torch.device; got {device!r}"
        assert kv_seqlen is None
        return cls(tuple(q_seqlen), device)

    def make_causal_from_bottomright(self) -> "BlockDiagonalMask":
        """Return the causal mask; the one from the other corner compiles anew for each number of sequences."""
        return BlockDiagonalMask(self.lengths, self.device, causal=True)


#: xFormers' pairs of operators, by the name of the attribute of `fmha` that holds them.
OPERATORS = {
    "MemoryEfficientAttentionFlashAttentionOp": ("flash.FwOp", "flash.BwOp"),
    "MemoryEfficientAttentionCutlassOp": ("cutlass.FwOp", "cutlass.BwOp"),
}


def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: BlockDiagonalMask | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: tuple[str, str] | None = None,
    wanted: tuple[str, str] | None,
) -> Tensor:
    """Stand in for xFormers' function where the operators must be `wanted`."""
    assert op == wanted, f"the operators are {wanted}; got {op}"
    assert p == 0.0
    check_heads(query, key, value, HALF if wanted and "flash.FwOp" in wanted else FLOAT, 4)
    assert query.shape == key.shape, f"the backward takes no grouped heads; got {query.shape[2]} on {key.shape[2]}"
    check_head_dim(query, 256)
    assert query.shape[0] == 1, f"sequences of a BlockDiagonalMask lie in one row; got {query.shape[0]}"
    assert isinstance(attn_bias, BlockDiagonalMask), f"the sequences are told by a mask; got {attn_bias!r}"
    assert attn_bias.device == query.device
    assert sum(attn_bias.lengths) == query.shape[1], f"lengths {attn_bias.lengths} fill {query.shape[1]} tokens"
    window = (-1, 0) if attn_bias.causal else (-1, -1)
    return one_by_one(query[0], key[0], value[0], attn_bias.lengths, window, scale)[None]


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Function | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Any = None,
    *,
    return_aux: AuxRequest | None = None,
) -> Tensor | tuple[Tensor, AuxOutput]:
    """Stand in for torch's, which compiled looks at the tiles of `block_mask` alone: full ones without its function."""
    check_heads(query, key, value, FLOAT, 4)
    assert query.shape[0] == 1
    assert not return_lse, "deprecated: return_aux asks for it"
    assert enable_gqa or query.shape[1] == key.shape[1], "grouped heads are asked for"
    assert block_mask is not None, "the sequences are told by a mask"
    tokens, heads = (torch.arange(size, device=query.device) for size in (query.shape[2], query.shape[1]))

    def changed(scores: Tensor) -> Tensor:
        if score_mod is None:
            return scores
        return score_mod(scores, tokens[0], heads[:, None, None], tokens[:, None], tokens[None, :])

    bias = bias_of(visible_in(block_mask, query.shape[2]))
    out, lse = attention(query, key, value, bias, scale, changed)
    return out if return_aux is None else (out, AuxOutput(lse=lse))


def visible_in(block_mask: BlockMask, length: int) -> Tensor:
    """Return which pairs the tiles of a BlockMask leave, bool (T, T)."""
    assert block_mask.seq_lengths == (length, length), f"the mask is of {length} tokens; got {block_mask.seq_lengths}"
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        found = getattr(block_mask, name)
        assert found.dtype == torch.int32, f"{name} are int32; got {found.dtype}"
    height, width = block_mask.BLOCK_SIZE
    device = block_mask.kv_indices.device
    tokens, zero = torch.arange(length, device=device), torch.zeros((), dtype=torch.int64, device=device)
    masked = block_mask.mask_mod(zero, zero, tokens[:, None], tokens[None, :])
    visible = torch.zeros(length, length, dtype=torch.bool, device=device)

    def tiles(counts: Tensor, indices: Tensor) -> Iterator[tuple[slice, slice]]:
        for row, count in enumerate(counts[0, 0].tolist()):
            for column in indices[0, 0, row, :count].tolist():
                yield slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)

    for tile in tiles(block_mask.kv_num_blocks, block_mask.kv_indices):
        visible[tile] = masked[tile]
    assert block_mask.full_kv_num_blocks is not None
    assert block_mask.full_kv_indices is not None
    for tile in tiles(block_mask.full_kv_num_blocks, block_mask.full_kv_indices):
        visible[tile] = True
    return visible


@dataclass
class Sdpa(TorchFunctionMode):
    """Stands in for SDPA on a CUDA GPU wherever it is called from, and says that tensors are on one.

    `kernels` are those that must be left to choose from; a kernel that is left alone refuses what it does not take.
    """

    kernels: frozenset[str]
    calls: Calls = field(default_factory=Calls)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, function: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.calls.count += 1
            left = frozenset(name for name, enabled in SDPA_KERNELS.items() if enabled())
            assert left == self.kernels, f"SDPA may choose from {sorted(self.kernels)}; got {sorted(left)}"
            return self.attend(*args, **(kwargs or {}))
        if function is torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        return function(*args, **(kwargs or {}))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Return what SDPA computes; (B, H, S, D), or NestedTensors (B, H, jagged, D)."""
        assert dropout_p == 0.0
        alone = next(iter(self.kernels)) if len(self.kernels) == 1 else None
        if query.is_nested:
            assert attn_mask is None, "NestedTensors are their own mask"
            assert not enable_gqa, "NestedTensors have no grouped heads"
            check_head_dim(query, None)
            values = [tensor.transpose(1, 2).values() for tensor in (query, key, value)]
            offsets = query.offsets()
            lengths = offsets.diff().tolist()
            for name, tensor in (("q", query), ("k", key), ("v", value)):
                # What torch hands on to its varlen kernels; the math kernel of a CPU does not look at it.
                told = tensor._min_seqlen, tensor._max_seqlen
                extremes = min(lengths), max(lengths)
                assert told == extremes, f"the shortest and longest of {name} are {extremes}; got {told}"
            window = (-1, 0) if is_causal else (-1, -1)
            out = one_by_one(*values, lengths, window, scale)
            return torch.nested.nested_tensor_from_jagged(out, offsets).transpose(1, 2)
        check_heads(query, key, value, HALF if alone in ("flash", "cudnn") else (*FLOAT, torch.float64), 4)
        check_head_dim(query, MOST_OF_A_HEAD.get(alone or ""), multiple=1 if alone in (None, "math") else 8)
        assert (query.shape[1] != key.shape[1]) == enable_gqa, "grouped heads are asked for, and only where they are"
        assert not (enable_gqa and alone == "efficient"), "the memory-efficient kernel takes no grouped heads"
        # sdp_utils.cpp in torch 2.11: "cudnn SDPA does not support key/value sequence length 1".
        assert alone != "cudnn" or key.shape[2] > 1, "the cuDNN kernel takes no key that is alone in its row"
        if attn_mask is None:
            bias = torch.zeros((), device=query.device)
        else:
            assert alone != "flash", "the flash kernel takes no mask"
            assert not is_causal, "a mask and is_causal exclude each other"
            assert attn_mask.dtype == query.dtype, f"the mask is of {query.dtype}; got {attn_mask.dtype}"
            bias = attn_mask
        if is_causal:
            bias = bias_of(distances(query.shape[2], query.device) >= 0)
        return attention(query, key, value, bias, scale)[0]


def in_flash_attn(patch: pytest.MonkeyPatch, counted: Callable[[Function], Function]) -> None:
    """Put a flash-attn in the place of whatever is installed."""
    put(patch, {"flash_attn": {"flash_attn_varlen_func": counted(flash_attn_varlen_func)}})


class FlashAttention4:
    """Stands in for the functions of `flash_attn.cute.interface`, of 4.0.0b36."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> tuple[Tensor, ...]:
        """Return the output and its logsumexp, and three that are empty here."""
        assert given.pop("return_lse") is True, "without a logsumexp there is no backward"
        out = self.attended(q, k, v, **given)
        return out, q.new_zeros((q.shape[1], q.shape[0]), dtype=torch.float32), *[q.new_empty(0)] * 3

    def backward(self, *tensors: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, **given: Any) -> None:
        """Write the gradients into `dq`, `dk` and `dv`."""
        q, k, v, out, gradient, lse = tensors
        assert (out.shape, lse.shape, gradient.shape) == (q.shape, (q.shape[1], q.shape[0]), q.shape)

        def gradients() -> tuple[Tensor, ...]:
            inputs = [each.detach().requires_grad_() for each in (q, k, v)]
            return torch.autograd.grad(self.attended(*inputs, **given), inputs, gradient)

        # Autograd is off in all that a custom operator calls in its own thread.
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(gradients).result()
        for into, one in zip((dq, dk, dv), found, strict=True):
            into.copy_(one)

    def attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool,
        window_size_left: int | None,
        window_size_right: int | None,
        softcap: float,
    ) -> Tensor:
        """Return what the kernel computes of its arguments alone."""
        assert not causal or window_size_right == 0, f"causal leaves no key to the right; got {window_size_right}"
        window = tuple(-1 if side is None else side for side in (window_size_left, window_size_right))
        sides = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
        return varlen((q, k, v), *sides, window, softmax_scale, softcap)  # type: ignore[arg-type]


def in_flash_attn_4(patch: pytest.MonkeyPatch, counted: Callable[[Function], Function]) -> None:
    """Put a flash-attn-4 in the place of whatever is installed."""
    own = FlashAttention4()
    interface = {"_flash_attn_fwd": counted(own.forward), "_flash_attn_bwd": own.backward}
    put(patch, {"flash_attn": {}, "flash_attn.cute": {}, "flash_attn.cute.interface": interface})


@dataclass(frozen=True)
class GemmConfig:
    """Stands in for `quack.gemm_config.GemmConfig` of 0.6.5."""

    tile_m: int
    tile_n: int
    cluster_m: int
    cluster_n: int
    is_dynamic_persistent: bool


@dataclass
class Quack:
    """Stands in for products of quack-kernels 0.6.5, and keeps the tiles that it was given."""

    tiles: list[Any] = field(default_factory=list)

    def product(self, a: Tensor, b: Tensor, tuned: bool, config: Any) -> Tensor:
        """Return the float64 product of two matrices, with the tile that was asked for."""
        assert tuned is False, "the tuner would choose again for each number of tokens"
        assert a.ndim == b.ndim == 2
        assert a.dtype == b.dtype
        assert b.shape[1] % 8 == 0, f"rows that are written have whole 16 bytes; got {b.shape[1]} numbers"
        self.tiles.append(config)
        return a.double() @ b.double()

    def gemm_act(
        self,
        a: Tensor,
        b: Tensor,
        *,
        bias: Tensor,
        activation: str | None,
        store_preact: bool = True,
        tuned: bool = True,
        config: Any = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Return the product with its bias, or None, and what `activation` makes of it."""
        before = self.product(a, b, tuned, config) + bias
        after = {None: lambda x: x, "gelu_tanh_approx": functools.partial(gelu, approximate="tanh")}[activation](before)
        return before.to(a.dtype) if store_preact else None, after.to(a.dtype)

    def dact_dbias_mod(self, activation: str) -> Function:
        """Return what makes the gradient before an activation, "D", and its sum over rows, "dwb"."""
        assert activation == "gelu_tanh_approx"

        def epilogue(a: Tensor, b: Tensor, c: Tensor, *, tuned: bool = True, config: Any = None) -> dict[str, Tensor]:
            behind = self.product(a, b, tuned, config)
            own = torch.ops.aten.gelu_backward(behind, c.double(), approximate="tanh")
            return {"D": own.to(c.dtype), "dwb": own.sum(0).float()}

        return epilogue


def in_quack(patch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> Quack:
    """Put a quack-kernels in the place of whatever is installed, and let products of a CPU be its own."""
    own = Quack()
    put(
        patch,
        {
            "quack": {},
            "quack.gemm_interface": {"gemm_act": own.gemm_act},
            "quack.gemm_config": {"GemmConfig": GemmConfig},
            "quack.epilogue": {},
            "quack.epilogue.library": {"dact_dbias_mod": own.dact_dbias_mod},
        },
    )
    patch.setattr(products, "by_quack", lambda x: True)
    patch.setattr(products, "_of_hopper", functools.cache(inspect.unwrap(products._of_hopper)))
    patch.setattr("torch.cuda.get_device_capability", lambda device=None: capability)
    return own


def in_torch_varlen(form: Function) -> Callable[[pytest.MonkeyPatch, Callable[[Function], Function]], None]:
    """Put `form` in the place of this torch's `varlen_attn`."""

    def install(patch: pytest.MonkeyPatch, counted: Callable[[Function], Function]) -> None:
        patch.setattr("torch.nn.attention.varlen.varlen_attn", counted(form))
        # What it found out about the real function stays where it is, for other tests.
        patch.setattr(torch_varlen, "varlen_attn", functools.cache(inspect.unwrap(torch_varlen.varlen_attn)))

    return install


def in_xformers(operators: str | None) -> Callable[[pytest.MonkeyPatch, Callable[[Function], Function]], None]:
    """Put an xFormers whose `operators` must be asked for in the place of whatever is installed."""
    wanted = OPERATORS[operators] if operators else None

    def install(patch: pytest.MonkeyPatch, counted: Callable[[Function], Function]) -> None:
        names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
        package, ops, fmha, attn_bias = modules = [types.ModuleType(name) for name in names]
        vars(package)["ops"], vars(ops)["fmha"], vars(fmha)["attn_bias"] = ops, fmha, attn_bias
        vars(attn_bias)["BlockDiagonalMask"] = BlockDiagonalMask
        vars(fmha).update(OPERATORS)
        vars(ops)["memory_efficient_attention"] = counted(functools.partial(memory_efficient_attention, wanted=wanted))
        # Until its libraries are loaded, xFormers cannot be imported.
        for name in names:
            patch.setitem(sys.modules, name, None)

        def load() -> list[str]:
            for name, module in zip(names, modules, strict=True):
                patch.setitem(sys.modules, name, module)
            return []

        patch.setattr(xformers, "loading_problems", load)
        patch.setattr(xformers, "_operator_pair", functools.cache(inspect.unwrap(xformers._operator_pair)))

    return install


def in_flex(patch: pytest.MonkeyPatch, counted: Callable[[Function], Function]) -> None:
    """Put a FlexAttention that goes by tiles in the place of the eager one, which does not."""
    patch.setattr(flex_document_mask, "flex_attention", counted(flex_attention))


ANY_KERNEL = frozenset(SDPA_KERNELS)

#: What stands in for the kernel of each backend on a GPU. A new backend is a line here.
STAND_INS: dict[str, tuple[StandIn, ...]] = {
    "sdpa_padded": (StandIn("sdpa", sdpa=ANY_KERNEL),),
    "sdpa_padded_math": (StandIn("sdpa", sdpa=frozenset({"math"})),),
    "sdpa_padded_efficient": (StandIn("sdpa", sdpa=frozenset({"efficient"})),),
    "sdpa_padded_cudnn": (StandIn("sdpa", sdpa=frozenset({"cudnn"})),),
    "sdpa_padded_flash": (StandIn("sdpa", sdpa=frozenset({"flash"})),),
    "sdpa_document_mask": (StandIn("sdpa", sdpa=ANY_KERNEL),),
    "sdpa_loop": (StandIn("sdpa", sdpa=ANY_KERNEL - {"cudnn"}),),
    "sdpa_nested": (StandIn("sdpa", sdpa=ANY_KERNEL),),
    "torch_varlen": (
        StandIn("torch-2.11", in_torch_varlen(varlen_attn_2_11)),
        StandIn("torch-2.12", in_torch_varlen(varlen_attn_2_12)),
    ),
    "fa2_varlen": (StandIn("flash_attn", in_flash_attn),),
    "fa4_varlen": (StandIn("flash_attn_4", in_flash_attn_4),),
    "cudnn_ragged": (StandIn("cudnn", in_cudnn),),
    "flashinfer_ragged": (StandIn("flashinfer", in_flashinfer),),
    "xformers_auto": (StandIn("xformers", in_xformers(None)),),
    "xformers_flash": (StandIn("xformers", in_xformers("MemoryEfficientAttentionFlashAttentionOp")),),
    "xformers_cutlass": (StandIn("xformers", in_xformers("MemoryEfficientAttentionCutlassOp")),),
    "flex_document_mask": (StandIn("flex", in_flex),),
}
