"""The tables of a record say what it holds, beside the article's figures where they compare."""

import json
import os
import signal
import sys
from dataclasses import replace

import pytest

from gate.__main__ import main
from gate.report.tables import ARTICLE_MS, tables, typical
from tests.meta.gate_cells import MACHINE, content_of, key, record, timed

pytestmark = pytest.mark.meta


def one(ms=31.0, mode="eval", verdict="timed", **changes):
    return timed(ms, cell=key(mode=mode, **changes), verdict=verdict)


def rows(text, start=""):
    """Cells of the table rows whose first cell starts with `start`."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in split if row[0].startswith(start)]


def test_article_figures_stand_beside_ours_and_the_best_is_marked():
    padded = one(64.0, backend="sdpa_padded", collator="pad_fixed")
    trained = one(186.0, "train", backend="sdpa_padded", collator="pad_fixed")
    compiled = one(107.0, "train", backend="sdpa_nested", collator="nested", execution="compiled")
    text = tables(record(one(), padded, trained, compiled))
    assert rows(text, "fa2_varlen")[0][2:4] == ["31.0* (51, 0.61x)", "- (article: not supported then)"]
    assert rows(text, "sdpa_padded")[0][2:] == ["64.0 (132, 0.48x)", "- (130)", "186.0* (342, 0.54x)", "- (299)"]
    assert rows(text, "sdpa_nested")[0][5] == "107.0* (article: not run)"
    assert [row[0] for row in rows(text)[2:5]] == ["fa2_varlen", "sdpa_padded", "sdpa_nested"]
    figures = [ms for row in ARTICLE_MS.values() for ms in row if isinstance(ms, int)]
    assert (len(figures), sum(figures)) == (19, 2414 + 2198), "five rows of the article's decoder, three of GPT-2"


@pytest.mark.parametrize(
    "changes", [{"workload": "smoke"}, {"lengths": "recorded"}, {"dtype": "float32"}, {"causal": True}]
)
def test_other_work_is_not_compared_with_the_article_and_has_a_table_of_its_own(changes):
    text = tables(record(one(), one(20.0, **changes), one(90.0, **changes | {"mode": "train", "causal": False})))
    first, second, *_ = [row for row in rows(text, "fa2_varlen") if row[1] == "packed"]
    assert (first[2], second[2]) == ("31.0* (51, 0.61x)", "20.0*")
    assert "mask: eval causal, train full" in text


def test_words_stand_where_there_is_no_time():
    bad = replace(one(backend="flex"), device_ms=[31.0, float("nan")], batches=None)
    lost = one(verdict="out of memory", backend="xformers_auto")
    text = tables(record(one(), lost, bad, one(verdict="wrong", backend="sdpa_loop")))
    assert [row[2] for row in rows(text)[2:6]] == ["31.0* (51, 0.61x)", "OOM (50)", "no time", "wrong"]


def test_cost_table_gives_every_cost_of_a_cell_and_a_dash_for_what_was_not_measured():
    costs = {"peak_bytes": 41_200_000_000, "tokens_per_s": 526_100.4, "mfu": 0.452, "padded_token_share": 0.491}
    cell = replace(one(), **costs, compile_s=7.25, compilations=2, graph_breaks=1)
    text = tables(record(cell, machine=MACHINE | {"driver": "580.1"}))
    row = [cell.id, "31.0", "41.20", "526,100", "45.2%", "49.1%", "7.2", "2", "1"]
    assert rows(text, cell.id) == [row]
    assert "NVIDIA H100 80GB HBM3, 700 W, driver 580.1, torch 2.13.0\n" in text
    assert "24 batches of 1,012 tokens on average" in text
    assert rows(tables(record(one())), cell.id)[0][1:] == ["31.0", *"-" * 7]


def test_ids_and_words_are_whole_on_a_narrow_terminal():
    long = one(backend="a_backend_with_a_very_long_name_indeed")
    text = tables(record(long), width=40)
    assert all(f"| {whole} |" in text for whole in (long.cell["backend"], long.id))
    assert "compilations" in text
    assert "…" not in text
    assert len({len(line) for line in text.splitlines() if line.startswith(("| a_", "|--"))}) == 2


def test_of_a_baseline_each_cell_shows_the_process_in_the_middle():
    lost = one(mode="train", verdict="out of memory")
    # Of the second cell two processes have a time: the faster one is shown.
    second = record(one(33.0), lost, hours=1)
    found = typical([record(one(31.0), one(52.0, "train")), second, record(one(32.0), one(51.0, "train"))])
    assert [each.step_ms for each in found.cells.values()] == [32.0, 51.0]
    assert found.at == second.at
    assert typical([record(lost)]).cells[lost.id] == lost


def test_the_command_prints_them_and_ends_quietly_when_its_reader_does(tmp_path, capsys, monkeypatch):
    path = tmp_path / "0001_x.json"
    path.write_text(json.dumps(content_of(record(one()))))
    assert main(["table", str(path)]) == 0
    assert rows(capsys.readouterr().out, "fa2_varlen")[0][2] == "31.0* (51, 0.61x)"
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["table", str(path)]) == 128 + signal.SIGPIPE
        monkeypatch.undo()
    assert capsys.readouterr().err == ""
