"""What a comparison prints: what changed around the code, the noise, a table of cells, and the counts."""

from collections import Counter
from collections.abc import Sequence

from gate.baseline.baselines import Process
from gate.baseline.noise import DEFAULT
from gate.baseline.verdicts import STRICT, CellVerdict, Comparison, Verdict, fail, nothing_judged
from gate.records import format_ms
from gate.table import WIDE, markdown_box, render

#: Cells that are the same and call for no word are counted, not listed, beyond so many.
FEW = 4

#: Shown where they differ, and no obstacle to a comparison: the change that is judged may be just that.
SHOWN = ("device", "driver", "cuda_runtime", "python", "power_limit_w", "max_sm_clock_mhz", "max_memory_clock_mhz")


def lines(comparison: Comparison, verdicts: Sequence[CellVerdict], *, strict: bool, width: int = WIDE) -> list[str]:
    """The whole report, the line with the counts last."""
    baseline = comparison.baseline
    found = [f"Against {baseline}."]
    found += [f"changed: {change}" for change in changes(comparison.now, baseline.newest)]
    if not comparison.same_versions:
        found.append("Other versions have other exact costs (memory, launches, compilations): only times are judged.")
    found += _noise(comparison)
    listed = [one for one in verdicts if one.verdict != Verdict.SAME or one.why]
    same = [one for one in verdicts if one not in listed]
    if len(same) <= FEW:
        listed, same = list(verdicts), []
    if listed:
        found += ["", *_table(comparison, listed, width).splitlines(), ""]
    if same:
        found.append(f"{len(same)} {'more ' if listed else ''}cells are the same{_seen(same)}.")
    return [*found, counts(verdicts, strict=strict)]


def _seen(same: Sequence[CellVerdict]) -> str:
    """How far cells moved that are the same, and from where on a change would not have been missed in any of them."""
    changes = [
        (abs(one.change), one.high - one.change) for one in same if one.change is not None and one.high is not None
    ]
    if not changes:
        return ""
    moved, hidden = (max(column) for column in zip(*changes, strict=True))
    return f": none moved by more than {moved:.1%}, and noise hides no more than {hidden:.1%}"


def counts(verdicts: Sequence[CellVerdict], *, strict: bool) -> str:
    """`FAILED: 1 regressed, 2 cannot tell, 21 same`, and what to do about it; no pass where nothing was compared."""
    numbers = Counter(one.verdict for one in verdicts)
    told = ", ".join(f"{numbers[verdict]} {verdict}" for verdict in Verdict if numbers[verdict]) or "no cell"
    nothing = "nothing was judged" if numbers[Verdict.CANNOT_TELL] else "nothing was compared"
    nothing = nothing if nothing_judged(verdicts) else ""
    if fail(verdicts, strict=strict):
        return "; ".join(filter(None, [f"FAILED: {told}", nothing]))
    if nothing:
        return f"{nothing.upper()}: {told} (fails under --gate-strict)"
    unjudged = any(one.fails(strict=True) for one in verdicts)
    words = " and ".join(verdict for verdict in reversed(STRICT))
    return f"passed: {told}" + (f" ({words} fail under --gate-strict)" if unjudged else "")


def changes(now: Process, then: Process) -> list[str]:
    """What differs between two processes besides the code, a sentence each."""
    versions = now.machine.get("versions") or {}, then.machine.get("versions") or {}
    pairs = [(key, versions[0].get(key), versions[1].get(key)) for key in {**versions[0], **versions[1]}]
    pairs += [(key, now.machine.get(key), then.machine.get(key)) for key in SHOWN]
    return [f"{key} is {new} now, was {old} then" for key, new, old in pairs if new != old]


def _noise(comparison: Comparison) -> list[str]:
    told = []
    for (kind, mode, execution), noise in comparison.noises.items():
        process = f"{noise.process.sd:.2%} between processes ({noise.process.source})"
        session = f", {noise.session.sd:.2%} between sessions ({noise.session.source})"
        which = f"{mode} {execution}{', waiting for the host' if kind == 'host' else ''}"
        told.append(f"noise, {which}: {process}{'' if comparison.same_session else session}")
        percent = comparison.rule.percent_of(kind)
    if not told:
        return []
    told.append(
        f"Regressed is slower beyond that noise, and by more than {percent:g}% and {comparison.rule.microseconds:g} us."
    )
    assumed = any(noise.session.source == DEFAULT for noise in comparison.noises.values())
    if comparison.baseline.committed and not comparison.same_session and assumed:
        told.append(
            "The baseline is of too few sessions, and not of this one: what moves between them is assumed, and may "
            "hide all that matters. Add processes of others, five or more in all (gate promote --add), or use gate ab."
        )
    if comparison.paced:
        told.append("Changes are of step times over those of plain work timed between steps, so not just now / then.")
    return told


def _table(comparison: Comparison, verdicts: Sequence[CellVerdict], width: int) -> str:
    table = markdown_box("cell")
    for column in ("now ms", "then ms", "change (interval)"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    table.add_column("why")
    for one in verdicts:
        now, then = ("-" if ms is None else format_ms(ms) for ms in (one.now_ms, one.then_ms))
        why = "; ".join(filter(None, (one.why, str(one.cause or ""))))
        table.add_row(one.cell, now, then, _change(one), one.verdict.upper(), why)
    return render(table, width)


def _change(one: CellVerdict) -> str:
    if one.change is None or one.low is None or one.high is None:
        return "-"
    return f"{one.change:+.1%} ({one.low:+.1%} .. {one.high:+.1%})"
