"""Pytest plugin: which families of transformers the packing tests cover, and the report of what they found."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.known_failures import IGNORED_WINDOWS, KNOWN_LEAKS
from tests.packing.outside_parts import PARTS, add_options, parts_described, spec_of, tests_of_parts
from tests.packing.subset import CI_FAMILIES

ALL, CI = "all", "ci"

#: Where a report goes unless it is told: a record in docs/results/packing is committed on purpose.
DEFAULT_FOLDER = "packing-report"

ENTRY = "packing"

#: The families and implementations that a collator from outside is run through without others.
FOR_A_COLLATOR = ("llama", "gpt2")
NATIVE = ("eager", "sdpa")


@dataclass(eq=False)
class Found:
    """What this session found, by family, as records keep it: a plugin of its own, as its hook is given no config."""

    entries: dict[str, Any] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test found, in the process that writes the report."""
        if report.when == "call":
            self.entries.update(value for name, value in report.user_properties if name == ENTRY)


FOUND = pytest.StashKey[Found]()
DESCRIBED = pytest.StashKey[list[str]]()
CHANGED = pytest.StashKey[str]()
OWN = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("varlen-gate")
    group.addoption(
        "--packing-report",
        nargs="?",
        const=DEFAULT_FOLDER,
        metavar="FOLDER",
        help="with -m packing: print which families of the installed transformers are safe to pack, and write "
        f"Markdown and JSON to FOLDER (default {DEFAULT_FOLDER}; docs/results/packing holds the committed record)",
    )
    group.addoption(
        "--packing-families",
        default=ALL,
        metavar="all|ci|NAME,NAME",
        help="with -m packing: every family (all, the default), one family of each kind (ci), or the named ones",
    )
    group.addoption(
        "--hf-config",
        metavar="FILE|FOLDER",
        help="with -m packing: the model of this config.json, made small, instead of families",
    )
    group.addoption(
        "--packing-implementations",
        metavar="NAME,NAME",
        help="with -m packing: only these attention implementations of transformers or packed backends of this project "
        "(default: eager, sdpa and sdpa_document_mask on a CPU; on a GPU, every one that runs there)",
    )
    add_options(group)


