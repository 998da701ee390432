"""A trainer's way from a list of features to a batch, and what its own code needs to run."""

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, files, version
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from tests.packing.collated import Collate

#: Slots of a packed row: the lengths that numbers are of (4, 3, 9 and 5) take two.
ROW = 16


@dataclass(frozen=True)
class TrainerPath:
    """`collate` runs the trainer's own code; `package` is the distribution that holds it; `how` says what is run."""

    name: str
    package: str
    how: str
    collate: Collate

    @property
    def version(self) -> str | None:
        """The version that is installed, None without it."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


class Missing(MetaPathFinder, Loader):
    """Imports stand-ins for packages, with all that is below them."""

    def __init__(self, packages: Iterable[str]) -> None:
        self.packages = set(packages)

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        """Answer for these packages only."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> Any:
        """Return a module whose every name is a mock."""
        return MagicMock(name=spec.name, __path__=[], __spec__=spec)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it was made."""


@contextmanager
def without(*packages: str, hidden: Sequence[str] = ()) -> Iterator[None]:
    """Let packages be missing that a trainer imports, and that its packing does not use; hide others as well."""
    missing = Missing([*hidden, *(name for name in packages if importlib.util.find_spec(name) is None)])
    sys.meta_path.insert(0, missing)
    try:
        yield
    finally:
        sys.meta_path.remove(missing)
        for name in [name for name in sys.modules if name.split(".")[0] in missing.packages]:
            del sys.modules[name]


def module_alone(package: str, path: str) -> ModuleType:
    """Import one file of a distribution, without the packages above it."""
    found = next(each for each in files(package) or () if str(each) == path).locate()
    spec = importlib.util.spec_from_file_location(path.removesuffix(".py").replace("/", "_"), str(found))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokenizer() -> Any:
    """Return a tokenizer that can pad: token 0 is padding, on the right."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")),
        pad_token="[PAD]",
        padding_side="right",
    )
