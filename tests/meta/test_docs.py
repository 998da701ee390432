"""What the docs name is there: the targets of their links, and every option."""

import re
from pathlib import Path

import pytest

from gate.__main__ import main

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "findings" / "README.md"]
OPTIONS = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_every_option_of_pytest_is_in_the_reference(pytestconfig: pytest.Config):
    ours = {
        name
        for group in pytestconfig._parser._groups
        for option in group.options
        for name in option.names()
        if group.name == "varlen-gate" or name.startswith(("--gate", "--benchmark-stock"))
    }
    assert len(ours) > 20
    assert sorted(name for name in ours if f"`{name}" not in OPTIONS) == []


@pytest.mark.parametrize("command", ["ab", "record", "promote", "table"])
def test_every_option_of_the_gate_is_in_the_reference(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.M)) - {"--help"}
    assert sorted(name for name in options if f"`{name}" not in OPTIONS) == []
