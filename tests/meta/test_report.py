"""What a red test prints: one short block that names cell, tensor and how often, and a command that is red again."""

import functools
import re
from dataclasses import dataclass

import pytest

from model.attention import REFERENCE
from tests.correctness.report import SMALL_TOKENS
from tests.meta import sessions as sessions_of
from tests.meta.sessions import AGAIN, Item, Ran

pytestmark = pytest.mark.meta

MOST_LINES = 25

#: With a batch that is as small as it need be: the search for that one alone may take 10 seconds.
SECONDS_TO_RED = 20.0

#: What makes a property red, where a leak does not.
INJECTS = {
    "test_a_batch_repeats_bit_by_bit": "noise",
    "test_a_batch_gives_the_same_when_attended_again_on_its_context": "noise",
    "test_a_batch_runs_the_declared_kernel": "another_kernel",
    "test_a_batch_leaves_all_other_memory_as_it_was": "arguments_written_to",
    "test_a_batch_with_an_empty_sequence_is_refused": "nothing_refused",
    "test_no_supervised_target_gives_no_loss_and_no_gradient": "loss_off",
    "test_positions_in_reverse_change_the_outputs": "positions_ignored",
    "test_learned_positions_that_run_on_change_the_outputs": "positions_ignored",
    "test_shifted_rotary_positions_change_nothing": "rotary_positions_absolute",
}

#: What draws no batch, or none of few tokens.
OF_A_LENGTH = (
    "test_ragged_batches_after_a_warm_up_are_not_compiled_again",
    "test_positions_in_reverse_change_the_outputs",
)

#: Skipped everywhere but on the largest GPUs.
NEEDS_A_GPU = "test_a_batch_may_have_more_elements_than_32_bits_count"

EQUAL = "tests/correctness/test_equivalence.py::test_a_batch_equals_the_padded_reference"
TRAINING = f"{EQUAL}[sdpa_document_mask-packed-train-causal-bfloat16-eager-drawn]"
CELL = "sdpa_document_mask-packed-train-causal-bfloat16-eager-drawn"


run = functools.partial(sessions_of.run, folders=("tests/correctness",))


@dataclass(frozen=True)
class Block:
    """The report of one red test, from behind its header to its end."""

    lines: tuple[str, ...]

    @property
    def first(self) -> str:
        return self.lines[0]

    @property
    def again(self) -> list[str]:
        """The options of the command that runs it again."""
        return sessions_of.command_of("\n".join(self.lines))

    @property
    def tokens(self) -> int | None:
        """Tokens of the batch."""
        lengths = [re.match(r"  on lengths \[([\d, ]+)\]", line) for line in self.lines]
        return next((sum(map(int, found[1].split(", "))) for found in lengths if found), None)


def blocks(ran: Ran) -> dict[str, Block]:
    """Return the report of each red test by its name."""
    _, _, after = ran.printed.partition("= FAILURES =")
    found: dict[str, Block] = {}
    name, lines = "", list[str]()
    for line in after.splitlines()[1:]:
        header = re.fullmatch(r"_+ (test_\w+\S*) _+", line)
        if header or line.startswith("====="):
            if name:
                found[name] = Block(tuple(lines))
            name, lines = (header[1], []) if header else ("", [])
        elif name:
            lines.append(line)
    return found


def only(ran: Ran) -> Block:
    """Return the report of the one test that is red."""
    ((_, block),) = blocks(ran).items()
    return block


def preferred(item: Item) -> tuple[bool, bool, bool]:
    return item.backend == REFERENCE.name, "-causal-" not in item.id, item.backend != "sdpa_document_mask"


@pytest.fixture(scope="module")
def properties() -> dict[str, Item]:
    """One cell of each test function that has cells: a causal one that a CPU runs, where there is one."""
    (proved,) = run(["--collect-only", "-qq", "-m", "correctness", "tests/correctness"])
    cells = [item for item in proved.items if item.backend and not item.skipped and not item.xfails]
    functions = {item.function for item in proved.items if item.backend}
    assert functions == {item.function for item in cells}
    return {
        function: min((item for item in cells if item.function == function), key=preferred) for function in functions
    }


