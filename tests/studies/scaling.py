"""Times a training step on several ranks under the settings of DDP and FSDP2 that may matter, in one process group.

python -m tests.studies.scaling --out scaling.json                      # all GPUs with NCCL, or two gloo processes
torchrun --nproc-per-node 2 -m tests.studies.scaling --settings 'ddp*'  # the same, of torchrun's ranks

It prints one table for each distribution of lengths. The JSON file is written after every setting, so that a run that
is stopped leaves what it measured.
"""

import argparse
import fnmatch
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from collators import Example, collator_named
from collators.batch import Batch
from gate.measure.bench import CellBench, Shared, cell_bench, release_memory, settle_allocator, synchronize
from gate.measure.costs import heaviest, no_collection
from gate.measure.environment import environment
from gate.measure.rank import RankBench, shares_of, start_group
from gate.measure.timing import timed_steps
from gate.measure.trace import ON_DEVICE, busy_us, profiled
from gate.record.cell import format_ms
from gate.record.files import write_json
from gate.report.markdown import markdown_box, render
from model.attention import default_device
from model.attention.backend import first_line
from model.cells import Cell
from model.compilation import fresh_compiler
from model.distributed import How, reduced, wrapped
from model.models import any_backend_named
from model.steps import forward
from model.workloads import Workload, workload_named

#: Columns: what the device still had to do when the host had launched a step (near 0, the host is the limit), and what
#: `kernels_of` returns.
PARTS = {
    "lead_ms": "lead ms",
    "nccl_ms": "NCCL ms",
    "nccl_alone_ms": "NCCL alone ms",
    "own_ms": "other ms",
    "idle_ms": "idle ms",
}

#: A collective that took so long hangs.
TIMEOUT_S = 180


def compressed(model: nn.Module) -> None:
    """Have DDP reduce gradients in bfloat16."""
    model.register_comm_hook(None, bf16_compress_hook)


@dataclass(frozen=True)
class Setting:
    """How the model is wrapped: `options` of the wrapper, what is done to it after, and what is set around it all."""

    name: str
    how: How | None
    options: Mapping[str, Any] = field(default_factory=dict)
    then: Callable[[nn.Module], None] = lambda model: None
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    synced: bool = True


def cut_graphs() -> AbstractContextManager[object]:
    """Have torch.compile cut graphs where the buckets of DDP end, as it does by default."""
    return torch._dynamo.config.patch(optimize_ddp=True)


def ddp(name: str, bucket_mb: float | None, **changes: Any) -> Setting:
    """Return a setting of DDP with buckets of a size; None are torch's: one of 1 MB, then of 25 MB."""
    return Setting(f"ddp, {name}", "ddp", {"bucket_cap_mb": bucket_mb}, **changes)


#: Everything is reduced at the end of the backward.
ALL_MB = 1_000_000

#: `ddp` and `fsdp2` are what `wrapped` does unless asked otherwise.
SETTINGS = (
    Setting("all at once", None),
    Setting("ddp", "ddp"),
    Setting("ddp, no_sync", "ddp", synced=False),
    ddp("cut graphs, default buckets", None, around=cut_graphs),
    ddp("default buckets", None),
    *(ddp(f"{size} MB buckets", size) for size in (100, 400)),
    ddp("one bucket", ALL_MB),
    ddp("default buckets, bf16 hook", None, then=compressed),
    ddp("one bucket, bf16 hook", ALL_MB, then=compressed),
    Setting("fsdp2", "fsdp2"),
    *(Setting(f"fsdp2, groups of {blocks}", "fsdp2", {"blocks_a_group": blocks}) for blocks in (1, 6, 8, 24)),
    Setting("fsdp2, kept after forward", "fsdp2", {"reshard_after_forward": False}),
    Setting("fsdp2, float32", "fsdp2", {"dtype": None}),
    *(
        Setting(f"fsdp2, float32, groups of {blocks}", "fsdp2", {"dtype": None, "blocks_a_group": blocks})
        for blocks in (1, 6, 24)
    ),
)


