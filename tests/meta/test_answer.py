"""The answer of a run: the fastest right cell, beside padding, and only what is more than noise."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gate.__main__ import main
from gate.record.cell import CellRecord
from gate.record.files import Record
from gate.report.answer import against_tokens, answer, compared, histogram
from gate.report.outcomes import cell_in
from gate.report.page import Page, markdown, write_page
from gate.report.progress import Progress
from tests.meta.sessions import run

pytestmark = pytest.mark.meta

GPU = {"device": "NVIDIA H200", "device_slug": "NVIDIA-H200"}


def record(
    backend: str, collator: str, scale: float, *, mode: str = "train", jitter: float = 0.0, **other: Any
) -> CellRecord:
    """A cell whose 24 batches take 10 to 33 ms, times `scale`."""
    cell = {"backend": backend, "collator": collator, "mode": mode, "causal": True, "dtype": "bfloat16"}
    cell |= {"execution": "eager", "workload": "article", "lengths": "uniform"}
    times = [(10 + number) * scale * (1 + jitter * (-1) ** number) for number in range(24)]
    return CellRecord(cell=cell, **({"verdict": "timed", "batches": [*range(24)], "device_ms": times} | other))


def test_the_fastest_right_cell_is_the_answer():
    cells = [
        record("sdpa_padded", "pad_longest", 2.0, peak_bytes=4_000_000_000, padded_token_share=0.5),
        record("fa2_varlen", "packed", 1.0, peak_bytes=1_000_000_000, tokens_per_s=1000.0),
        record("torch_varlen", "packed", 1.1),
        record("wrong", "packed", 0.5, verdict="wrong", reason="logits"),
        record("gpt2_other", "packed", 0.1),
        record("sdpa_loop", "packed", 3.0, mode="eval"),
    ]
    training, evaluation = answer(cells, GPU, None)
    assert training == (
        "Training: `fa2_varlen` with `packed`, eager, 21.5 ms a step, 1,000 tokens/s. "
        "For all batches together 2.00 times as fast (95%: 2.00 .. 2.00) as padding "
        "(`sdpa_padded` with `pad_longest`, eager, 50% of its slots are padding), with 3.0 GB less. "
        "Next best: `torch_varlen` with `packed`, eager, 10.0% slower."
    )
    assert evaluation == "Evaluation: `sdpa_loop` with `packed`, eager, 64.5 ms a step."


def test_what_is_within_noise_is_no_difference():
    cells = [record("a", "packed", 1.0), record("b", "packed", 1.05, jitter=0.2), record("c", "pad_left", 1.005)]
    (line,) = answer(cells, GPU, None)
    assert "Padding (`c` with `pad_left`, eager) is as fast: the difference is within noise." in line
    assert "`b` with `packed`, eager, is as fast: the difference is within noise." in line


def test_where_padding_is_faster_it_is_the_answer():
    cells = [record("padded", "pad_longest", 1.0), record("packed", "packed", 2.0)]
    (line,) = answer(cells, GPU, {"in batches as they come": 0.5})[:1]
    assert line.startswith("Training: `padded` with `pad_longest`")
    assert "Next best: `packed` with `packed`, eager, 100.0% slower." in line


def test_an_answer_of_a_cpu_says_so_and_none_is_empty():
    lines = answer([record("a", "packed", 1.0)], {"device_slug": "cpu-x"}, {"as they come": 0.41, "in buckets": 0.22})
    assert lines[1:] == [
        "Share of padding, if these lengths are padded to the longest of a batch: 41% as they come, 22% in buckets.",
        "This answer is of a CPU, and of a small model. It says nothing about a GPU.",
    ]
    assert answer([], GPU, {"as they come": 0.5}) == []


def test_cells_are_compared_batch_by_batch():
    one, other = record("a", "packed", 1.0), record("b", "packed", 1.5)
    found = compared(other, one)
    assert found is not None
    assert (found.ratio, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert compared(one, record("b", "packed", 1.0, batches=[*range(100, 124)])) is None
    # What the host's launches add counts, as it does in the step time.
    host_bound = compared(record("b", "packed", 1.0, host_deficit_ms=21.5), one)
    assert host_bound is not None
    assert host_bound.ratio == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [([], []), ([5], [(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 4, 0), (5, 5, 1)]), ([1, 32, 17], [(1, 2, 1), (31, 32, 1)])],
)
def test_a_histogram_holds_every_length(lengths: list[int], bins: list[tuple[int, int, int]]):
    found = histogram(lengths)
    assert sum(count for _, _, count in found) == len(lengths)
    assert set(bins) <= set(found)


@pytest.mark.parametrize(
    ("nodeid", "cell"),
    [
        ("t.py::test_x[fa2-packed-train-causal-float32-eager-drawn]", "fa2-packed-train-causal-float32-eager-drawn"),
        ("t.py::test_x[fa2-packed-eval-full-float32-eager-drawn-grouped]", "fa2-packed-eval-full-float32-eager-drawn"),
        (
            "t.py::test_x[fa2-packed-eval-full-float32-eager-smoke-mine.txt]",
            "fa2-packed-eval-full-float32-eager-smoke-mine.txt",
        ),
        ("t.py::test_x[a-b-c-d-e-f-g-h]", ""),
        ("t.py::test_x", ""),
    ],
)
def test_a_test_is_counted_for_its_cell(nodeid: str, cell: str):
    assert cell_in(nodeid) == cell


def test_a_page_of_a_run(tmp_path: Path):
    cells = "sdpa_loop-packed-*-float32-eager-*,sdpa_padded-pad_longest-*-float32-eager-*"
    timed, proved = run(
        ("-m", "performance", f"--cells={cells}", "--steps=2", f"--report={tmp_path / 'timed'}"),
        (
            "-m",
            "correctness",
            "--cells=sdpa_loop-packed-*-float32-eager-*",
            "-k",
            "isolation",
            f"--report={tmp_path / 'proved'}",
        ),
    )
    assert timed.code == 0, timed.printed
    assert "This answer is of a CPU" in timed.printed
    found = json.loads((tmp_path / "timed" / "report.json").read_text())
    assert (found["kind"], found["schema"], found["passed"]) == ("varlen-gate report", 1, True)
    assert {one["backend"] for one in found["times"]} == {"sdpa_loop", "sdpa_padded"}
    assert {cell["state"] for cell in found["cells"]} == {"timed"}
    assert sum(each["count"] for each in found["lengths"]) == 24 * 8
    assert found["answer"][0].startswith("Training: ")
    assert proved.code == 0, proved.printed
    found = json.loads((tmp_path / "proved" / "report.json").read_text())
    right = [cell for cell in found["cells"] if cell["state"] == "right"]
    assert right
    assert all(cell["passed"] >= 1 and cell["failed"] == 0 for cell in right)
    assert "Passed" in (tmp_path / "proved" / "report.html").read_text()


def test_a_job_summary_gets_the_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    write_page(
        Page(times=[record("a|b", "packed", 1.0, verdict="wrong", reason="<b>|x")], machine=GPU, passed=False), tmp_path
    )
    text = (tmp_path / "report.md").read_text()
    assert summary.read_text() == "before\n" + text
    assert "| a\\|b-packed-train-causal-bfloat16-eager-article | wrong | wrong: &lt;b&gt;\\|x |" in text
    assert markdown(Page().content()) == "**Nothing was run, so nothing is shown.**\n\n"


def test_records_of_two_devices_make_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = Path(__file__).parents[2] / "baselines"
    files = [str(path) for path in sorted(root.glob("*/article.json"))]
    with pytest.raises(SystemExit) as ended:
        main(["report", *files, "--to", str(tmp_path)])
    assert ended.value.code == 2
    assert "a page needs records of one device" in capsys.readouterr().err


def test_a_page_of_several_records_has_the_time_series_of_each_cell():
    day = datetime(2026, 1, 1, tzinfo=UTC)
    one, other = (record("a", "packed", scale) for scale in (1.0, 2.0))
    history = [
        Record(day + timedelta(1), GPU, {"id": "b"}, {other.id: other}),
        Record(day, GPU, {"id": "a"}, {one.id: one}),
    ]
    found = Page(times=[other], machine=GPU, history=history).content()["time_series"]
    assert [each["commit"] for each in found["records"]] == ["a", "b"]
    assert found["cells"] == [{"id": one.id, "ms": [21.5, 43.0]}]
    assert Page(times=[one], history=history[:1]).content()["time_series"] == {}


def test_time_is_drawn_against_tokens_for_the_best_cell_and_the_best_padded_one():
    tokens = [100 + number for number in range(24)]
    cells = [
        record(name, collator, scale, tokens=tokens)
        for name, collator, scale in (("a", "packed", 1.0), ("b", "pad_left", 2.0))
    ]
    (chart,) = against_tokens([*cells, record("c", "packed", 3.0)], "cuda")
    assert chart["mode"] == "train"
    assert [line["id"] for line in chart["lines"]] == [cells[0].id, cells[1].id]
    assert chart["lines"][1]["points"][:2] == [[100, 20.0], [101, 22.0]]
    # Without tokens there is nothing to draw.
    assert against_tokens([record("a", "packed", 1.0)], "cuda") == []


@pytest.mark.parametrize(("done", "told"), [(1, "; 9 min left"), (8, ""), (9, "")])
def test_a_timed_run_says_how_long_the_rest_takes(done: int, told: str, monkeypatch: pytest.MonkeyPatch):
    progress = Progress(None, {})  # type: ignore[arg-type]
    progress.prefixes = {str(number): "" for number in range(10)}
    progress.began, progress.done = 0.0, done - 1
    monkeypatch.setattr(time, "monotonic", lambda: 60.0 * done if done < 8 else 20.0 * done)
    assert progress._left() == told
