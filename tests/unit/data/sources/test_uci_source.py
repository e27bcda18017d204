import datetime as dt
import zipfile

import polars as pl
import pytest
from tests.hostile import check_account

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source
from ehrsequencing.data.sources.problems import quoted
from ehrsequencing.data.sources.uci_diabetes_tables import COLUMNS, DRUGS
from ehrsequencing.errors import DataError

MAPPING = """admission_type_id,description
1,Emergency
6,NULL
,
discharge_disposition_id,description
1,Discharged to home
11,Expired
13,Hospice / home
18,NULL
19,"Expired at home. Medicaid only, hospice."
,
admission_source_id,description
7, Emergency Room
17,NULL
"""
DEFAULTS = {
    "race": "Caucasian", "gender": "Female", "age": "[70-80)", "weight": "?", "admission_type_id": 1,
    "discharge_disposition_id": 1, "admission_source_id": 7, "time_in_hospital": 3, "payer_code": "?",
    "medical_specialty": "?", "num_lab_procedures": 41, "num_procedures": 0, "num_medications": 9,
    "number_outpatient": 0, "number_emergency": 0, "number_inpatient": 1, "diag_1": "428", "diag_2": "250.83",
    "diag_3": "V57", "number_diagnoses": 9, "max_glu_serum": "None", "A1Cresult": "None", "change": "No",
    "diabetesMed": "Yes", "readmitted": "NO", **dict.fromkeys(DRUGS, "No"),
}  # fmt: skip


def encounters(*rows):
    """Rows of (encounter, patient, what differs from `DEFAULTS`)."""
    return pl.DataFrame(
        [{"encounter_id": e, "patient_nbr": p, **DEFAULTS, **changes} for e, p, changes in rows]
    ).select(COLUMNS)


def folder(path, frame, mapping=MAPPING, name="diabetic_data.csv"):
    path.mkdir(exist_ok=True)
    (path / name).write_text(frame if isinstance(frame, str) else frame.write_csv())
    (path / "IDs_mapping.csv").write_text(mapping)
    return path


def imported(tmp_path, *rows):
    import_source("uci-diabetes", folder(tmp_path / "raw", encounters(*rows)), tmp_path / "meds", overwrite=True)
    dataset = MedsDataset.open(tmp_path / "meds")
    return dataset, pl.concat([dataset.scan(split) for split in SPLITS]).collect()


def of_visit(events, visit):
    return {code: (time, value) for code, time, value in
            events.filter(visit_id=visit).select("code", "time", "numeric_value").rows()}  # fmt: skip


def test_encounters_follow_their_identifiers(tmp_path):
    """Rows stand in another order than the encounters; the other patient's encounter does not count."""
    _, events = imported(
        tmp_path, (30, 1, {"time_in_hospital": 14}), (20, 2, {}), (10, 1, {"age": "[0-10)", "time_in_hospital": 1})
    )
    visits = events.filter(subject_id=1).group_by("visit_id").agg(pl.col("time").min(), end=pl.col("time").max())
    assert visits.filter(pl.col("visit_id").is_not_null()).sort("visit_id").rows() == [
        (10, dt.datetime(2000, 1, 1), dt.datetime(2000, 1, 2)),
        (30, dt.datetime(2000, 1, 31), dt.datetime(2000, 2, 14)),
    ]
    birth = events.filter(subject_id=1, code="MEDS_BIRTH")["time"].to_list()
    assert birth == [dt.datetime(2000, 1, 1) - dt.timedelta(days=round(5 * 365.25))]
    assert of_visit(events, 30)["UCI_AGE"] == (dt.datetime(2000, 1, 31), 75.0)


