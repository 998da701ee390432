"""Length distributions and length files: lengths in range, the same on every draw, nothing dropped."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collators.lengths import (
    DISTRIBUTIONS,
    FileLengths,
    LengthDistribution,
    RecordedLengths,
    distribution_named,
    read_lengths_file,
    recorded_lengths,
)

pytestmark = pytest.mark.unit

every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda d: d.name)
counts = st.integers(1, 100)
#: From 5 tokens on, the shortest recorded document fits too.
maxima = st.one_of(st.integers(5, 20), st.sampled_from([63, 64, 65, 1024, 8192]))
seeds = st.integers(0, 2**64 - 1)


def file_of(folder: Path, text: str) -> str:
    path = folder / "lengths.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


def parquet_of(folder: Path, **columns: list[object]) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = folder / "lengths.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def read_or_error(path: str) -> FileLengths | str:
    try:
        return read_lengths_file(path)
    except ValueError as error:
        return str(error)


def one_line_error(path: str) -> str:
    with pytest.raises(ValueError, match=r".") as raised:
        read_lengths_file(path)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(path)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return message


@every_distribution
@given(count=counts, max_length=maxima, seed=seeds)
@example(count=1, max_length=5, seed=0)
def test_lengths_are_as_many_as_asked_and_in_range(
    distribution: LengthDistribution, count: int, max_length: int, seed: int
) -> None:
    drawn = distribution.draw(count, max_length, seed)
    assert len(drawn) == count
    assert all(type(length) is int and 1 <= length <= max_length for length in drawn)


@every_distribution
@given(count=counts, more=counts, max_length=maxima, seed=seeds)
def test_a_longer_draw_starts_with_the_shorter_one(
    distribution: LengthDistribution, count: int, more: int, max_length: int, seed: int
) -> None:
    assert distribution.draw(count + more, max_length, seed)[:count] == distribution.draw(count, max_length, seed)


@pytest.mark.parametrize("distribution", [d for d in DISTRIBUTIONS if d.name != "equal"], ids=lambda d: d.name)
def test_another_seed_draws_other_lengths(distribution: LengthDistribution) -> None:
    assert distribution.draw(50, 1024, 0) != distribution.draw(50, 1024, 1)


@pytest.mark.parametrize("distribution", [d for d in DISTRIBUTIONS if d.name != "recorded"], ids=lambda d: d.name)
def test_a_maximum_of_one_draws_ones(distribution: LengthDistribution) -> None:
    assert distribution.draw(20, 1, 0) == [1] * 20


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("uniform", [871, 652, 523, 276, 315, 42]),
        ("lognormal", [89, 227, 612, 784, 52, 33]),
        ("bimodal", [35, 3, 1013, 94, 120, 897]),
        ("zipf", [67, 4, 1, 1, 252, 532]),
        ("equal", [1024] * 6),
        ("recorded", [223, 23, 51, 154, 352, 523]),
    ],
)
def test_draws_stay_what_they_were(name: str, drawn: list[int]) -> None:
    assert distribution_named(name).draw(6, 1024, 0) == drawn


@every_distribution
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 0), r"count of 1 or more; got 0\. Ask for"),
        ((-3, 8, 0), r"count of 1 or more; got -3\."),
        ((1, 0, 0), r"max_length of 1 or more; got 0\. Allow"),
        ((1, 8, -1), r"seed of 0 or more; got -1\. Pass"),
    ],
)
def test_bad_arguments_are_refused(
    distribution: LengthDistribution, arguments: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        distribution.draw(*arguments)


def test_names_are_unique_and_find_their_distribution() -> None:
    # From a command line or a record a name is equal, and another object.
    assert [distribution_named("".join([*d.name])) for d in DISTRIBUTIONS] == list(DISTRIBUTIONS)
    assert len({d.name for d in DISTRIBUTIONS}) == len(DISTRIBUTIONS)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"^unknown length distribution 'pareto'; choose one of: uniform, .*recorded\.$"
    ):
        distribution_named("pareto")


def test_uniform_lengths_exclude_the_maximum_and_reach_both_ends() -> None:
    assert set(distribution_named("uniform").draw(500, 6, 0)) == {1, 2, 3, 4, 5}


def test_lognormal_lengths_lean_to_the_short_side_without_a_heap_at_the_maximum() -> None:
    drawn = distribution_named("lognormal").draw(4000, 1024, 0)
    assert 110 < np.median(drawn) < 140
    assert np.mean(drawn) > 1.3 * np.median(drawn)
    assert drawn.count(1024) < 5
    assert max(drawn) > 900


def test_bimodal_lengths_leave_the_middle_empty() -> None:
    drawn = distribution_named("bimodal").draw(20000, 1024, 0)
    assert set(drawn) == {*range(1, 129), *range(897, 1025)}
    assert 0.78 < sum(length <= 128 for length in drawn) / 20000 < 0.82


def test_zipf_lengths_fall_as_one_over_the_length() -> None:
    drawn = distribution_named("zipf").draw(20000, 1024, 0)
    expected = 20000 / sum(1 / length for length in range(1, 1025))
    for length in (1, 2, 4):
        assert drawn.count(length) == pytest.approx(expected / length, rel=0.15)


def test_equal_lengths_are_all_the_maximum() -> None:
    assert distribution_named("equal").draw(3, 77, 5) == [77, 77, 77]


def test_recorded_lengths_take_each_fitting_document_once_a_pass() -> None:
    recorded = distribution_named("recorded")
    fitting = sorted(length for length in recorded_lengths() if length <= 64)
    drawn = recorded.draw(2 * len(fitting), 64, 3)
    first, second = drawn[: len(fitting)], drawn[len(fitting) :]
    assert sorted(first) == sorted(second) == fitting
    assert first != second


@given(max_length=st.integers(1, 30000))
def test_recorded_lengths_count_what_they_leave_out(max_length: int) -> None:
    recorded = RecordedLengths("recorded")
    assert recorded.excluded(max_length) == int((np.array(recorded_lengths()) > max_length).sum())


@pytest.mark.parametrize(
    "distribution",
    [*(d for d in DISTRIBUTIONS if d.name != "recorded"), FileLengths("f", (9,), "line", (1,))],
    ids=lambda d: d.name,
)
def test_other_lengths_leave_nothing_out(distribution: LengthDistribution) -> None:
    assert distribution.excluded(1) == 0


def test_recorded_lengths_need_a_document_that_fits() -> None:
    with pytest.raises(ValueError, match=r"recorded lengths need a max_length of 5 or more.*; got 4\. Raise it"):
        distribution_named("recorded").draw(1, 4, 0)


def test_the_record_is_what_its_readme_says() -> None:
    import collators.lengths

    readme = (collators.lengths.RECORDED.parent / "README.md").read_text(encoding="utf-8")
    lengths = np.array(recorded_lengths())
    assert f"{len(lengths):,} real documents" in readme
    assert f"{int(lengths.sum()):,} tokens" in readme
    quantiles = [
        int(np.quantile(lengths, q, method="inverted_cdf")) for q in (0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1)
    ]
    assert f"| {lengths.mean():.1f} | " + " | ".join(f"{value:,}" for value in quantiles) + " |" in readme
    left_out = [RecordedLengths("recorded").excluded(limit) for limit in (64, 128, 256, 512, 1024, 2048, 4096)]
    assert "| left out | " + " | ".join(f"{count:,}" for count in left_out) + " |" in readme


@given(lengths=st.lists(st.integers(1, 2**40), min_size=1, max_size=30), passes=st.integers(1, 3), seed=seeds)
def test_a_file_gives_each_length_once_a_pass(lengths: list[int], passes: int, seed: int) -> None:
    read = FileLengths("f", tuple(lengths), "line", range(1, len(lengths) + 1))
    drawn = read.draw(passes * len(lengths), 2**40, seed)
    assert sorted(drawn) == sorted(lengths * passes)
    assert read.draw(passes * len(lengths), 2**40, seed) == drawn


def test_a_file_of_other_places_than_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        FileLengths("f", (3, 4), "line", (1,)).draw(1, 8, 0)


def test_a_file_may_hold_a_length_of_one_and_one_of_18_digits(tmp_path: Path) -> None:
    longest = 10**18 - 1
    assert read_lengths_file(file_of(tmp_path, f"1\n{longest}\n")).lengths == (1, longest)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_text_may_hold_blank_lines_comments_and_a_byte_order_mark(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "lengths.txt"
    path.write_bytes("\ufeff# tokens\n\n 3 \n5 # long\n\n+2".replace("\n", ending).encode())
    read = read_lengths_file(str(path))
    assert read.lengths == (3, 5, 2)
    assert read.places == (3, 4, 6)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16", ">i4"])
def test_an_npy_file_gives_its_integers(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "lengths.npy"
    np.save(path, np.array([3, 5, 2], dtype=dtype))
    read = read_lengths_file(str(path))
    assert read.lengths == (3, 5, 2)
    assert all(type(length) is int for length in read.lengths)


def test_what_a_file_is_follows_from_its_name_in_capitals_too(tmp_path: Path) -> None:
    saved = tmp_path / "saved.npy"
    np.save(saved, np.array([3, 5]))
    assert read_lengths_file(str(saved.rename(tmp_path / "LENGTHS.NPY"))).lengths == (3, 5)
    written = Path(parquet_of(tmp_path, tokens=[2, 4]))
    assert read_lengths_file(str(written.rename(tmp_path / "lengths.Parquet"))).lengths == (2, 4)


def test_a_parquet_file_gives_its_first_integer_column_or_the_one_named(tmp_path: Path) -> None:
    path = parquet_of(tmp_path, text=["a", "b"], tokens=[3, 5], words=[2, 4])
    assert read_lengths_file(path).lengths == (3, 5)
    assert read_lengths_file(f"{path}:words").lengths == (2, 4)


@settings(max_examples=30)
@given(data=st.data(), count=st.integers(1, 30), named=st.booleans(), dictionary=st.booleans())
def test_a_parquet_file_gives_all_of_a_column_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int, named: bool, dictionary: bool
) -> None:
    """In row groups, in pages, dictionary-encoded or not, from arrays of several chunks, beside other columns."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    width = data.draw(st.sampled_from(["int64", "int32", "uint16"]))
    columns = {
        # Few values: a dictionary of them is shorter than the column.
        name: data.draw(st.lists(st.integers(1, 9) | st.integers(1, 2**15), min_size=count, max_size=count))
        for name in ("tokens", "words.of it", "id")
    }
    cut = data.draw(st.integers(0, count))
    table = pa.table(
        {"text": pa.array(["a"] * count)}
        | {
            name: pa.chunked_array([values[:cut], values[cut:]], pa.type_for_alias(width))
            for name, values in columns.items()
        }
    )
    path = tmp_path_factory.getbasetemp() / "written.parquet"
    pq.write_table(
        table,
        path,
        row_group_size=data.draw(st.integers(1, count)),
        use_dictionary=dictionary,
        data_page_size=data.draw(st.sampled_from([1, 2**20])),
    )
    name = data.draw(st.sampled_from([*columns])) if named else "tokens"
    read = read_lengths_file(f"{path}:{name}" if named else str(path))
    assert read.lengths == tuple(columns[name])
    assert all(type(length) is int for length in read.lengths)
    assert list(read.places) == list(range(count))


