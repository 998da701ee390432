"""Findings add up to a verdict, verdicts to a record, and two records to what changed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.huggingface.families import Family
from model.huggingface.inputs import FLATTENED, WAYS, Way
from tests.known_failures import KNOWN_LEAKS
from tests.packing.checks import Checked, Errors, Found
from tests.packing.records import changes_between, family_changes, family_entry, load, merged, record_of, save
from tests.packing.report import difference, report
from tests.packing.verdicts import Verdict, verdict

pytestmark = pytest.mark.packing

RIGHT = Found("right", Errors(1e-7, 1e-7, 1e-7), 1.0)
LEAKS = Found("wrong", Errors(0.9, 0.1, 1.0), 1e6, mixed=0.6)
SHIFTS = Found("wrong", Errors(0.5, 0.1, 1.0), 1e6, mixed=0.0)
REFUSES = Found("refused", message="ValueError: no")

FAMILY = Family("gpt2", "GPT2LMHeadModel", "decoder")


def checked(found: Found = RIGHT, start: int = 0, **others: Found) -> Checked:
    """Every way gave `found`, but those of which a word of `others` is in the name."""
    ways = {way: next((other for word, other in others.items() if word in way.given), found) for way in WAYS}
    return Checked(ways, start=start)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (checked(), "safe"),
        (checked(cache=LEAKS), "safe with use_cache=False"),
        (checked(attention_mask=LEAKS), "safe with no attention_mask"),
        (checked(attention_mask=LEAKS, cache=LEAKS), "safe with use_cache=False, no attention_mask"),
        (checked(seq_idx=REFUSES), "safe with no seq_idx"),
        (checked(start=2), "safe with position_ids from 2"),
        (checked(LEAKS), "leaks (0.9)"),
        (checked(SHIFTS), "shifts (0.5)"),
        (checked(REFUSES), "refuses"),
        (Checked(refusal="ValueError: no"), "refuses"),
    ],
)
def test_findings_on_flattened_rows_add_up(found: Checked, wanted: str) -> None:
    assert str(verdict(found, "flattened")) == wanted


def test_the_first_way_that_is_right_counts() -> None:
    ways = {way: RIGHT if way.offsets and not (way.mask or way.cache) else LEAKS for way in WAYS}
    wanted = "safe with use_cache=False, return_flash_attn_kwargs, no attention_mask"
    assert str(verdict(Checked(ways), "flattened")) == wanted


def test_left_padding_may_need_positions() -> None:
    ways = {way: RIGHT if way.positions else SHIFTS for way in WAYS}
    assert str(verdict(Checked(ways), "left")) == "safe with position_ids"
    assert verdict(Checked(dict.fromkeys(WAYS, RIGHT)), "left") == Verdict("safe")


def entry(found: Checked) -> dict[str, Any]:
    return family_entry(FAMILY, {"sdpa": found})


def test_a_record_can_be_read_again(tmp_path: Path) -> None:
    entries = {"gpt2": entry(checked(cache=LEAKS, seq_idx=REFUSES)), "x": family_entry(FAMILY, "Error: no")}
    record = record_of(entries, "cpu")
    save(record, tmp_path / "record.json")
    assert load(tmp_path / "record.json") == json.loads(json.dumps(record))
    assert "1 not built" in report(record)


def test_a_run_of_a_few_leaves_the_others_in_the_record() -> None:
    before = record_of({"gpt2": entry(checked()), "llama": entry(checked())}, "cpu")
    rows = Checked(dict.fromkeys(FLATTENED, LEAKS))
    found = record_of({"gpt2": family_entry(FAMILY, {"own": rows}), "new": family_entry(FAMILY, "Error: no")}, "cpu")
    families = merged(before, found)["families"]
    assert list(families) == ["gpt2", "llama", "new"]
    assert families["gpt2"]["implementations"].keys() == {"sdpa", "own"}
    assert families["gpt2"]["implementations"]["own"]["verdicts"].keys() == {"flattened"}
    assert families["llama"] == before["families"]["llama"]
    assert "sdpa: safe; own: leaks" in report(merged(before, found))


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_what_is_no_record_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is no packing record: .*--packing-report") as raised:
        load(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("before", "after", "direction"),
    [
        (RIGHT, LEAKS, "worse"),
        (RIGHT, REFUSES, "worse"),
        (REFUSES, LEAKS, "worse"),
        (LEAKS, RIGHT, "better"),
        (LEAKS, REFUSES, "better"),
        (REFUSES, RIGHT, "better"),
    ],
)
def test_a_change_is_better_or_worse(before: Found, after: Found, direction: str) -> None:
    changes = family_changes("gpt2", entry(checked(before)), entry(checked(after)))
    assert [change.direction for change in changes] == [direction] * len(WAYS)


def test_errors_of_another_size_are_no_change() -> None:
    other = replace(LEAKS, errors=Errors(0.1, 0.1, 0.1))
    assert family_changes("gpt2", entry(checked(LEAKS)), entry(checked(other))) == []


def test_an_implementation_that_is_lost_is_worse_than_right_and_better_than_wrong() -> None:
    lost = entry(Checked(refusal="ValueError: no sdpa"))
    assert {each.direction for each in family_changes("gpt2", entry(checked()), lost)} == {"worse"}
    assert {each.direction for each in family_changes("gpt2", entry(checked(LEAKS)), lost)} == {"better"}


def test_a_family_that_is_no_longer_built_is_worse() -> None:
    gone = family_entry(FAMILY, "Error: no")
    assert [each.direction for each in family_changes("gpt2", entry(checked()), gone)] == ["worse"]
    assert [each.direction for each in family_changes("gpt2", gone, entry(checked()))] == ["better"]
    assert family_changes("gpt2", gone, gone) == []


def test_a_difference_names_what_came_what_went_and_what_changed() -> None:
    before = record_of({"gpt2": entry(checked()), "old": entry(checked())}, "cpu")
    after = record_of({"gpt2": entry(checked(attention_mask=LEAKS)), "new": entry(checked())}, "cpu")
    assert {(each.family, each.direction) for each in changes_between(before, after)} == {
        ("gpt2", "worse"),
        ("new", "other"),
        ("old", "other"),
    }
    text = difference(before, after)
    assert "## Worse: 1 families" in text
    assert "sdpa, flattened: position_ids, attention_mask" in text


def test_a_known_leak_strikes_only_what_is_recorded_as_wrong() -> None:
    leak, ways = KNOWN_LEAKS[0], [FLATTENED[1].name]
    assert leak.strikes(entry(checked(LEAKS)), ways, ["sdpa"])
    assert not leak.strikes(entry(checked(LEAKS)), ways, ["eager"])
    assert not leak.strikes(entry(checked(REFUSES)), ways, ["sdpa"])
    assert not leak.strikes(entry(checked(RIGHT, cache=LEAKS)), ways, ["sdpa"])
    assert not leak.strikes({}, ways, ["sdpa"])


def test_every_known_leak_belongs_to_a_test() -> None:
    from tests.packing import test_packing

    assert all(hasattr(test_packing, leak.test) for leak in KNOWN_LEAKS)
    assert len({leak.test for leak in KNOWN_LEAKS}) == len(KNOWN_LEAKS)


def test_a_way_is_written_as_it_is_read() -> None:
    assert Way("flattened", mask=True, cache=True).name == "flattened: position_ids, attention_mask, cache"
