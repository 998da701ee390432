"""The assertion that a property fails by: the tensors that are off, the worst first."""

from collections.abc import Sequence

from model.tolerance import Mismatch


class Wrong(AssertionError):
    """`what` says what is not as it must be, in a line, and `found` are the tensors that show it.

    `on` says of what batch, where that is not the one that was drawn.
    """

    def __init__(self, what: str, found: Sequence[Mismatch] = (), *, on: str = "") -> None:
        super().__init__("\n  ".join([what, *map(str, found)]))
        self.what = what
        self.found = tuple(found)
        self.on = on
