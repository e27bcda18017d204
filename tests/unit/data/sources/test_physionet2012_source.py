import io
import re
import tarfile
import zipfile

import pytest
from raw_tables import events_of, rows_of, write_table
from tests.hostile import check_source
from typer.testing import CliRunner

from ehrsequencing.cli.main import app
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.sources import import_source, spool
from ehrsequencing.errors import ConfigError, DataError

RECORDS = {
    132539: """
        00:00,RecordID,132539
        00:00,Age,54
        00:00,Gender,0
        00:00,Height,-1
        00:00,ICUType,4
        00:00,Weight,81.6
        00:07,HR,73
        00:37,Urine,0
        10:00,DiasABP,0
        35:19,pH,7.36
        35:19,pH,7.36
        48:00,MechVent,1
    """,
    132540: """
        00:00,RecordID,132540
        00:00,Age,90
        00:00,Gender,1
        00:00,Height,175.3
        00:00,ICUType,2
        00:00,Weight,-1
        01:11,Temp,-17.8
        01:11,TroponinI,1.2
    """,
    132541: "00:00,RecordID,132541\n00:00,Age,30\n00:00,Gender,-1\n00:00,ICUType,1\n05:00,K,4.1",
    132542: "00:00,RecordID,132542\n00:00,Age,31\n00:00,Gender,1\n00:00,ICUType,1\n05:00,K,4.2",
    132543: "00:00,RecordID,132543\n00:00,Age,32\n00:00,Gender,1\n00:00,ICUType,1\n05:00,K,4.3",
    132544: "00:00,RecordID,132544\n00:00,Age,33\n00:00,Gender,1\n00:00,ICUType,1\n05:00,K,4.4",
}
OUTCOMES = """
    RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death
    132539,6,1,5,-1,0
    132540,16,8,8,4,1
    132541,21,11,19,575,0
    132542,7,1,9,1,1
    132543,7,1,-1,0,0
    132544,7,1,9,90,0
    999999,7,1,9,90,0
"""


def lines(text):
    return "".join(line.strip() + "\n" for line in text.strip().splitlines())


def text_of(record, text):
    return f"Time,Parameter,Value\n{lines(text)}"


def table(records=RECORDS):
    rows = [f"{record},{line}" for record, text in records.items() for line in lines(text).splitlines()]
    return "\n".join(["RecordID,Time,Parameter,Value", *rows, ""])


