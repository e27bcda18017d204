import datetime as dt
import json
import pickle
import shutil

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from meds import CodeMetadataSchema, DataSchema, DatasetMetadataSchema, SubjectSplitSchema

from ehrsequencing.data.dataset import MedsDataset, MedsWriter
from ehrsequencing.data.schema import CODE_SCHEMA, EVENT_SCHEMA, SPLITS
from ehrsequencing.data.splits import split_of
from ehrsequencing.errors import DataError, RunError, SplitError

DAY = dt.datetime(2020, 1, 1)
CODES = pl.DataFrame({"code": ["A", "LOINC//1"], "numeric": [False, True]})


def events(subjects):
    """Two rows per subject, out of order: a dated lab with a value, and an undated code."""
    lab = pl.DataFrame({"subject_id": subjects, "code": "LOINC//1"}, schema_overrides={"code": pl.String})
    lab = lab.with_columns(pl.col("subject_id").cast(pl.Int64), time=pl.lit(DAY), numeric_value=pl.lit(1.5))
    static = lab.with_columns(time=None, code=pl.lit("A"), numeric_value=None)
    return pl.concat([lab, static], how="vertical_relaxed").sort("subject_id", descending=True)


def write(path, subjects=range(40), **options):
    subjects = np.array(subjects)
    with MedsWriter(path, **options) as writer:
        for split in SPLITS:
            writer.write_events(split, 0, events(subjects[split_of(subjects) == split]))
        writer.write_file("oracle/states.bin", b"\x01")
        writer.finish(CODES, source="test", options={"subjects": len(subjects)}, notes=["a note"], extra={"more": 1})
    return MedsDataset.open(path)


def write_foreign(path, frames):
    for name, frame in frames.items():
        (path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path / "data" / name)
    return path


def test_written_files_follow_meds(tmp_path):
    write(tmp_path / "d")
    for shard in (tmp_path / "d/data").rglob("*.parquet"):
        table = pq.read_table(shard)
        DataSchema.validate(table)
        frame = pl.from_arrow(table)
        assert frame.equals(frame.sort("subject_id", "time", nulls_last=False, maintain_order=True))
        assert frame["time"][0] is None
    CodeMetadataSchema.validate(pq.read_table(tmp_path / "d/metadata/codes.parquet"))
    SubjectSplitSchema.validate(pq.read_table(tmp_path / "d/metadata/subject_splits.parquet"))
    DatasetMetadataSchema.validate(json.loads((tmp_path / "d/metadata/dataset.json").read_text()))
    assert (tmp_path / "d/oracle/states.bin").read_bytes() == b"\x01"


def test_round_trip(tmp_path):
    dataset = write(tmp_path / "d")
    assert dataset.manifest["counts"]["subjects"] == 40
    assert dataset.manifest["counts"]["events"] == 80
    assert dataset.manifest["more"] == 1
    assert not dataset.fixed_code_book
    everyone = dataset.subject_splits()
    assert everyone["subject_id"].to_list() == list(range(40))
    assert everyone["split"].to_list() == split_of(np.arange(40)).tolist()
    for split in SPLITS:
        frame = dataset.scan(split).collect()
        assert dict(frame.schema) == EVENT_SCHEMA
        assert set(frame["subject_id"]) == set(everyone.filter(split=split)["subject_id"])
    assert dataset.codes().rows() == [("A", None, "other", False), ("LOINC//1", None, "lab", True)]
    assert list(dataset.codes().columns) == list(CODE_SCHEMA)


def test_fingerprint_is_of_the_content(tmp_path):
    first = write(tmp_path / "a").fingerprint
    shutil.move(tmp_path / "a", tmp_path / "moved")
    assert MedsDataset.open(tmp_path / "moved").fingerprint == first
    assert write(tmp_path / "b").fingerprint == first
    assert write(tmp_path / "c", range(41)).fingerprint != first


def test_a_failing_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), MedsWriter(tmp_path / "d") as writer:
        writer.write_events("train", 0, events([1]))
        raise KeyError
    with pytest.raises(DataError, match="ended without `finish`"), MedsWriter(tmp_path / "d") as writer:
        writer.write_events("train", 0, events([1]))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_keeps_the_old_dataset(tmp_path):
    before = write(tmp_path / "d").fingerprint
    with pytest.raises(RunError, match="exists already"):
        write(tmp_path / "d")
    with pytest.raises(DataError, match="no events"), MedsWriter(tmp_path / "d", overwrite=True) as writer:
        writer.finish(CODES, source="test", options={}, notes=[])
    assert MedsDataset.open(tmp_path / "d").fingerprint == before
    assert write(tmp_path / "d", range(50), overwrite=True).manifest["counts"]["subjects"] == 50
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_copy_in_another_process_can_write(tmp_path):
    with MedsWriter(tmp_path / "d") as writer:
        pickle.loads(pickle.dumps(writer)).write_events("train", 3, events([1]))
        writer.finish(CODES, source="test", options={}, notes=[])
    assert MedsDataset.open(tmp_path / "d").shards("train")[0].name == "3.parquet"


