"""What a model's layers are handed in place of a mask: the backend's context of the batch, or how to come by it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from collators.batch import PackedBatch
from model.attention import Backend, Case
from model.huggingface.segments import TELLING, told_segments

#: Of batch, head, query and key indices of one shape: may this query see this key?
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


#: What to do where a model needs what no backend here does.
OTHER = "choose another attention implementation"


def refuse(name: str, reason: str) -> NoReturn:
    """Raise a ValueError of one line that says what the implementation called `name` does not do."""
    raise ValueError(f"{name} {reason}.")


def case_of(
    backend: Backend,
    dtype: torch.dtype,
    device: torch.device,
    *,
    causal: bool,
    heads: tuple[int, int, int] = (1, 1, 8),
) -> Case:
    """Return what is asked of `backend`; `heads` are query heads, key-value heads and head dim."""
    return Case(
        device=device.type,  # type: ignore[arg-type]
        layout=backend.layout,
        padding_side=None,
        mode="train" if torch.is_grad_enabled() else "eval",
        causal=causal,
        dtype=dtype,
        execution="compiled" if torch.compiler.is_compiling() else "eager",
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=heads[2],
    )


class NoTensor:
    """What stands in place of a mask and is none: a model that works on the mask itself is refused in one line."""

    name: str

    def _refused(self, *operands: Any) -> NoReturn:
        refuse(self.name, "makes no mask, but this model reads or changes the mask itself; " + OTHER)

    # A model cuts a mask, adds it to scores, inverts and multiplies it, moves it or asks for its shape.
    __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __invert__ = _refused
    to = size = dim = view = expand = _refused
    shape = property(_refused)


@dataclass(frozen=True)
class Prepared(NoTensor):
    """The context of the backend called `name` for this batch; attention computes in `dtype`.

    `causal` is None where it makes no difference; `longest` is the length of the longest segment, `length` the row's.
    """

    name: str
    context: Any
    causal: bool | None
    longest: int
    dtype: torch.dtype
    length: int


@dataclass
class Unprepared(NoTensor):
    """A row of `length` tokens whose segments the mask function was not told: the first layer's arguments tell them.

    `local_size` is the sliding window or chunk of the layers that it is for, in tokens.
    """

    backend: Backend
    name: str
    mask_function: MaskFunction
    length: int
    local_size: int | None
    dtype: torch.dtype
    found: Prepared | None = None

    def prepared(self, arguments: Mapping[str, Any], device: torch.device) -> Prepared:
        """Return the context of the segments that a layer's keyword arguments tell, made once a forward on `device`."""
        if self.found is None:
            segments = told_segments(arguments, (1, self.length), device)
            if segments is None:
                refuse(
                    self.name,
                    f"does not know the segments, because this model's layers get none of {', '.join(TELLING)}; "
                    "run it inside attending(model, backend)",
                )
            self.found = self.prepare(segments)
        return self.found

    def prepare(self, segments: PackedBatch) -> Prepared:
        """Return the context, after a look at whether the model's own mask is one that the backend knows."""
        longest = segments.max_seqlen
        if segments.num_slots != self.length:
            refuse(
                self.name,
                f"got segments of {segments.num_slots} tokens, but this model's layers have {self.length}; "
                "give the offsets of this row",
            )
        if self.local_size is not None and longest > self.local_size:
            refuse(
                self.name,
                f"attends to whole sequences, but this model's layers see {self.local_size} tokens (a sliding window "
                f"or chunks). The longest sequence has {longest}; cut it to {self.local_size}",
            )
        sees_first, sees_any_next, sees_all_next = self._seen(segments)
        # Chunks are cut along the row, by transformers; those of a sequence begin with it.
        if not sees_first and self.local_size is None:
            refuse(
                self.name,
                "attends to whole sequences, but this model's mask hides the first token of a sequence from a later "
                "one. Check its sliding window, and the segments that it got",
            )
        if longest > 1 and sees_any_next != sees_all_next:
            refuse(self.name, "is causal or full, but this model's mask lets only some tokens see later ones; " + OTHER)
        causal = None if longest <= 1 else not sees_any_next
        case = case_of(self.backend, self.dtype, segments.cu_seqlens.device, causal=causal is not False)
        return Prepared(self.name, self.backend.prepare(segments, case), causal, longest, self.dtype, self.length)

    def _seen(self, segments: PackedBatch) -> tuple[bool, bool, bool]:
        """Ask the model's mask whether every token sees the first of its segment, and any and all the one after.

        The first would be hidden by a sliding window, and the next tells causal attention from the rest. Waits for
        the device once.
        """
        offsets = segments.cu_seqlens.long()
        first = torch.repeat_interleave(offsets[:-1], offsets.diff(), output_size=self.length)
        index = torch.arange(self.length, device=offsets.device)
        zero = torch.zeros_like(index)
        sees_first = self.mask_function(zero, zero, index, first)
        follows = (index != first)[1:]
        sees_next = self.mask_function(zero[1:], zero[1:], index[:-1], index[1:])
        facts = (sees_first.all(), (sees_next & follows).any(), (sees_next | ~follows).all())
        whole, any_next, all_next = torch.stack(facts).tolist()
        return whole, any_next, all_next
