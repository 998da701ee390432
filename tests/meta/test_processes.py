"""Fresh processes: what they timed is kept, and one that crashes, hangs or breaks costs the cell that did it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gate import recording
from gate.__main__ import main
from gate.processes import PYTEST, Side, cell_of, lost_entry, run_cells
from gate.records import cell_id, cells, load_record
from model.cells import all_cells
from tests.meta.fake_sides import CELLS, side

pytestmark = pytest.mark.meta


def verdicts(found: Side, folder: Path, **options: object) -> dict[str, str]:
    record = run_cells(found, ["--order-seed=1"], folder / "logs", "one", **options)
    return {cell: info["verdict"] for cell, info in cells(record).items()}


def calls(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_cell_id_tells_its_cell():
    for lengths in ("uniform", "recorded"):
        for cell in all_cells("article", lengths):
            assert cell_of(cell.id) == cell.key
            assert cell_id(cell.key) == cell.id


def test_a_process_is_a_record(tmp_path: Path):
    record = run_cells(side(tmp_path), [], tmp_path / "logs", "one")
    assert list(cells(record)) == CELLS
    assert record["machine_info"]["device"] == "Fake"
    assert not list((tmp_path / "logs").glob("*/")), "only logs are left"


def test_exact_cells_are_timed(tmp_path: Path):
    assert list(verdicts(side(tmp_path), tmp_path, ids=CELLS[1:3])) == CELLS[1:3]


@pytest.mark.parametrize(("asserted", "status", "last"), [(True, 0, "1 passed"), (False, 1, "1 failed")])
def test_pytest_ends_with_its_status_and_all_that_it_said(tmp_path: Path, asserted: bool, status: int, last: str):
    test = f"import atexit\n\ndef test_it():\n    atexit.register(print, 'torn down')\n    assert {asserted}\n"
    (tmp_path / "test_it.py").write_text(test)
    command = [sys.executable, "-c", PYTEST, "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert ended.stdout.splitlines()[-1].startswith(last)


def test_a_crash_costs_one_cell(tmp_path: Path):
    log = tmp_path / "calls"
    found = verdicts(side(tmp_path, does={CELLS[1]: "crash"}, calls=str(log)), tmp_path, ids=CELLS)
    assert found == {cell: "crashed" if cell == CELLS[1] else "timed" for cell in CELLS}
    assert len(calls(log)) == 2
    assert f"--cells={','.join(CELLS[2:])}" in calls(log)[1]


def test_a_crash_names_the_signal(tmp_path: Path):
    record = run_cells(side(tmp_path, does={CELLS[0]: "crash"}), [], tmp_path / "logs", "one", ids=CELLS[:1])
    assert cells(record)[CELLS[0]]["reason"] == "killed by SIGSEGV"


def test_cells_after_a_crash_are_found_where_none_were_named(tmp_path: Path):
    found = verdicts(side(tmp_path, does={CELLS[0]: "crash", CELLS[2]: "crash"}), tmp_path)
    assert found == {cell: "crashed" if cell in (CELLS[0], CELLS[2]) else "timed" for cell in CELLS}


def test_a_silent_process_is_killed_with_its_children(tmp_path: Path):
    hanging = side(tmp_path, does={CELLS[0]: "hang"})
    record = run_cells(hanging, [], tmp_path / "logs", "one", ids=CELLS[:2], stall_s=1.0)
    assert cells(record)[CELLS[0]] == {
        "cell": cell_of(CELLS[0]),
        "verdict": "crashed",
        "reason": "killed after 1 s without a sign of life",
    }
    assert cells(record)[CELLS[1]]["verdict"] == "timed"
    assert gone(int((hanging.checkout / "child.pid").read_text()))


def gone(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_cells_behind_a_failed_one_are_tried_in_another_process(tmp_path: Path):
    log = tmp_path / "calls"
    found = verdicts(side(tmp_path, does={CELLS[1]: "break"}, calls=str(log)), tmp_path, ids=CELLS)
    assert found == {cell: "failed" if cell == CELLS[1] else "timed" for cell in CELLS}
    assert len(calls(log)) == 2


def test_cells_that_are_never_set_up_have_failed(tmp_path: Path):
    found = verdicts(side(tmp_path, does=dict.fromkeys(CELLS[1:3], "no setup")), tmp_path, ids=CELLS)
    assert found == {cell: "failed" if cell in CELLS[1:3] else "timed" for cell in CELLS}


def test_what_an_interrupted_run_left_is_in_no_record_of_another(tmp_path: Path):
    stale = tmp_path / "logs" / "one-1" / "fake-device" / "journal-0.jsonl"
    stale.parent.mkdir(parents=True)
    entry = lost_entry(CELLS[3], "failed", "long ago")
    stale.write_text('{"datetime": "2020-01-01T00:00:00+00:00"}\n' + json.dumps(entry) + "\n")
    crashing = side(tmp_path, does={CELLS[0]: "crash"})
    assert verdicts(crashing, tmp_path, ids=CELLS[:2]) == {CELLS[0]: "crashed", CELLS[1]: "timed"}


def test_out_of_memory_is_a_verdict_and_no_reason_to_start_again(tmp_path: Path):
    log = tmp_path / "calls"
    broke = dict.fromkeys(CELLS[:2], "out of memory")
    found = verdicts(side(tmp_path, does=broke, calls=str(log)), tmp_path, ids=CELLS)
    assert [found[cell] for cell in CELLS] == ["out of memory", "out of memory", "timed", "timed"]
    assert len(calls(log)) == 1


def test_a_record_that_was_cut_short_comes_from_the_journal(tmp_path: Path):
    assert set(verdicts(side(tmp_path, cut=True), tmp_path, ids=CELLS).values()) == {"timed"}


@pytest.mark.parametrize("status", [1, 4])
def test_pytests_own_words_come_through(tmp_path: Path, status: int):
    wrong = rf"head: pytest ended before a cell did \(exit status {status}\): ERROR: no such option"
    with pytest.raises(ValueError, match=wrong):
        run_cells(side(tmp_path, usage="no such option", status=status), [], tmp_path / "logs", "one")


def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str, **fake: object) -> int:
    found = side(tmp_path, **fake)
    monkeypatch.setattr(recording, "ROOT", found.checkout)
    monkeypatch.setattr(recording.sys, "executable", str(found.python))
    return main(["record", "--processes=3", f"--storage={tmp_path / 'st'}", "--name=h100", *options])


def test_a_storage_may_be_written_as_pytest_benchmark_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert recorded(tmp_path, monkeypatch, f"--storage=file://{tmp_path / 'other'}") == 0
    assert len(list((tmp_path / "other" / "fake-device").glob("*.json"))) == 3


def test_a_workload_is_recorded_in_fresh_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = tmp_path / "calls"
    assert recorded(tmp_path, monkeypatch, "--workload=article", "--", "--lf", calls=str(log)) == 0
    paths = sorted((tmp_path / "st" / "fake-device").iterdir())
    assert [path.name for path in paths] == ["0001_h100.json", "0002_h100.json", "0003_h100.json"]
    assert [len(load_record(path)["benchmarks"]) for path in paths] == [4, 4, 4]
    seeds = [argument for call in calls(log) for argument in call if argument.startswith("--order-seed")]
    assert seeds == ["--order-seed=0", "--order-seed=1", "--order-seed=2"]
    assert all("--workload=article" in call and "--lf" in call for call in calls(log))


def test_a_cell_without_a_time_is_told_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert recorded(tmp_path, monkeypatch, does={CELLS[2]: "crash"}) == 1
    assert f"no time: {CELLS[2]} (crashed: killed by SIGSEGV)" in capsys.readouterr().out


def test_a_record_of_no_cell_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        recorded(tmp_path, monkeypatch, cells={})
    assert stopped.value.code == 2
    assert "no cell was timed" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("st/*/*.json"))


def test_ctrl_c_ends_a_recording_in_one_line_and_keeps_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*args, **options):
        if list(tmp_path.glob("st/*/*.json")):
            os.kill(os.getpid(), signal.SIGTERM)
        return run_cells(*args, **options)

    monkeypatch.setattr(recording, "run_cells", interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    assert recorded(tmp_path, monkeypatch) == 130
    assert capsys.readouterr().err.splitlines() == ["interrupted"]
    assert len(list(tmp_path.glob("st/*/*.json"))) == 1
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_place_that_is_no_folder_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        recorded(tmp_path, monkeypatch, f"--storage={tmp_path / 'file'}")
    assert stopped.value.code == 2
    assert "Not a directory" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("option", ["--processes=0", "--name=../x", "--name=", "--stall-seconds=0"])
def test_a_bad_option_of_record_is_one_line(option: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["record", option])
    assert stopped.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]
