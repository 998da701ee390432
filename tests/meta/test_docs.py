"""What the docs name is there: the targets of their links, and every option."""

import re
from pathlib import Path

import pytest

from gate.__main__ import main

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference() -> str:
    return (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf8")


def test_links_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("findings/*.md")]
    assert len(pages) > 20
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf8"))
    ]
    assert [(page.name, to) for page, to in links if "://" not in to and not (page.parent / to).exists()] == []


def test_every_option_of_pytest_is_in_the_reference(pytestconfig: pytest.Config, reference: str):
    ours = {
        name
        for group in pytestconfig._parser._groups
        for option in group.options
        for name in option.names()
        if group.name == "varlen-gate" or name.startswith(("--gate", "--benchmark-stock"))
    }
    assert len(ours) > 20
    assert sorted(name for name in ours if f"`{name}" not in reference) == []


@pytest.mark.parametrize("command", ["ab", "record", "promote", "table"])
def test_every_option_of_the_gate_is_in_the_reference(command: str, capsys: pytest.CaptureFixture[str], reference: str):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.M)) - {"--help"}
    assert sorted(name for name in options if f"`{name}" not in reference) == []