class Unreduced(RankBench):
    """Steps that reduce nothing: what the wrapper itself costs."""

    def step(self, batch: Batch) -> object:
        with reduced(self.around, now=False):
            found = forward(self.around, self.cell.backend, batch, self._case)  # type: ignore[arg-type]
            found.loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return found


@dataclass(frozen=True)
class Study:
    """One distribution of lengths on the ranks of the default group; `mine` are this rank's sequences by step."""

    cell: Cell
    workload: Workload
    mine: Sequence[list[Example]]
    store: Any
    traces: Path | None = None

    def plain(self) -> tuple[Shared, Callable[[Any], CellBench]]:
        """Return what makes the model without a wrapper."""
        shared = Shared(self.workload, default_device(), given=self.mine)
        return shared, lambda compiler: cell_bench(shared, self.cell, compiler)

    def trace_of(self, name: str) -> Path | None:
        """Return the file for what this rank's kernels did under a setting, if traces are wanted."""
        if self.traces is None:
            return None
        self.traces.mkdir(parents=True, exist_ok=True)
        name = re.sub("[^a-z0-9_]+", "-", f"{self.workload.lengths.name}, {name}, {dist.get_rank()}")
        return self.traces / f"{name}.json"

    def alone(self, again: str) -> dict[str, Any]:
        """Time rank 0 while the others wait."""
        found: dict[str, Any] = {}
        if dist.get_rank() == 0:
            _, make = self.plain()
            with fresh_compiler() as compiler:
                found = measured(make(compiler), self.trace_of(f"alone{again}"))
            self.store.set(f"{self.workload.lengths.name}{again}", "timed")
        else:
            self.store.wait([f"{self.workload.lengths.name}{again}"], timedelta(seconds=4 * TIMEOUT_S))
        return {key: value for key, value in found.items() if value is not None}

    def timed(self, setting: Setting) -> dict[str, Any]:
        """Time a setting on all ranks; the slowest rank's time is the step's."""
        _, make = self.plain()
        with fresh_compiler() as compiler, setting.around():
            bench = make(compiler)
            if setting.how:
                targets = torch.tensor([batch.num_targets for batch in bench.batches], device=bench.shared.device)
                dist.all_reduce(targets)
                around = wrapped(
                    bench.model, setting.how, bench.shared.device, **{"dtype": self.cell.dtype, **setting.options}
                )
                setting.then(around)
                kind = RankBench if setting.synced else Unreduced
                of_ranks = {"around": around, "how": setting.how, "totals": targets.tolist(), "truth": None}
                bench = kind(**vars(bench), **of_ranks)
            return measured(bench, self.trace_of(setting.name), together=True)


def measured(bench: CellBench, trace: Path | None, *, together: bool = False) -> dict[str, Any]:
    """Warm up, and time a step on every batch; of a GPU also what one step's kernels did."""
    device = bench.shared.device
    bench.warm(math.inf)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with no_collection():
        if together:
            dist.barrier()
        samples = bench.timed([*range(len(bench.batches))])
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        kernels = kernels_of(bench, trace) if device == "cuda" else {}
    tokens = sum(batch.num_tokens for batch in bench.batches)
    lead = {"lead_ms": sum(samples.lead_ms) / len(samples.lead_ms)} if samples.lead_ms else {}
    return {"ms": samples.times_ms, "tokens": tokens, "peak_bytes": peak, **lead, **kernels}


def kernels_of(bench: CellBench, trace: Path | None) -> dict[str, float]:
    """Return, of one step on the heaviest batch, how long NCCL ran, how long it ran alone, how long other kernels ran,
    and how long nothing did, in ms; write when each kernel ran to `trace`."""
    seen = [
        event
        for event in profiled(lambda: bench.step(heaviest(bench.batches)), lead_in=1)
        if event.category in ON_DEVICE
    ]
    own = [event for event in seen if not event.name.startswith("nccl")]
    span = max(event.end_us for event in seen) - min(event.start_us for event in seen)
    nccl = [event for event in seen if event.name.startswith("nccl")]
    if trace:
        begin = min(event.start_us for event in seen)
        write_json(trace, [[each.name, each.thread, each.start_us - begin, each.duration_us] for each in seen])
    found = {
        "nccl_ms": busy_us(nccl),
        "nccl_alone_ms": busy_us(seen) - busy_us(own),
        "own_ms": busy_us(own),
        "idle_ms": span - busy_us(seen),
    }
    return {name: us / 1e3 for name, us in found.items()}


