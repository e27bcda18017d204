import pickle

import numpy as np
import pytest
from small_data import day, write_split

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS, STATIC_TIME
from ehrsequencing.data.store import (
    EVENT_COLUMNS,
    NARROW_COLUMNS,
    SUBJECT_COLUMNS,
    SplitStore,
    SplitWriter,
    TokenStore,
    age_years,
    narrowest,
)
from ehrsequencing.data.vocabulary import Vocabulary
from ehrsequencing.errors import SplitError, StoreError
from ehrsequencing.io import read_json, write_json

COLUMN_FILES = [f"{column}.npy" for column in (*SUBJECT_COLUMNS, *EVENT_COLUMNS)]


@pytest.fixture
def store(write_meds, tmp_path):
    events = [(subject, day(number), "LOINC//1", float(number)) for subject in (4, 9) for number in range(20)]
    return prepare(write_meds(train=[events]), tmp_path / "store")


def test_a_store_opens_and_maps_its_columns(store):
    opened = TokenStore.open(store.path)
    train = opened.split("train")
    assert train.subject_id.tolist() == [4, 9]
    assert train.lengths.tolist() == [20, 20]
    assert opened.fingerprint == store.fingerprint
    for column, dtype in {**SUBJECT_COLUMNS, **EVENT_COLUMNS, **NARROW_COLUMNS}.items():
        array = getattr(train, column)
        assert array.dtype == np.dtype(dtype)
        assert isinstance(array.base, np.memmap), column
        assert not array.flags.writeable


def test_splits_without_subjects_are_empty(store):
    for name in ("tuning", "held_out"):
        assert len(store.split(name)) == 0
        assert store.split(name).index_of(np.array([4])).tolist() == [-1]
    with pytest.raises(SplitError, match="test"):
        store.split("test")


def test_subjects_are_found_by_identifier(store):
    assert store.split("train").index_of(np.array([9, 4, 5, -1, 2**62])).tolist() == [1, 0, -1, -1, -1]


def test_the_manifest_counts_and_sizes_every_file(store):
    files = store.manifest["files"]
    expected = {f"{split}/{name}" for split in SPLITS for name in COLUMN_FILES} | {"vocabulary.json", "values.json"}
    assert set(files) == expected
    assert store.manifest["fitted_on"] == "train"


@pytest.mark.parametrize("name", [f"train/{name}" for name in COLUMN_FILES] + ["vocabulary.json", "values.json"])
def test_a_truncated_file_is_named_with_its_sizes(store, name):
    path = store.path / name
    size = path.stat().st_size
    with path.open("rb+") as stream:
        stream.truncate(size - 1)
    with pytest.raises(StoreError) as problem:
        TokenStore.open(store.path)
    assert str(path) in problem.value.what and "truncated" in problem.value.what
    assert (problem.value.got, problem.value.expected) == (f"{size - 1} bytes", f"{size} bytes")
    assert "ehrseq prepare" in problem.value.remedy


def test_a_missing_or_grown_file_is_named(store):
    path = store.path / "held_out" / "code.npy"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(StoreError, match=r"held_out/code\.npy has grown"):
        TokenStore.open(store.path)
    path.unlink()
    with pytest.raises(StoreError, match=r"held_out/code\.npy is missing.*prepare"):
        TokenStore.open(store.path)


def test_a_damaged_header_is_named(store):
    path = store.path / "train" / "value.npy"
    content = path.read_bytes()
    path.write_bytes(b"\0" * 128 + content[128:])
    with pytest.raises(StoreError, match=r"value\.npy is damaged"):
        TokenStore.open(store.path).split("train")
    path.write_bytes(content.replace(b"<f4", b"<i4"))
    with pytest.raises(StoreError, match=r"value\.npy has another layout"):
        TokenStore.open(store.path).split("train")


def test_columns_of_another_store_do_not_fit(tmp_path):
    write_split(tmp_path / "a", {1: [{}, {}]})
    write_split(tmp_path / "b", {1: [{}]})
    (tmp_path / "a" / "train" / "visit.npy").write_bytes((tmp_path / "b" / "train" / "visit.npy").read_bytes())
    with pytest.raises(StoreError, match=r"visit\.npy does not fit"):
        SplitStore(tmp_path / "a", "train")


def test_what_is_no_store_is_refused(tmp_path, store):
    with pytest.raises(StoreError, match=r"no such folder.*ehrseq prepare"):
        TokenStore.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="not a token store"):
        TokenStore.open(tmp_path)
    manifest = store.path / "manifest.json"
    write_json(manifest, {**read_json(manifest), "format_version": 99})
    with pytest.raises(StoreError, match=r"another format.*99"):
        TokenStore.open(store.path)
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(StoreError, match="not readable JSON"):
        TokenStore.open(store.path)