KNOWN = {
    "known_bias_off_in_every_third_step": "xfailed",
    "known_bias_off_in_no_step": "passed",
    "known_bias_off_in_every_step": "failed",
    "another_bias_off_in_every_third_step": "failed",
    "both_biases_off_in_every_third_step": "failed",
    "another_bias_off_later": "failed",
    "known_and_an_error": "failed",
}

#: What no CPU has.
UNAVAILABLE = f"{EQUAL}[fa2_varlen-packed-train-causal-bfloat16-eager-drawn]"
REQUIRED = {"required": "--require=fa2_varlen", "all required": "--require", "not required": "--require=torch_varlen"}

#: Proved on one collator of each layout, which is another one where none is named.
OF_A_COLLATOR = "tests/correctness/test_isolation.py::test_the_loss_of_one_sequence_has_no_gradient_in_others"

#: What is run again by its own command, under each profile.
REPEATED = {
    "ci": {
        "same each time": [TRAINING],
        "of one collator": ["--collator=pad_fixed", "--backend=sdpa_padded", OF_A_COLLATOR, "-x"],
    },
    "dev": {"at random": [TRAINING], "at random with a seed": [TRAINING, "--hypothesis-seed=12"]},
}


@pytest.fixture(scope="module")
def sessions(properties: dict[str, Item]) -> dict[str, Ran]:
    """Every session by its name, in one process a profile: importing torch takes longer than most of them."""
    jobs: dict[str, tuple[list[str], str]] = {}
    for inject in ("leak", *INJECTS.values()):
        # Every property with something wrong in every batch.
        jobs[inject] = [item.id for name, item in properties.items() if INJECTS.get(name, "leak") == inject], inject
    for inject in ("bias_off_in_every_third_step", "an_error", *KNOWN):
        jobs[inject] = [TRAINING, "-rx"], inject
    for name, option in REQUIRED.items():
        jobs[name] = [UNAVAILABLE, option], ""
    found: dict[str, Ran] = {}
    for profile, repeated in REPEATED.items():
        for name, options in repeated.items():
            jobs |= {name: (options, "leak"), f"{name}, again": (AGAIN, "leak")}
        ran = run(
            *[options for options, _ in jobs.values()], injects=[inject for _, inject in jobs.values()], profile=profile
        )
        found |= dict(zip(jobs, ran, strict=True))
        jobs = {}
    return found


@pytest.fixture(scope="module")
def reds(properties: dict[str, Item], sessions: dict[str, Ran]) -> dict[str, tuple[Ran, Block | None]]:
    """The session of every property with something wrong in every batch, and its block."""
    ran = {name: sessions[INJECTS.get(name, "leak")] for name in properties}
    return {name: (ran[name], blocks(ran[name]).get(item.id.rpartition("::")[2])) for name, item in properties.items()}


def test_every_property_prints_one_block_that_names_its_cell_and_a_small_batch_in_seconds(
    properties: dict[str, Item], reds: dict[str, tuple[Ran, Block | None]]
) -> None:
    """Not what a test would show of its tensors; a test of attention may name the shape that it is about."""
    for name, (ran, block) in reds.items():
        item = properties[name]
        outcome, seconds = ran.ended[item.id]
        assert seconds < SECONDS_TO_RED, (name, seconds)
        if name == NEEDS_A_GPU:
            assert outcome == "skipped"
            continue
        assert outcome == "failed", f"{name} is green"
        assert block, f"{name} prints no block"
        said = "\n".join(block.lines)
        cell = item.id.partition("[")[2].partition("-drawn")[0]
        assert block.first.startswith(f"{cell}-drawn: "), said
        assert len(block.first) > len(cell) + 15, said
        assert 1 + len(block.lines) <= MOST_LINES, said
        assert block.again[0] == item.id, said
        assert not re.search(r"tensor\(|Traceback|Exception Group|Workbench\(|AttentionBench\(|assert ", said), said
        # Batches that must have long sequences, and what draws none, are named.
        if item.decoder and name not in OF_A_LENGTH:
            assert block.tokens is not None, said
            assert block.tokens <= SMALL_TOKENS, said


