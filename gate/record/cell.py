"""One cell as one process measured it: every field with its unit, read, checked and written here.

A new field is one line of `CellRecord`: `read` checks what files hold, and `written` gives it back.
"""

import math
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from typing import Any, Literal

Clock = Literal["device", "wall"]

#: What a value of a file must be: the words of the error, and the check.
Shape = tuple[str, Callable[[Any], bool]]


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number; files may hold NaN, and a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


#: NaN and null in a list of times are kept: the judge says so of that cell, and the others are still compared.
TIMES: Shape = ("a list of times", _list_of(lambda value: value is None or isinstance(value, int | float)))
NUMBERS: Shape = ("a list of numbers", _list_of(is_number))
NUMBER: Shape = ("a number", lambda value: value is None or isinstance(value, int | float))
MAPPING: Shape = ("a mapping", lambda value: isinstance(value, dict))
TEXT: Shape = ("a text", lambda value: isinstance(value, str))
KERNELS: Shape = ("a list of kernels", _list_of(lambda value: isinstance(value, dict)))
RANKS: Shape = ("a list of ranks", KERNELS[1])

#: The last words of the id of a cell that runs on several ranks: their wrapper, how many they are, how they share.
ON_RANKS = re.compile(r"-((ddp|fsdp2)-(\d+)(-balanced)?)$")


def stored(shape: Shape, unit: str, default: Any = None) -> Any:
    """Declare a field of a record: its shape in a file, its unit, and what stands for not measured."""
    return field(default=default, metadata={"shape": shape, "unit": unit})


class NoTime(Exception):
    """A cell gets no time: its verdict (wrong, too slow, out of memory or failed), and the reason in one line."""

    def __init__(self, verdict: str, reason: str) -> None:
        super().__init__(f"{verdict}: {reason}")
        self.verdict, self.reason = verdict, reason


@dataclass(frozen=True)
class CellRecord:
    """A cell, and what one process measured of it; None stands for not measured.

    `batches`, `tokens` and the lists of times hold one number a timed step. `device_ms` lies between the CUDA events at
    the ends of two steps, `wall_ms` is the host's clock, `host_ms` what the host took to launch the step, and `lead_ms`
    what the device still had to do when all of it was launched. `prepare_ms` holds one time a batch.

    A cell that runs on several ranks has "ranks" in its key too (`ddp-2`, `fsdp2-2-balanced`). Its times are those of
    the rank that took the longest, its tokens those of all ranks, its costs the highest of a rank.
    """

    cell: dict[str, Any] = stored(
        MAPPING, "backend, collator, mode, causal, dtype, execution, workload, lengths, ranks"
    )
    verdict: str = stored(TEXT, "timed, out of memory, too slow, wrong, failed or crashed", "no verdict")
    reason: str = stored(TEXT, "why there is no time", "")
    batches: list[int] | None = stored(NUMBERS, "number of the step's batch")
    tokens: list[int] | None = stored(NUMBERS, "tokens")
    device_ms: list[float] | None = stored(TIMES, "ms")
    wall_ms: list[float] | None = stored(TIMES, "ms")
    host_ms: list[float] | None = stored(TIMES, "ms")
    lead_ms: list[float] | None = stored(TIMES, "ms")
    host_deficit_ms: float | None = stored(NUMBER, "ms a step that launching takes longer than the device's work")
    prepare_ms: list[float] | None = stored(TIMES, "ms")
    compile_s: float | None = stored(NUMBER, "s")
    compilations: int | None = stored(NUMBER, "graphs")
    graph_breaks: int | None = stored(NUMBER, "graph breaks")
    padded_token_share: float | None = stored(NUMBER, "share of all slots")
    peak_bytes: int | None = stored(NUMBER, "bytes that tensors asked for")
    kernel_launches: int | None = stored(NUMBER, "launches a step")
    synchronisations: int | None = stored(NUMBER, "waits for the device a step")
    device_busy_ms: float | None = stored(NUMBER, "ms a step")
    unmeasured: str | None = stored(TEXT, "why exact costs are lacking")
    kernels: list[dict[str, Any]] | None = stored(KERNELS, "name, count, total_us a step")
    kernels_unmeasured: str | None = stored(TEXT, "why kernels are lacking")
    tokens_per_s: float | None = stored(NUMBER, "tokens/s")
    mfu: float | None = stored(NUMBER, "share of matmul_tflops")
    matmul_tflops: float | None = stored(NUMBER, "TFLOP/s")
    ranks: list[dict[str, Any]] | None = stored(
        RANKS, "step_ms, own_ms, tokens, peak_bytes of each, alone_ms of rank 0"
    )
    exposed_ms: float | None = stored(NUMBER, "ms a step beyond the slowest rank's work without communication")
    imbalance: float | None = stored(NUMBER, "share that the slowest rank's own work is above the mean")
    efficiency: float | None = stored(NUMBER, "share of one rank's tokens/s that each rank reaches")
    tokens_per_s_rank: float | None = stored(NUMBER, "tokens/s a rank")
    gpu_before: dict[str, Any] | None = stored(MAPPING, "clocks, throttling and other processes before the cell")
    gpu_after: dict[str, Any] | None = stored(MAPPING, "the same behind its last step")

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> "CellRecord":
        """Return the record of a file's `extra_info`; ValueError names the field that is not what it should be.

        Keys that no field has are left out: a newer or older gate wrote them.
        """
        name = _name(info.get("cell"))
        values = {}
        for each in fields(cls):
            value = info.get(each.name)
            if value is None:
                continue
            words, check = each.metadata["shape"]
            if not check(value):
                raise ValueError(f"{each.name} of {name} is {value!r:.40}, not {words} ({each.metadata['unit']})")
            values[each.name] = value
        if "cell" not in values:
            raise ValueError('an entry lacks the key "cell"')
        record = cls(**values)
        clock = (record.gpu_after or {}).get("sm_clock_mhz")
        if is_number(clock) and clock <= 0:  # type: ignore[operator]
            raise ValueError(f"sm_clock_mhz of {name} is {clock!r}, not a clock (MHz)")
        return record

    def written(self) -> dict[str, Any]:
        """Return the `extra_info` of a file; what was not measured is left out."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {key: value for key, value in values.items() if value not in (None, "")}

    @property
    def id(self) -> str:
        """The cell's name."""
        return cell_id(self.cell)

    @property
    def clock(self) -> Clock:
        """The clock that its steps are compared by."""
        return "wall" if self.device_ms is None else "device"

    @property
    def times_ms(self) -> list[float]:
        """Its step times by that clock; empty without any."""
        return (self.wall_ms if self.device_ms is None else self.device_ms) or []

    @property
    def no_time(self) -> str:
        """Why it has no valid time, "" where it has one."""
        if self.verdict != "timed":
            return f"{self.verdict}: {self.reason}" if self.reason else self.verdict
        if not self.times_ms:
            return "no step was timed (zero rounds)"
        bad = next((ms for ms in self.times_ms if not (is_number(ms) and ms > 0)), None)
        if bad is not None or None in self.times_ms:
            return f"a step time is {bad!r}, not a positive number of milliseconds"
        if self.batches is not None and len(self.batches) != len(self.times_ms):
            return f"{len(self.times_ms)} step times for {len(self.batches)} batch numbers"
        return ""

    @property
    def step_ms(self) -> float | None:
        """The median of its step times in ms, and what the host's launches add to it; None without a valid time."""
        return None if self.no_time else statistics.median(self.times_ms) + (self.host_deficit_ms or 0.0)