def folder(path, form="set-a.csv", records=RECORDS, outcomes=OUTCOMES):
    """The records above, in one of the forms that they come in."""
    path.mkdir(parents=True, exist_ok=True)
    files = {f"set-a/{record}.txt": text_of(record, text).encode() for record, text in records.items()}
    if form.endswith((".csv", ".csv.gz")):
        write_table(path / form, table(records))
    elif form.endswith(".zip"):
        with zipfile.ZipFile(path / form, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
            archive.writestr("set-a/README", "not a record")
    elif form.endswith(".tar.gz"):
        with tarfile.open(path / form, "w:gz") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(content)
    if outcomes is not None:
        (path / "Outcomes-a.txt").write_text(lines(outcomes))
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("challenge")
    return import_source("physionet2012", folder(path / "raw"), path / "meds")


def of(dataset, subject):
    return rows_of(events_of(dataset).filter(subject_id=subject), "numeric_value", "visit_id", "unit")


def test_every_row_of_two_records(dataset):
    def measured(time, name, value, unit, visit=132539):
        return time, f"PHYSIONET2012//{name}", pytest.approx(value), visit, unit

    assert of(dataset, 132539) == [
        (None, "GENDER//F", None, None, None),
        ("1945-12-31 00:00:00", "MEDS_BIRTH", None, None, None),
        ("2000-01-01 00:00:00", "ICU_ADMISSION//SURGICAL ICU", None, 132539, None),
        measured("2000-01-01 00:00:00", "Weight", 81.6, "kg"),
        measured("2000-01-01 00:07:00", "HR", 73, "bpm"),
        measured("2000-01-01 00:37:00", "Urine", 0, "mL"),
        measured("2000-01-02 11:19:00", "pH", 7.36, None),
        measured("2000-01-02 11:19:00", "pH", 7.36, None),
        measured("2000-01-03 00:00:00", "MechVent", 1, None),
    ]
    assert of(dataset, 132540) == [
        (None, "GENDER//M", None, None, None),
        ("1910-01-01 00:00:00", "MEDS_BIRTH", None, None, None),
        ("2000-01-01 00:00:00", "ICU_ADMISSION//CARDIAC SURGERY RECOVERY UNIT", None, 132540, None),
        measured("2000-01-01 00:00:00", "Height", 175.3, "cm", 132540),
        measured("2000-01-01 01:11:00", "TroponinI", 1.2, "ug/L", 132540),
    ]


def test_every_row_is_an_event_or_counted(dataset):
    assert dataset.manifest["tables"]["set-a"] == {
        "rows": 40,
        "events": 29,
        "rows_with_events": 29,
        "rows_without_events": {
            "missing: written as 0": 1, "missing: written as a negative number": 4, "the record's own number": 6,
        },
    }  # fmt: skip
    assert dataset.manifest["conflicts"] == {
        "records_of_a_single_row": 0, "records_without_descriptors": 0, "outcomes_of_unknown_records": 1,
        "records_without_outcomes": 0,
    }  # fmt: skip
    assert dataset.manifest["notes"][0].startswith("The publisher gives no dates.")
    codes = {code: rest for code, *rest in dataset.codes().rows()}
    assert codes["PHYSIONET2012//pH"] == ["pH of arterial blood", "lab", True]
    assert codes["PHYSIONET2012//HR"][1] == "vital"
    assert codes["PHYSIONET2012//MechVent"][1] == "procedure"


def labels(dataset, name):
    frame, manifest = read_labels(dataset.path / "labels" / f"{name}.parquet")
    assert (frame["prediction_time"].dt.to_string("%Y-%m-%d %H:%M") == "2000-01-03 00:00").all()
    return frame, {row["step"]: row["rows"] for row in manifest["flow"]}, manifest


def test_death_in_hospital(dataset):
    frame, flow, manifest = labels(dataset, "mortality_inpatient")
    expected = [(132539, False), (132540, True), (132541, False), (132542, True), (132543, False), (132544, False)]
    assert frame.select("subject_id", "boolean_value").rows() == expected
    assert flow["labelled"] == 6 and flow["positive"] == 2 and flow["of them with a survival below 2 days"] == 1
    assert manifest["kind"] == "binary"


def test_time_to_death_is_censored_at_the_horizon(dataset, tmp_path):
    frame, flow, manifest = labels(dataset, "time_to_death")
    assert frame.select("subject_id", "integer_value", "float_value").rows() == [
        (132539, 0, 365.0), (132540, 1, 2.5), (132541, 0, 365.0), (132544, 1, 88.5),
    ]  # fmt: skip
    assert flow["excluded: survival of 0 or 1 days"] == 2
    assert flow["event"] == 2 and flow["censored"] == 2 and flow["of them with a later death"] == 1
    assert manifest["kind"] == "survival" and manifest["horizon_days"] == 365
    sooner = import_source("physionet2012", folder(tmp_path / "raw"), tmp_path / "meds", horizon_days=30)
    assert sooner.manifest["options"]["horizon_days"] == 30
    assert labels(sooner, "time_to_death")[0].select("integer_value", "float_value").rows() == [
        (0, 30.0), (1, 2.5), (0, 30.0), (0, 30.0),
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["set-a.csv.gz", "set-a", "set-a.zip", "set-a.tar.gz"])
def test_other_forms_of_a_set_give_the_same(tmp_path, dataset, form):
    raw = folder(tmp_path / "raw", form)
    other = import_source("physionet2012", raw, tmp_path / "meds")
    assert events_of(other).equals(events_of(dataset))
    assert other.fingerprint == dataset.fingerprint


def test_several_sets_and_missing_outcomes(tmp_path, dataset):
    raw = folder(tmp_path / "raw", records={key: RECORDS[key] for key in (132539, 132540)}, outcomes=None)
    write_table(raw / "SET-B.csv", table({key: text for key, text in RECORDS.items() if key > 132540}))
    (raw / "Outcomes-b.txt").write_text(lines(OUTCOMES))
    both = import_source("physionet2012", raw, tmp_path / "meds")
    assert both.manifest["tables_missing"] == ["Outcomes-a.txt"]
    assert both.manifest["tables"]["set-b"]["rows"] == 20
    assert events_of(both).equals(events_of(dataset))
    alone = import_source("physionet2012", folder(tmp_path / "alone", outcomes=None), tmp_path / "none")
    assert alone.manifest["labels"] == [] and not (alone.path / "labels").exists()
    assert alone.manifest["conflicts"]["records_without_outcomes"] == 6


def test_what_the_challenge_does_not_know_is_dropped(tmp_path):
    further = "01:00,Phosphate,3\n01:00,,2\n02:00,K,high"
    odd = {132539: f"{RECORDS[132539].strip()}\n{further}", 5: "00:00,Gender,7\n00:00,Age,500"}
    dataset = import_source("physionet2012", folder(tmp_path / "raw", records=odd), tmp_path / "meds")
    account = dataset.manifest["tables"]["set-a"]
    assert account["rows_dropped"] == {"without a code": 3, "without a time": 1}
    assert account["unreadable"] == {"value": 1}
    assert ("2000-01-01 02:00:00", "PHYSIONET2012//K", None, 132539, "mEq/L") in of(dataset, 132539)
    with pytest.raises(DataError, match=r"set-a\.csv has .* (that would be dropped|no numbers)"):
        import_source("physionet2012", tmp_path / "raw", tmp_path / "strict", strict=True)


@pytest.mark.parametrize("form", ["set-a.csv", "set-a"])
def test_the_48_hours_end_at_48_00(tmp_path, dataset, form):
    """RECORDS has an event at 48:00, which stays."""
    late = {**RECORDS, 132541: RECORDS[132541] + "\n48:01,K,4\n48:30,HR,80\n100:00,Phosphate,1"}
    found = import_source("physionet2012", folder(tmp_path / "raw", form, late), tmp_path / "meds")
    assert events_of(found).equals(events_of(dataset))
    assert found.manifest["events_dropped"] == {"more than 48 hours after admission": 2, "without a code": 1}
    with pytest.raises(
        DataError, match=r"3 events that would be dropped; got (more than 48 hours|without a code).* row"
    ):
        import_source("physionet2012", tmp_path / "raw", tmp_path / "strict", strict=True)


def test_records_that_look_like_a_misspelt_number_are_counted(tmp_path):
    odd = {**RECORDS, 13254: "05:00,K,4.1", 13255: "05:00,K,4.1\n06:00,K,4.2", 13256: "00:00,Age,50"}
    found = import_source("physionet2012", folder(tmp_path / "raw", records=odd), tmp_path / "meds")
    assert found.manifest["conflicts"] == {
        "records_of_a_single_row": 2, "records_without_descriptors": 2, "outcomes_of_unknown_records": 1,
        "records_without_outcomes": 3,
    }  # fmt: skip
    assert found.manifest["counts"]["subjects"] == 9


def test_strict_takes_what_the_publisher_marks_as_missing(tmp_path, dataset):
    strict = import_source("physionet2012", folder(tmp_path / "raw"), tmp_path / "meds", strict=True)
    assert events_of(strict).equals(events_of(dataset))


def replaced(old, new, record=132539):
    return {**RECORDS, record: RECORDS[record].replace(old, new)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"records": replaced("35:19", "35:61")},
            r"column time of .*set-a\.csv has 2 values that are no times; got '35:61' in row 10; expected hours",
        ),
        (
            {"records": replaced("RecordID,132539", "RecordID,7")},
            r"a record in .*set-a\.csv names another; got RecordID 7 in row 1; expected 132539",
        ),
        (
            {"records": replaced("RecordID,132539", "RecordID,")},
            r"a record in .*set-a\.csv names another; got no RecordID in row 1; expected 132539",
        ),
        (
            {"records": replaced("00:37,Urine,0", "00:37,Age,55")},
            r"set-a\.csv has a record that is there already; got Age of record 132539; expected each",
        ),
        ({"records": {}}, "the sets have no record; got 0 rows; expected at least one"),
        (
            {"outcomes": OUTCOMES.replace("Survival", "Days")},
            r"Outcomes-a\.txt lacks survival; got columns",
        ),
        (
            {"outcomes": OUTCOMES.replace("132541,21,11,19,575,0", "132541,21,11,19,575,2")},
            r"column in-hospital_death of .*Outcomes-a\.txt has 1 unusable values; got 2 in row 3; expected 0, 1 or -1",
        ),
        (
            {"outcomes": OUTCOMES.replace(",575,", ",-5,")},
            r"column survival of .*Outcomes-a\.txt has 1 unusable values; got -5 in row 3; expected days, or -1",
        ),
        (
            {"outcomes": OUTCOMES.replace("132541", "132540")},
            r"Outcomes-a\.txt repeats values of recordid; got 132540, first in row 2",
        ),
    ],
)
def test_bad_records_are_named_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        import_source("physionet2012", folder(tmp_path / "raw", **changes), tmp_path / "meds")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_bad_record_file_is_named(tmp_path):
    raw = folder(tmp_path / "raw", "set-a", replaced("35:19", "35-19"))
    with pytest.raises(
        DataError, match=r"column time of .*set-a/132539\.txt has 2 values that are no times; .* row 10"
    ):
        import_source("physionet2012", raw, tmp_path / "meds")
    (raw / "set-a/132540.txt").write_text("")
    with pytest.raises(DataError, match=r"132540\.txt is empty"):
        import_source("physionet2012", folder(tmp_path / "raw", "set-a", {132539: RECORDS[132539]}), tmp_path / "meds")


