"""Fresh processes are recorded: what they timed is kept, and one that crashes or hangs costs the cell that did it."""

import json
import signal
import time
from pathlib import Path

import pytest

from gate.__main__ import main
from gate.baseline import recording
from gate.baseline.recording import Ended, run_pytest
from gate.record.files import load_record
from tests.meta.gate_cells import content_of, key, record, timed

pytestmark = pytest.mark.meta

CELLS = {one.id: one for one in (timed(cell=key(f"backend{number}")) for number in range(4))}
TESTS = {cell: f"tests/test_x.py::test_a_batch[{cell}]" for cell in CELLS}


@pytest.fixture
def gate_record(tmp_path, monkeypatch):
    """Runs `gate record`; its pytest is made up: `does` says what happens to a cell, the first time that it is run."""
    calls = []

    def run(*options, does=None):
        does = dict(does or {})

        def made_up(arguments, log, stall_s):
            if "--collect-only" in arguments:
                return Ended(0, "\n".join(TESTS.values()))
            ids = [cell for argument in arguments for cell, test in TESTS.items() if argument == test]
            calls.append((ids, arguments))
            storage = next(a.partition("file://")[2] for a in arguments if a.startswith("--benchmark-storage"))
            done, status, printed = [], 0, ""
            for number, cell in enumerate(ids, start=1):
                what = does.pop(cell, "timed")
                printed += f"[{number}/{len(ids)}] {cell}: "
                if what == "crash":
                    printed, status = printed + "Fatal Python error: Segmentation fault\n", -signal.SIGSEGV
                    break
                if what == "no setup":
                    printed, status = printed + "ERROR in setup\n", 1
                    continue
                printed += "skipped\n" if what == "skipped" else "31.0 ms\n"
                done += [] if what == "skipped" else [CELLS[cell]]
            content = content_of(record(*done))
            for entry, cell in zip(content["cells_without_time"], done, strict=True):
                entry["fullname"] = TESTS[cell.id]
            folder = tmp_path / storage / "device"
            folder.mkdir(parents=True)
            if status < 0 and done:
                # As a killed process leaves it.
                lines = [{key: content[key] for key in ("datetime", "machine_info", "commit_info")}]
                lines += content["cells_without_time"]
                (folder / "journal-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            elif status >= 0:
                (folder / "0001_process.json").write_text(json.dumps(content | {"gate": {"partial": True}}))
            return Ended(status, printed)

        monkeypatch.setattr(recording, "run_pytest", made_up)
        return main(["record", f"--storage=file://{tmp_path}", "--name=h100", *options])

    run.calls = calls
    run.saved = lambda: [load_record(path) for path in sorted(tmp_path.glob("NVIDIA*/*_h100.json"))]
    return run


def test_each_process_runs_all_cells_in_an_order_of_its_own_and_is_a_whole_record(gate_record):
    assert gate_record("--processes=3", "--", "--workload=article") == 0
    assert [set(one.cells) for one in gate_record.saved()] == [set(CELLS)] * 3
    assert not any(one.partial for one in gate_record.saved())
    orders = [tuple(ids) for ids, _ in gate_record.calls]
    assert len(set(orders)) == 3
    assert all("--workload=article" in arguments for _, arguments in gate_record.calls)


def test_a_crash_costs_one_cell_and_the_others_run_in_another_process(gate_record, capsys):
    crashes = list(CELLS)[1:3]
    assert gate_record("--processes=1", does=dict.fromkeys(crashes, "crash")) == 1
    (one,) = gate_record.saved()
    assert {cell: each.verdict for cell, each in one.cells.items()} == {
        cell: "crashed" if cell in crashes else "timed" for cell in CELLS
    }
    assert len(gate_record.calls) <= 3
    assert sum(len(ids) for ids, _ in gate_record.calls[1:]) < 2 * len(CELLS)
    assert f"no time: {crashes[0]} (crashed: killed by SIGSEGV)" in capsys.readouterr().out


def test_a_cell_that_is_never_set_up_has_failed_and_a_skipped_one_is_not_there(gate_record):
    first, second, *_ = CELLS
    assert gate_record("--processes=1", does={first: "no setup", second: "skipped"}) == 1
    (one,) = gate_record.saved()
    assert one.cells[first].no_time == "failed: its test could not be set up"
    assert second not in one.cells


@pytest.mark.parametrize(
    ("options", "printed", "why"),
    [
        (["--processes=0"], "", "--processes 0"),
        (["--name=../x"], "", "--name '../x' is not a file name"),
        (["--name="], "", "--name ''"),
        (["--stall-seconds=0"], "", "--stall-seconds 0"),
        ([], "usage\nERROR: no such option: --x\n", "(exit status 4): ERROR: no such option: --x"),
    ],
)
def test_a_bad_option_and_pytests_own_words_are_one_line(monkeypatch, tmp_path, capsys, options, printed, why):
    monkeypatch.setattr(recording, "run_pytest", lambda *_: Ended(4, printed))
    with pytest.raises(SystemExit, match="2"):
        main(["record", f"--storage={tmp_path}", *options])
    assert why in capsys.readouterr().err.splitlines()[-1]


def test_a_record_of_no_cell_is_none(gate_record, capsys):
    with pytest.raises(SystemExit, match="2"):
        gate_record(does=dict.fromkeys(CELLS, "skipped"))
    assert "no cell was timed" in capsys.readouterr().err.splitlines()[-1]
    assert not gate_record.saved()


def test_a_silent_process_is_killed_with_its_children(tmp_path, monkeypatch):
    test = tmp_path / "test_it.py"
    test.write_text(
        "import pytest, subprocess, time\n\n@pytest.mark.performance\ndef test_it():\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n    time.sleep(60)\n"
    )
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    begin = time.monotonic()
    ended = run_pytest(["-W", "ignore", str(test)], tmp_path / "logs" / "one.log", 5.0)
    assert str(ended) == "killed, because it printed nothing for --stall-seconds", ended.log
    assert time.monotonic() - begin < 40
    assert gone(int((tmp_path / "pid").read_text()))


def gone(pid):
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        # A container may have nobody who buries it.
        if state == "Z":
            return True
        time.sleep(0.1)
    return False
