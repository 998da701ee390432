"""Stands in for pytest where processes are run: times nothing, and writes what a timed run would write.

`tests/performance/fake.json` in the current folder says how long each cell takes, and what goes wrong.
"""

import faulthandler
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

STEPS = 12


def option(name: str) -> str | None:
    found = [argument.partition("=")[2] for argument in sys.argv if argument.startswith(f"--{name}=")]
    return found[-1] if found else None


def info(cell: str, ms: float, seed: int, fake: dict) -> dict:
    backend, collator, mode, mask, dtype, execution, workload = cell.split("-")
    # What a process shares, and what is the cell's own.
    side = Path.cwd().name
    shared, own = random.Random(f"{side} {seed}"), random.Random(f"{side} {seed} {cell}")
    noise = fake.get("noisy", {}).get(cell, fake.get("noise", 0.002))
    ms *= math.exp(noise * (shared.gauss() + own.gauss()) / math.sqrt(2))
    # A slow host holds up the steps of these cells, in the processes of these seeds: all, or so many.
    held = cell in fake.get("slow_host", {}).get(str(seed), [])
    waits = [held and step < fake.get("held_steps", STEPS) for step in range(STEPS)]
    times = [ms * (1 + step / 100) * (1.5 if waits[step] else 1.0) for step in range(STEPS)]
    pace = fake.get("pace", 0.2)
    control = 1.1 if seed in fake.get("disturbed", []) else 1.0
    return {
        "cell": {
            "backend": backend,
            "collator": collator,
            "mode": mode,
            "causal": mask == "causal",
            "dtype": dtype,
            "execution": execution,
            "workload": workload,
            "lengths": "uniform",
        },
        "verdict": "timed",
        "device_ms": times,
        "wall_ms": times,
        "host_ms": times if held else [each / 3 for each in times],
        "lead_ms": [0.0 if wait or fake.get("held") else each for wait, each in zip(waits, times, strict=True)],
        "host_pace_ms": pace and [2 * pace if held else pace] * STEPS,
        "tokens": [100] * STEPS,
        "control": {"matmul_ms": [control] * 4, "copy_ms": [control] * 4},
        "gpu_before": {},
        "gpu_after": {},
        **({} if "--no-exact-costs" in sys.argv else fake.get("costs", {}).get(cell, {})),
    }


def without_time(cell: str, verdict: str, fake: dict) -> dict:
    return {"cell": info(cell, 1.0, 0, fake)["cell"], "verdict": verdict, "reason": "said so"}


def main() -> int:
    fake = json.loads(Path("tests/performance/fake.json").read_text())
    with Path(fake.get("calls", os.devnull)).open("a") as calls:
        calls.write(json.dumps([str(Path.cwd()), *sys.argv[1:]]) + "\n")
    if "usage" in fake:
        print(f"ERROR: {fake['usage']}")
        return fake.get("status", 4)
    ids, wanted, seed = list(fake["cells"]), option("cells"), int(option("order-seed") or 0)
    if wanted:
        ids = [cell for cell in ids if cell in wanted.split(",")]
    if "--collect-only" in sys.argv:
        print(*(f"tests/performance/test_step_time.py::test_a_batch_is_timed[{cell}]" for cell in ids), sep="\n")
        return 0
    storage = Path(option("benchmark-storage").removeprefix("file://")) / "fake-device"
    storage.mkdir(parents=True)
    journal = storage / "journal-1.jsonl"
    header = {"machine_info": {"device": "Fake", "device_slug": "fake-device", "versions": fake.get("versions", {})}}
    header |= {"datetime": "2026-11-24T00:00:00+00:00"}
    journal.write_text(json.dumps(header) + "\n")
    timed, others, broken, unprepared = [], [], False, False
    for number, cell in enumerate(sorted(ids, key=lambda cell: f"{seed} {cell}"), start=1):
        print(f"[{number}/{len(ids)}] {cell}: ", end="", flush=True)
        ms, does = fake["cells"][cell], fake.get("does", {}).get(cell)
        if does == "crash":
            # As pytest does.
            faulthandler.enable()
            os.kill(os.getpid(), signal.SIGSEGV)
        if does == "hang":
            child = subprocess.Popen(["sleep", "60"])
            Path("child.pid").write_text(str(child.pid))
            time.sleep(60)
        if does == "no setup":
            print("ERROR in setup")
            unprepared = True
            continue
        if does == "break":
            broken = True
        found = info(cell, ms, seed, fake)
        if broken or does in ("fail", "out of memory"):
            found = without_time(cell, "out of memory" if does == "out of memory" else "failed", fake)
        entry = {"name": cell, "fullname": cell, "extra_info": found}
        if found["verdict"] == "timed":
            timed.append(entry | {"stats": {"mean": ms / 1e3, "median": ms / 1e3}})
            print(f"{ms} ms")
        else:
            others.append(entry)
            print(found["verdict"])
        with journal.open("a") as file:
            file.write(json.dumps((timed if found["verdict"] == "timed" else others)[-1]) + "\n")
    if fake.get("cut"):
        (storage / "0001_process.json").write_text('{"benchmarks": [')
        os.kill(os.getpid(), signal.SIGKILL)
    record = header | {"benchmarks": timed, "cells_without_time": others}
    (storage / "0001_process.json").write_text(json.dumps(record))
    journal.unlink()
    return int(bool(others) or unprepared)


if __name__ == "__main__":
    sys.exit(main())