def test_a_set_in_two_forms_none_at_all_or_damaged(tmp_path):
    raw = folder(tmp_path / "raw")
    folder(raw, "set-a.zip")
    with pytest.raises(DataError, match=r"raw has set-a in 2 forms; got set-a, set-a\.zip; expected one"):
        import_source("physionet2012", raw, tmp_path / "meds")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no set of records; got an empty folder; expected set-a\.csv"):
        import_source("physionet2012", tmp_path / "empty", tmp_path / "meds")
    with pytest.raises(DataError, match="nowhere is missing; expected a folder"):
        import_source("physionet2012", tmp_path / "nowhere", tmp_path / "meds")
    for form in ("set-a.zip", "set-a.tar.gz"):
        damaged = folder(tmp_path / form, form)
        content = (damaged / form).read_bytes()
        (damaged / form).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=rf"{form} is damaged or cut short; got .*; expected the publisher's arch"):
            import_source("physionet2012", damaged, tmp_path / "meds")
        hollow = folder(tmp_path / f"hollow-{form}", form, records={})
        with pytest.raises(DataError, match=rf"{form} has no records; expected files such as 132539\.txt"):
            import_source("physionet2012", hollow, tmp_path / "meds")


def test_a_record_in_two_sets(tmp_path):
    raw = folder(tmp_path / "raw")
    write_table(raw / "set-b.csv", table({132541: RECORDS[132541]}))
    with pytest.raises(DataError, match=r"set-b\.csv has a record that is there already; got .* of record 132541"):
        import_source("physionet2012", raw, tmp_path / "meds")
    write_table(raw / "set-b.csv", table({7: "05:00,K,4.1"}))
    (raw / "Outcomes-b.txt").write_text(lines(OUTCOMES))
    with pytest.raises(DataError, match="a record has outcomes in two sets; got record 132539; expected one"):
        import_source("physionet2012", raw, tmp_path / "meds")


