"""This project's packed backends as attention implementations of transformers.

`registered(backend)` gives transformers a pair of functions under one name: one for the mask, which a model calls once
a forward, and one for its layers. Both are needed: for a name without a mask function transformers makes no mask at
all, and sequences of a flattened row see each other in silence. Needs transformers 4.53 or newer.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from collators.batch import PackedBatch
from model.attention import Backend, Case
from model.huggingface.masks import OTHER, MaskFunction, Prepared, Unprepared, case_of, refuse
from model.huggingface.segments import segments_between, told_segments

PREFIX = "varlen_gate_"

#: Arguments of layers that do not change what attention computes once the segments are known.
WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "deterministic",
        "layer_idx",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "seq_idx",
        "shift_labels",
        "training",
        "use_cache",
    }
)

#: What the arguments of layers are called that no backend here does.
NEEDS = {
    "softcap": "soft-capped scores",
    "s_aux": "attention sinks",
    "position_bias": "a bias of its positions",
    "head_mask": "a mask of heads",
    "layer_head_mask": "a mask of heads",
    "indices": "attention to chosen tokens",
    "block_indices": "attention to chosen blocks",
    "output_attentions": "the attention weights as an output",
}


@dataclass
class Attention:
    """A backend as the two functions that transformers calls.

    For the forward that comes, the mask function uses `segments` of the row, or what was `given` as it is; `asked`
    tells that it was called.
    """

    backend: Backend
    segments: PackedBatch | None = None
    given: Prepared | None = None
    asked: bool = False
    checked: set[Case] = field(default_factory=set)

    @property
    def name(self) -> str:
        """What transformers knows it by: it takes any name with "flash" in it for its own FlashAttention."""
        return PREFIX + self.backend.name.replace("flash", "fa")

    def mask(
        self,
        batch_size: int,
        kv_length: int,
        mask_function: MaskFunction,
        q_length: int | None = None,
        cache_position: Tensor | None = None,
        q_offset: int | Tensor = 0,
        attention_mask: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        local_size: int | None = None,
        use_vmap: bool = False,
        **unused: Any,
    ) -> Prepared | Unprepared:
        """Return what this forward's layers are handed in place of a mask (transformers' AttentionMaskInterface).

        A mask of padding that hides nothing, and a cache that is empty, change nothing: neither says where sequences
        begin.
        """
        self.asked = True
        if self.given is not None:
            return self.given
        # Up to 5.0 at least, transformers gave the positions in the cache in place of the length.
        length = q_length if cache_position is None else len(cache_position)
        if batch_size != 1:
            refuse(self.name, f"takes sequences flattened into one row; got a batch of {batch_size} rows. Flatten it")
        if length != kv_length or q_offset:
            refuse(
                self.name,
                f"takes whole sequences, not steps from a cache; got {length} queries on {kv_length} keys. "
                "Give no past_key_values",
            )
        if use_vmap:
            refuse(self.name, f"is causal or full, but this model adds a mask function of its own; {OTHER}")
        # transformers itself cuts a mask that is wider than the ids, where it counts the keys by a cache.
        if attention_mask is not None and tuple(attention_mask.shape) != (1, kv_length):
            refuse(
                self.name,
                f"takes an attention_mask of the row's shape, (1, {kv_length}); got {tuple(attention_mask.shape)}. "
                "Leave it out",
            )
        if attention_mask is not None and not bool(attention_mask.all()):
            refuse(self.name, "takes no padding; got an attention_mask with zeros. Flatten the sequences without it")
        kind = torch.device(device).type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        row = Unprepared(self.backend, self.name, mask_function, kv_length, local_size, dtype)
        return row if self.segments is None else row.prepare(self.segments)

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Attend in one layer (transformers' AttentionInterface): (1, H, T, D) in, (1, T, H, D) out.

        Whether it is causal is up to the mask, as in transformers' eager attention: `is_causal` says what to do without
        one. ValueError names what the layer needs and the backend does not do.
        """
        mask, layer = attention_mask, type(module).__name__
        if isinstance(mask, Unprepared):
            mask = mask.prepared(others, query.device)
        if not isinstance(mask, Prepared):
            got = "none" if mask is None else f"one of type {type(mask).__name__}"
            refuse(
                self.name,
                f"needs the mask of its own mask function; {layer} got {got}. Register both, as registered() does",
            )
        if dropout:
            refuse(self.name, f"has no dropout; {layer} asks for {dropout}. Set it to 0 in the config, or call eval()")
        if query.shape[-1] != value.shape[-1]:
            refuse(
                self.name,
                f"takes one head dim; got {query.shape[-1]} of queries and {value.shape[-1]} of values. Choose another "
                "attention implementation",
            )
        if query.shape[0] != 1 or key.shape[:3:2] != query.shape[:3:2] or value.shape[:3] != key.shape[:3]:
            refuse(
                self.name,
                f"takes one row that attends to itself; {layer} got queries of {tuple(query.shape)}, keys of "
                f"{tuple(key.shape)} and values of {tuple(value.shape)}",
            )
        if sliding_window is not None and mask.longest > sliding_window:
            refuse(
                self.name,
                f"has no sliding window; {layer} asks for one of {sliding_window} tokens, but the longest sequence has "
                f"{mask.longest}. Cut it to {sliding_window}",
            )
        for name, asked in others.items():
            if name not in WITHOUT_EFFECT and asked is not None and asked is not False:
                refuse(self.name, f"does not support {NEEDS.get(name, name)}, which {layer} needs ({name}); {OTHER}")
        if not torch.compiler.is_compiling():
            self._check(query, key, mask)
        # Autocast leaves rotated queries and keys, and norms of them, in float32.
        q, k, v = (tensor.to(mask.dtype).transpose(1, 2) for tensor in (query, key, value))
        return self.backend.attend(q, k, v, mask.context, scale=scaling), None

    def _check(self, query: Tensor, key: Tensor, mask: Prepared) -> None:
        """Refuse what the backend does not do here of these shapes, looked up once for each.

        Compiled blocks are not asked: the length of a row would be a graph of its own.
        """
        if query.shape[2] != mask.length:
            refuse(
                self.name, f"made a mask of {mask.length} tokens; got {query.shape[2]} queries. Give it the whole row"
            )
        heads = (query.shape[1], key.shape[1], query.shape[-1])
        case = case_of(self.backend, mask.dtype, query.device, causal=mask.causal is not False, heads=heads)
        if case not in self.checked:
            if reasons := self.backend.unsupported_reasons(case):
                refuse(self.name, "; ".join(reasons))
            self.checked.add(case)

    @contextmanager
    def registered(self) -> Iterator[str]:
        """Let transformers know both functions under `name`, until the end."""
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface

        functions: tuple[tuple[Any, Callable[..., Any]], ...] = (
            (AttentionInterface, self.attend),
            (AttentionMaskInterface, self.mask),
        )
        before = [interface._global_mapping.get(self.name) for interface, _ in functions]
        for interface, function in functions:
            interface.register(self.name, function)
        try:
            yield self.name
        finally:
            # transformers has no public way to take a name back.
            for (interface, _), earlier in zip(functions, before, strict=True):
                interface._global_mapping.pop(self.name, None)
                if earlier is not None:
                    interface.register(self.name, earlier)


