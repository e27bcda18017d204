import json
from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meds import CodeMetadataSchema, DataSchema, SubjectSplitSchema
from raw_tables import events_of, number_of, rows_of
from test_mimic_iii_source import folder as mimic_iii
from test_mimic_iv_source import folder as mimic_iv
from test_synthea_source import NEWEST
from test_synthea_source import folder as synthea_folder
from test_uci_source import encounters
from test_uci_source import folder as uci_folder
from tests.hostile import check_account

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.sources import import_source
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.errors import DataError, SplitError


def uci(path):
    return uci_folder(path, encounters((10, 1, {"insulin": "Up", "weight": ">200", "A1Cresult": ">8"}), (20, 2, {})))


def synthea(path):
    return synthea_folder(path, NEWEST)


BORN = datetime(1960, 1, 1)
EVENTS = {
    "subject_id": [1, 1, 1, 1, 2, 2, 3],
    "time": [
        None, BORN, datetime(2010, 1, 1, 8), datetime(2010, 1, 2), BORN, datetime(2011, 1, 1), datetime(2012, 1, 1),
    ],
    "code": ["GENDER//F", "MEDS_BIRTH", "LOINC//2160-0", "ICD10CM//E11.9", "MEDS_BIRTH", "MEDS_DEATH", "HOUSE//1"],
    "numeric_value": [None, None, 1.5, None, None, None, None],
}  # fmt: skip


def frame(**changes):
    return pl.DataFrame(EVENTS | changes)


def write(path, events, codes=None, splits=None, document=None):
    """A dataset: `events` by the path of its shard below `data`."""
    for name, rows in events.items():
        file = path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(file) if isinstance(rows, pl.DataFrame) else pq.write_table(rows, file)
    (path / "metadata").mkdir(parents=True, exist_ok=True)
    if codes is not None:
        codes.write_parquet(path / "metadata/codes.parquet")
    if splits is not None:
        splits.write_parquet(path / "metadata/subject_splits.parquet")
    if document is not None:
        (path / "metadata/dataset.json").write_text(json.dumps(document))
    return path


def load(tmp_path, events, **further):
    return import_source("meds", write(tmp_path / "raw", events, **further), tmp_path / "meds")


def splits_of(dataset):
    return dict(dataset.subject_splits().rows())


EXPECTED = [
    (None, "GENDER//F", None, 1),
    ("1960-01-01 00:00:00", "MEDS_BIRTH", None, 1),
    ("1960-01-01 00:00:00", "MEDS_BIRTH", None, 2),
    ("2010-01-01 08:00:00", "LOINC//2160-0", 1.5, 1),
    ("2010-01-02 00:00:00", "ICD10CM//E11.9", None, 1),
    ("2011-01-01 00:00:00", "MEDS_DEATH", None, 2),
    ("2012-01-01 00:00:00", "HOUSE//1", None, 3),
]


def content(dataset):
    return rows_of(events_of(dataset), "numeric_value", "subject_id")


def test_polars_written_shards_in_splits(tmp_path):
    rows = frame()
    shards = {"train/0.parquet": rows[:4], "tuning/0.parquet": rows[4:6], "held_out/0.parquet": rows[6:]}
    dataset = load(tmp_path, shards)
    assert content(dataset) == EXPECTED
    assert splits_of(dataset) == {1: "train", 2: "tuning", 3: "held_out"}
    for file in (dataset.path / "data").rglob("*.parquet"):
        DataSchema.validate(pq.read_table(file))
    CodeMetadataSchema.validate(pq.read_table(dataset.path / "metadata/codes.parquet"))
    SubjectSplitSchema.validate(pq.read_table(dataset.path / "metadata/subject_splits.parquet"))
    assert dataset.manifest["tables"]["data"] == {
        "rows": 7, "events": 7, "rows_with_events": 7,
        "columns_missing": ["text_value", "unit", "visit_id"],
    }  # fmt: skip
    assert dict(dataset.codes().select("code", "kind").rows()) == {
        "GENDER//F": "demographic", "MEDS_BIRTH": "demographic", "LOINC//2160-0": "lab", "HOUSE//1": "other",
        "ICD10CM//E11.9": "diagnosis", "MEDS_DEATH": "demographic",
    }  # fmt: skip