def test_facts_of_the_admission_and_of_the_discharge(tmp_path):
    changes = {
        "diag_2": "428", "insulin": "Up", "metformin-pioglitazone": "Steady", "change": "Ch", "A1Cresult": ">8",
        "max_glu_serum": "Norm", "medical_specialty": "Cardiology", "payer_code": "MC", "weight": "[75-100)",
        "number_outpatient": 2,
    }  # fmt: skip
    dataset, events = imported(tmp_path, (10, 1, changes))
    admitted, discharged = dt.datetime(2000, 1, 1), dt.datetime(2000, 1, 4)
    assert of_visit(events, 10) == {
        **{code: (admitted, value) for code, value in {
            "UCI_AGE": 75.0, "UCI_ADMISSION_TYPE//1": None, "UCI_ADMISSION_SOURCE//7": None,
            "UCI_SPECIALTY//Cardiology": None, "UCI_NUMBER_OUTPATIENT": 2.0, "UCI_NUMBER_EMERGENCY": 0.0,
            "UCI_NUMBER_INPATIENT": 1.0,
        }.items()},
        **{code: (discharged, value) for code, value in {
            "UCI_DISCHARGE//1": None, "UCI_PAYER//MC": None, "UCI_MAX_GLU_SERUM//Norm": None, "UCI_A1C//>8": None,
            "UCI_CHANGE//Ch": None, "UCI_DIABETES_MED//Yes": None, "UCI_DRUG//insulin//Up": None,
            "UCI_DRUG//metformin-pioglitazone//Steady": None, "DIAGNOSIS_PRINCIPAL//ICD9CM//428": None,
            "ICD9CM//428": None, "ICD9CM//V57": None, "UCI_WEIGHT": 87.5, "UCI_TIME_IN_HOSPITAL": 3.0,
            "UCI_NUM_LAB_PROCEDURES": 41.0, "UCI_NUM_PROCEDURES": 0.0, "UCI_NUM_MEDICATIONS": 9.0,
            "UCI_NUMBER_DIAGNOSES": 9.0,
        }.items()},
    }  # fmt: skip
    assert len(events.filter(visit_id=10)) == 24, "the repeated diagnosis is one event"
    undated = events.filter(pl.col("visit_id").is_null() & pl.col("time").is_null())["code"].sort().to_list()
    assert undated == ["GENDER//Female", "RACE//Caucasian"]
    codes = {code: rest for code, *rest in dataset.codes().rows()}
    assert codes["UCI_ADMISSION_SOURCE//7"] == ["Admission source: Emergency Room", "encounter", False]
    assert codes["UCI_DRUG//insulin//Up"] == ["Insulin, dose increased", "drug", False]
    assert codes["UCI_A1C//>8"] == ["Haemoglobin A1c: >8", "lab", False]
    assert codes["UCI_WEIGHT"] == ["Weight", "vital", True]
    assert codes["DIAGNOSIS_PRINCIPAL//ICD9CM//428"][1:] == ["diagnosis", False]
    assert codes["ICD9CM//428"][1:] == ["diagnosis", False]
    assert codes["RACE//Caucasian"] == ["Race: Caucasian", "demographic", False]
    assert codes["UCI_NUMBER_INPATIENT"][1:] == ["encounter", True]


def test_missing_is_no_code(tmp_path):
    changes = {
        "race": "?", "gender": "Unknown/Invalid", "admission_type_id": 6, "admission_source_id": 17,
        "discharge_disposition_id": 18, "diag_1": "?", "diag_2": "?", "diag_3": "?",
    }  # fmt: skip
    dataset, events = imported(tmp_path, (10, 1, changes))
    prefixes = (
        "RACE",
        "GENDER",
        "UCI_ADMISSION",
        "UCI_DISCHARGE",
        "DIAGNOSIS",
        "ICD9CM",
        "UCI_SPECIALTY",
        "UCI_WEIGHT",
    )
    assert not events.filter(pl.any_horizontal(pl.col("code").str.starts_with(prefix) for prefix in prefixes)).height
    assert not events["code"].str.contains(r"\?|None|Unknown|NULL").any()
    assert set(dataset.codes()["code"]) == set(events["code"])


def test_a_later_encounter_never_describes_an_earlier_one(tmp_path):
    _, events = imported(tmp_path, (10, 1, {"race": "?"}), (20, 1, {"race": "Asian"}), (30, 1, {"race": "Other"}))
    race = events.filter(pl.col("code").str.starts_with("RACE")).select("code", "time", "visit_id")
    assert race.rows() == [("RACE//Asian", dt.datetime(2000, 1, 31), 20)]


def test_conflicts_are_counted(tmp_path):
    dataset, events = imported(
        tmp_path,
        (10, 1, {"race": "Asian", "discharge_disposition_id": 11}),
        (20, 1, {"race": "Other", "age": "[60-70)"}),
        (30, 2, {"discharge_disposition_id": 19}),
    )
    assert dataset.manifest["conflicts"] == {
        "patients_with_several_values_of_race": 1,
        "patients_with_several_values_of_gender": 0,
        "encounters_younger_than_the_one_before": 1,
        "encounters_after_a_discharge_by_death": 1,
        "diagnoses_repeated_in_an_encounter": 0,
    }
    assert events.filter(pl.col("code").str.starts_with("RACE"), subject_id=1)["code"].to_list() == ["RACE//Asian"]
    deaths = events.filter(code="MEDS_DEATH").select("subject_id", "time", "visit_id").rows()
    assert deaths == [(2, dt.datetime(2000, 1, 4), 30)]