def cell_id(cell: Mapping[str, Any]) -> str:
    """Return the cell's stable name, read left to right.

    The lengths are named where they are not the default, and the ranks where there are several.

    >>> cell_id({"backend": "fa2_varlen", "collator": "packed", "mode": "train", "causal": True,
    ...          "dtype": "bfloat16", "execution": "eager", "workload": "article", "lengths": "uniform"})
    'fa2_varlen-packed-train-causal-bfloat16-eager-article'
    """
    mask = "causal" if cell["causal"] else "full"
    parts = [cell["backend"], cell["collator"], cell["mode"], mask, cell["dtype"], cell["execution"]]
    lengths = [] if cell["lengths"] == "uniform" else [cell["lengths"]]
    ranks = [cell["ranks"]] if "ranks" in cell else []
    return "-".join([*parts, cell["workload"], *lengths, *ranks])


def cell_of(cell: str) -> dict[str, Any]:
    """Return the key that an id was made of.

    >>> cell_id(cell_of("fa2_varlen-packed-train-causal-bfloat16-eager-article"))
    'fa2_varlen-packed-train-causal-bfloat16-eager-article'
    """
    ranks = ON_RANKS.search(cell)
    parts = (cell[: ranks.start()] if ranks else cell).split("-", 7)
    names = ("backend", "collator", "mode", "causal", "dtype", "execution", "workload", "lengths")
    if len(parts) < 7:
        raise ValueError(
            f"{cell!r} is not a cell id; an id joins 7 or 8 words with hyphens (see pytest --matrix=json)."
        )
    key: dict[str, Any] = dict(zip(names, [*parts, "uniform"], strict=False))
    return key | {"causal": key["causal"] == "causal"} | ({"ranks": ranks[1]} if ranks else {})


def number_of_ranks(cell: Mapping[str, Any]) -> int:
    """Return on how many ranks a cell runs.

    >>> number_of_ranks({"ranks": "fsdp2-2-balanced"}), number_of_ranks({})
    (2, 1)
    """
    return int(cell["ranks"].split("-")[1]) if "ranks" in cell else 1


def work_of(cell: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the workload, the lengths, and the number of ranks where there are several: what one record holds."""
    ranks = number_of_ranks(cell)
    return cell["workload"], cell["lengths"], *([f"{ranks} ranks"] if ranks > 1 else [])


def chosen_by(cell: str, globs: str | None) -> bool:
    """Tell whether the value of `--cells` (globs between commas, None: no such option) means the cell of this id."""
    return globs is None or any(fnmatch(cell, glob) for glob in globs.split(","))


def format_ms(ms: float) -> str:
    """Return a time with three or more digits without noise: 132.4, 31.0, 3.21, 0.045."""
    return f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" if ms >= 1 else f"{ms:.3f}"


def _name(cell: object) -> str:
    try:
        return cell_id(cell)  # type: ignore[arg-type]
    except (KeyError, TypeError):
        return "a cell without a whole key"