def test_arrow_written_other_types(tmp_path):
    """Narrow integers, large and dictionary-encoded strings, nanoseconds with a zone, doubles."""
    rows = frame()
    shifted = [None if time is None else time.replace(tzinfo=UTC) for time in EVENTS["time"]]
    table = pa.table(
        {
            "code": pa.array(EVENTS["code"], pa.large_string()).dictionary_encode(),
            "time": pa.array(shifted, pa.timestamp("ns", tz="America/New_York")),
            "subject_id": pa.array(EVENTS["subject_id"], pa.uint16()),
            "numeric_value": pa.array(EVENTS["numeric_value"], pa.float64()),
        }
    )
    assert content(load(tmp_path, {"0.parquet": table})) == EXPECTED
    assert splits_of(MedsDataset.open(tmp_path / "meds")) == splits_of(load(tmp_path / "b", {"0.parquet": rows}))


@pytest.mark.parametrize("written", [pl.Categorical, pl.Enum(sorted(set(EVENTS["code"])))])
def test_categorical_codes_text_times_and_whole_numbers_as_floats(tmp_path, written):
    zone = timezone(timedelta(hours=-5))
    times = [None if time is None else time.replace(tzinfo=UTC).astimezone(zone).isoformat() for time in EVENTS["time"]]
    rows = frame(time=times).with_columns(pl.col("code").cast(written), pl.col("subject_id").cast(pl.Float64))
    assert content(load(tmp_path, {"0.parquet": rows})) == EXPECTED


def test_one_file_and_a_folder_with_one_file(tmp_path):
    (tmp_path / "raw").mkdir()
    frame().write_parquet(tmp_path / "raw/events.parquet")
    for name, src in (("file", "raw/events.parquet"), ("folder", "raw")):
        assert content(import_source("meds", tmp_path / src, tmp_path / name)) == EXPECTED


def test_version_0_3_0_and_before(tmp_path):
    """`patient_id`, `timestamp` and `numerical_value`, and splits by patient."""
    old = frame().rename({"subject_id": "patient_id", "time": "timestamp", "numeric_value": "numerical_value"})
    raw = write(tmp_path / "raw", {"0.parquet": old}, document={"dataset_name": "X", "meds_version": "0.3.0"})
    splits = pl.DataFrame({"patient_id": [1, 2, 3], "split": ["train", "validation", "test"]})
    splits.write_parquet(raw / "metadata/patient_splits.parquet")
    dataset = import_source("meds", raw, tmp_path / "meds")
    assert content(dataset) == EXPECTED
    assert splits_of(dataset) == {1: "train", 2: "tuning", 3: "held_out"}
    assert dataset.manifest["origin"] == {"dataset_name": "X", "meds_version": "0.3.0"}
    assert dataset.manifest["columns"]["subject_id"] == "patient_id"
    written = json.loads((dataset.path / "metadata/dataset.json").read_text())
    assert written["meds_version"].startswith("0.4")


def test_columns_of_mimic_iv_meds(tmp_path):
    rows = pl.DataFrame(
        {
            "subject_id": [1, 1, 1],
            "time": [datetime(2010, 1, day) for day in (1, 2, 3)],
            "code": ["LAB//1", "LAB//2", "LAB//3"],
            "hadm_id": [22, None, 23],
            "unit": ["mg/dL", None, None],
            "text": ["1.5", "neg", None],
            "icustay_id": [None, 7, None],
            "priority": ["STAT", None, None],
        }
    )
    dataset = load(tmp_path, {"0.parquet": rows})
    found = rows_of(events_of(dataset), "visit_id", "unit", "text_value")
    assert [row[2:] for row in found] == [(22, "mg/dL", "1.5"), (None, None, "neg"), (23, None, None)]
    assert dataset.manifest["columns"]["visit_id"] == "hadm_id"
    assert dataset.manifest["columns_left_out"] == ["icustay_id", "priority"]


def test_visits_that_are_text(tmp_path):
    rows = frame(visit_id=["17", "18.0", None, "enc-9", "enc-9", None, None])
    visits = events_of(load(tmp_path, {"0.parquet": rows}))["visit_id"].drop_nulls().to_list()
    assert sorted(visits) == sorted([17, 18, number_of("enc-9"), number_of("enc-9")])


