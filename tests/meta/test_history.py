"""The course of a cell over records: shifts that were planted are found, noise and other machines are not."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from gate.__main__ import main
from gate.baseline.baselines import Process
from gate.history import Course, Point, changes, courses, shifts, sparkline

pytestmark = pytest.mark.meta

START = datetime(2026, 1, 1, tzinfo=UTC)
CELL = {
    "backend": "fa2_varlen",
    "collator": "packed",
    "mode": "train",
    "causal": True,
    "dtype": "bfloat16",
    "execution": "eager",
    "workload": "article",
    "lengths": "uniform",
}
ID = "fa2_varlen-packed-train-causal-bfloat16-eager-article"
H100 = "NVIDIA H100 80GB HBM3"


def info(ms: float | None, **changes: object) -> dict[str, object]:
    if ms is None:
        return {"cell": CELL | changes, "verdict": "out of memory", "reason": "tried to allocate too much"}
    times = [ms * 0.9, ms, ms * 1.1]
    return {"cell": CELL | changes, "verdict": "timed", "device_ms": times, "median_device_ms": ms}


def process(day: float, ms: float | None, *, session="one", commit="aaaaaaaaaaaa", device=H100, dirty=False) -> Process:
    at = START + timedelta(days=day)
    return Process(at, session, {"device": device}, {"id": commit, "dirty": dirty}, {ID: info(ms)})


def record(folder: Path, name: str, day: float, ms: float, **machine: str) -> Path:
    entry = {"fullname": "test_step", "name": "test_step", "stats": {"mean": ms / 1e3}, "extra_info": info(ms)}
    content = {
        "datetime": (START + timedelta(days=day)).isoformat(),
        "machine_info": {"device": H100, "session": "one"} | machine,
        "commit_info": {"id": f"{name:0<12}", "dirty": False},
        "benchmarks": [entry],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf8")
    return path


def noise(count: int, seed: int, scatter: float = 0.003) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scatter, count)


@pytest.mark.parametrize("place", [4, 10, 16])
@pytest.mark.parametrize("change", [0.02, -0.02, 0.1])
def test_a_shift_is_found_where_it_was_planted(place: int, change: float) -> None:
    pytest.importorskip("ruptures", reason="needs the extra `history`")
    for seed in range(10):
        series = noise(20, seed)
        series[place:] += math.log1p(change)
        ((found, size),) = shifts(series)
        assert abs(found - place) <= 1
        assert size == pytest.approx(change, abs=0.006)


def test_two_shifts_are_found() -> None:
    pytest.importorskip("ruptures", reason="needs the extra `history`")
    series = noise(30, 0)
    series[10:20] += 0.05
    assert [place for place, _ in shifts(series)] == [10, 20]


@pytest.mark.parametrize("count", [4, 8, 12, 30])
def test_noise_has_no_shifts(count: int) -> None:
    pytest.importorskip("ruptures", reason="needs the extra `history`")
    assert [seed for seed in range(60) if shifts(noise(count, seed, 0.015))] == []


def test_what_is_too_small_to_matter_is_no_shift() -> None:
    pytest.importorskip("ruptures", reason="needs the extra `history`")
    assert shifts([*[0.0] * 20, *[0.008] * 20]) == []
    assert len(shifts([*[0.0] * 20, *[0.012] * 20])) == 1


@pytest.mark.parametrize("count", range(4))
def test_short_histories_have_none(count: int) -> None:
    pytest.importorskip("ruptures", reason="needs the extra `history`")
    assert shifts([0.0, 0.0, 0.5, 0.5][:count]) == []


def versions(levels: list[float], session: str, first_day: int) -> list[Process]:
    """One process of each version, a day apart."""
    return [
        process(first_day + number, level, session=session, commit=f"{number}-{session}")
        for number, level in enumerate(levels)
    ]


def only(processes: list[Process]) -> Course:
    (course,) = courses(processes)
    return course


def test_a_change_within_a_session_names_the_versions_beside_it() -> None:
    pytest.importorskip("ruptures", reason="needs the extra `history`")
    levels = [100 * math.exp(x) for x in noise(12, 1)]
    course = only(versions([*levels[:6], *(ms * 1.05 for ms in levels[6:])], "one", 0))
    (change,) = changes(course)
    assert (change.before.commit, change.after.commit) == ("5-one", "6-one")
    assert (change.before.at.day, change.after.at.day, change.between_sessions) == (6, 7, False)
    assert change.change == pytest.approx(0.05, abs=0.005)
    assert "of 2026-01-06 00:00 to " in str(change)
    assert str(change).endswith("within a session")


def test_sessions_that_differ_are_no_change_of_the_code() -> None:
    pytest.importorskip("ruptures", reason="needs the extra `history`")
    # Six machines, 1.5% apart, with six versions each: all the versions of one stand together.
    levels = noise(6, 3, 0.015)
    course = only(
        [
            each
            for number, level in enumerate(levels)
            for each in versions([100 * math.exp(level + x) for x in noise(6, number)], f"s{number}", 10 * number)
        ]
    )
    assert len(course.points) == 36
    assert changes(course) == []


def test_a_change_over_many_sessions_is_found_among_them() -> None:
    pytest.importorskip("ruptures", reason="needs the extra `history`")
    levels = noise(12, 4, 0.01)
    levels[6:] += 0.1
    found = [process(number, 100 * math.exp(x), session=f"s{number}") for number, x in enumerate(levels)]
    (change,) = changes(only(found))
    assert (change.before.session, change.after.session, change.between_sessions) == ("s5", "s6", True)


def test_processes_of_one_version_in_one_session_are_one_point() -> None:
    course = only([process(0, 100), process(0.1, 104), process(1, 50, commit="b"), process(2, 100, session="two")])
    assert [(point.processes, point.commit) for point in course.points] == [
        (2, "aaaaaaaaa"),
        (1, "b"),
        (1, "aaaaaaaaa"),
    ]
    assert math.exp(course.points[0].log_ms) == pytest.approx(math.sqrt(100 * 104), rel=0.02)


def test_a_tree_with_changes_is_another_version() -> None:
    assert [point.commit for point in only([process(0, 9), process(1, 9, dirty=True)]).points] == [
        "aaaaaaaaa",
        "aaaaaaaaa+",
    ]


def test_records_without_a_session_are_each_of_their_own() -> None:
    assert len(only([process(0, 9, session="unknown"), process(1, 9, session="unknown")]).points) == 2


def test_other_gpus_and_workloads_are_kept_apart() -> None:
    other = process(1, 200, device="NVIDIA A100")
    recorded = Process(START, "one", {"device": H100}, {}, {f"{ID}-recorded": info(7, lengths="recorded")})
    found = courses([process(0, 100), other, recorded])
    assert [(course.device, course.workload, len(course.points)) for course in found] == [
        ("NVIDIA A100", "article workload, uniform lengths", 1),
        (H100, "article workload, recorded lengths", 1),
        (H100, "article workload, uniform lengths", 1),
    ]


def test_a_course_shows_its_height_sessions_and_gaps() -> None:
    def point(session: str, ms: float | None) -> Point:
        return Point(START, session, "", 1, None if ms is None else math.log(ms))

    points = [point("a", 100), point("a", 100.2), point("b", 200), point("b", None), point("b", 100)]
    assert sparkline(points) == "▁▁|█x▁"
    assert sparkline([point("a", 100), point("a", 101)]) == "▁▃"
    assert sparkline([point("a", None)]) == "x"


def test_a_folder_of_records_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "h100", "0001", 0, 100)
    record(tmp_path / "h100", "0002", 1, 110)
    record(tmp_path / "a100", "0003", 2, 300, device="NVIDIA A100")
    record(tmp_path / "h100" / "incomplete", "0004", 3, 900)
    assert main(["history", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"{H100}, article workload, uniform lengths: 1 session, 2026-01-01 to 2026-01-02" in lines
    assert f"{ID} 99.7 109.6 +10.0% ▁█" in lines
    assert f"{ID} 299.0 299.0 +0.0% ▁" in lines
    assert "Too short for change points: they need 4 sessions, or 4 versions in one." in lines[-1]


def test_a_record_given_twice_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(tmp_path, "0001", 0, 100)
    assert main(["history", str(path), str(tmp_path)]) == 0
    assert "▁▁" not in capsys.readouterr().out


def test_an_unreadable_record_is_named_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = record(tmp_path, "0001", 0, 100)
    cut = tmp_path / "0002.json"
    cut.write_text(whole.read_text(encoding="utf8")[:200], encoding="utf8")
    assert main(["history", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert f"unreadable: {cut} is not a readable benchmark record" in printed
    assert ID in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere does not exist: name a record, a baseline, or a folder of them."),
        ([], "no record in .benchmarks or baselines holds a cell like '*'"),
        (["--cells", "nope*", "."], "no record in . holds a cell like 'nope*'"),
    ],
)
def test_nothing_to_show_is_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "." in arguments:
        record(tmp_path, "0001", 0, 100)
    with pytest.raises(SystemExit) as ended:
        main(["history", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_without_ruptures_the_courses_are_shown_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ruptures", None)
    for number in range(6):
        record(tmp_path, f"{number:04}", number, 100)
    assert main(["history", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "▁▁▁▁▁▁" in printed
    assert "Change points need ruptures: pip install '.[history]'" in printed
