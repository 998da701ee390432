"""A baseline is kept as it was measured, and one that was lost or edited is an error: never a silent pass."""

import json

import pytest

from gate.baseline.store import INDEX, KIND, find, load, newest_for, write
from tests.meta.gate_cells import MACHINE, content_of, key, record, timed

pytestmark = pytest.mark.meta

SLUG = MACHINE["device_slug"]
ARTICLE = ("article", "uniform")
INDEXED = f"{SLUG}/article.json"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "baselines"


@pytest.fixture
def written(root):
    """The path of a baseline of two processes."""
    path = root / SLUG / "article.json"
    processes = [record(timed(100.00004 + n), timed(cell=key(mode="eval")), hours=n) for n in range(2)]
    write(path, root, processes, ARTICLE)
    return path


def test_a_baseline_holds_a_line_a_cell_and_process_as_they_were(written, root):
    (found,) = find([root / SLUG], root)
    assert found.committed
    assert [len(process.cells) for process in found.processes] == [2, 2]
    assert found.records(timed().id)[1] == timed(101.0), "times are rounded"
    assert (found.newest.machine, found.newest.commit) == (MACHINE, {"id": "c0ffee", "dirty": False})
    assert str(found) == "baseline article.json of 2026-03-01 01:00 UTC (2 processes)"
    lines = written.read_text().splitlines()
    assert len(lines) == 1 + 2 + 4
    assert json.loads(lines[0]) == {
        "kind": "varlen-gate baseline",
        "schema": 2,
        "workload": "article",
        "lengths": "uniform",
        "device": MACHINE["device"],
        "device_slug": SLUG,
    }


def test_the_committed_baseline_of_the_h100_is_whole(pytestconfig):
    root = pytestconfig.rootpath / "baselines"
    (found,) = find([root / SLUG / "article.json"], root)
    assert len(found.processes) == 5
    assert [len(process.cells) for process in found.processes] == [39] * 5
    assert not any(one.no_time for cell in found.cell_ids for one in found.records(cell))


def line_edited(path, number, change):
    lines = path.read_text().splitlines()
    content = json.loads(lines[number])
    change(content)
    lines[number] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")


def faster(content):
    content["device_ms"] = [ms / 2 for ms in content["device_ms"]]


def index_edited(path, **changes):
    index = path.parents[1] / INDEX
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))


HARMS = {
    "deleted": (lambda path: path.unlink(), "does not exist, but"),
    "edited": (lambda path: line_edited(path, 3, faster), "has changed since it was promoted"),
    "a line lost": (
        lambda path: path.write_text("".join(path.open().readlines()[:-1])),
        "has changed since it was promoted",
    ),
    "truncated": (lambda path: path.write_text(path.read_text()[:-9]), "a line was edited, or cut short"),
    "truncated in its first line": (
        lambda path: path.write_text(path.read_text()[:20]),
        "has changed since it was promoted",
    ),
    "emptied": (lambda path: path.write_text(""), "has changed since it was promoted"),
    "older schema": (lambda path: line_edited(path, 0, lambda line: line.update(schema=1)), "has schema 1"),
    "no index": (lambda path: (path.parents[1] / INDEX).unlink(), "is not in"),
    "index torn": (lambda path: (path.parents[1] / INDEX).write_text("{"), "is not a readable index"),
    "index of another kind": (lambda path: (path.parents[1] / INDEX).write_text("[]"), "is not a readable index"),
    "index of another schema": (lambda path: index_edited(path, schema=9), "is not a readable index"),
    "no path in the index": (lambda path: index_edited(path, baselines=[{"sha256": "x"}]), "KeyError: 'path'"),
    "no digest in the index": (lambda path: index_edited(path, baselines=[{"path": INDEXED}]), "KeyError: 'sha256'"),
    "an empty digest": (lambda path: index_edited(path, baselines=[{"path": "x", "sha256": ""}]), "sha256 ''"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_baseline_is_an_error_that_says_what_to_do(written, root, harm):
    harmed, why = HARMS[harm]
    harmed(written)
    for path in (root / SLUG, written):
        with pytest.raises(ValueError, match=why) as error:
            find([path], root)
        assert "\n" not in str(error.value)
        assert any(advice in str(error.value) for advice in ("git checkout", "gate promote"))


def test_spaces_and_line_ends_are_no_edits(written, root):
    lines = [json.dumps(json.loads(line), separators=(" , ", " : ")) for line in written.read_text().splitlines()]
    written.write_text("\r\n".join(lines) + "\r\n")
    assert len(find([root / SLUG], root)) == 1


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda path: path.write_text(path.open().readline()), "holds no process"),
        # Until schema 1 a baseline was one value over many lines.
        (
            lambda path: path.write_text(json.dumps({"kind": KIND, "schema": 1}, indent=1)),
            "has schema 1, but this .* reads 2",
        ),
        (lambda path: line_edited(path, 1, lambda line: line.pop("at")), "KeyError: 'at'"),
        (lambda path: line_edited(path, 1, lambda line: line.update(process=7)), "KeyError: 0"),
        (lambda path: line_edited(path, 3, lambda line: line.update(tokens=5)), "tokens of .* is 5, not a list"),
        (lambda path: line_edited(path, 4, lambda line: line.update(cell=key())), "2 lines of 1 cells"),
    ],
)
def test_a_baseline_without_its_parts_is_unreadable(written, edit, why):
    edit(written)
    with pytest.raises(ValueError, match=why):
        load(written)


def test_the_newest_is_taken_but_for_one_in_doubt_or_a_part_that_lacks_cells(tmp_path, root):
    def saved(name, one):
        (tmp_path / name).write_text(json.dumps(content_of(one)))
        return tmp_path / name

    whole = saved("0001_whole.json", record(timed(), timed(cell=key(mode="eval"))))
    saved("0002_slow.json", record(timed(), hours=2, regressed=("x",)))
    saved("0003_unjudged.json", record(timed(), hours=3, unjudged=("x",)))
    part = saved("0004_part.json", record(timed(), hours=4, partial=True))
    found = find([tmp_path], root)
    assert [one.path.name[:4] for one in found] == ["0004", "0003", "0002", "0001"]
    assert newest_for(found, lambda *_: True).path == whole
    assert newest_for(found, lambda cell, _record: cell == timed().id).path == part
    assert newest_for(found[1:3], lambda *_: True) is None