@given(
    lengths=st.lists(st.integers(1, 2**15 - 1), min_size=1, max_size=20),
    dtype=st.sampled_from(["i2", "u2", "i4", "u4", "i8", "u8"]),
    order=st.sampled_from("<>"),
    step=st.integers(1, 3),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_an_npy_file_gives_its_integers_however_they_are_written(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    dtype: str,
    order: str,
    step: int,
    version: tuple[int, int],
) -> None:
    """Of either byte order, from arrays with steps between their elements, in every version of the format."""
    array = np.repeat(np.array(lengths, dtype=f"{order}{dtype}"), step)[::step]
    path = tmp_path_factory.getbasetemp() / "written.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    read = read_lengths_file(str(path))
    assert read.lengths == tuple(lengths)
    assert all(type(length) is int for length in read.lengths)


def test_files_of_other_lengths_have_other_names_and_equal_files_the_same(tmp_path: Path) -> None:
    first = read_lengths_file(file_of(tmp_path, "3\n5\n"))
    again = read_lengths_file(file_of(tmp_path, "# same\n3\n5\n"))
    other = read_lengths_file(file_of(tmp_path, "3\n6\n"))
    assert first.name == again.name
    # Results are recorded under it, and baselines found by it: it stays what it was.
    assert first.name == "lengths.txt@f129ab65"
    assert replace(first, path="my lengths, [1*].txt").name == "my_lengths___1__.txt@f129ab65"
    assert first.name != other.name
    assert {first, other} == {other, first}
    assert pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one length; got none. Write"),
        ("# nothing\n\n", "at least one length; got none."),
        ("3\n0\n", "line 2 needs a length of 1 or more; got 0. Correct or remove it."),
        ("3\n\n-4\n", "line 3 needs a length of 1 or more; got -4."),
        ("length\n3\n", "line 1 needs one integer of 1 or more; got 'length'."),
        ("3.0\n", "line 1 needs one integer of 1 or more; got '3.0'."),
        ("3 4\n", "got '3 4'."),
        ("1_000\n", "got '1_000'."),
        ("\u0663\n", "got '\u0663'."),
        ("9" * 19, "got '" + "9" * 19 + "'."),
        ("9" * 40, "got '" + "9" * 40 + "'."),
        ("9" * 41, "got '" + "9" * 40 + "...'."),
        ("3\n" + "9" * 5000, "line 2 needs one integer of 1 or more; got '" + "9" * 40 + "...'."),
    ],
)
def test_bad_text_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in one_line_error(file_of(tmp_path, text))


