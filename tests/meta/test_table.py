"""The tables of a record say what it holds, beside the article's figures where they compare."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gate.article import ARTICLE_MS, article_ms
from gate.baseline.baselines import Baseline, process_of
from gate.records import cell_id
from gate.table import markdown_table, tables, typical

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]


def info(ms=31.0, verdict="timed", **changes):
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
    costs = {
        "median_device_ms": ms,
        "median_wall_ms": ms + 1,
        "peak_bytes": 41_200_000_000,
        "compile_s": 7.25,
        "compilations": 2,
        "graph_breaks": 1,
        "tokens": [16_000, 17_000],
        "tokens_per_s": 526_100.4,
        "mfu": 0.452,
        "padded_token_share": 0.491,
    }
    return {"cell": cell, "verdict": verdict} | (costs if verdict == "timed" else {})


def record(*infos):
    entries = [{"fullname": str(n), "name": str(n), "extra_info": each} for n, each in enumerate(infos)]
    machine = {
        "device": "NVIDIA H100 80GB HBM3",
        "power_limit_w": 700.0,
        "driver": "580.1",
        "versions": {"torch": "2.13.0", "xformers": None},
    }
    return {
        "datetime": "2026-03-01T00:00:00+00:00",
        "machine_info": machine,
        "benchmarks": [
            entry | {"stats": {"mean": 1.0, "median": 0.002}}
            for entry in entries
            if entry["extra_info"].get("verdict") in ("timed", None)
        ],
        "cells_without_time": [entry for entry in entries if entry["extra_info"].get("verdict") not in ("timed", None)],
    }


def rows(text, start=""):
    """Cells of the table rows whose first cell starts with `start`."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in split if row[0].startswith(start)]


def test_article_figures_stand_beside_ours_and_the_best_is_marked():
    packed = info(ms=31.0)
    padded = info(ms=64.0, backend="sdpa_padded", collator="pad_fixed")
    trained = info(ms=186.0, backend="sdpa_padded", collator="pad_fixed", mode="train")
    compiled = info(ms=107.0, backend="sdpa_nested", collator="nested", mode="train", execution="compiled")
    text = markdown_table(record(packed, padded, trained, compiled))
    assert rows(text, "fa2_varlen")[0][2:4] == ["31.0* (51, 0.61x)", "- (article: not supported then)"]
    assert rows(text, "sdpa_padded")[0][2:] == [
        "64.0 (132, 0.48x)",
        "- (130)",
        "186.0* (342, 0.54x)",
        "- (299)",
    ]
    assert rows(text, "sdpa_nested")[0][5] == "107.0* (article: not run)"
    assert [row[0] for row in rows(text)[2:5]] == ["fa2_varlen", "sdpa_padded", "sdpa_nested"]


def test_cells_with_the_other_mask_get_a_table_without_the_article():
    text = markdown_table(record(info(), info(ms=20.0, causal=True), info(ms=90.0, mode="train", causal=False)))
    first, second = [row for row in rows(text, "fa2_varlen") if row[1] == "packed"]
    assert first[2] == "31.0* (51, 0.61x)"
    assert second[2:] == ["20.0*", "-", "90.0*", "-"]
    assert "eval with, train without a causal mask" in text


@pytest.mark.parametrize(
    "changes", [{"workload": "smoke"}, {"lengths": "recorded"}, {"dtype": "float32"}, {"causal": True}]
)
def test_other_work_is_not_compared_with_the_article(changes):
    assert article_ms(info()["cell"]) == 51
    assert article_ms(info(**changes)["cell"]) is None
    assert "0.61x" not in markdown_table(record(info(**changes)))


def test_article_has_its_five_rows_in_all_columns_and_four_times_of_gpt2():
    assert len(ARTICLE_MS) == 5 * 4 + 4
    assert ARTICLE_MS["xformers_auto", "packed", "train", "compiled"] == "failed then"
    assert sum(value for value in ARTICLE_MS.values() if not isinstance(value, str)) == 2414 + 2198


def test_words_stand_where_there_is_no_time():
    lost = info(verdict="out of memory", backend="xformers_auto")
    wrong = info(ms=1.0, backend="flex") | {"verdict": "wrong"}
    text = markdown_table(record(info(), lost, wrong))
    assert rows(text, "xformers_auto")[0][2] == "OOM (50)"
    assert rows(text, "flex")[0][2] == "wrong"
    assert rows(text, "fa2_varlen")[0][2] == "31.0* (51, 0.61x)"


def test_one_table_for_each_workload_lengths_and_dtype():
    infos = [info(), info(workload="long"), info(lengths="recorded"), info(dtype="float32")]
    assert markdown_table(record(*infos)).count("### ") == 4


def test_cost_table_gives_every_cost_of_a_cell():
    text = markdown_table(record(info()))
    row = [cell_id(info()["cell"]), "31.0", "41.20", "526,100", "45.2%", "49.1%", "7.2", "2", "1"]
    assert rows(text, row[0]) == [row]
    assert "NVIDIA H100 80GB HBM3, 700 W, driver 580.1, torch 2.13.0\n" in text
    assert "2 batches of 16,500 tokens on average" in text


def test_missing_costs_are_dashes():
    sparse = info() | {"mfu": None, "peak_bytes": None, "median_device_ms": None}
    row = rows(markdown_table(record(sparse)), "fa2_varlen-")[0]
    assert [row[1], row[2], row[4]] == ["32.0", "-", "-"]


def test_ids_and_words_are_whole_on_a_narrow_terminal():
    name = "a_backend_with_a_very_long_name_indeed"
    text = tables(record(info(backend=name)), width=40)
    assert f"| {name} |" in text
    assert "compilations" in text
    assert len({len(line) for line in text.splitlines() if line.startswith(("| a_", "|--"))}) == 2
    assert "…" not in text
    assert f"| {cell_id(info(backend=name)['cell'])} |" in text


def test_benchmarks_that_are_no_cells_are_listed():
    text = markdown_table(record({}))
    assert "- 0: 2.00" in text
    assert "|" not in text


def test_command_prints_a_record_as_markdown(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record(info())))
    command = [sys.executable, "-m", "gate.table", str(path)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed == markdown_table(record(info()))
    path.write_text("{")
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "not a readable benchmark record" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_of_a_baseline_each_cell_shows_the_process_in_the_middle():
    lost = info(verdict="out of memory", mode="train")
    # Of the second cell two processes have a time: the faster one is shown.
    processes = [
        process_of(record(info(ms=31.0), info(ms=52.0, mode="train"))),
        process_of(record(info(ms=33.0), lost)),
        process_of(record(info(ms=32.0), info(ms=51.0, mode="train"))),
    ]
    baseline = Baseline(Path("article.json"), tuple(processes), committed=True)
    text = markdown_table(typical(baseline))
    assert [row[1] for row in rows(text, "fa2_varlen-")] == ["32.0", "51.0"]
    assert "700 W" in text
