"""Where the sequences of a flattened row begin and end, as its inputs tell it."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from collators.batch import PackedBatch

#: The arguments that tell it, the surest first.
TELLING = ("cu_seq_lens_q", "seq_idx", "position_ids")

#: What offsets, numbers and positions may be; anything else would be rounded, or compared as something else.
INTEGERS = (torch.int32, torch.int64)


def told_segments(arguments: Mapping[str, Any], row: tuple[int, int], device: torch.device) -> PackedBatch | None:
    """Return the segments of a row of shape (1, T) from a forward's keyword arguments, or None if none of them tells.

    `cu_seq_lens_q` [N+1], `seq_idx` [1, T] and `position_ids` [1, T], int32 or int64, are those of transformers'
    DataCollatorWithFlattening; the row lies on `device`. Waits for the device once, as kernels need the lengths on the
    host. ValueError where the argument does not fit the row: its dtype, shape or device, or other offsets of keys.
    """
    rows, length = row
    name, values = next(((name, arguments[name]) for name in TELLING if arguments.get(name) is not None), ("", None))
    if values is None:
        return None
    if rows != 1:
        raise ValueError(f"flattened sequences lie in one row; got a batch of {rows} rows. Flatten them, or pad.")
    _refuse_unless_integers(name, values, device)
    if name == "cu_seq_lens_q":
        if values.ndim != 1:
            raise ValueError(
                f"cu_seq_lens_q must have one dimension, [N+1]; got shape {tuple(values.shape)}. Give offsets."
            )
        _refuse_other_keys(values, arguments.get("cu_seq_lens_k"), device)
        # Kernels read offsets as they lie in memory, whatever their strides say.
        return segments_between(values.to(torch.int32).contiguous(), length)
    if tuple(values.shape) != row:
        raise ValueError(
            f"{name} must have the shape of the row, (1, {length}); got {tuple(values.shape)}. Give one for each token."
        )
    # A sequence goes on where its number stays, or its position goes up by one.
    follows = 0 if name == "seq_idx" else 1
    starts = torch.ones(length, dtype=torch.bool, device=values.device)
    starts[1:] = values[0].diff() != follows
    first = starts.nonzero().flatten()
    return segments_between(torch.cat([first, first.new_tensor([length])]).to(torch.int32), length)


def _refuse_unless_integers(name: str, values: Any, device: torch.device) -> None:
    if not isinstance(values, Tensor) or values.dtype not in INTEGERS:
        got = values.dtype if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(f"{name} must be a tensor of int32 or int64; got {got}. Give what the collator returns.")
    if values.device != device:
        raise ValueError(f"{name} must be on the device of the row, {device}; got {values.device}. Move them together.")


def _refuse_other_keys(queries: Tensor, keys: Any, device: torch.device) -> None:
    if keys is None or keys is queries:
        return
    _refuse_unless_integers("cu_seq_lens_k", keys, device)
    if keys.tolist() != queries.tolist():
        raise ValueError(
            f"cu_seq_lens_k must equal cu_seq_lens_q, {queries.tolist()}, because a row attends to itself; got "
            f"{keys.tolist()}. Leave cu_seq_lens_k out."
        )


def segments_between(cu_seqlens: Tensor, length: int) -> PackedBatch:
    """Return a batch of the segments between `cu_seqlens`, int32 [N+1] from 0 to `length`; it holds no tokens.

    [0, 2, 6, 9] -> lengths 2, 4, 3. Empty segments stay: they are no tokens of any sequence.
    """
    offsets = cu_seqlens.tolist()
    lengths = tuple(end - start for start, end in pairwise(offsets))
    if not lengths or offsets[0] != 0 or offsets[-1] != length or min(lengths) < 0:
        raise ValueError(
            f"cu_seq_lens_q must rise from 0 to the {length} tokens of the row; got {offsets}. Give its own offsets."
        )
    # Backends look at the offsets and the size of the row, never at what stands in it.
    row = cu_seqlens.new_empty((1, length), dtype=torch.int64)
    return PackedBatch(
        lengths=lengths,
        num_targets=0,
        input_ids=row,
        targets=row,
        position_ids=row,
        cu_seqlens=cu_seqlens,
        max_seqlen=max(lengths),
    )
