"""`--backend` takes a kernel from outside: a right one is green, a wrong one is red, anything else is one line."""

import re
from pathlib import Path

import pytest
import torch

from model.attention import Case, backend_named, default_device
from model.attention.outside import outside_backend
from model.models import any_backend_named, backends_asked
from tests.meta.sessions import Ran, run

pytestmark = pytest.mark.meta

FILE = str(Path(__file__).with_name("outside_kernels.py"))

#: What the first line of a wrong kernel's block names.
WRONG = {
    "leaks": ("full", "out of sequence"),
    "sees_one_ahead": ("causal", "out of sequence"),
    "ignores_the_scale": ("full", "out of sequence"),
    "loses_the_gradient_of_v": ("full", "dv of sequence"),
}


def case(dtype: torch.dtype = torch.float32, *, kv_heads: int = 4) -> Case:
    return Case(default_device(), "packed", None, "train", True, dtype, "eager", 4, kv_heads, 64)


@pytest.fixture(scope="module")
def sessions() -> dict[str, Ran]:
    jobs = {
        name: (
            "-m",
            "correctness",
            f"--backend={FILE}:{name}",
            f"--cells=*-train-{mask}-float32-*",
            "-x",
            "-k",
            "alone",
        )
        for name, (mask, _) in WRONG.items()
    }
    jobs["right"] = ("-m", "correctness", f"--backend={FILE}:right", "--cells=*-train-full-float32-*")
    return dict(zip(jobs, run(*jobs.values()), strict=True))


def test_a_right_kernel_is_green(sessions: dict[str, Ran]):
    ran = sessions["right"]
    assert ran.code == 0, ran.printed
    assert {item.backend for item in ran.items} <= {"outside_kernels.right", ""}
    # Every property, though the function takes no grouped heads.
    assert [outcome for outcome, _ in ran.ended.values()].count("passed") > 30


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_red_and_the_first_line_says_where(name: str, sessions: dict[str, Ran]):
    ran, (mask, where) = sessions[name], WRONG[name]
    assert ran.code == 1
    first = next(line for line in ran.printed.splitlines() if line.startswith(f"outside_kernels.{name}-"))
    assert f"-train-{mask}-float32-eager-drawn: {where}" in first
    (again,) = (line for line in ran.printed.splitlines() if line.startswith("  again: "))
    assert f"--backend={FILE}:{name}" in again


def test_a_kernel_is_asked_what_it_supports():
    found = outside_backend(f"{FILE}:float32_only")
    assert (found.layout, found.name, found.spec) == ("packed", "outside_kernels.float32_only", f"{FILE}:float32_only")
    assert found.dtypes == {default_device(): (torch.float32,)}
    assert found.undeclared_reasons(case()) == []
    assert found.undeclared_reasons(case(torch.float64)) == ["takes float32; got float64"]
    (refused,) = outside_backend(f"{FILE}:right").undeclared_reasons(case(kv_heads=2))
    assert refused == "takes no grouped-query heads; got 4 heads on 2"
    assert outside_backend(f"{FILE}:padded").layout == "padded"


def test_a_record_and_a_module_are_taken_too():
    found = any_backend_named("model.attention.sdpa_loop:BACKEND")
    assert (found.name, found.spec) == ("sdpa_loop", "model.attention.sdpa_loop:BACKEND")
    assert backends_asked(["sdpa_loop"]) == (backend_named("sdpa_loop"),)
    both = backends_asked([f"{FILE}:right", "sdpa_padded"])
    assert [one.name for one in both] == ["sdpa_padded", "outside_kernels.right"]


def test_an_installed_package_names_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    metadata = tmp_path / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    spec = "tests.meta.outside_kernels:right"
    (metadata / "entry_points.txt").write_text(f"[varlen_gate.backends]\ntheir_kernel = {spec}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert any_backend_named("their_kernel").spec == spec
    with pytest.raises(ValueError, match=r"unknown backend 'their_kernels'; choose one of: .*, their_kernel; or path/"):
        any_backend_named("their_kernels")


@pytest.mark.parametrize(
    ("spec", "told"),
    {
        "not_there.py:kernel": "there is no file ",
        f"{FILE}:nothing": f"{FILE} has no 'nothing'; it has ",
        f"{FILE}:NUMBER": "is int; give a Backend record or an attention function",
        f"{FILE}:of_other_arguments": "takes (hidden_states, attention_mask); it must begin with",
        f"{FILE}:without_a_scale": "takes no softmax scale; add an argument softmax_scale or scale",
        f"{FILE}:wants_more": "needs block_table, which the suite does not pass; give a default",
        f"{FILE}:returns_two": "returned tuple for queries",
        "not_there.kernels:kernel": "No module named 'not_there'; install it, set PYTHONPATH, or give the path",
        "math:sqrt": "takes (x); it must begin with",
    }.items(),
)
def test_what_is_no_backend_is_one_line(spec: str, told: str):
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        any_backend_named(spec)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"--backend {spec!r}")


def test_an_import_that_raises_is_one_line(tmp_path: Path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no driver\\nfound')")
    with pytest.raises(ValueError, match=r"broken\.py raised RuntimeError: no driver\.$"):
        any_backend_named(f"{broken}:kernel")
