"""Compilations are counted alike in every process: of what an earlier one kept, only kernels are used again."""

from pathlib import Path

import pytest
import torch

from model.compilation import fresh_compiler

pytestmark = pytest.mark.meta


def compilations() -> int:
    with fresh_compiler() as compiler:
        doubled = torch.compile(lambda x: x * 2, backend="eager")
        for size in (3, 4, 5):
            doubled(torch.ones(size))
        return compiler.compilations


def test_a_profile_of_an_earlier_process_spares_no_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch.compiler.config.patch(job_id="gate"):
        assert [compilations() for _ in range(3)] == [2, 2, 2]