def test_visits_that_are_written_alike_stay_apart(tmp_path):
    """Leading zeros are no number's; `7.0` is 7, as tables of floats have it; digits of other scripts are text."""
    written = ["7", "007", "7.0", "-7", "0", "-0", "\u0667"]
    rows = frame(visit_id=written, subject_id=[1] * 7, time=[datetime(2010, 1, day) for day in range(1, 8)])
    events = events_of(load(tmp_path, {"0.parquet": rows.with_columns(code=pl.lit("A"))}))
    expected = [7, number_of("007"), 7, -7, 0, number_of("-0"), number_of("\u0667")]
    assert events.sort("time")["visit_id"].to_list() == expected


@pytest.mark.parametrize("blank", ["", " "])
def test_times_of_empty_text_are_told(tmp_path, blank):
    """A null, which is how the standard says that a fact has no date, is none of them."""
    times = [None if time is None else time.isoformat() for time in EVENTS["time"]]
    told = "a time of empty text, taken as a fact without a date"
    rows = frame(time=[*times[:3], blank, *times[4:]])
    dataset = load(tmp_path, {"train/0.parquet": rows[:4], "held_out/1.parquet": frame()[4:]})
    assert dataset.manifest["tables"]["data"]["contradictions"] == {told: 1}
    assert (None, "ICD10CM//E11.9", None, 1) in content(dataset)
    with pytest.raises(DataError, match=rf"0.parquet has 1 rows with {told}; got written time '{blank}' in row 4"):
        import_source("meds", tmp_path / "raw", tmp_path / "strict", strict=True)
    sound = write(tmp_path / "sound", {"0.parquet": frame(time=times)})
    assert "contradictions" not in import_source("meds", sound, tmp_path / "b", strict=True).manifest["tables"]["data"]


def test_a_subject_in_several_files_becomes_whole(tmp_path):
    rows = frame()
    dataset = load(tmp_path, {"b/1.parquet": rows[::2], "a/0.parquet": rows[1::2], "a/empty.parquet": rows[:0]})
    assert content(dataset) == EXPECTED
    shards = [pl.read_parquet(file) for file in (dataset.path / "data").rglob("*.parquet")]
    assert sum(shard["subject_id"].n_unique() for shard in shards) == 3
    for shard in shards:
        assert shard.equals(shard.sort("subject_id", "time", nulls_last=False, maintain_order=True))


def test_code_metadata_is_kept(tmp_path):
    codes = pl.DataFrame(
        {
            "code": ["ICD10CM//E11.9", "ICD10CM//E11.9", "HOUSE//1", "UNUSED//1"],
            "description": [None, "Type 2 diabetes", "Houses", "x"],
            "parent_codes": [["ICD10CM/E11"], ["SNOMED/44054006"], None, ["A"]],
            "valueuom": ["a", "b", "c", "d"],
        }
    )
    dataset = load(tmp_path, {"0.parquet": frame()}, codes=codes)
    table = pl.read_parquet(dataset.path / "metadata/codes.parquet")
    kept = {code: rest for code, *rest in table.select("code", "description", "parent_codes").rows()}
    assert kept["ICD10CM//E11.9"] == ["Type 2 diabetes", ["ICD10CM/E11", "SNOMED/44054006"]]
    assert kept["HOUSE//1"] == ["Houses", None]
    assert "UNUSED//1" not in kept and set(kept) == set(EVENTS["code"])
    assert dataset.manifest["code_columns_left_out"] == ["valueuom"]


def test_parents_written_as_one_string(tmp_path):
    codes = pl.DataFrame({"code": ["HOUSE//1", "MEDS_BIRTH"], "parent_codes": ["SNOMED/1", None]})
    dataset = load(tmp_path, {"0.parquet": frame()}, codes=codes)
    table = pl.read_parquet(dataset.path / "metadata/codes.parquet").filter(pl.col("parent_codes").is_not_null())
    assert table.select("code", "parent_codes").rows() == [("HOUSE//1", ["SNOMED/1"])]


