"""Stands in for gate/measure/worker.py: answers as the `fake.json` of its checkout says, and times nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def instead(what: str, holds: Path) -> dict[str, Any] | None:
    """Do what is to be done instead of an answer; None where the answer is the usual one."""
    if what == "crash":
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        # As a worker with compile workers.
        child = subprocess.Popen(["sleep", "600"])
        remember(holds.parent, child.pid)
        child.wait()
    if what == "crowded":
        # Memory holds the cell once: each side that has it open has a file there.
        crowded = len(list(holds.parent.glob("*.holds"))) > 1
        return {"verdict": "out of memory", "reason": "said so"} if crowded else None
    if what == "error":
        return {"error": "ValueError: said so"}
    return {"verdict": what, "reason": "said so"} if what else None


def remember(folder: Path, pid: int) -> None:
    """Write down a process that is to be gone in the end."""
    with (folder / "pids").open("a") as pids:
        pids.write(f"{pid}\n")


def main() -> None:
    """Answer until standard input ends."""
    checkout = Path(sys.argv[1])
    fake = json.loads((checkout / "fake.json").read_text())
    holds, does = checkout.parent / f"{os.getpid()}.holds", {}
    remember(checkout.parent, os.getpid())
    for line in sys.stdin:
        request = json.loads(line)
        asked, reply = request["do"], {}
        if asked == "hello":
            cells = [{"id": cell, "unavailable": fake.get("unavailable", {}).get(cell, "")} for cell in fake["ms"]]
            reply = {"machine": {"device": "fake"}, "device": "cpu", "cells": cells} | fake.get("hello", {})
        elif asked == "open":
            cell = request["cell"]
            does, tokens = fake.get("does", {}).get(cell, {}), fake.get("tokens", {}).get(cell, [7, 8])
            holds.touch()
            # Until the other side has it open too.
            time.sleep(0.05 if does.get("open") == "crowded" else 0)
            reply = {"verdict": "ready", "gpu": {}, "tokens": tokens}
        elif asked == "block":
            steps = [fake["ms"][cell] * (1 + 0.001 * (number % 3)) for number in request["order"]]
            reply = {"verdict": "timed", "wall_ms": steps, "device_ms": [], "host_ms": [], "lead_ms": [], "ahead_ms": 0}
        elif asked == "state":
            reply = {"gpu": {}}
        elif asked == "costs":
            reply = {"compilations": 0, "prepare_ms": [1.0, 1.0]} | fake.get("costs", {}).get(cell, {})
        elif asked == "close":
            holds.unlink(missing_ok=True)
        what = does.get(f"{asked} on rank {os.environ.get('RANK')}", does.get(asked, ""))
        print(json.dumps(instead(what, holds) or reply), flush=True)


if __name__ == "__main__":
    main()
