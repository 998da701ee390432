"""Bad input at the command line is refused in one line that names it and says what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.meta

#: Runs each list of options as a pytest session of one process, as importing torch takes seconds.
SESSIONS = """
import contextlib, io, json, sys
import pytest

results = []
for options in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = pytest.main(["-p", "no:cacheprovider", *options])
    results.append([int(code), out.getvalue(), err.getvalue()])
json.dump(results, sys.stdout)
"""


class Result(NamedTuple):
    """How a session ended."""

    code: int
    out: str
    err: str


class Bad(NamedTuple):
    """Options that are refused, and what the one line names and advises."""

    options: Callable[[Path], list[str]]
    names: str
    advice: str


def lengths_file(name: str, text: str) -> Callable[[Path], list[str]]:
    def options(folder: Path) -> list[str]:
        (folder / name).write_text(text, encoding="utf-8")
        return [f"--lengths={folder / name}", "--workload", "smoke"]

    return options


def given(*options: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(options)


BAD = {
    "backend": Bad(given("--backend", "fa9"), "backend 'fa9'", "choose one of: sdpa_padded, "),
    "collator": Bad(given("--collator", "packd"), "collator 'packd'", "choose one of: pad_fixed, "),
    "second_collator": Bad(given("--collator=packed", "--collator=x"), "collator 'x'", "choose one of: "),
    "workload": Bad(given("--workload", "huge"), "workload 'huge'", "choose one of: smoke, article, long"),
    "cells": Bad(given("--cells", "*no-such*"), "--cells '*no-such*'", "ids look like 'sdpa_padded-pad_fixed-"),
    "second_pattern": Bad(given("--cells", "*train*,no-such"), "--cells 'no-such'", "ids look like 'sdpa_padded-pad_f"),
    "steps": Bad(given("--steps=99", "--workload=smoke"), "--steps 99", "workload smoke has 24 batches; give 1 to 24"),
    "no_steps": Bad(given("--steps=0", "--workload=smoke"), "--steps 0", "workload smoke has 24 batches; give 1 to 24"),
    "no_cell_seconds": Bad(given("--cell-seconds=0"), "--cell-seconds 0", "give seconds, or inf for no limit"),
    "cell_seconds_nan": Bad(given("--cell-seconds=nan"), "--cell-seconds nan", "give seconds, or inf for no limit"),
    "one_rank": Bad(given("-mperformance", "--distributed=1"), "--distributed 1", "give 2 or more"),
    "ranks_of_no_times": Bad(
        given("-mcorrectness", "--distributed=2"), "needs -m performance", "pytest -m distributed"
    ),
    "lengths_name": Bad(given("--lengths", "pareto"), "--lengths 'pareto'", "distributions are: uniform, "),
    "lengths_missing": Bad(given("--lengths", "no/file.txt"), "--lengths 'no/file.txt'", "distributions are: "),
    "lengths_empty": Bad(lengths_file("empty.txt", ""), "empty.txt", "Write one integer of 1 or more"),
    "lengths_text": Bad(lengths_file("text.txt", "3\nmany\n"), "text.txt line 2", "got 'many'. Correct or remove it"),
    "lengths_zero": Bad(lengths_file("zero.txt", "3\n0\n"), "zero.txt line 2", "got 0. Correct or remove it"),
    "lengths_long": Bad(lengths_file("long.txt", "3\n999\n"), "long.txt line 2", "at most 128; got 999. Split"),
    "lengths_damaged": Bad(lengths_file("bad.npy", "no array"), "bad.npy", "Write it with numpy.save"),
    "lengths_folder": Bad(lambda folder: [f"--lengths={folder}"], "Is a directory", "Check the path"),
    "nothing_timed": Bad(
        given("tests/performance", "-mperformance", "-n0", "--workload=smoke", "--cells=*drawn"),
        "--cells: the tests that run have no such cell",
        "Ids of timed cells end in -smoke",
    ),
    "nothing_proved": Bad(
        given("tests/correctness", "-mcorrectness", "-n0", "--workload=smoke", "--cells=*-smoke"),
        "--cells: the tests that run have no such cell",
        "those of correctness tests in -drawn",
    ),
    "nothing_proved_by_workers": Bad(
        given("tests/correctness", "-mcorrectness", "-n2", "--workload=smoke", "--cells=*-smoke"),
        "--cells: the tests that run have no such cell",
        "those of correctness tests in -drawn",
    ),
    "profile": Bad(given("--hypothesis-profile=nope"), "--hypothesis-profile=nope", "choose ci, dev or deep"),
    "seed": Bad(given("--hypothesis-seed=3"), "--hypothesis-seed=3: profile ci", "add --hypothesis-profile=dev"),
    "seed_0": Bad(given("--hypothesis-seed=0", "--hypothesis-profile=ci"), "--hypothesis-seed=0", "profile=dev"),
    "matrix_path": Bad(given("--matrix", "tests/meta"), "'tests/meta'", "Choose combinations with --backend"),
    "matrix_after_path": Bad(given("tests/meta", "--matrix"), "'tests/meta'", "Choose combinations with --backend"),
    "matrix_shape": Bad(given("--matrix=xml"), "'xml'", "--matrix takes table (the default) or json"),
    "matrix_backend": Bad(given("--matrix", "--backend", "fa9"), "backend 'fa9'", "choose one of: sdpa_padded, "),
    "matrix_cells": Bad(given("--matrix", "--cells", "x"), "--cells 'x'", "--matrix=json lists them all"),
}


@pytest.fixture(scope="module")
def results(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    folder = tmp_path_factory.mktemp("lengths")
    good = {"good": [*lengths_file("good.txt", "3\n128\n")(folder), "--cells=sdpa_loop-packed-*", "--matrix=json"]}
    sessions = {name: bad.options(folder) for name, bad in BAD.items()} | good
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    run = subprocess.run(
        [sys.executable, "-c", SESSIONS],
        input=json.dumps(list(sessions.values())),
        cwd=pytestconfig.rootpath,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return {name: Result(*found) for name, found in zip(sessions, json.loads(run.stdout), strict=True)}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused_in_one_line(results: dict[str, Result], name: str) -> None:
    code, out, err = results[name]
    assert code == pytest.ExitCode.USAGE_ERROR
    # pytest-benchmark before 5.3 warns, in two lines, that xdist switches it off.
    told = [
        line for line in err.splitlines() if line and "PytestBenchmarkWarning" not in line and "warner(" not in line
    ]
    assert [line.startswith("ERROR: ") for line in told] == [True]
    assert BAD[name].names in err
    assert BAD[name].advice in err
    assert "Traceback" not in out
    assert "INTERNALERROR" not in out
    assert " passed" not in out


def test_good_options_are_not_refused(results: dict[str, Result]) -> None:
    code, out, err = results["good"]
    assert code == pytest.ExitCode.OK, err
    assert len(json.loads(out)["cells"]) == 16
