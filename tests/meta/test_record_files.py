"""A record is read as it was written, or refused in one line that names the file and what is wrong."""

import json
import math

import pytest

from gate.record.cell import CellRecord
from gate.record.files import Journal, load_record, matches, record_from_journal, record_of
from tests.meta.gate_cells import START, content_of, key, record, timed

pytestmark = pytest.mark.meta


def test_a_record_is_read_as_it_was_saved(tmp_path):
    saved = record(timed(), timed(cell=key(mode="eval"), verdict="wrong"), partial=True, regressed=("x",))
    path = tmp_path / "0001_x.json"
    path.write_text(json.dumps(content_of(saved)))
    assert load_record(path) == saved
    assert saved.workloads == {("article", "uniform")}


def test_a_benchmark_that_is_no_cell_is_left_out_and_a_time_without_a_zone_is_utc():
    stats = {"mean": 1.0}
    content = content_of(record()) | {"benchmarks": [{"fullname": "test_quick", "stats": stats, "extra_info": {}}]}
    found = record_of(content | {"datetime": START.replace(tzinfo=None).isoformat()})
    assert not found.cells
    assert found.at == START


def odd(**changes):
    content = content_of(record(timed()))
    content["cells_without_time"][0]["extra_info"] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "JSONDecodeError"),
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "'benchmarks'"),
        ("\xff\x00", "UnicodeDecodeError"),
        (content_of(record()) | {"datetime": "x"}, "isoformat"),
        (content_of(record()) | {"datetime": None}, "datetime is None, not a time"),
        (content_of(record()) | {"machine_info": None}, "machine_info is None, not a mapping"),
        (content_of(record()) | {"machine_info": {"versions": []}}, r"versions is \[\], not a mapping"),
        (content_of(record()) | {"gate": 5}, "gate is 5, not a mapping"),
        (content_of(record()) | {"benchmarks": [{"fullname": "x", "stats": {"mean": 0}}]}, "ZeroDivisionError"),
        (odd(tokens=["x"]), "tokens of fa2_varlen-packed-.* not a list of numbers"),
        (odd(device_ms=5), "device_ms of .* is 5, not a list of times"),
        (odd(cell={}), "KeyError: 'causal'"),
        (odd(gpu_after={"sm_clock_mhz": 0}), "sm_clock_mhz of .* is 0, not a clock"),
    ],
)
def test_a_record_that_cannot_be_read_is_told_in_one_line_with_the_file(tmp_path, content, reason):
    path = tmp_path / "0003_x.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=rf"0003_x\.json is not a readable benchmark record .*{reason}") as error:
        load_record(path)
    assert "\n" not in str(error.value)
    assert "move it out of its folder" in str(error.value)


def test_a_bad_time_is_read_and_is_no_time():
    for bad in ([math.nan] * 5, [31.0, None, 30.0], [-1.0] * 5, []):
        (cell,) = record_of(odd(device_ms=bad, batches=list(range(len(bad))))).cells.values()
        assert cell.no_time
        assert cell.step_ms is None


def test_a_record_is_meant_by_its_number_a_prefix_or_glob_of_its_file_or_its_name(tmp_path):
    path = tmp_path / "0012_fast.json"
    assert all(matches(path, name) for name in ("12", "0012", "0012_f", "fast", "0012_fast.json", "f?st"))
    assert not any(matches(path, name) for name in ("1", "2", "012x", "ast", "slow"))


def test_a_journal_loses_only_a_line_cut_short_and_each_has_a_file_of_its_own(tmp_path):
    entry = content_of(record(timed()))["cells_without_time"][0]
    journal = Journal(tmp_path, {"machine_info": {}})
    journal.add(entry)
    journal.add(entry | {"stats": {"mean": 1.0}, "params": object()})
    whole = record_from_journal(journal.path)
    assert [len(whole[key]) for key in ("benchmarks", "cells_without_time")] == [1, 1]
    assert whole["benchmarks"][0]["params"].startswith("UNSERIALIZABLE")
    assert isinstance(record_of(whole).cells[entry["fullname"]], CellRecord)
    text = journal.path.read_text()
    journal.path.write_text(text[:-5])
    cut = record_from_journal(journal.path)
    assert [len(cut[key]) for key in ("benchmarks", "cells_without_time")] == [0, 1]
    journal.path.write_text("x" + text)
    with pytest.raises(ValueError, match="is not a readable journal"):
        record_from_journal(journal.path)
    assert Journal(tmp_path, {}).path != journal.path
