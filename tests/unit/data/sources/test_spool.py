import polars as pl
import pytest
from raw_tables import events_of
from test_mimic_iv_source import TABLES, folder
from test_omop_source import folder as omop_folder

from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source, spool
from ehrsequencing.data.sources.spool import EventSpool
from ehrsequencing.data.sources.spool_files import SpoolFiles
from ehrsequencing.data.splits import split_of


def many(subjects):
    """The patients and laboratory results above for many subjects, 10 apart."""
    patients = pl.read_csv(
        "\n".join(line.strip() for line in TABLES["hosp/patients"].strip().splitlines()).encode(), infer_schema=False
    )
    ids = [str(10 * number) for number in range(subjects)]
    people = pl.concat([patients[:1].with_columns(subject_id=pl.lit(subject)) for subject in ids])
    labs = pl.DataFrame(
        {
            "subject_id": ids * 3, "hadm_id": None, "itemid": "50912", "charttime": "2150-01-03 12:00:00",
            "valuenum": [str(number) for number in range(3 * subjects)],
        }
    )  # fmt: skip
    return people.write_csv(), labs.write_csv()


def test_shards_hold_whole_subjects_and_the_same_events(tmp_path, monkeypatch):
    patients, labs = many(60)
    raw = folder(tmp_path / "raw", hosp__patients=patients, hosp__labevents=labs)
    one = import_source("mimic-iv", raw, tmp_path / "one")
    monkeypatch.setattr(spool, "EVENTS_PER_SHARD", 7)
    several = import_source("mimic-iv", raw, tmp_path / "several")
    assert one.manifest["counts"]["shards"] == 3
    assert several.manifest["counts"]["shards"] > 10
    assert events_of(several).equals(events_of(one))
    seen = []
    for split in SPLITS:
        for frame in several.frames(split):
            subjects = frame.select("subject_id").collect()["subject_id"].unique().sort()
            assert (split_of(subjects.to_numpy()) == split).all()
            seen += subjects.to_list()
    assert sorted(seen) == sorted(set(seen)) == events_of(one)["subject_id"].unique().sort().to_list()
    assert not list((tmp_path / "several").glob(".*")), "temporary files are gone"


def test_the_same_files_give_the_same_bytes(tmp_path):
    raw = omop_folder(tmp_path / "raw")
    first, second = (import_source("omop", raw, tmp_path / name) for name in ("first", "second"))
    assert first.fingerprint == second.fingerprint


def test_small_data_have_one_shard_per_split(tmp_path):
    subjects = pl.DataFrame(
        {"subject_id": range(1000), "birth": [None] * 1000}, schema={"subject_id": pl.Int64, "birth": pl.Datetime("us")}
    )
    with EventSpool(tmp_path / "spool", subjects, [], registry="person") as made:
        assert made.shards["shard"].n_unique() == 3
        sizes = made.shards.group_by("split").len().sort("len")
        assert sizes["len"].sum() == 1000 and sizes["len"][-1] > 700


@pytest.mark.parametrize("subjects", [1, 2])
def test_fewer_subjects_than_splits(tmp_path, subjects):
    patients, labs = many(subjects)
    raw = folder(tmp_path / "raw", hosp__patients=patients, hosp__labevents=labs)
    dataset = import_source("mimic-iv", raw, tmp_path / "meds")
    assert dataset.manifest["counts"]["subjects"] == subjects


def test_a_table_whose_events_are_not_whole_is_read_again(tmp_path):
    events = pl.DataFrame({"code": ["a", "b"]})
    files = SpoolFiles(tmp_path / "spool")
    for table in (0, 1):
        files.append(table, 7, events)
        files.table_done(table, {"account": table}, events)
    files.append(2, 7, events)
    files.close()
    (tmp_path / "spool" / "001.000.007.arrows").write_bytes(b"cut")
    again = SpoolFiles(tmp_path / "spool")
    assert again.done_table(0)[0]["account"] == 0
    assert again.done_table(1) is None
    assert again.done_table(2) is None
    assert again.read(7).rows() == events.rows()


def test_a_table_taken_up_again_keeps_its_place(tmp_path):
    files = SpoolFiles(tmp_path / "spool")
    for table, code in ((0, "a"), (1, "b"), (0, "c"), (1, "d")):
        files.append(table, 3, pl.DataFrame({"code": [code]}))
    files.close()
    assert files.read(3)["code"].to_list() == ["a", "c", "b", "d"]
    assert files.read(4) is None
    files.shard_done(3, {"counts": {}}, pl.DataFrame({"code": ["a"], "len": [1]}))
    assert files.read(3) is None and files.done_shard(3)[1].rows() == [("a", 1)]
