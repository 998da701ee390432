"""The lines that a report prints show the same finding on their own."""

import subprocess
import sys

import pytest

from model.huggingface.families import family_named
from model.huggingface.inputs import Way
from tests.packing.reproduction import reproduction, run

pytestmark = pytest.mark.packing


@pytest.mark.parametrize(
    ("family", "way", "right"),
    [
        ("gpt2", Way("flattened"), True),
        ("gpt2", Way("flattened", cache=True), False),
        ("llama", Way("flattened", mask=True), False),
        ("llama", Way("left", positions=False, mask=True), True),
        ("gpt2", Way("left", positions=False, mask=True), False),
        ("gpt2", Way("left", mask=True), True),
        ("gpt2", Way("right", positions=False, mask=True), True),
        ("mamba", Way("flattened", offsets=True, seq_idx=True), False),
        ("gemma3_text", Way("flattened"), True),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_printed_lines_show_the_finding(family: str, way: Way, right: bool) -> None:
    error = run(reproduction(family_named(family), "eager", way))
    assert (error < 1e-5) == right, error
    assert right or error > 0.01


def test_printed_lines_need_no_checkout() -> None:
    script = reproduction(family_named("gpt2"), "sdpa", Way("flattened", mask=True))
    assert "model.huggingface" not in script
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=True, cwd="/")
    assert float(done.stdout.split()[-1]) > 0.01