def asked_for(config: pytest.Config) -> bool:
    """Tell whether this run may hold packing tests: to find out the families costs seconds."""
    expression = config.getoption("markexpr")
    return not expression or "packing" in expression


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests alone where others are asked for: to import transformers takes seconds.

    With `--packer`, `--sampler`, `--model` or `--collator SPEC` the tests of that part are all that is run, with
    `--hf-config` those of that model.
    """
    if collection_path == Path(__file__).parent:
        return True if not asked_for(config) else None
    if collection_path.parent == Path(__file__).parent and collection_path.name.startswith("test_"):
        asked = tests_of_parts(config) or (("test_packing.py",) if config.getoption("hf_config") else ())
        if asked:
            return collection_path.name not in asked
        return collection_path.name in {part.tests for part in PARTS.values()}
    return None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "packing(*ways): the ways to hand sequences over that a test is about")
    config.stash[FOUND] = found = Found()
    config.pluginmanager.register(found)
    if config.getoption("packing_report") and config.getoption("markexpr") != "packing":
        raise pytest.UsageError("--packing-report needs the packing tests; add -m packing.")
    config.stash[DESCRIBED] = parts_described(config)
    if place := config.getoption("hf_config"):
        if config.getoption("markexpr") != "packing":
            raise pytest.UsageError("--hf-config checks a model's packing; run it: pytest -m packing.")
        from model.huggingface.own import changes, own_family

        try:
            config.stash[OWN] = own_family(place)
        except ValueError as error:
            raise pytest.UsageError(f"--hf-config: {error}") from None
        config.stash[CHANGED] = ", ".join(changes(config.stash[OWN]))
    chosen = config.getoption("packing_families")
    if chosen not in (ALL, CI):
        from model.huggingface.families import family_named

        for name in chosen.split(","):
            try:
                family_named(name)
            except ValueError as error:
                raise pytest.UsageError(f"--packing-families={chosen}: {error}") from None
    try:
        implementations(config)
    except ValueError as error:
        raise pytest.UsageError(f"--packing-implementations: {error}") from None


def families(config: pytest.Config) -> list[Any]:
    """Return the families that `--packing-families` means, in their order."""
    from model.huggingface.families import all_families

    if OWN in config.stash:
        return [config.stash[OWN]]
    chosen = config.getoption("packing_families")
    if spec_of(config, "collator") and chosen == ALL:
        return [family for family in all_families() if family.name in FOR_A_COLLATOR]
    names = None if chosen == ALL else CI_FAMILIES.keys() if chosen == CI else chosen.split(",")
    return [family for family in all_families() if names is None or family.name in names]


def implementations(config: pytest.Config) -> list[Any]:
    """Return the implementations that `--packing-implementations` means; ValueError for one that there is not."""
    from model.attention import default_device
    from model.huggingface.implementations import default_implementations, implementation_named

    device, chosen = default_device(), config.getoption("packing_implementations")
    if chosen:
        return [implementation_named(name, device) for name in chosen.split(",")]
    every = list(default_implementations(device))
    return [each for each in every if each.name in NATIVE] if spec_of(config, "collator") else every


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say how parts from outside were understood, and how a config was made small."""
    lines = [*config.stash[DESCRIBED]]
    if OWN in config.stash:
        made = f"{config.stash[OWN].class_name}, made small: {config.stash[CHANGED]}"
        lines.append(f"{config.getoption('hf_config')}: {made}")
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each packing test its families; a leak that the record has is a strict xfail where it is a known one."""
    if "windowed" in metafunc.fixturenames:
        families_with_windows(metafunc)
    if "checked" not in metafunc.fixturenames:
        return
    params: list[Any] = []
    if asked_for(metafunc.config):
        from model.attention import default_device
        from tests.packing.records import recorded

        record = recorded(default_device()) or {"families": {}}
        marker = metafunc.definition.get_closest_marker("packing")
        leak = next((leak for leak in KNOWN_LEAKS if leak.test == metafunc.function.__name__), None)
        names = [each.name for each in implementations(metafunc.config)]
        for family in families(metafunc.config):
            # What is known of a family's defaults is not known of a config.
            entry = {} if family.config else record["families"].get(family.name, {})
            known = leak is not None and marker is not None and leak.strikes(entry, marker.args, names)
            reason = f"{leak.reason} ({leak.reproduction} {family.name})" if leak else ""
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if known else []
            params.append(pytest.param(family, id=family.name, marks=marks))
    metafunc.parametrize("checked", params, indirect=True, scope="session")


def families_with_windows(metafunc: pytest.Metafunc) -> None:
    """Give a test of windows every family, as only a config tells which have one; a known defect is a strict xfail."""
    params: list[Any] = []
    if asked_for(metafunc.config):
        from model.attention import this_machine

        known = {each.family: each for each in IGNORED_WINDOWS if each.present(this_machine())}
        for family in families(metafunc.config):
            window = None if family.config else known.get(family.name)
            reason = f"{window.reason} ({window.reproduction})" if window else ""
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if window else []
            params.append(pytest.param(family, id=family.name, marks=marks))
    metafunc.parametrize("windowed", params)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the report and what changed against the record; write both shapes of the report."""
    entries = config.stash[FOUND].entries
    if not entries:
        return
    from model.attention import default_device
    from tests.packing.records import changes_between, file_name, load, merged, record_of, recorded, save
    from tests.packing.report import own_report, report

    record = record_of(entries, default_device())
    if OWN in config.stash:
        family = config.stash[OWN]
        text = own_report(family, entries[family.name])
        terminalreporter.section(f"is it safe to pack? {config.getoption('hf_config')}")
        terminalreporter.write_line(text)
        return
    before = recorded(default_device())
    if before is not None:
        known = {name: entry for name, entry in before["families"].items() if name in entries}
        better = [each for each in changes_between({**before, "families": known}, record) if each.direction == "better"]
        for change in better:
            terminalreporter.write_line(f"better than the committed record: {change}")
        if better:
            terminalreporter.write_line(
                "To update it, run pytest -m packing --packing-report=docs/results/packing and commit the files."
            )
    folder = config.getoption("packing_report")
    if folder:
        path = Path(folder) / file_name(record)
        if path.exists():
            # A run of a few families or implementations leaves the others as they were.
            record = merged(load(path), record)
        save(record, path)
        text = report(record)
        path.with_suffix(".md").write_text(text)
        terminalreporter.section(f"packing report: {path} and {path.with_suffix('.md').name}")
        terminalreporter.write_line(text)
