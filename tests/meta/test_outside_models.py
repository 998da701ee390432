"""`--model` takes a model: a right one is green and timed, a wrong one is red, anything else is one line."""

import re
from pathlib import Path

import pytest
import torch

from model.attention import Case, Execution, backend_named
from model.models import backends_asked, reference_of
from tests.meta.sessions import Ran, run

pytestmark = pytest.mark.meta

FILE = str(Path(__file__).with_name("outside_models.py"))
WRONG = ("ShiftsTokens", "CountsPositionsOn", "AveragesTheRow")

CHOSEN = ("--backend=sdpa_document_mask", "--collator=packed")


@pytest.fixture(scope="module")
def sessions() -> dict[str, Ran]:
    cells = "--cells=*-packed-train-causal-float32-eager-*"
    jobs: dict[str, tuple[str, ...]] = {
        name: ("-m", "correctness", f"--model={FILE}:{name}", *CHOSEN, cells, "-k", "equals_the_padded", "-x")
        for name in WRONG
    }
    jobs["right"] = ("-m", "correctness", f"--model={FILE}:Llama", *CHOSEN, cells)
    jobs["timed"] = ("-m", "performance", f"--model={FILE}:Llama", *CHOSEN, cells, "--steps=2")
    return dict(zip(jobs, run(*jobs.values()), strict=True))


def test_a_right_model_is_green(sessions: dict[str, Ran]):
    ran = sessions["right"]
    assert ran.code == 0, ran.printed
    # Every property that runs a whole model, and no test of an attention call by itself.
    assert {item.backend for item in ran.items} == {"outside_models.Llama_sdpa_document_mask"}
    assert all(item.decoder for item in ran.items)
    assert [outcome for outcome, _ in ran.ended.values()].count("passed") >= 10


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_is_red_and_the_first_line_says_where(name: str, sessions: dict[str, Ran]):
    ran = sessions[name]
    assert ran.code == 1
    first = next(line for line in ran.printed.splitlines() if line.startswith(f"outside_models.{name}_"))
    assert "eager-drawn: logits of sequence" in first
    (again,) = (line for line in ran.printed.splitlines() if line.startswith("  again: "))
    assert f"--model={FILE}:{name}" in again


def test_a_right_model_is_timed(sessions: dict[str, Ran]):
    ran = sessions["timed"]
    assert ran.code == 0, ran.printed
    assert [item.backend for item in ran.items] == ["outside_models.Llama_sdpa_document_mask"]


def test_every_backend_attends_in_the_model_and_gpt2_is_left_out():
    every = backends_asked(None, f"{FILE}:Llama")
    assert [one.attention for one in every] == [one.name for one in backends_asked(None) if "gpt2" not in one.name]
    (one,) = backends_asked(["sdpa_loop"], f"{FILE}:Llama")
    assert (one.name, one.attention) == ("outside_models.Llama_sdpa_loop", "sdpa_loop")
    assert reference_of(one).name == "outside_models.Llama_sdpa_padded_math"
    assert reference_of(backend_named("sdpa_loop")).name == "sdpa_padded_math"


def case(
    backend: str, name: str = "Llama", *, execution: Execution = "eager", dtype: torch.dtype = torch.bfloat16
) -> list[str]:
    """Return why a backend in a model does not support a case."""
    (one,) = backends_asked([backend], f"{FILE}:{name}")
    return one.undeclared_reasons(Case("cuda", one.layout, None, "eval", True, dtype, execution, 2, 2, 16))


def test_a_model_is_asked_what_it_supports():
    assert case("sdpa_document_mask") == []
    assert case("sdpa_document_mask", execution="compiled") == ["needs a model with compile_blocks()"]
    assert case("sdpa_nested") == []
    (why,) = case("sdpa_nested", "ShiftsTokens")
    assert why.startswith("needs a model that takes nested batches in mode eval; it raised ")
    # What the backend does not claim is said as without a model.
    assert case("fa2_varlen", dtype=torch.float32) == ["takes bfloat16, float16; got float32"]


@pytest.mark.parametrize(
    ("spec", "told"),
    {
        "Llama": "is no SPEC; give package.module:make or path/to/file.py:make",
        "not_there.py:make": "there is no file ",
        f"{FILE}:nothing": f"{FILE} has no 'nothing'; it has ",
        f"{FILE}:NUMBER": "is int; give a function or class make(config, attend)",
        f"{FILE}:no_module": "returned int; it must return an nn.Module",
        f"{FILE}:without_an_embedding": "needs an nn.Embedding of vocab_size=17 rows; it has no nn.Embedding",
        f"{FILE}:wants_more": "missing 1 required positional argument: 'width'",
        f"{FILE}:ReturnsHidden": "needs logits of shape (2, 3, 17) (B, S, vocab_size); the model returned (2, 3, 32)",
    }.items(),
)
def test_what_is_no_model_is_one_line(spec: str, told: str):
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        backends_asked(None, spec)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"--model {spec!r}")