def test_labels_of_every_encounter_left_alive(tmp_path):
    rows = [
        (10, 1, {"readmitted": "<30"}), (20, 1, {"readmitted": ">30"}), (30, 1, {"readmitted": "<30"}),
        (40, 2, {"discharge_disposition_id": 11}), (50, 3, {"discharge_disposition_id": 13}), (60, 4, {}),
    ]  # fmt: skip
    dataset, events = imported(tmp_path, *rows)
    labels, manifest = read_labels(dataset.path / "labels/readmission_30d.parquet")
    assert labels.select("subject_id", "prediction_time", "boolean_value").rows() == [
        (1, dt.datetime(2000, 1, 4), True),
        (1, dt.datetime(2000, 2, 3), False),
        (1, dt.datetime(2000, 3, 4), True),
        (4, dt.datetime(2000, 1, 4), False),
    ]
    assert [(step["rows"], step["subjects"]) for step in manifest["flow"]] == [(6, 4), (1, 1), (1, 1), (4, 2), (2, 1)]
    assert not events["code"].str.to_lowercase().str.contains("readmi").any()
    assert manifest["dataset"] == {"source": "uci-diabetes", "fingerprint": dataset.fingerprint}


@pytest.mark.parametrize(
    ("data", "mapping"),
    [
        ("diabetic_data.csv", "IDs_mapping.csv"),
        ("dataset_diabetes/diabetic_data.csv", "dataset_diabetes/IDS_mapping.csv"),
        ("x/Diabetic_Data.CSV", "ids_mapping.csv"),
    ],
)
def test_the_zip_gives_what_the_folder_gives(tmp_path, data, mapping):
    frame = encounters((10, 1, {}), (20, 2, {"readmitted": "<30"}))
    expected = import_source("uci-diabetes", folder(tmp_path / "raw", frame), tmp_path / "a").fingerprint
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        archive.writestr("__MACOSX/diabetic_data.csv", "not this")
        archive.writestr(data, frame.write_csv())
        archive.writestr(mapping, MAPPING)
    assert import_source("uci-diabetes", tmp_path / "raw.zip", tmp_path / "b").fingerprint == expected


def test_progress_ends_at_the_total(tmp_path):
    seen = []
    import_source(
        "uci-diabetes",
        folder(tmp_path / "raw", encounters((1, 1, {}))),
        tmp_path / "a",
        progress=lambda *x: seen.append(x),
    )
    assert seen == [(1, 2), (2, 2)], "the file, and the one shard of the one subject"


GOOD = encounters((10, 1, {}), (20, 2, {}))


def second(**changes):
    """The second row, line 3 of the file, is bad."""
    return encounters((10, 1, {}), (20, 2, changes))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (GOOD.drop("insulin", "diag_1"), r"diabetic_data\.csv lacks diag_1, insulin; got 48 columns"),
        (GOOD.rename({"age": "Age"}), "lacks age"),
        ("", r"diabetic_data\.csv is empty or malformed"),
        (GOOD.clear(), r"diabetic_data\.csv is empty; got a header and 0 rows"),
        (second(num_medications="many"), "column num_medications .* 1 unusable values; got 'many' on line 3"),
        (second(number_inpatient="-1"), "column number_inpatient .* got '-1' on line 3; expected a whole number"),
        (second(age="75"), r"column age .* got '75' on line 3; expected a decade such as \[70-80\)"),
        (second(age="?"), r"column age .* got '\?' on line 3"),
        (second(weight="heavy"), "column weight .* got 'heavy' on line 3"),
        (second(time_in_hospital=31), "column time_in_hospital .* got 31 on line 3; expected 1 to 14 days"),
        (second(readmitted="yes"), "column readmitted .* got 'yes' on line 3"),
        (second(insulin="Doubled"), "column insulin .* got 'Doubled' on line 3; expected No, Up, Down, Steady"),
        (second(A1Cresult="7.2"), r"column A1Cresult .* got '7\.2' on line 3"),
        (encounters((10, 1, {}), (10, 2, {})), "repeats 1 values of encounter_id; got 10; expected each once"),
    ],
)  # fmt: skip
def test_bad_tables_are_named_and_nothing_is_written(tmp_path, frame, message):
    with pytest.raises(DataError, match=message):
        import_source("uci-diabetes", folder(tmp_path / "raw", frame), tmp_path / "meds")
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            "admission_type_id,description\n1,Emergency\n",
            "lacks the table of admission_source_id, discharge_disposition_id",
        ),
        (MAPPING + "7 Emergency Room\n", r"IDs_mapping\.csv line 15 is malformed; got 7 Emergency Room"),
        (
            MAPPING + "7,Clinic\n",
            r"raw/IDs_mapping\.csv line 15 describes 7 a second time, and differently; got 'Clinic' and before "
            "'Emergency Room'; expected one description each",
        ),
    ],
)
def test_bad_descriptions(tmp_path, mapping, message):
    with pytest.raises(DataError, match=message):
        import_source("uci-diabetes", folder(tmp_path / "raw", GOOD, mapping), tmp_path / "meds")


