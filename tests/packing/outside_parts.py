"""Parts from outside this repository: each has an option that names it, and a file of tests that then run alone."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from collators.outside import loaded
from tests.matrix import plural
from tests.packing.collated import collated, features_of, understood
from tests.packing.packed_rows import packed
from tests.packing.sampled import batches_of

#: Lengths of the examples that a sampler is made for.
EXAMPLES = [1 + 7 * number % 32 for number in range(100)]


@dataclass(frozen=True)
class Part:
    """`make` turns what a SPEC names and its arguments into the part; `describe` tries it and says what it is."""

    tests: str
    make: Callable[[Callable[..., Any], dict[str, Any]], Any]
    describe: Callable[[Any], str]


def instance(found: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Return an instance of a class, or a function with its arguments bound."""
    if isinstance(found, type):
        return found(**arguments)
    return functools.partial(found, **arguments) if arguments else found


def bound(found: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Return a class or function with its arguments bound."""
    return functools.partial(found, **arguments)


def described_collator(collate: Any) -> str:
    """Say how a collator's batch is read."""
    return f"of lengths 3 and 2: {understood(collated(collate, features_of((3, 2))))}"


def described_packer(pack: Any) -> str:
    """Say how many slots a packer fills."""
    made = packed(pack, features_of((7, 2, 3)), 9)
    return (
        f"of lengths 7, 2 and 3, rows of 9: {plural(len(made.rows), 'row')}, {made.share:.0%} of the slots hold tokens"
    )


def described_sampler(make: Any) -> str:
    """Say how many batches a sampler gives."""
    return f"{len(batches_of(make(EXAMPLES)))} batches of {len(EXAMPLES)} examples"


def described_model(make: Any) -> str:
    """Say on which batches a module is run."""
    from tests.packing.own_module import forms_of, module_of

    module = module_of(make, "cpu")
    return f"{type(module).__name__}, on {' and '.join(forms_of(module))} batches, in float64"


PARTS: dict[str, Part] = {
    "collator": Part("test_collator.py", instance, described_collator),
    "packer": Part("test_packer.py", instance, described_packer),
    "sampler": Part("test_sampler.py", bound, described_sampler),
    "model": Part("test_model.py", bound, described_model),
}


def add_options(group: pytest.OptionGroup) -> None:
    """Add the options that name parts; `--collator` is one of tests/selection.py."""
    helps = {
        "packer": "prove a packer, a function of a list of features and a row's slots that returns rows",
        "sampler": "prove a batch sampler, alone, through a DataLoader and accelerate, and on several ranks",
    }
    for option, text in helps.items():
        group.addoption(f"--{option}", metavar="SPEC", help=f"with -m packing: {text}")
    group.addoption(
        "--model",
        metavar="SPEC",
        help="prove and time every backend in this model, make(config, attend); with -m packing: compare a module of "
        "any kind, on ragged batches, with itself on each sequence alone",
    )
    for option in PARTS:
        group.addoption(
            f"--{option}-arguments",
            metavar="JSON",
            help=f"with -m packing --{option} SPEC: its arguments, as a JSON object",
        )


def spec_of(config: pytest.Config, option: str) -> str:
    """Return the SPEC that an option names, "" without one; `--collator` may also name this project's own."""
    given = config.getoption(option)
    return next((name for name in given or () if ":" in name), "") if isinstance(given, list) else given or ""


def part_asked(config: pytest.Config, option: str) -> Any:
    """Return the part that an option names; ValueError in one line."""
    spec, text = spec_of(config, option), config.getoption(f"{option}_arguments")
    if ":" not in spec:
        raise ValueError(f"--{option} {spec!r} is no SPEC; give package.module:object or path/to/file.py:object.")
    found = loaded(f"--{option}", spec)
    if not callable(found):
        raise ValueError(f"--{option} {spec!r} is {type(found).__name__}; give a function, a class or a callable.")
    try:
        arguments = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"--{option}-arguments {text!r} is not JSON ({error}); give a JSON object.") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"--{option}-arguments {text!r} is {type(arguments).__name__}; give a JSON object.")
    try:
        return PARTS[option].make(found, arguments)
    except Exception as error:
        raise ValueError(f"--{option} {spec!r} with {arguments} raised {type(error).__name__}: {error}.") from None


def parts_described(config: pytest.Config) -> list[str]:
    """Try each part that is named, and say what it is; UsageError, in one line, for one that cannot be proved."""
    lines = []
    for option, part in PARTS.items():
        if not (spec := spec_of(config, option)):
            continue
        if option == "model" and config.getoption("markexpr") != "packing":
            # The model of the matrix, which tests/selection.py reads.
            continue
        if config.getoption("markexpr") != "packing":
            raise pytest.UsageError(f"--{option} SPEC needs the packing tests; add -m packing.")
        try:
            made = part_asked(config, option)
        except ValueError as error:
            raise pytest.UsageError(str(error).splitlines()[0]) from None
        try:
            lines.append(f"{option} {spec}, {part.describe(made)}")
        except Exception as error:
            raise pytest.UsageError(f"--{option} {spec!r}: {error}".splitlines()[0]) from None
    return lines


def tests_of_parts(config: pytest.Config) -> tuple[str, ...]:
    """Return the files of tests of the parts that are named."""
    return tuple(part.tests for option, part in PARTS.items() if spec_of(config, option))
