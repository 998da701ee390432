"""`python -m gate COMMAND`: compare two commits, record step times, make a baseline, print tables."""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from gate.live.workers import INTERRUPTED, stoppable

#: A command, and its module: with `add_arguments(parser)` and `run(args) -> exit status`, imported when asked for.
COMMANDS: dict[str, str] = {
    "ab": "gate.live.command",
    "promote": "gate.baseline.promote",
    "record": "gate.baseline.recording",
    "report": "gate.report.command",
    "table": "gate.report.tables",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a ValueError or OSError of it is told in one line, with status 2.

    Ctrl-C and SIGTERM end it with 130, after it has killed the process that ran.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m gate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, path in COMMANDS.items():
        module = importlib.import_module(path) if name in given[:1] or not given or given[0].startswith("-") else None
        summary = (module.__doc__ or "").partition("\n")[0] if module else None
        command = commands.add_parser(name, help=summary, description=summary)
        if module:
            module.add_arguments(command)
    args = parser.parse_args(given)
    try:
        with stoppable():
            status = int(importlib.import_module(COMMANDS[args.command]).run(args))
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # Who reads, as `head`, has enough. Python would complain again as it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