def test_the_vocabulary_is_read_on_first_use(store):
    opened = TokenStore.open(store.path)
    file = store.path / "vocabulary.json"
    file.rename(store.path / "away")
    assert len(opened.split("train")) > 0
    with pytest.raises(StoreError, match=r"vocabulary\.json is missing"):
        len(opened.vocabulary)
    (store.path / "away").rename(file)
    assert opened.vocabulary.tokens == store.vocabulary.tokens
    manifest = read_json(store.path / "manifest.json")
    manifest["vocabulary"]["hash"] = "another"
    write_json(store.path / "manifest.json", manifest)
    with pytest.raises(StoreError, match=r"vocabulary\.json belongs to another store; got .*; expected another"):
        len(TokenStore.open(store.path).vocabulary)


def test_vocabulary_and_statistics_of_another_store_are_refused(store):
    manifest = read_json(store.path / "manifest.json")
    vocabulary = store.vocabulary
    swapped = Vocabulary(
        [*vocabulary.tokens[:5], *vocabulary.tokens[:4:-1]],
        [None] * 5 + ["LOINC//1"] * (len(vocabulary) - 5),
        vocabulary.kinds.tolist(),
        vocabulary.counts.tolist(),
    )
    swapped.save(store.path / "vocabulary.json")
    manifest["files"]["vocabulary.json"] = (store.path / "vocabulary.json").stat().st_size
    write_json(store.path / "manifest.json", manifest)
    with pytest.raises(StoreError, match=r"vocabulary\.json belongs to another store"):
        TokenStore.open(store.path)
    vocabulary.save(store.path / "vocabulary.json")
    manifest["files"]["vocabulary.json"] = (store.path / "vocabulary.json").stat().st_size
    manifest["values"]["hash"] = "0"
    write_json(store.path / "manifest.json", manifest)
    with pytest.raises(StoreError, match=r"values\.json belongs to another store"):
        _ = TokenStore.open(store.path).values


def test_a_pickled_split_is_a_path_not_a_copy(tmp_path):
    split = write_split(tmp_path, {1: [{"code": 7}] * 100_000})
    content = pickle.dumps(split)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).code, split.code)


def test_rows_may_arrive_in_any_order_and_from_several_writers(tmp_path):
    """Parts written one after the other give the same file as all rows at once; rows that are there stay."""
    ids, lengths = np.arange(6, dtype=np.int64), np.array([2, 0, 3, 1, 4, 2])
    rows = {column: np.arange(12).astype(dtype) for column, dtype in EVENT_COLUMNS.items()}
    for name, parts in (("whole", [(0, 12)]), ("parts", [(5, 12), (0, 2), (2, 5)])):
        for first, stop in parts:
            writer = SplitWriter(tmp_path / name)
            writer.write_subjects(ids, lengths)
            writer.write_rows(first, {column: array[first:stop] for column, array in rows.items()})
            assert writer.read_rows(first, stop)["time"].tolist() == list(range(first, stop))
    for column in EVENT_COLUMNS:
        one, other = (tmp_path / name / f"{column}.npy" for name in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes()
        np.testing.assert_array_equal(np.load(one), rows[column])


def test_columns_are_as_narrow_as_their_numbers_allow():
    small = narrowest(65_536, 32_767, 32_767)
    assert small == {**EVENT_COLUMNS, **NARROW_COLUMNS}
    for column, sizes in (("code", (65_537, 1, 1)), ("visit", (1, 32_768, 1)), ("statistic", (1, 1, 32_768))):
        assert narrowest(*sizes) == {**small, column: "<i4"}
    # Adding one to the last visit stays within its type.
    assert np.int16(32_767 - 1) + 1 == 32_767


def test_a_split_reads_wide_and_narrow_columns(tmp_path):
    ids, lengths = np.array([1]), np.array([2])
    rows = {"code": [5, 6], "visit": [0, 1], "time": [0, 1], "value": [1, np.nan], "statistic": [0, -1], "kind": [1, 2]}
    for name, dtypes in (("wide", EVENT_COLUMNS), ("narrow", narrowest(9, 2, 1))):
        writer = SplitWriter(tmp_path / name, dtypes)
        writer.write_subjects(ids, lengths, birth_time=ids, death_time=ids)
        writer.write_rows(0, {column: np.array(values) for column, values in rows.items()})
        split = SplitStore(tmp_path, name)
        for column, values in rows.items():
            np.testing.assert_array_equal(getattr(split, column), values)


def test_ages_are_years_from_birth_where_both_are_known():
    year = round(365.25 * 86_400e6)
    time = np.array([year, STATIC_TIME, 3 * year, 0])
    birth = np.array([0, 0, STATIC_TIME, -year // 2])
    np.testing.assert_array_equal(age_years(time, birth), np.float32([1, np.nan, np.nan, 0.5]))


def test_a_store_of_the_first_layout_is_refused(store):
    manifest = store.path / "manifest.json"
    write_json(manifest, {**read_json(manifest), "format_version": 1})
    with pytest.raises(
        StoreError, match=r"has another format; got .*1\); expected .*2\). Remedy: run `ehrseq prepare` again"
    ):
        TokenStore.open(store.path)
