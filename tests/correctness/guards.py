"""Memory that nothing may write to: what arguments lie in, and on a GPU blocks all around what is allocated."""

from collections.abc import Iterable

import torch
from torch import Tensor

from model.attention import Device

#: Blocks of 512 bytes to 256 KiB, as an allocator hands them out.
WORDS = tuple(128 << power for power in range(10))
BLOCKS_OF_EACH = 20
MARK = 0x5AFE


class Guards:
    """Blocks with a mark in them. Every other one of those that were made is gone again: what is allocated next lies
    between two of them. There are none on a CPU, whose allocator keeps numbers of its own between blocks."""

    def __init__(self, device: Device) -> None:
        # Two of each size in turn, one of which stays.
        sizes = [words for words in WORDS for _ in range(2)] * (BLOCKS_OF_EACH if device == "cuda" else 0)
        self.blocks = [torch.full((words,), MARK, dtype=torch.int32, device=device) for words in sizes][::2]

    def overwritten(self) -> int:
        """Return how many bytes have lost their mark, and mark them again."""
        if not self.blocks:
            return 0
        lost = int((torch.cat(self.blocks) != MARK).sum())
        if lost:
            for block in self.blocks:
                block.fill_(MARK)
        return lost * self.blocks[0].element_size()


class Kept:
    """What the storages of tensors held, bytes before and behind the tensors included."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        self.views = [torch.empty(0, dtype=torch.uint8, device=each.device).set_(each) for each in storages.values()]
        self.copies = [view.clone() for view in self.views]

    def changed(self) -> int:
        """Return how many bytes are no longer what they were."""
        return sum(int((view != copy).sum()) for view, copy in zip(self.views, self.copies, strict=True))