def attention_of(backend: Backend) -> Attention:
    """Return the two functions of `backend`; ValueError where it does not take flattened rows."""
    if backend.layout != "packed":
        raise ValueError(
            f"{backend.name} takes {backend.layout} batches; registered backends take flattened rows. Choose a packed "
            "one (pytest --matrix lists them), or for padded rows transformers' own sdpa."
        )
    return Attention(backend)


@contextmanager
def registered(backend: Backend) -> Iterator[str]:
    """Register `backend` with transformers' AttentionInterface and AttentionMaskInterface; yield its name there.

    A model whose `attn_implementation` is that name then attends within the sequences of a flattened row, which its
    layers' `cu_seq_lens_q`, `seq_idx` or `position_ids` tell. One whose layers get none of them, and one whose blocks
    are compiled, runs inside `attending`.
    """
    with attention_of(backend).registered() as name:
        yield name


@contextmanager
def attending(model: torch.nn.Module, backend: Backend) -> Iterator[str]:
    """Switch a PreTrainedModel over to `backend`, and back at the end.

    The segments are taken from what the model itself is called with, before its layers run: whatever they are handed,
    and outside of what is compiled of them. Without `cu_seq_lens_q`, `seq_idx` and `position_ids` a row is one segment.
    A forward that never asks for a mask is a ValueError: such a model has its own attention, or none.
    """
    from transformers import PreTrainedModel

    attention = attention_of(backend)
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    hooks = [
        model.register_forward_pre_hook(_told_by(attention, inspect.signature(model.forward)), with_kwargs=True),
        model.register_forward_hook(_forgetting(attention), always_call=True),
    ]
    with attention.registered() as name:
        try:
            for config, _ in before:
                config._attn_implementation = name
            yield name
        finally:
            for hook in hooks:
                hook.remove()
            for config, implementation in before:
                config._attn_implementation = implementation


def _told_by(attention: Attention, signature: inspect.Signature) -> Callable[..., None]:
    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(signature.parameters, args, strict=False)) | kwargs
        tokens = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None)
        if tokens is None or tokens.ndim < 2:
            got = "none" if tokens is None else f"a shape of {tuple(tokens.shape)}"
            refuse(attention.name, f"takes input_ids of (1, T), or inputs_embeds of (1, T, C); got {got}")
        rows, length = tokens.shape[:2]
        if rows == 1:
            whole = torch.tensor([0, length], dtype=torch.int32, device=tokens.device)
            attention.segments = told_segments(given, (1, length), tokens.device) or segments_between(whole, length)

    return before


def _forgetting(attention: Attention) -> Callable[..., None]:
    def after(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        asked, attention.asked, attention.segments = attention.asked, False, None
        # There is no output where the forward itself raised.
        if output is not None and not asked:
            refuse(
                attention.name,
                f"was not asked for a mask by {type(module).__name__}, which does not attend through transformers' "
                "AttentionInterface; choose another model",
            )

    return after