def all_reduced(numbers: int, repeats: int = 10) -> dict[str, float]:
    """Time the bare all_reduce of so many float32 numbers: ms, and the bus bandwidth in GB/s, as nccl-tests has it."""
    device, ranks = default_device(), dist.get_world_size()
    tensor = torch.zeros(numbers, device=device)
    for _ in range(2):
        dist.all_reduce(tensor)
    synchronize(device)
    times = timed_steps(lambda _: dist.all_reduce(tensor), range(repeats), device).times_ms
    ms = sorted(times)[len(times) // 2]
    return {"bytes": 4 * numbers, "ms": ms, "bus_gb_per_s": 4 * numbers * 2 * (ranks - 1) / ranks / ms / 1e6}


def row_of(name: str, found: Sequence[Mapping[str, Any]], alone: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the table from what each rank measured."""
    slowest = max(found, key=lambda one: sum(one["ms"]))
    rate = sum(one["tokens"] for one in found) / len(found) / sum(slowest["ms"]) * 1e3
    row = {
        "setting": name,
        "step_ms": sum(slowest["ms"]) / len(slowest["ms"]),
        "tokens_per_s_rank": rate,
        "efficiency": rate / (alone["tokens"] / sum(alone["ms"]) * 1e3),
        "rank_ms": [sum(one["ms"]) / len(one["ms"]) for one in found],
        "peak_bytes": [one["peak_bytes"] for one in found if one.get("peak_bytes")],
    }
    return row | {key: slowest[key] for key in PARTS if key in slowest}


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return lines as a table."""
    table = markdown_box(
        "setting", numbers=("ms a step", "tokens/s a rank", "of one alone", *PARTS.values(), "peak GB")
    )
    for row in rows:
        if "error" in row:
            continue
        times = [format_ms(row[key]) if key in row else "-" for key in PARTS]
        peak = f"{max(row['peak_bytes']) / 1e9:.2f}" if row["peak_bytes"] else "-"
        rates = f"{row['tokens_per_s_rank']:,.0f}", f"{row['efficiency']:.1%}"
        table.add_row(row["setting"], format_ms(row["step_ms"]), *rates, *times, peak)
    errors = [f"{row['setting']}: {row['error']}" for row in rows if "error" in row]
    return "\n\n".join([render(table), *errors])


def gathered(value: object) -> list[Any]:
    """Return what every rank has."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def study(args: argparse.Namespace, lengths: str, store: Any, until: float, content: dict[str, Any]) -> None:
    """Time every setting on these lengths, and print the table."""
    device, rank, ranks = default_device(), dist.get_rank(), dist.get_world_size()
    chosen = workload_named(args.workload, device, lengths)
    chosen = replace(chosen, num_batches=ranks * (args.steps or chosen.num_batches))
    shares = shares_of(chosen.examples(), ranks, balanced=args.balanced)
    cell = Cell(
        any_backend_named(args.backend),
        collator_named("packed"),
        "train",
        causal=True,
        dtype=chosen.dtype,
        execution="eager" if args.eager else "compiled",
        workload=chosen.name,
        lengths=chosen.lengths.name,
    )
    one = Study(cell, chosen, [step[rank] for step in shares], store, args.traces)
    rows: list[dict[str, Any]] = content["lengths"].setdefault(lengths, [])
    first = gathered(one.alone(""))[0]
    rows.append(row_of("one rank alone", [first], first))
    for setting in SETTINGS:
        if not any(fnmatch.fnmatch(setting.name, glob) for glob in args.settings.split(";")):
            continue
        # Rank 0's clock decides for all.
        if not gathered(time.monotonic() < until)[0]:
            rows.append({"setting": setting.name, "error": f"not run: --minutes {args.minutes:g} were over"})
            continue
        try:
            found: Any = one.timed(setting)
        except Exception as error:
            found = f"{type(error).__name__}: {first_line(error)}"
        release_memory(device)
        answers = gathered(found)
        wrong = next((answer for answer in answers if isinstance(answer, str)), None)
        rows.append({"setting": setting.name, "error": wrong} if wrong else row_of(setting.name, answers, first))
        if rank == 0:
            print(
                f"{lengths}: {rows[-1]['setting']}: {rows[-1].get('error') or format_ms(rows[-1]['step_ms'])}",
                flush=True,
            )
            write_json(args.out, content, indent=1)
    last = row_of("one rank alone, again", [gathered(one.alone(" again"))[0]], first)
    rows.append(last)
    for row in rows:
        if "efficiency" in row:
            # Beside the mean of one rank before and after.
            row["efficiency"] /= (1 + last["efficiency"]) / 2
    if rank == 0:
        tokens = sum(len(example.input_ids) for step in shares for share in step for example in share)
        print(f"\n{cell.id}, {ranks} ranks, {len(shares)} steps, {tokens / len(shares) / ranks:,.0f} tokens a rank\n")
        print(table_of(rows) + "\n", flush=True)
        write_json(args.out, content, indent=1)


def main() -> int:
    """Time everything; without torchrun, start it."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.scaling", description=__doc__)
    parser.add_argument("--ranks", type=int, help="number of ranks without torchrun (all GPUs, or 2 on a CPU)")
    parser.add_argument("--workload", help="smoke (default on a CPU), article (default on GPUs) or long")
    parser.add_argument("--backend", help="fa2_varlen on GPUs, sdpa_document_mask on a CPU")
    parser.add_argument("--eager", action="store_true", help="do not compile (a CPU does not either)")
    parser.add_argument("--balanced", action="store_true", help="share tokens out evenly")
    parser.add_argument("--lengths", default="uniform,recorded", help="distributions, separated by commas")
    parser.add_argument("--settings", default="*", help="only settings that match one of these globs, separated by ;")
    parser.add_argument("--steps", type=int, help="steps of each setting (16; on a CPU 4)")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no setting later than this")
    parser.add_argument("--traces", type=Path, help="folder for when each kernel of one step ran, by setting and rank")
    parser.add_argument("--out", type=Path, default=Path("scaling.json"), help="the JSON file")
    args = parser.parse_args()
    cuda = default_device() == "cuda"
    if "RANK" not in os.environ:
        ranks = args.ranks or (torch.cuda.device_count() if cuda else 2)
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        os.execv(sys.executable, [sys.executable, *command, "-m", "tests.studies.scaling", *sys.argv[1:]])
    args.backend = args.backend or ("fa2_varlen" if cuda else "sdpa_document_mask")
    args.eager, args.steps = args.eager or not cuda, args.steps or (16 if cuda else 4)
    until = time.monotonic() + 60 * args.minutes
    rank = int(os.environ["RANK"])
    start_group(int(os.environ["LOCAL_RANK"]), timedelta(seconds=TIMEOUT_S))
    settle_allocator()
    # Its own, as one that waits for minutes must not be told of as a collective that hangs.
    store = dist.PrefixStore("scaling", dist.distributed_c10d._get_default_store())
    content: dict[str, Any] = {
        "machine": environment(),
        "ranks": dist.get_world_size(),
        "asked": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "lengths": {},
    }
    sizes = workload_named(args.workload, default_device()).config
    # What DDP reduces a step of the article's decoder: 1.2 GB.
    numbers = 12 * sizes.num_layers * sizes.hidden_size**2
    content["all_reduce"] = all_reduced(numbers)
    if rank == 0:
        bare = content["all_reduce"]
        print(
            f"all_reduce of {bare['bytes'] / 1e9:.2f} GB: {bare['ms']:.2f} ms, {bare['bus_gb_per_s']:.1f} GB/s",
            flush=True,
        )
    for lengths in args.lengths.split(","):
        study(args, lengths, store, until, content)
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
