"""Records what the packing of trainers gives, and prints the table of docs/results/trainers.md.

python -m tests.studies.trainers > table.md
"""

import json
from collections.abc import Mapping

from gate.report.markdown import markdown_box, render
from tests.packing.plugin import FOR_A_COLLATOR, NATIVE
from tests.trainers.test_trainers import PATHS, RECORD, broken, verdict

CASES = [(family, implementation) for family in FOR_A_COLLATOR for implementation in NATIVE]


def main() -> int:
    """Run every path that is installed; keep what is recorded of the others."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for path in PATHS:
        if path.version is not None:
            verdicts = {f"{family} {each}": verdict(path, family, each) for family, each in CASES}
            record[path.name] = {"version": path.version, "contracts": broken(path), "verdicts": verdicts}
    RECORD.write_text(json.dumps({path.name: record[path.name] for path in PATHS}, indent=1) + "\n")
    table = markdown_box("path", "what runs", "verdict", "what the batch breaks")
    for path in PATHS:
        entry = record[path.name]
        # Of each contract the first line.
        broke = (f"{contract}: {what.split('; ')[0]}" for contract, what in entry["contracts"].items())
        table.add_row(
            f"{path.name} ({entry['version']})", f"`{path.how}`", in_short(entry["verdicts"]), "; ".join(broke) or "-"
        )
    print(render(table))
    return 0


def in_short(verdicts: Mapping[str, str]) -> str:
    """Return one verdict for all cases, or one for each implementation or case."""
    if len(found := set(verdicts.values())) == 1:
        return found.pop()
    by = {each: {verdict for case, verdict in verdicts.items() if case.endswith(each)} for each in NATIVE}
    if all(len(found) == 1 for found in by.values()):
        return "; ".join(f"{each}: {next(iter(found))}" for each, found in by.items())
    return "; ".join(f"{case}: {verdict}" for case, verdict in verdicts.items())


if __name__ == "__main__":
    raise SystemExit(main())