def test_a_description_that_is_repeated_word_for_word(tmp_path):
    raw = folder(tmp_path / "raw", GOOD, MAPPING + "7,Emergency  Room\n")
    dataset = import_source("uci-diabetes", raw, tmp_path / "meds")
    assert dict(dataset.codes().select("code", "description").rows())["UCI_ADMISSION_SOURCE//7"].endswith(
        "Emergency Room"
    )


ODD = [
    ("age", "[900-1000)", "age that cannot be", ["MEDS_BIRTH", "UCI_AGE"]),
    ("age", "[80-70)", "age that cannot be", ["MEDS_BIRTH", "UCI_AGE"]),
    ("age", "[120-130)", "age that cannot be", ["MEDS_BIRTH", "UCI_AGE"]),
    ("age", "[70-70)", "age that cannot be", ["MEDS_BIRTH", "UCI_AGE"]),
    ("weight", f"[10000000-{'9' * 400})", "weight that cannot be", ["UCI_WEIGHT"]),
    ("weight", ">5000", "weight that cannot be", ["UCI_WEIGHT"]),
    ("num_lab_procedures", 99_999_999_999_999, "num_lab_procedures above 1000", ["UCI_NUM_LAB_PROCEDURES"]),
    ("number_inpatient", 1001, "number_inpatient above 1000", ["UCI_NUMBER_INPATIENT"]),
    ("admission_type_id", 77, "admission_type_id that IDs_mapping.csv lacks", ["UCI_ADMISSION_TYPE//1"]),
    ("discharge_disposition_id", 77, "discharge_disposition_id that IDs_mapping.csv lacks", ["UCI_DISCHARGE//1"]),
]


@pytest.mark.parametrize(("column", "value", "name", "gone"), ODD)
def test_what_cannot_be_makes_no_event_and_is_counted(tmp_path, column, value, name, gone):
    base = {"weight": "[75-100)"}
    _, expected = imported(tmp_path, (10, 1, base), (20, 2, base))
    dataset, events = imported(tmp_path, (10, 1, base), (20, 2, {**base, column: value}))
    assert events.equals(expected.filter(~((pl.col("subject_id") == 2) & pl.col("code").is_in(gone))))
    assert dataset.manifest["tables"]["diabetic_data"]["contradictions"] == {name: 1}
    assert dataset.manifest["subjects_without_birth"] == (column == "age")
    check_account(dataset)
    with pytest.raises(DataError) as problem:
        import_source("uci-diabetes", tmp_path / "raw", tmp_path / "strict", strict=True)
    told = f"got {column} {quoted(value)} in row 2. Remedy: mend the file"
    assert f"diabetic_data.csv has 1 rows with {name}; {told}" in str(problem.value)


@pytest.mark.parametrize(
    "changes", [{"age": "[90-100)"}, {"age": "[110-120)"}, {"weight": ">200"}, {"num_lab_procedures": 1000}]
)
def test_what_is_rare_stays(tmp_path, changes):
    raw = folder(tmp_path / "raw", encounters((10, 1, changes)))
    dataset = import_source("uci-diabetes", raw, tmp_path / "meds", strict=True)
    assert "contradictions" not in dataset.manifest["tables"]["diabetic_data"]
    assert dataset.manifest["subjects_without_birth"] == 0


def test_repeated_diagnoses_are_one_event_and_counted(tmp_path):
    dataset, events = imported(
        tmp_path,
        (10, 1, {"diag_1": "428", "diag_2": "428", "diag_3": "428"}),
        (20, 2, {"diag_1": "1", "diag_2": "428", "diag_3": "428"}),
        (30, 3, {"diag_1": "?", "diag_2": "?", "diag_3": "428"}),
        (40, 3, {"diag_1": "428", "diag_2": "?", "diag_3": "429"}),
    )
    assert dataset.manifest["conflicts"]["diagnoses_repeated_in_an_encounter"] == 3
    icd = events.filter(pl.col("code").str.starts_with("ICD9CM//"))
    assert icd.sort("visit_id").select("visit_id", "code").rows() == [
        (10, "ICD9CM//428"), (20, "ICD9CM//1"), (20, "ICD9CM//428"), (30, "ICD9CM//428"), (40, "ICD9CM//428"),
        (40, "ICD9CM//429"),
    ]  # fmt: skip