@pytest.mark.parametrize(
    ("shards", "error", "message"),
    [
        ({("train", 0): [1, 2], ("tuning", 0): [2]}, SplitError, "two splits; got subject 2 in train and tuning"),
        ({("train", 0): [1, 2], ("train", 1): [2]}, DataError, "1 subjects are in two shards; got subject 2"),
        ({("test", 0): [1]}, SplitError, "unknown split; got test"),
    ],
)  # fmt: skip
def test_writer_refuses_shared_subjects(tmp_path, shards, error, message):
    with pytest.raises(error, match=message), MedsWriter(tmp_path / "d") as writer:
        for (split, shard), subjects in shards.items():
            writer.write_events(split, shard, events(subjects))
        writer.finish(CODES, source="test", options={}, notes=[])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (events([1]).drop("time"), "data/train/0.parquet lacks time"),
        (events([1]).with_columns(ward=pl.lit(1)), "unknown columns; got ward"),
        (events([1]).with_columns(code=pl.lit(None, dtype=pl.String)), "rows without code; got 2 of 2"),
        (events([1]).with_columns(numeric_value=pl.lit("high")), "column numeric_value of .* has the wrong type"),
        (events([1]).with_columns(code=pl.lit("B")), "missing from the code table; got B"),
    ],
)
def test_writer_refuses_bad_events(tmp_path, frame, message):
    with pytest.raises(DataError, match=message), MedsWriter(tmp_path / "d") as writer:
        writer.write_events("train", 0, frame)
        writer.finish(CODES, source="test", options={}, notes=[])


def test_foreign_dataset_without_metadata_is_split_by_hash(tmp_path):
    frame = events(range(30)).with_columns(pl.col("time").cast(pl.Datetime("ns")), pl.col("subject_id").cast(pl.Int32))
    write_foreign(tmp_path, {"0.parquet": frame.drop("numeric_value").with_columns(ward=pl.lit("x"))})
    dataset = MedsDataset.open(tmp_path)
    assert dataset.manifest == {}
    assert dataset.subject_splits()["split"].to_list() == split_of(np.arange(30)).tolist()
    seen = [dataset.scan(split).collect() for split in SPLITS]
    assert [set(split_of(part["subject_id"].to_numpy())) for part in seen] == [{"train"}, {"tuning"}, {"held_out"}]
    assert sum(len(part) for part in seen) == 60
    assert pl.concat(seen)["numeric_value"].null_count() == 60
    assert dataset.codes()["kind"].to_list() == ["other", "lab"]


def test_foreign_split_folders_win(tmp_path):
    dataset = MedsDataset.open(
        write_foreign(tmp_path, {"held_out/a/0.parquet": events([1, 2]), "train/0.parquet": events([3])})
    )
    assert dataset.subject_splits().rows() == [(1, "held_out"), (2, "held_out"), (3, "train")]
    assert dataset.scan("tuning").collect().schema == pl.Schema(EVENT_SCHEMA)


def test_stated_splits_win_over_the_hash(tmp_path):
    write_foreign(tmp_path, {"0.parquet": events([1, 2, 3])})
    (tmp_path / "metadata").mkdir()
    stated = pl.DataFrame({"subject_id": [1, 2, 3], "split": ["tuning", "train", "tuning"]})
    stated.write_parquet(tmp_path / "metadata/subject_splits.parquet")
    dataset = MedsDataset.open(tmp_path)
    assert dataset.subject_splits().equals(stated)
    assert set(dataset.scan("tuning").collect()["subject_id"]) == {1, 3}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"subject_id": [1], "split": ["train"]}, "1 subjects have no split .* got subject 2"),
        ({"subject_id": [1, 2], "split": ["train", "test"]}, "splits of other names; got test"),
        ({"subject_id": [1, 2, 2], "split": ["train", "train", "tuning"]}, "1 subjects are in two splits"),
        ({"subject_id": [1, 2], "split": ["train", "tuning"]}, "another split .* got subject 2 in train and tuning"),
        ({"subject_id": [1, 2]}, "lacks split"),
    ],
)
def test_contradicting_splits_are_refused(tmp_path, stated, message):
    write_foreign(tmp_path, {"train/0.parquet": events([1, 2])})
    (tmp_path / "metadata").mkdir()
    pl.DataFrame(stated).write_parquet(tmp_path / "metadata/subject_splits.parquet")
    with pytest.raises(SplitError, match=message):
        MedsDataset.open(tmp_path)