def test_implausible_events_are_counted_or_refused(tmp_path):
    odd = pl.DataFrame(
        {
            "subject_id": [1, 1, 1, 1, None, 1, 1, 1, 2],
            "time": [
                datetime(1950, 1, 1), datetime(2100, 1, 1), datetime(1700, 1, 1), datetime(2010, 1, 1),
                datetime(2010, 1, 1), datetime(1965, 1, 1), None, datetime(2010, 1, 1), datetime(2011, 5, 1),
            ],
            "code": ["A", "A", "A", None, "A", "MEDS_BIRTH", "MEDS_DEATH", "A", "MEDS_DEATH"],
            "numeric_value": [None, None, None, None, None, None, None, float("inf"), None],
        }
    )  # fmt: skip
    rows = pl.concat([frame(), odd])
    dataset = load(tmp_path, {"0.parquet": rows})
    account = dataset.manifest["tables"]["data"]
    assert account["dropped"] == {
        "before 1850 or after 2300": 1, "before birth": 1, "more than 125 years after birth": 1, "without a code": 1,
        "without a subject": 1, "without a time": 1,
    }  # fmt: skip
    assert account["unreadable"] == {"numeric_value": 1}
    assert dataset.manifest["conflicts"] == {"further_births_of_a_subject": 1, "further_deaths_of_a_subject": 1}
    assert content(dataset) == sorted([*EXPECTED, ("2010-01-01 00:00:00", "A", None, 1)], key=lambda row: row[0] or "")
    with pytest.raises(DataError, match=r"column numeric_value of .*0.parquet has 1 values that are no numbers"):
        import_source("meds", tmp_path / "raw", tmp_path / "strict", strict=True)
    write(tmp_path / "other", {"0.parquet": pl.concat([frame(), odd[:1]])})
    with pytest.raises(DataError, match="has 1 events that would be dropped; got before birth: subject 1, code A"):
        import_source("meds", tmp_path / "other", tmp_path / "strict", strict=True)


def test_our_own_dataset_comes_out_as_it_was(tmp_path):
    """Code book, end of observation, notes and every event."""
    synthesise(tmp_path / "raw", subjects=40, workers=1)
    dataset, raw = import_source("meds", tmp_path / "raw", tmp_path / "meds"), MedsDataset.open(tmp_path / "raw")
    assert dataset.fixed_code_book and dataset.codes().equals(raw.codes())
    assert events_of(dataset).equals(events_of(raw))
    assert splits_of(dataset) == splits_of(raw)
    ends, expected = dataset.observation_end(), raw.observation_end()
    assert ends is not None and expected is not None and ends.sort("subject_id").equals(expected.sort("subject_id"))
    assert set(raw.manifest["notes"]) <= set(dataset.manifest["notes"])


ROW = st.tuples(
    st.sampled_from([1, 2, 3, None]),
    st.sampled_from([None, *(datetime(year, 5, 1) for year in (1700, 1955, 1960, 1999, 2010, 2090, 2400))]),
    st.sampled_from(["A", "B", "MEDS_BIRTH", "MEDS_DEATH", None, " "]),
    st.sampled_from([None, 1.5, float("nan"), float("inf"), 1e300]),
    st.sampled_from([None, "7", "7.0", "x"]),
)
COLUMNS = {
    "subject_id": pl.Int64,
    "time": pl.Datetime,
    "code": pl.String,
    "numeric_value": pl.Float64,
    "hadm_id": pl.String,
}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROW, min_size=1, max_size=20), cut=st.integers(0, 20), unit=st.sampled_from(["ms", "us", "ns"]))
def test_every_row_is_there_or_counted(tmp_path_factory, rows, cut, unit):
    """Against a reading in plain Python, whatever the rows, their files and types."""
    given_rows = pl.DataFrame(rows, schema=COLUMNS, orient="row")
    if unit == "ns":
        # Nanoseconds reach from 1677 to 2262.
        given_rows = given_rows.filter((pl.col("time").dt.year() < 2262).fill_null(True))
    typed = given_rows.with_columns(pl.col("time").cast(pl.Datetime(unit)))
    raw = write(tmp_path_factory.mktemp("raw"), {"0.parquet": typed[:cut], "1.parquet": typed[cut:]})
    births: dict[int, datetime] = {}
    for subject, time, code, *_ in given_rows.rows():
        if subject is not None and code == "MEDS_BIRTH" and time is not None:
            births[subject] = min(time, births.get(subject, time))
    expected, dropped, infinite = [], 0, 0
    for subject, time, code, value, visit in given_rows.rows():
        birth = births.get(subject)
        birth = birth if birth is not None and 1850 <= birth.year < 2300 else None
        undated = time is None
        wrong = (
            subject is None or code in (None, " ") or (undated and code.startswith("MEDS_"))
            or (not undated and not 1850 <= time.year < 2300)
            or (birth is not None and not undated and not 0 <= (time - birth).days <= 125 * 365.25)
        )  # fmt: skip
        infinite += value in (float("inf"), 1e300)
        dropped += wrong
        if not wrong:
            number = value if value == 1.5 else None
            expected.append((subject, time, code, number, {None: None, "x": number_of("x")}.get(visit, 7)))
    for single in ("MEDS_BIRTH", "MEDS_DEATH"):
        for subject in (1, 2, 3):
            several = sorted(
                (row for row in expected if row[0] == subject and row[2] == single), key=lambda row: row[1]
            )
            for further in several[1:]:
                expected.remove(further)
    key = str
    try:
        dataset = import_source("meds", raw, raw / "../meds" / raw.name)
    except DataError as problem:
        assert not expected and len(str(problem).splitlines()) == 1
        return
    found = events_of(dataset).select("subject_id", "time", "code", "numeric_value", "visit_id").rows()
    assert sorted(found, key=key) == sorted(expected, key=key)
    assert sum(dataset.manifest["tables"]["data"].get("dropped", {}).values()) == dropped
    assert dataset.manifest["tables"]["data"].get("unreadable", {}).get("numeric_value", 0) == infinite
    check_account(dataset)


