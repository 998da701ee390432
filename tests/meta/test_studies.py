"""A study runs on a CPU, where its sizes are tiny: no option of it breaks before somebody has a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gate import ROOT

pytestmark = pytest.mark.meta


def test_the_study_of_options_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "options.json"
    run = subprocess.run(
        [sys.executable, "-m", "tests.studies.step_options", f"--out={out}", "--parts=matmuls,loss"],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(out.read_text())
    assert (len(found["matmuls"]), len(found["loss"])) == (14, 3)
    for row in found["matmuls"] + found["loss"]:
        assert {"plain_ms", "compiled_ms", "option_ms"} < {*row}
        assert row["difference"] < 0.05