def test_subject_in_two_split_folders_is_refused(tmp_path):
    write_foreign(tmp_path, {"train/0.parquet": events([1, 2]), "held_out/0.parquet": events([2])})
    with pytest.raises(SplitError, match="1 subjects are in two splits; got subject 2 in held_out and train"):
        MedsDataset.open(tmp_path)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (events([1]).drop("code"), r"0\.parquet lacks code; got columns"),
        (events([1]).with_columns(subject_id=pl.lit("p1")), "column subject_id of .* has the wrong type; got String"),
        (events([1]).with_columns(code=pl.lit(5)), "column code of .* has the wrong type; got Int"),
        (events([1]).with_columns(time=pl.lit(3.5)), "column time of .* has the wrong type; got Float64"),
        (events([1]).with_columns(time=pl.lit("31/31/20")), "column time of .* no times; got 2, first '31/31/20'"),
        (events([1]).with_columns(code=pl.lit(None, dtype=pl.String)), "rows without subject_id or code"),
        (events([]), "has no events; got 1 empty shards"),
    ],
)
def test_foreign_shards_that_cannot_be_read(tmp_path, frame, message):
    write_foreign(tmp_path, {"0.parquet": frame})
    with pytest.raises(DataError, match=message):
        MedsDataset.open(tmp_path)


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(DataError, match="is not a MEDS dataset; got no such folder"):
        MedsDataset.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not a MEDS dataset; got no data/"):
        MedsDataset.open(tmp_path)
    write(tmp_path / "d")
    shard = next((tmp_path / "d/data/train").iterdir())
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train/0\.parquet is not readable parquet"):
        MedsDataset.open(tmp_path / "d")


def test_numeric_flag_of_foreign_codes_is_fitted_on_train(tmp_path):
    valueless = events([1]).with_columns(numeric_value=pl.lit(None, dtype=pl.Float32))
    write_foreign(tmp_path, {"train/0.parquet": valueless, "held_out/0.parquet": events([2])})
    assert not MedsDataset.open(tmp_path).codes()["numeric"].any()


def test_code_table_of_other_tools_is_completed(tmp_path):
    write_foreign(tmp_path, {"train/0.parquet": events([1])})
    (tmp_path / "metadata").mkdir()
    table = pl.DataFrame({"code": ["A"], "description": ["first"], "parent_codes": [["Z"]]})
    table.write_parquet(tmp_path / "metadata/codes.parquet")
    assert MedsDataset.open(tmp_path).codes().rows() == [
        ("A", "first", "other", False),
        ("LOINC//1", None, "lab", True),
    ]
    table.with_columns(kind=pl.lit("disease")).write_parquet(tmp_path / "metadata/codes.parquet")
    with pytest.raises(DataError, match="unknown kinds; got disease"):
        MedsDataset.open(tmp_path).codes()
    pl.concat([table, table]).write_parquet(tmp_path / "metadata/codes.parquet")
    with pytest.raises(DataError, match="names a code twice or not at all; got A"):
        MedsDataset.open(tmp_path).codes()


def test_end_of_observation(tmp_path):
    dataset = write(tmp_path / "d")
    assert dataset.observation_end() is None
    table = pl.DataFrame({"subject_id": [1, 2], "observation_end": [dt.date(2021, 1, 1), None]})
    table.write_parquet(tmp_path / "d/metadata/observation.parquet")
    assert dataset.observation_end().rows() == [(1, dt.datetime(2021, 1, 1)), (2, None)]
    pl.concat([table, table]).write_parquet(tmp_path / "d/metadata/observation.parquet")
    with pytest.raises(DataError, match="repeats a subject"):
        dataset.observation_end()
    table.drop("subject_id").write_parquet(tmp_path / "d/metadata/observation.parquet")
    with pytest.raises(DataError, match="lacks subject_id"):
        dataset.observation_end()


def test_labels_carry_the_fingerprint_of_their_dataset_and_so_follow_it(tmp_path):
    labels = pl.DataFrame({"subject_id": [1], "prediction_time": [DAY], "boolean_value": [True]})
    with MedsWriter(tmp_path / "d") as writer:
        writer.write_events("train", 0, events([1, 2]))
        with pytest.raises(DataError, match="labels early of an unfinished dataset. Remedy: call MedsWriter.finish"):
            writer.write_labels("early", labels, {})
        writer.finish(CODES, source="test", options={}, notes=[])
        writer.write_labels("late", labels, {"task": "late"})
    dataset = MedsDataset.open(tmp_path / "d")
    assert json.loads((tmp_path / "d/labels/late.json").read_text()) == {
        "task": "late", "dataset": {"source": "test", "fingerprint": dataset.fingerprint}
    }  # fmt: skip
    assert not (tmp_path / "d/labels/early.parquet").exists()