SPLITS = pl.DataFrame({"subject_id": [1, 2, 3], "split": ["train", "tuning", "held_out"]})


@pytest.mark.parametrize(
    ("events", "splits", "message"),
    [
        ({"train/0.parquet": frame(), "test/0.parquet": frame()[:1]}, None,
         "1 subjects are in two splits; got subject 1 in held_out and train"),
        ({"0.parquet": frame()}, SPLITS[:2], "1 subjects have no split in .*; got subject 3"),
        ({"0.parquet": frame()}, pl.concat([SPLITS, SPLITS[:1].with_columns(split=pl.lit("tuning"))]),
         "1 subjects are in two splits; got subject 1"),
        ({"0.parquet": frame()}, SPLITS.with_columns(split=pl.lit("fold1")),
         "splits of other names; got fold1; expected train, tuning, held_out, training"),
        ({"train/0.parquet": frame()}, SPLITS,
         "2 subjects have another split in .*; got subject 2 in train and tuning"),
    ],
)  # fmt: skip
def test_errors_of_splits(tmp_path, events, splits, message):
    with pytest.raises(SplitError, match=message):
        load(tmp_path, events, splits=splits)
    assert not (tmp_path / "meds").exists()


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"0.parquet": frame().drop("time")}, "0.parquet lacks time; got columns subject_id, code, numeric_value"),
        (
            {"0.parquet": frame(subject_id=[*"abcdefg"])},
            "column subject_id of .*0.parquet has 7 values that are no whole",
        ),
        ({"0.parquet": frame(time=["x"] * 7)}, "column time of .*0.parquet has 7 values that are no times"),
        ({"0.parquet": frame()[:0]}, "raw has no events; got 1 empty files"),
        ({"0.parquet": frame(subject_id=[None] * 7)}, "raw has no subject"),
        ({}, r"raw is no MEDS dataset; got no \*.parquet; expected a folder with data/"),
        ({"0.parquet": frame(code=[["a"]] * 7)}, "column code of .*0.parquet has 7 values that are no text"),
    ],
)
def test_errors_of_events(tmp_path, events, message):
    with pytest.raises(DataError, match=message) as raised:
        load(tmp_path, events)
    assert len(str(raised.value).splitlines()) == 1


