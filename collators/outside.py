"""Objects from outside this repository: `package.module:object`, or `path/to/file.py:object`."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def loaded(option: str, spec: str) -> Any:
    """Return the object that the value of an option names, imported from a module or from a file.

    ValueError, in one line, if there is no such module, file or object, or if its import raises.
    """
    where, _, name = spec.rpartition(":")
    module = _module(option, spec, where)
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise ValueError(f"{option} {spec!r}: {where} has no {name!r}; it has {', '.join(public[:8]) or 'nothing'}.")
    return getattr(module, name)


def name_of(spec: str) -> str:
    """Return what an object from outside is called in ids: its file or module, and its name."""
    where, _, name = spec.rpartition(":")
    stem = re.sub(r"\W+", "_", Path(where).stem if where.endswith(".py") else where)
    return f"{stem}.{name}"


def _module(option: str, spec: str, where: str) -> ModuleType:
    path = Path(where).resolve() if where.endswith(".py") else None
    if path and not path.is_file():
        raise ValueError(f"{option} {spec!r}: there is no file {path}; check the path.")
    try:
        return _file(path) if path else importlib.import_module(where)
    except ModuleNotFoundError as error:
        hint = "; install it, set PYTHONPATH, or give the path of its file" if error.name == where.split(".")[0] else ""
        raise ValueError(f"{option} {spec!r}: {error}{hint}.") from None
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{option} {spec!r}: importing {where} raised {type(error).__name__}: {first}.") from None


def _file(path: Path) -> ModuleType:
    name = f"outside_{re.sub(r'[^A-Za-z0-9_]', '_', str(path))}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    # Dataclasses, pickle and Triton look a function's module up by its name.
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