def test_a_column_stated_twice(tmp_path):
    header, *rows = GOOD.write_csv().splitlines()
    twice = "\n".join([f"{header},insulin", *(f"{row},Up" for row in rows)])
    with pytest.raises(DataError, match=r"diabetic_data\.csv repeats columns; got insulin; expected each name once"):
        import_source("uci-diabetes", folder(tmp_path / "raw", twice), tmp_path / "meds")
    other = twice.replace(f"{header},insulin", f"{header},insulin_duplicated_0")
    import_source("uci-diabetes", folder(tmp_path / "other", other), tmp_path / "meds")


def test_two_tables_of_encounters(tmp_path):
    raw = folder(tmp_path / "raw", GOOD)
    folder(raw / "old", second(insulin="Up"), name="Diabetic_Data.csv")
    (raw / "old/IDs_mapping.csv").unlink()
    message = r"raw has Diabetic_Data\.csv twice; got diabetic_data\.csv and old/Diabetic_Data\.csv; expected one"
    with pytest.raises(DataError, match=message):
        import_source("uci-diabetes", raw, tmp_path / "meds")
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        for name in ("a/diabetic_data.csv", "b/diabetic_data.csv", "IDs_mapping.csv"):
            archive.writestr(name, GOOD.write_csv())
    message = r"zip has diabetic_data\.csv twice; got a/diabetic_data\.csv and b/diabetic_data\.csv; expected one"
    with pytest.raises(DataError, match=message):
        import_source("uci-diabetes", tmp_path / "raw.zip", tmp_path / "meds")
    (raw / "old").rename(raw / "__MACOSX")
    assert import_source("uci-diabetes", raw, tmp_path / "meds").manifest["encounters"] == 2


def zipped(path, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("diabetic_data.csv", GOOD.write_csv())
        archive.writestr("IDs_mapping.csv", MAPPING)
    return path


def patched(path, local, central, byte):
    """The zip with another byte at an offset in every local header and in every central one."""
    content = bytearray(zipped(path).read_bytes())
    for magic, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = content.find(magic)
        while at >= 0:
            content[at + offset] = byte
            at = content.find(magic, at + 4)
    return bytes(content)


def test_zips_that_cannot_be_read(tmp_path):
    bad = tmp_path / "bad.zip"
    whole, start = zipped(bad).read_bytes(), 30 + len("diabetic_data.csv")
    for content, told in (
        (patched(bad, 6, 8, 1), "encrypted"),
        (patched(bad, 8, 10, 99), "compression"),
        (whole[:start] + b"\xff" * 40 + whole[start + 40 :], "decompressing"),
        (whole[: len(whole) // 2], "zip"),
    ):
        bad.write_bytes(content)
        with pytest.raises(
            DataError, match=rf"bad\.zip is no readable zip; got .*{told}.*; expected a folder"
        ) as problem:
            import_source("uci-diabetes", bad, tmp_path / "meds")
        assert len(str(problem.value).splitlines()) == 1
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        good = zipped(tmp_path / f"download{compression}", compression)
        assert import_source("uci-diabetes", good, tmp_path / f"meds{compression}").manifest["encounters"] == 2


def test_missing_inputs(tmp_path):
    with pytest.raises(DataError, match="nowhere is missing; expected a folder or zip"):
        import_source("uci-diabetes", tmp_path / "nowhere", tmp_path / "meds")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no diabetic_data\.csv; got neither file"):
        import_source("uci-diabetes", tmp_path / "empty", tmp_path / "meds")
    raw = folder(tmp_path / "raw", GOOD)
    (raw / "IDs_mapping.csv").unlink()
    with pytest.raises(DataError, match=r"raw has no IDs_mapping\.csv; got diabetic_data\.csv"):
        import_source("uci-diabetes", raw, tmp_path / "meds")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(DataError, match=r"other\.zip has no diabetic_data\.csv; got neither file"):
        import_source("uci-diabetes", tmp_path / "other.zip", tmp_path / "meds")
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"broken\.zip is no readable zip"):
        import_source("uci-diabetes", tmp_path / "broken.zip", tmp_path / "meds")