def test_damaged_files(tmp_path):
    raw = write(tmp_path / "raw", {"0.parquet": frame()})
    whole = (raw / "data/0.parquet").read_bytes()
    (raw / "data/0.parquet").write_bytes(whole[:-30])
    with pytest.raises(DataError, match="0.parquet is malformed"):
        import_source("meds", raw, tmp_path / "meds")
    (raw / "data/0.parquet").write_bytes(whole)
    (raw / "metadata/codes.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="codes.parquet is not readable parquet"):
        import_source("meds", raw, tmp_path / "meds")
    pl.DataFrame({"concept": [1]}).write_parquet(raw / "metadata/codes.parquet")
    with pytest.raises(DataError, match="codes.parquet lacks code; got columns concept"):
        import_source("meds", raw, tmp_path / "meds")
    pl.DataFrame({"code": ["A"], "parent_codes": [1]}).write_parquet(raw / "metadata/codes.parquet")
    with pytest.raises(DataError, match="column parent_codes of .*codes.parquet has the wrong type; got Int64"):
        import_source("meds", raw, tmp_path / "meds")


@pytest.mark.parametrize(
    ("column", "values", "got"),
    [
        ("description", [["a", "b"]], r"List\(String\); expected text"),
        ("description", [1.5], "Float64; expected text"),
        ("kind", [[1]], r"List\(Int64\); expected text"),
        ("numeric", ["yes"], "String; expected true or false"),
        ("parent_codes", [[["a"]]], r"List\(List\(String\)\); expected lists of codes"),
    ],
)
def test_code_metadata_of_another_type(tmp_path, column, values, got):
    codes = pl.DataFrame({"code": ["HOUSE//1"], column: values})
    raw = write(tmp_path / "raw", {"0.parquet": frame()}, codes=codes)
    with pytest.raises(
        DataError, match=rf"column {column} of .*codes.parquet has the wrong type; got {got}"
    ) as problem:
        import_source("meds", raw, tmp_path / "meds")
    assert len(str(problem.value).splitlines()) == 1
    if column != "parent_codes":
        with pytest.raises(DataError, match=f"column {column} of .*codes.parquet has the wrong type"):
            prepare(raw, tmp_path / "store", min_count=1)


def test_code_metadata_of_a_like_type(tmp_path):
    codes = pl.DataFrame(
        {"code": ["HOUSE//1"], "description": ["Houses"], "kind": ["other"], "numeric": [1], "parent_codes": [[7]]},
        schema_overrides={"description": pl.Categorical, "kind": pl.Categorical},
    )
    dataset = load(tmp_path, {"0.parquet": frame()}, codes=codes)
    assert dict(dataset.codes().select("code", "description").rows())["HOUSE//1"] == "Houses"


@pytest.mark.parametrize("ours", ["x", ["x"], {"notes": 5}, {"notes": "a note"}, {"notes": [5]}, None])
def test_a_manifest_that_is_none(tmp_path, ours):
    raw = write(tmp_path / "raw", {"train/0.parquet": frame()}, document={"ehrsequencing": ours})
    for use in (lambda: import_source("meds", raw, tmp_path / "meds"), lambda: prepare(raw, tmp_path / "store")):
        with pytest.raises(
            DataError, match="dataset.json has no manifest of this program under ehrsequencing; got"
        ) as it:
            use()
        assert len(str(it.value).splitlines()) == 1


@pytest.mark.parametrize("document", [{}, {"ehrsequencing": {}}, {"ehrsequencing": {"notes": ["Dates are odd."]}}])
def test_a_manifest_that_says_little(tmp_path, document):
    notes = load(tmp_path, {"0.parquet": frame()}, document=document).manifest["notes"]
    assert ("Dates are odd." in notes) == ("notes" in document.get("ehrsequencing", {}))


@pytest.mark.parametrize(
    ("kind", "folder"), [("mimic-iv", mimic_iv), ("mimic-iii", mimic_iii), ("uci-diabetes", uci), ("synthea", synthea)]
)
def test_kinds_by_system_are_those_of_the_sources(tmp_path, kind, folder):
    """A dataset of ours without its code table has the kinds that its source gave."""
    sound = import_source(kind, folder(tmp_path / "raw"), tmp_path / "sound")
    (sound.path / "metadata/codes.parquet").unlink()
    found = dict(import_source("meds", sound.path, tmp_path / "meds").codes().select("code", "kind").rows())
    expected = dict(import_source(kind, tmp_path / "raw", tmp_path / "again").codes().select("code", "kind").rows())
    systems = {code: code.split("//")[0] for code in expected if expected[code] != found[code]}
    assert set(systems.values()) <= {"SNOMED", "LOINC", "SYNTHEA"}, "systems whose kind is that of the table or code"
    assert set(found) == set(expected)


def test_a_file_that_is_not_there_or_of_another_kind(tmp_path):
    (tmp_path / "events.csv").write_text("subject_id,time,code\n1,,A\n")
    with pytest.raises(DataError, match=r"events.csv is no MEDS dataset; got no \*.parquet"):
        import_source("meds", tmp_path / "events.csv", tmp_path / "meds")
    with pytest.raises(DataError, match="nothing is no MEDS dataset; got no such file or folder"):
        import_source("meds", tmp_path / "nothing", tmp_path / "meds")
