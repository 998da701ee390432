"""Studies run on a CPU, where their sizes are tiny: no option of one breaks before somebody has a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gate import ROOT
from model import products
from tests.studies import tiles

pytestmark = pytest.mark.meta


def written_by(study: str, *options: str, out: Path) -> Any:
    """Run a study on a CPU, and return what it wrote to `out`."""
    run = subprocess.run(
        [sys.executable, "-m", f"tests.studies.{study}", f"--out={out}", *options],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(out.read_text())


def test_the_study_of_settings_runs_on_a_cpu(tmp_path: Path) -> None:
    options = ["--settings=ddp;fsdp2;ddp, default buckets, bf16 hook", "--lengths=uniform", "--steps=2"]
    found = written_by("scaling", *options, out=tmp_path / "scaling.json")
    rows = {row["setting"]: row for row in found["lengths"]["uniform"]}
    assert [*rows] == ["one rank alone", "ddp", "ddp, default buckets, bf16 hook", "fsdp2", "one rank alone, again"]
    # A setting that this machine cannot run ends none of the others.
    assert "BF16" in rows["ddp, default buckets, bf16 hook"]["error"]
    assert all(row["tokens_per_s_rank"] > 0 for row in rows.values() if "error" not in row)


def test_the_study_of_tiles_runs_on_a_cpu(tmp_path: Path) -> None:
    found = written_by("tiles", out=tmp_path / "tiles.json")
    assert len(found["ms"]) == 6
    assert all({*times} == {"torch", "here"} for times in found["ms"].values())


def test_products_have_the_tile_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    own, (wide, narrow) = products.tile, ((192, 128), (128, 208))
    monkeypatch.setattr(tiles, "tiles", lambda: {"wide": wide, "narrow": narrow})
    for name, tile in (("wide", wide), ("narrow", narrow)):
        with tiles.using(name):
            assert products.tile(torch.empty(8, 4)) is tile
    with tiles.using(None):
        assert products.tile is own
    assert products.tile is own
