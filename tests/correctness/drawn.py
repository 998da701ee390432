"""What the correctness tests run on: a small decoder, and batches that Hypothesis draws for it."""

from dataclasses import replace

import torch

from collators import collator_named
from model.attention import Device, default_device
from model.cells import DTYPES, Cell
from model.decoder import DecoderConfig

#: Workload and lengths of the cells that are proved right: Hypothesis draws both.
DRAWN = "drawn"

#: Small, with lengths past two tiles of 64; an odd head count where the CPU allows it, and on CUDA a head dim
#: that every build of every kernel has.
CONFIG: dict[Device, DecoderConfig] = {
    "cpu": DecoderConfig(vocab_size=61, max_length=130, num_layers=2, num_heads=3, head_dim=16),
    "cuda": DecoderConfig(vocab_size=61, max_length=130, num_layers=2, num_heads=2, head_dim=64),
}

#: The same decoder in other shapes. A backend that does not declare one is not asked.
VARIANTS: dict[str, dict[Device, DecoderConfig]] = {
    "plain": CONFIG,
    "grouped": {
        "cpu": replace(CONFIG["cpu"], num_heads=4, num_kv_heads=2),
        "cuda": replace(CONFIG["cuda"], num_heads=4, num_kv_heads=2),
    },
    "rotary": {device: replace(config, positions="rotary") for device, config in CONFIG.items()},
}

#: Collators that stand for all that make the same kind of batch, for what does not depend on the rest: of each layout;
#: with padding on either side; of each way to fill a layout, with and without a filler too; of each way to pad.
REPRESENTATIVES: dict[str, tuple[str, ...]] = {
    "layout": ("pad_longest", "packed", "nested"),
    "side": ("pad_longest", "pad_left", "packed", "nested"),
    "filling": ("pad_longest", "pad_left", "packed", "packed_multiple", "nested"),
    "padding": ("pad_longest", "pad_left", "packed_multiple"),
}

ONE_OF_EACH_LAYOUT = tuple(collator_named(name) for name in REPRESENTATIVES["layout"])

#: A compiled block costs 10 to 20 s on two cores, as it meets each kind of batch: by default the CPU proves one. The
#: workload `smoke` times more of them, each after a check of its first batch.
COMPILED_ON_CPU = (("sdpa_document_mask", "packed", "train", True, torch.float32),)

#: A GPU proves every backend compiled in bfloat16, training with and evaluation without a causal mask as they are
#: timed, on one collator of each layout and padding side: those of one layout share their graphs.
COMPILED_ON_CUDA = REPRESENTATIVES["side"]


def compiled_by_default(cell: Cell, device: Device, *, any_collator: bool = False) -> bool:
    """Tell whether a compiled cell is proved right without `--compiled=all`; with `any_collator`, on whichever one."""
    if device == "cuda":
        as_timed = cell.causal == (cell.mode == "train") and cell.dtype == torch.bfloat16
        return as_timed and (any_collator or cell.collator.name in COMPILED_ON_CUDA)
    return any(
        (cell.backend.attention, cell.mode, cell.causal, cell.dtype) == (backend, *others)
        and (any_collator or cell.collator.name == collator)
        for backend, collator, *others in COMPILED_ON_CPU
    )


def in_first_dtype(cell: Cell) -> bool:
    """Tell whether the cell is in the first dtype of the matrix that its backend takes: for what the decoder does and
    no kernel can change."""
    taken = cell.backend.dtypes.get(default_device()) or next(iter(cell.backend.dtypes.values()))
    return cell.dtype == next(dtype for dtype in DTYPES if dtype in taken)
