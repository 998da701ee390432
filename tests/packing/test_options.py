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

#: A file with collators.
COLLATORS = "tests/packing/test_collated.py"

BAD: dict[str, list[str]] = {
    "--packing-report needs the packing tests": ["-m", "meta", "--packing-report"],
    "unknown language-model family 'llamma'": ["-m", "packing", "--packing-families=llamma"],
    "unknown implementation 'fast' on": ["-m", "packing", "--packing-implementations=fast"],
    "--collator SPEC needs the packing tests": ["-m", "correctness", "--collator=nowhere.py:collate"],
    "there is no file": ["-m", "packing", "--collator=nowhere.py:collate"],
    "is not JSON": ["-m", "packing", f"--collator={COLLATORS}:flattened", "--collator-arguments={"],
    "flattened() got an unexpected keyword": [
        *("-m", "packing", f"--collator={COLLATORS}:flattened", '--collator-arguments={"x": 1}'),
    ],
    "the collator returned int": ["-m", "packing", "--collator=builtins:len"],
    "--packer SPEC needs the packing tests": ["-m", "unit", "--packer=nowhere.py:pack"],
    "--packer 'pack' is no SPEC": ["-m", "packing", "--packer=pack"],
    "a batch sampler gives lists of indices": ["-m", "packing", "--sampler=builtins:list"],
    "--sampler 'math:pi' is float": ["-m", "packing", "--sampler=math:pi"],
    "make() returned dict": ["-m", "packing", "--model=builtins:dict"],
    "nowhere.json cannot be read": ["-m", "packing", "--hf-config=nowhere.json"],
}

#: Collators from outside, and how the run of their contracts ends.
OUTSIDE = {"flattened": pytest.ExitCode.OK, "four_d": pytest.ExitCode.OK, "shuffled": pytest.ExitCode.TESTS_FAILED}


def sessions(*options: list[str]) -> list[tuple[int, str]]:
    done = subprocess.run(
        [sys.executable, "-c", SESSIONS],
        input=json.dumps(options),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    return [(code, err) for code, err in json.loads(done.stdout)]


#: Other parts from outside, and how the run of their tests ends.
PARTS = {
    "--packer=tests/packing/test_packed_rows.py:first_fit": pytest.ExitCode.TESTS_FAILED,
    "--sampler=tests/packing/test_sampled.py:InPairs": pytest.ExitCode.OK,
    "--model=tests/packing/test_own_module.py:Mixer": pytest.ExitCode.OK,
    "--model=tests/packing/test_own_module.py:Leaking": pytest.ExitCode.TESTS_FAILED,
}


def test_other_parts_from_outside_have_their_own_tests() -> None:
    ended = sessions(*(["-m", "packing", option] for option in PARTS))
    assert dict(zip(PARTS, [code for code, _ in ended], strict=True)) == PARTS


def test_a_collator_from_outside_is_held_to_contracts() -> None:
    asked = [["-m", "packing", f"--collator={COLLATORS}:{name}", "-k", "contract or loader"] for name in OUTSIDE]
    assert [code for code, _ in sessions(*asked)] == list(OUTSIDE.values())


def test_a_bad_option_is_refused_in_a_line() -> None:
    for wanted, (code, err) in zip(BAD, sessions(*BAD.values()), strict=True):
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
