"""Live comparisons are right where they name the slower cell, its cause, and no other; others are told to be wrong."""

import json

import pytest

from tests.meta.fake_sides import CELLS
from tests.meta.planted import live, slowdowns
from tests.performance.bench import CellBench

pytestmark = pytest.mark.meta

PLANTED = f"device_sleep=0.02@{CELLS[1]}"


def report(**verdicts):
    """A report in which these cells, by their place, have other verdicts than *same*; red ones blame the device."""
    told = {cell: verdicts.get(f"c{place}", "same") for place, cell in enumerate(CELLS)}
    numbers = {"change": 0.02, "low": 0.01, "high": 0.03}
    cells = [
        {"cell": cell, "verdict": verdict, "cause": "device" if verdict == "regressed" else None} | numbers
        for cell, verdict in told.items()
    ]
    return {"cells": cells, "seconds": 150.0}


@pytest.mark.parametrize(
    ("planted", "verdicts", "right"),
    [
        ("", {}, True),
        ("", {"c0": "cannot tell"}, True),
        ("", {"c0": "regressed"}, False),
        (PLANTED, {"c1": "regressed"}, True),
        (PLANTED, {}, False),
        (PLANTED, {"c1": "regressed", "c2": "regressed"}, False),
        (PLANTED.replace("device_sleep", "host_sleep"), {"c1": "regressed"}, False),
        (f"{PLANTED},kernel=fa2_varlen@{CELLS[2]}", {"c1": "regressed", "c2": "regressed"}, True),
        (f"{PLANTED},host_sleep=0.02@{CELLS[2]}", {"c1": "regressed", "c2": "regressed"}, False),
        (f"{PLANTED},host_sleep=0.02@{CELLS[1]}", {"c1": "regressed"}, True),
    ],
)
def test_a_comparison_is_right_or_wrong(planted, verdicts, right) -> None:
    assert live.row(planted, report(**verdicts))["right"] is right


def test_the_table_says_what_was_planted_and_found(tmp_path) -> None:
    runs = ["", PLANTED]
    for number, said in enumerate((report(c3="cannot tell"), report(c1="regressed"))):
        folder = tmp_path / live.name(runs[number], number)
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(said))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["01-equal", f"02-device_sleep=0.02_{CELLS[1]}"]
    last = live.table(live.rows(runs, tmp_path)).splitlines()[-1]
    columns = [column.strip() for column in last.strip("|").split("|")]
    assert columns == [PLANTED, "1 of 1", "+2.0% (+1.0% .. +3.0%)", "device", "none", "0", "2.5"]


def test_many_slowdowns_are_a_file_name_of_their_own(tmp_path) -> None:
    many = ",".join(f"device_sleep=0.02@{cell}" for cell in CELLS * 5)
    folders = {live.name(planted, 0) for planted in (many, many + "x", PLANTED)}
    assert len(folders) == 3
    for folder in folders:
        (tmp_path / folder).mkdir()


@pytest.mark.parametrize("here", [True, False])
def test_only_the_checkout_that_is_named_is_slower(pytestconfig, monkeypatch, here) -> None:
    monkeypatch.setenv(slowdowns.VARIABLE, "host_sleep=0.5@*")
    monkeypatch.setenv(slowdowns.PLACE, str(pytestconfig.rootpath) if here else "/elsewhere")
    slow, made = [], object()
    monkeypatch.setattr(CellBench, "timer", lambda bench: made)
    monkeypatch.setitem(slowdowns.KINDS, "host_sleep", lambda *given: slow.append(given))
    bench = type("Bench", (), {"cell": type("Cell", (), {"id": CELLS[0]})()})()
    session = slowdowns.planted.__wrapped__(pytestconfig)
    next(session)
    returned = CellBench.timer(bench)
    assert (returned is made, len(slow)) == ((False, 1) if here else (True, 0))
    next(session, None)


def test_a_copy_leaves_out_the_folder_that_it_goes_to(tmp_path, monkeypatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.py").write_text("pass")
    (tmp_path / "live" / "01-equal").mkdir(parents=True)
    monkeypatch.setattr(live, "ROOT", tmp_path)
    for _ in range(2):
        copy = live.copied(tmp_path / "live", "head")
    assert [path.name for path in copy.iterdir()] == ["model"]
    assert (copy / "model" / "a.py").read_text() == "pass"
