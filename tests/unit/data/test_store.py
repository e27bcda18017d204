import pickle

import numpy as np
import pytest
from small_data import day, write_split

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.store import EVENT_COLUMNS, SUBJECT_COLUMNS, SplitStore, SplitWriter, TokenStore
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
    for column, dtype in {**SUBJECT_COLUMNS, **EVENT_COLUMNS}.items():
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
    path = store.path / "train" / "age.npy"
    content = path.read_bytes()
    path.write_bytes(b"\0" * 128 + content[128:])
    with pytest.raises(StoreError, match=r"age\.npy is damaged"):
        TokenStore.open(store.path).split("train")
    path.write_bytes(content.replace(b"<f4", b"<i4"))
    with pytest.raises(StoreError, match=r"age\.npy has another layout"):
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


def test_rows_may_arrive_in_any_order_of_subjects(tmp_path):
    """Shards whose subjects interleave give the same file as one sorted shard."""
    ids, lengths = np.arange(6, dtype=np.int64), np.array([2, 0, 3, 1, 4, 2])
    rows = {column: np.arange(12).astype(dtype) for column, dtype in EVENT_COLUMNS.items()}
    owner = np.repeat(ids, lengths)
    for name, parts in (("sorted", [[0, 1, 2, 3, 4, 5]]), ("mixed", [[1, 3, 4], [0, 2, 5]])):
        with SplitWriter(tmp_path / name, ids, lengths) as writer:
            for part in parts:
                chosen = np.isin(owner, part)
                writer.write_rows(np.array(part), {column: array[chosen] for column, array in rows.items()})
    for column in EVENT_COLUMNS:
        one, other = (tmp_path / name / f"{column}.npy" for name in ("sorted", "mixed"))
        assert one.read_bytes() == other.read_bytes()
        np.testing.assert_array_equal(np.load(one), rows[column])
