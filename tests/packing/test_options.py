"""Bad options and commands of the packing report are refused in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.studies.packing import main

pytestmark = pytest.mark.packing

#: Runs each list of options as a session of one process, as imports take seconds.
SESSIONS = """
import contextlib, io, json, sys
import pytest

results = []
for options in json.load(sys.stdin):
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = pytest.main(["-n0", "-q", "-p", "no:cacheprovider", *options])
    results.append([int(code), err.getvalue()])
json.dump(results, sys.stdout)
"""

BAD: dict[str, list[str]] = {
    "--packing-report needs the packing tests": ["-m", "meta", "--packing-report"],
    "unknown language-model family 'llamma'": ["-m", "packing", "--packing-families=llamma"],
    "unknown implementation 'fast' on": ["-m", "packing", "--packing-implementations=fast"],
}


def test_a_bad_option_is_refused_in_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SESSIONS],
        input=json.dumps(list(BAD.values())),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    for wanted, (code, err) in zip(BAD, json.loads(done.stdout), strict=True):
        assert code == pytest.ExitCode.USAGE_ERROR, wanted
        assert wanted in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["table", "nowhere.json"], "nowhere.json is no packing record"),
        (["reproduce", "llamma"], "unknown language-model family 'llamma'"),
        (["reproduce", "gpt2", "sdpa", "packed"], "unknown way 'packed'"),
    ],
)
def test_a_bad_command_is_refused_in_a_line(
    arguments: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert wanted in capsys.readouterr().err