def test_the_command_line(tmp_path):
    raw, out = folder(tmp_path / "raw"), tmp_path / "meds"
    told = CliRunner().invoke(app, ["import", "physionet2012", str(raw), str(out), "--horizon-days", "30"])
    assert told.exit_code == 0, told.output
    assert re.search(r"subjects\W+6\b", told.output) and "The publisher gives no dates." in told.output
    manifest = read_labels(out / "labels/time_to_death.parquet")[1]
    assert manifest["horizon_days"] == 30
    with pytest.raises(ConfigError, match="source mimic-iii has no option horizon_days; expected strict"):
        import_source("mimic-iii", raw, tmp_path / "other", horizon_days=30)


@pytest.mark.parametrize("days", [0, 3651])
def test_horizons_out_of_range(tmp_path, days):
    with pytest.raises(ConfigError, match=f"horizon_days is out of range; got {days}; expected 1 to 3650"):
        import_source("physionet2012", folder(tmp_path / "raw"), tmp_path / "meds", horizon_days=days)


def test_shards_are_many_where_records_are(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(spool, "EVENTS_PER_SHARD", 4)
    raw = folder(tmp_path / "raw", "set-a")
    several = import_source("physionet2012", raw, tmp_path / "meds")
    assert several.manifest["counts"]["shards"] > dataset.manifest["counts"]["shards"]
    assert events_of(several).equals(events_of(dataset))


def test_hostile_input(tmp_path):
    raw = folder(tmp_path / "clean", "set-a.csv.gz")
    (raw / "Outcomes-a.txt").rename(raw / "Outcomes-a.csv")
    check_source("physionet2012", raw, tmp_path, examples=15)
