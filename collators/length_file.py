"""Lengths from a user's file: text, NumPy or Parquet."""

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from collators.length_draws import seeded, without_replacement

#: A length of more digits than this is refused as no whole number, before `int` meets its own limit.
MAX_DIGITS = 18

#: What a cell's id cannot hold.
NOT_IN_AN_ID = re.compile(r"[^\w.+-]")


@dataclass(frozen=True)
class FileLengths:
    """The lengths of one file, without replacement in a seeded shuffle, cycling when more are asked.

    `places[i]` is the line (from 1), or the index or row (from 0), that `lengths[i]` stands at.
    """

    path: str
    lengths: tuple[int, ...]
    unit: Literal["line", "index", "row"]
    places: tuple[int, ...] | range

    @functools.cached_property
    def name(self) -> str:
        """The file's name and a digest of its lengths: results from other lengths never share a name.

        It is part of a cell's id, which commas divide from the next and patterns match: of these it has none.
        """
        digest = hashlib.sha256(",".join(map(str, self.lengths)).encode()).hexdigest()[:8]
        return f"{NOT_IN_AN_ID.sub('_', Path(self.path).name)}@{digest}"

    def excluded(self, max_length: int) -> int:
        """Return 0: a length over the maximum is an error, never left out."""
        return 0

    def draw(self, count: int, max_length: int, seed: int) -> list[int]:
        """Return `count` lengths of the file.

        ValueError if any length of the file is over `max_length`: nothing is dropped or truncated.
        """
        generator = seeded(count, max_length, seed)
        for place, length in zip(self.places, self.lengths, strict=True):
            if length > max_length:
                raise ValueError(
                    f"{self.path} {self.unit} {place} needs a length of at most {max_length}; got {length}. "
                    "Split that sequence, remove it or raise the maximum."
                )
        return without_replacement(self.lengths, count, generator)


def read_lengths_file(path: str) -> FileLengths:
    """Read lengths from `path`: `.npy`, `.parquet` or `.parquet:COLUMN`, else text with one integer a line.

    Text may hold blank lines and `#` comments; a Parquet file without a column named gives its first
    integer column. ValueError, in one line, for a file that is missing, unreadable or empty, and for
    the first value that is not an integer of 1 or more.
    """
    file, separator, column = path.rpartition(".parquet:")
    if separator:
        return _from_parquet(path, Path(f"{file}.parquet"), column)
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        return _from_parquet(path, Path(path), None)
    if suffix == ".npy":
        return _from_npy(path)
    return _from_text(path)


def _checked(
    path: str, lengths: list[int], unit: Literal["line", "index", "row"], places: tuple[int, ...] | range
) -> FileLengths:
    """Return the lengths of a file; ValueError if there is none, or for the first one below 1."""
    if not lengths:
        raise ValueError(f"{path} needs at least one length; got none. Write one integer of 1 or more.")
    for place, length in zip(places, lengths, strict=True):
        if length < 1:
            raise ValueError(f"{path} {unit} {place} needs a length of 1 or more; got {length}. Correct or remove it.")
    return FileLengths(path, tuple(lengths), unit, places)


def _unreadable(path: str, error: Exception, advice: str) -> ValueError:
    """Return the ValueError for a file that could not be read, with the cause's first line."""
    if isinstance(error, OSError) and error.strerror:
        cause = error.strerror
    else:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{path} must be a readable file of lengths; got: {cause.rstrip('.')}. {advice}")


def _from_text(path: str) -> FileLengths:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} needs UTF-8 text with one integer a line; got other bytes. Pass text, .npy or .parquet."
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, "Check the path and its permissions.") from None
    lengths, places = [], []
    for place, line in enumerate(text.split("\n"), start=1):
        value = line.partition("#")[0].strip()
        if not value:
            continue
        if not re.fullmatch(rf"[+-]?[0-9]{{1,{MAX_DIGITS}}}", value):
            shown = value if len(value) <= 40 else f"{value[:40]}..."
            raise ValueError(
                f"{path} line {place} needs one integer of 1 or more; got {shown!r}. Correct or remove it."
            )
        lengths.append(int(value))
        places.append(place)
    return _checked(path, lengths, "line", tuple(places))


def _from_npy(path: str) -> FileLengths:
    try:
        with Path(path).open("rb") as file:
            array: Any = np.lib.format.read_array(file, allow_pickle=False)
    # A damaged header can raise nearly anything, MemoryError and SyntaxError among them.
    except Exception as error:
        raise _unreadable(path, error, "Write it with numpy.save(path, lengths).") from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{path} needs a one-dimensional integer array; got {array.dtype} of shape {array.shape}. "
            "Save numpy.asarray(lengths, dtype=numpy.int64)."
        )
    return _checked(path, array.tolist(), "index", range(len(array)))


def _from_parquet(path: str, file: Path, column: str | None) -> FileLengths:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(
            f"{path} needs pyarrow, which is not installed. Run `pip install pyarrow`, or pass text or .npy."
        ) from None
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            integers = [field.name for field in schema if pa.types.is_integer(field.type)]
            chosen = (integers or [None])[0] if column is None else column
            values = parquet.read(columns=[chosen]).column(chosen) if chosen in integers else None
            lengths = [] if values is None else values.to_pylist()
    # pyarrow has its own exceptions beside OSError, and a damaged file can raise any of them.
    except Exception as error:
        raise _unreadable(path, error, "Pass a Parquet file with an integer column.") from None
    if values is None:
        got = "no integer column" if column is None else f"no integer column {column!r}"
        listed = ", ".join(integers) or "none"
        raise ValueError(f"{path} needs an integer column; got {got}. Integer columns are: {listed}.")
    if None in lengths:
        raise ValueError(f"{path} row {lengths.index(None)} needs a length of 1 or more; got null. Remove it.")
    return _checked(path, lengths, "row", range(len(lengths)))
