"""The tables of a record say what it holds, beside the article's figures where they compare."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gate.record.cell import CellRecord
from gate.record.files import Record
from gate.report.article import ARTICLE_MS, article_ms
from gate.report.tables import tables, typical

pytestmark = pytest.mark.meta

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MACHINE = {
    "device": "NVIDIA H100 80GB HBM3",
    "power_limit_w": 700.0,
    "driver": "580.1",
    "versions": {"torch": "2.13.0", "xformers": None},
}


def one(ms=31.0, verdict="timed", **changes) -> CellRecord:
    cell = {
        "backend": "fa2_varlen",
        "collator": "packed",
        "mode": "eval",
        "causal": changes.get("mode") == "train",
        "dtype": "bfloat16",
        "execution": "eager",
        "workload": "article",
        "lengths": "uniform",
    } | changes
    if verdict != "timed":
        return CellRecord(cell, verdict)
    return CellRecord(
        cell,
        verdict,
        device_ms=[ms - 1, ms, ms + 2],
        wall_ms=[ms + 1] * 3,
        peak_bytes=41_200_000_000,
        compile_s=7.25,
        compilations=2,
        graph_breaks=1,
        tokens=[16_000, 17_000, 16_500],
        batches=[0, 1, 0],
        tokens_per_s=526_100.4,
        mfu=0.452,
        padded_token_share=0.491,
    )


def record(*cells, at=NOW) -> Record:
    return Record(at, MACHINE, {}, {each.id: each for each in cells})


def rows(text, start=""):
    """Cells of the table rows whose first cell starts with `start`."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in split if row[0].startswith(start)]


def test_article_figures_stand_beside_ours_and_the_best_is_marked():
    padded = one(ms=64.0, backend="sdpa_padded", collator="pad_fixed")
    trained = one(ms=186.0, backend="sdpa_padded", collator="pad_fixed", mode="train")
    compiled = one(ms=107.0, backend="sdpa_nested", collator="nested", mode="train", execution="compiled")
    text = tables(record(one(ms=31.0), padded, trained, compiled))
    assert rows(text, "fa2_varlen")[0][2:4] == ["31.0* (51, 0.61x)", "- (article: not supported then)"]
    assert rows(text, "sdpa_padded")[0][2:] == ["64.0 (132, 0.48x)", "- (130)", "186.0* (342, 0.54x)", "- (299)"]
    assert rows(text, "sdpa_nested")[0][5] == "107.0* (article: not run)"
    assert [row[0] for row in rows(text)[2:5]] == ["fa2_varlen", "sdpa_padded", "sdpa_nested"]


def test_cells_with_the_other_mask_get_a_table_without_the_article():
    text = tables(record(one(), one(ms=20.0, causal=True), one(ms=90.0, mode="train", causal=False)))
    first, second = [row for row in rows(text, "fa2_varlen") if row[1] == "packed"]
    assert first[2] == "31.0* (51, 0.61x)"
    assert second[2:] == ["20.0*", "-", "90.0*", "-"]
    assert "eval with, train without a causal mask" in text


@pytest.mark.parametrize(
    "changes", [{"workload": "smoke"}, {"lengths": "recorded"}, {"dtype": "float32"}, {"causal": True}]
)
def test_other_work_is_not_compared_with_the_article_and_has_a_table_of_its_own(changes):
    other = one(**changes)
    assert (article_ms(one().cell), article_ms(other.cell)) == (51, None)
    assert "0.61x" not in tables(record(other))
    assert tables(record(one(), other), heading="### ").count("### ") == 2


def test_article_has_its_five_rows_in_all_columns_and_four_times_of_gpt2():
    assert len(ARTICLE_MS) == 5 * 4 + 4
    assert ARTICLE_MS["xformers_auto", "packed", "train", "compiled"] == "failed then"
    assert sum(value for value in ARTICLE_MS.values() if not isinstance(value, str)) == 2414 + 2198


def test_words_stand_where_there_is_no_time():
    bad = replace(one(backend="flex"), device_ms=[31.0, float("nan")], batches=None)
    lost = one(verdict="out of memory", backend="xformers_auto")
    text = tables(record(one(), lost, bad, one(verdict="wrong", backend="sdpa_loop")))
    assert rows(text, "xformers_auto")[0][2] == "OOM (50)"
    assert rows(text, "flex")[0][2] == "no time"
    assert rows(text, "sdpa_loop")[0][2] == "wrong"
    assert rows(text, "fa2_varlen")[0][2] == "31.0* (51, 0.61x)"


def test_cost_table_gives_every_cost_of_a_cell_and_a_dash_for_what_was_not_measured():
    text = tables(record(one()))
    row = [one().id, "31.0", "41.20", "526,100", "45.2%", "49.1%", "7.2", "2", "1"]
    assert rows(text, row[0]) == [row]
    assert "NVIDIA H100 80GB HBM3, 700 W, driver 580.1, torch 2.13.0\n" in text
    assert "2 batches of 16,500 tokens on average" in text
    sparse = replace(one(), mfu=None, peak_bytes=None, device_ms=None)
    assert rows(tables(record(sparse)), "fa2_varlen-")[0][1:5] == ["32.0", "-", "526,100", "-"]


def test_ids_and_words_are_whole_on_a_narrow_terminal():
    name = "a_backend_with_a_very_long_name_indeed"
    text = tables(record(one(backend=name)), width=40)
    assert f"| {name} |" in text
    assert "compilations" in text
    assert len({len(line) for line in text.splitlines() if line.startswith(("| a_", "|--"))}) == 2
    assert "…" not in text
    assert f"| {one(backend=name).id} |" in text


def test_of_a_baseline_each_cell_shows_the_process_in_the_middle():
    lost = one(verdict="out of memory", mode="train")
    # Of the second cell two processes have a time: the faster one is shown.
    found = typical(
        [
            record(one(ms=31.0), one(ms=52.0, mode="train")),
            record(one(ms=33.0), lost, at=NOW + timedelta(hours=1)),
            record(one(ms=32.0), one(ms=51.0, mode="train")),
        ]
    )
    assert [each.step_ms for each in found.cells.values()] == [32.0, 51.0]
    assert found.at == NOW + timedelta(hours=1)
    assert typical([record(lost)]).cells[lost.id] == lost
