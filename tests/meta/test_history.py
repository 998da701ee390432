"""A history shows every cell's median in each record, the oldest first."""

import json

import pytest

from gate.__main__ import main
from tests.meta.gate_cells import MACHINE, content_of, key, record, timed

pytestmark = pytest.mark.meta


def saved(folder, name, one):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content_of(one)))


def test_a_table_holds_a_column_a_record_by_device(tmp_path, capsys):
    saved(tmp_path / "h100", "0002_b.json", record(timed(110.0), timed(5.0, cell=key(mode="eval")), hours=30))
    saved(tmp_path / "h100", "0009_a.json", record(timed(100.0)))
    saved(tmp_path / "h200", "0001_c.json", record(timed(80.0), machine=MACHINE | {"device": "NVIDIA H200"}))
    assert main(["history", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line and "---" not in line] == [
        "NVIDIA H100 80GB HBM3, article workload, uniform lengths, ms a step",
        "| cell | 0009_a 2026-03-01 | 0002_b 2026-03-02 | last / first |",
        f"| {timed(cell=key(mode='eval')).id} | - | 5.00 | - |",
        f"| {timed().id} | 100.0 | 110.0 | +10.0% |",
        "NVIDIA H200, article workload, uniform lengths, ms a step",
        "| cell | 0001_c 2026-03-01 | last / first |",
        f"| {timed().id} | 80.0 | - |",
    ]
    assert main(["history", str(tmp_path / "h200"), "--cells=fa2*"]) == 0


def test_what_cannot_be_read_is_named_and_an_empty_history_is_an_error(tmp_path, capsys):
    saved(tmp_path / "h100", "0001_a.json", record(timed()))
    (tmp_path / "h100" / "0002_torn.json").write_text("{")
    assert main(["history", str(tmp_path)]) == 1
    assert "0002_torn.json is not a readable benchmark record" in capsys.readouterr().out
    for arguments, why in (([str(tmp_path / "x")], "does not exist"), ([str(tmp_path), "--cells=no"], "like 'no'")):
        with pytest.raises(SystemExit, match="2"):
            main(["history", *arguments])
        assert why in capsys.readouterr().err
