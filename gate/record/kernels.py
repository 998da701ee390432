"""Kernels of a step: how often each ran and for how long, and which of them moved between two versions."""

import re
from dataclasses import dataclass
from typing import Any

#: How many kernels of a profile a record keeps, the longest first; the others are kept as one.
KEPT = 60

OTHERS = "all others"

#: In a template's arguments, what tells apart kernels of one name: torch's functors, cutlass' and flash's kernels.
WHAT_IT_DOES = re.compile(r"\w*[Ff]unctor\w*|\w+_kernel_(?:cuda|impl)\w*|cutlass_\w+|Flash[A-Z]\w*Sm\d+")

Profile = dict[str, "KernelTime"]


@dataclass(frozen=True)
class KernelTime:
    """Runs of one kernel in a step, and their time together in microseconds."""

    count: float
    total_us: float


@dataclass(frozen=True)
class Move:
    """A kernel whose time in a step is not what it was."""

    name: str
    now: KernelTime
    then: KernelTime

    @property
    def change_us(self) -> float:
        """How much longer it takes, in microseconds a step."""
        return self.now.total_us - self.then.total_us

    def __str__(self) -> str:
        now, then = self.now, self.then
        runs = f", {then.count:g} runs -> {now.count:g}" if now.count != then.count else ""
        times = f"{then.total_us / 1e3:.2f} -> {now.total_us / 1e3:.2f}"
        return f"{self.name} {self.change_us / 1e3:+.2f} ms ({times}{runs})"


def as_data(profile: Profile) -> list[dict[str, Any]]:
    """The profile as records hold it, the longest kernels first; the times of all add up to the step's."""
    by_time = sorted(profile.items(), key=lambda item: -item[1].total_us)
    rest = [time for _, time in by_time[KEPT:]]
    kept = by_time[:KEPT]
    if rest:
        kept.append((OTHERS, KernelTime(sum(t.count for t in rest), sum(t.total_us for t in rest))))
    return [{"name": name, "count": round(time.count, 3), "total_us": round(time.total_us, 3)} for name, time in kept]


def from_data(kernels: Any) -> Profile | None:
    """The profile that `as_data` wrote; None where there is none that can be read."""
    try:
        return {str(k["name"]): KernelTime(float(k["count"]), float(k["total_us"])) for k in kernels}
    except (TypeError, KeyError, ValueError):
        return None


def moved(now: Profile, then: Profile) -> list[Move]:
    """What each kernel of either profile gained or lost, the largest gain first.

    Kernels go by their short names, as a template's arguments change with what is compiled.
    """
    new, old = _by_short_name(now), _by_short_name(then)
    none = KernelTime(0, 0)
    moves = [Move(name, new.get(name, none), old.get(name, none)) for name in {**new, **old}]
    return sorted(moves, key=lambda move: -move.change_us)


def _by_short_name(profile: Profile) -> Profile:
    short: Profile = {}
    for name, time in profile.items():
        before = short.get(short_name(name), KernelTime(0, 0))
        short[short_name(name)] = KernelTime(before.count + time.count, before.total_us + time.total_us)
    return short


def short_name(name: str) -> str:
    """A kernel's name without its type, namespaces, template arguments and parameters.

    >>> short_name("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>, false>(flash::Flash_fwd_params)")
    'flash_fwd_kernel'

    Kernels of torch that differ in the function they apply keep it:

    >>> short_name("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, ...>(int)")
    'vectorized_elementwise_kernel CUDAFunctor_add'
    """
    if name.startswith(("Memcpy", "Memset")):
        return name
    if "Call CompiledFxGraph" in name:
        # Named by a hash of its source, which every change of it changes.
        return "compiled graph"
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    head = re.split(r"[<(]", plain)[0]
    base = head.rpartition("::")[2].strip()
    does = WHAT_IT_DOES.search(plain, len(head))
    return f"{base} {does[0]}" if does else base or name