@settings(max_examples=50)
@given(content=st.binary(max_size=200))
@example(content=b"\xff\xfe3\x00")
@example(content=b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,), }\n")
@pytest.mark.parametrize("suffix", ["txt", "npy", "parquet"])
def test_any_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(content)
    read = read_or_error(str(path))
    if isinstance(read, str):
        assert read.startswith(str(path))
        assert "\n" not in read
    else:
        assert min(read.lengths) >= 1


@pytest.mark.parametrize("name", ["missing.txt", "missing.npy", "missing.parquet", "missing.parquet:tokens"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    assert "readable file of lengths; got: " in one_line_error(str(tmp_path / name))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "got: Is a directory. Check the path" in one_line_error(str(tmp_path))


def test_other_bytes_than_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lengths.bin"
    path.write_bytes(b"\xff\xfe\x00")
    assert "needs UTF-8 text with one integer a line; got other bytes." in one_line_error(str(path))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1.0, 2.0]), "one-dimensional integer array; got float64 of shape (2,). Save"),
        (np.array(3), "one-dimensional integer array; got int64 of shape ()."),
        (np.array([[1, 2]]), "one-dimensional integer array; got int64 of shape (1, 2)."),
        (np.array([True]), "got bool of shape (1,)."),
        (np.array(["3"]), "got <U1 of shape (1,)."),
        (np.array([3, 0]), "index 1 needs a length of 1 or more; got 0. Correct or remove it."),
        (np.array([3, 4, -7]), "index 2 needs a length of 1 or more; got -7."),
        (np.array([], dtype=np.int64), "at least one length; got none."),
        (
            np.array([3, None], dtype=object),
            "got: Object arrays cannot be loaded when allow_pickle=False. Write it with",
        ),
    ],
)
def test_a_bad_array_is_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = tmp_path / "lengths.npy"
    np.save(path, array)
    assert message in one_line_error(str(path))