@pytest.mark.parametrize("name", REQUIRED)
def test_an_unavailable_cell_fails_where_it_is_required_and_says_what_is_missing(
    sessions: dict[str, Ran], name: str
) -> None:
    ran = sessions[name]
    if name == "not required":
        assert [outcome for outcome, _ in ran.ended.values()] == ["skipped"]
        return
    assert [outcome for outcome, _ in ran.ended.values()] == ["failed"]
    block = only(ran)
    assert re.match(r"fa2_varlen-packed-\S+-drawn: ValueError: fa2_varlen needs ", block.first)
    assert REQUIRED[name] in block.again


def test_a_gradient_that_is_off_in_every_third_step_takes_25_lines(sessions: dict[str, Ran]) -> None:
    """The first names the cell, the tensor, its error and bound, and how often of how many."""
    block = only(sessions["bias_off_in_every_third_step"])
    said = "\n".join(block.lines)
    assert 1 + len(block.lines) <= MOST_LINES, said
    number = r"(\d\.\d{3}e[+-]\d\d)"
    found = re.fullmatch(
        rf"{CELL}: gradient of blocks\.1\.mlp\.up\.bias: error {number}, allowed {number}; failed (\d) of (\d) runs",
        block.first,
    )
    assert found, said
    assert float(found[1]) == pytest.approx(2 * float(found[2]), rel=1e-2)
    # The first that failed, and in four more one more of three.
    assert (found[3], found[4]) == ("2", "5")
    assert any("it does not repeat" in line for line in block.lines)
    assert block.tokens is not None


def test_an_error_that_is_no_assertion_says_its_type_and_where(sessions: dict[str, Ran]) -> None:
    block = only(sessions["an_error"])
    assert block.first == f"{CELL}: RuntimeError: a kernel gives up; failed 5 of 5 runs"
    assert any(re.fullmatch(r"  at \S+reds\.py:\d+ in faulty", line) for line in block.lines), block.lines
    assert 1 + len(block.lines) <= MOST_LINES


@pytest.mark.parametrize(("inject", "outcome"), KNOWN.items())
def test_only_what_is_known_to_come_and_go_is_excused(sessions: dict[str, Ran], inject: str, outcome: str) -> None:
    ran = sessions[inject]
    assert [found for found, _ in ran.ended.values()] == [outcome], ran.printed


def test_what_comes_and_goes_says_how_often_it_did(sessions: dict[str, Ran]) -> None:
    (line,) = (
        line for line in sessions["known_bias_off_in_every_third_step"].printed.splitlines() if line[:5] == "XFAIL"
    )
    assert "a sum that comes and goes (some.py): " in line
    assert re.search(r"2 of 5 runs, \d+ batches$", sessions["known_bias_off_in_every_third_step"].printed, re.MULTILINE)


def test_a_red_test_that_is_excused_in_part_reports_the_other_part(sessions: dict[str, Ran]) -> None:
    block = only(sessions["another_bias_off_later"])
    assert block.first.startswith(f"{CELL}: gradient of blocks.0.mlp.up.bias: error ")
    assert "5 of 5 runs" in block.first


@pytest.mark.parametrize("name", [name for repeated in REPEATED.values() for name in repeated])
def test_the_command_of_a_red_test_is_red_again_on_the_same_batch(sessions: dict[str, Ran], name: str) -> None:
    block = only(sessions[name])
    assert only(sessions[f"{name}, again"]) == block
    assert ("--hypothesis-seed" in " ".join(block.again)) == ("random" in name)
    assert ("--hypothesis-seed=12" in block.again) == ("with a seed" in name), "drawn at random unless a seed is given"