@pytest.mark.parametrize(
    ("columns", "column", "message"),
    [
        ({"text": ["a"]}, "", "needs an integer column; got no integer column. Integer columns are: none."),
        ({"tokens": [3]}, ":words", "got no integer column 'words'. Integer columns are: tokens."),
        ({"tokens": [3], "share": [0.5]}, ":share", "got no integer column 'share'."),
        ({"tokens": [3, None]}, "", "row 1 needs a length of 1 or more; got null. Remove it."),
        ({"tokens": [3, 4, 0]}, "", "row 2 needs a length of 1 or more; got 0."),
    ],
)
def test_a_bad_column_is_refused(tmp_path: Path, columns: dict[str, list[object]], column: str, message: str) -> None:
    assert message in one_line_error(parquet_of(tmp_path, **columns) + column)


def test_a_parquet_file_without_pyarrow_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = one_line_error(str(tmp_path / "lengths.parquet"))
    assert "needs pyarrow, which is not installed. Run `pip install pyarrow`" in message


def test_a_length_over_the_maximum_is_refused_where_it_stands(tmp_path: Path) -> None:
    read = read_lengths_file(file_of(tmp_path, "# tokens\n3\n9\n12\n"))
    assert read.draw(3, 12, 0) != []
    with pytest.raises(ValueError, match=r"lengths\.txt line 3 needs a length of at most 8; got 9\. Split"):
        read.draw(1, 8, 0)


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 8, 0), "count"), ((1, 0, 0), "max_length"), ((1, 8, -1), "seed")]
)
def test_a_file_refuses_the_same_arguments_as_a_distribution(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"a draw needs a {message} of"):
        FileLengths("f", (3,), "line", (1,)).draw(*arguments)
