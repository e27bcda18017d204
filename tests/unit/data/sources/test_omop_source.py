import polars as pl
import pytest
from raw_tables import events_of, rows_of, write_table

from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import DataError

TABLES = {
    "person": """
        person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,birth_datetime,race_concept_id,ethnicity_concept_id,gender_source_value,race_source_value,ethnicity_source_value
        1,8507,1960,5,20,1960-05-20 13:45:00,8527,0,M,white,italian
        2,8532,1970,,,,0,38003564,F,,
        3,0,,,,,0,0,,,
    """,
    "visit_occurrence": """
        visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime,visit_end_date,visit_end_datetime,visit_source_value,visit_source_concept_id,discharge_to_concept_id
        11,1,9201,2010-03-01,2010-03-01 08:30:00,2010-03-04,2010-03-04 16:00:00,abc,0,8863
        12,1,9202,2010-04-01,2010-04-01 10:00:00,2010-04-01,2010-04-01 10:30:00,abd,0,0
        21,2,32037,2011-01-01,2011-01-01 00:00:00,2011-01-01,2011-01-01 00:00:00,abe,0,0
        22,2,9201,2011-02-05,2011-02-05 09:00:00,2011-02-01,2011-02-01 09:00:00,abf,0,0
        23,2,0,2011-03-01,2011-03-01 09:00:00,2011-03-01,2011-03-01 10:00:00,abg,0,0
    """,
    "condition_occurrence": """
        condition_occurrence_id,person_id,condition_concept_id,condition_start_date,condition_start_datetime,condition_end_date,visit_occurrence_id,condition_source_value,condition_source_concept_id
        1,1,192671,2010-03-01,2010-03-01 09:00:00,,11,K92.2,35208414
        2,1,0,2010-03-02,,,11,K92.2,35208414
        3,1,0,2010-05-02,,,999,odd code,0
        4,1,0,2010-05-02,,,,,0
        5,1,77,2010-05-03,,,,x,0
        6,9,77,2010-05-03,,,,x,0
        7,1,77,1950-05-03,,,,x,0
        8,1,77,2190-05-03,,,,x,0
        9,1,77,,,,,x,0
    """,
    "drug_exposure": """
        drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date,drug_exposure_start_datetime,drug_exposure_end_date,quantity,visit_occurrence_id,drug_source_value,drug_source_concept_id
        1,1,1118088,2010-03-02,2010-03-02 00:00:00,2010-03-05,1,11,x,0
    """,
    "procedure_occurrence": """
        procedure_occurrence_id,person_id,procedure_concept_id,procedure_date,procedure_datetime,visit_occurrence_id,procedure_source_value,procedure_source_concept_id
        1,1,4107731,2010-03-03,2010-03-03 11:00:00,11,x,0
    """,
    "measurement": """
        measurement_id,person_id,measurement_concept_id,measurement_date,measurement_datetime,value_as_number,value_as_concept_id,unit_concept_id,visit_occurrence_id,measurement_source_value,measurement_source_concept_id,unit_source_value,value_source_value
        1,1,3016723,2010-03-01,2010-03-01 10:00:00,1.2,0,8840,11,x,0,mg per dl,1.2
        2,1,3016723,2010-03-02,2010-03-02 10:00:00,,9191,0,11,x,0,,
        3,1,3016723,2010-03-03,2010-03-03 10:00:00,n/a,0,0,11,x,0,mg/dl,n/a
        4,1,3036277,2010-03-03,2010-03-03 10:00:00,171,0,0,11,x,0,cm,
    """,
    "observation": """
        observation_id,person_id,observation_concept_id,observation_date,observation_datetime,value_as_number,value_as_string,value_as_concept_id,unit_concept_id,visit_occurrence_id,observation_source_value,observation_source_concept_id
        1,1,4275495,2010-03-01,2010-03-01 10:30:00,,never,0,0,11,x,0
    """,
    "device_exposure": """
        device_exposure_id,person_id,device_concept_id,device_exposure_start_date,device_exposure_start_datetime,visit_occurrence_id,device_source_value,device_source_concept_id
        1,1,4145656,2010-03-02,2010-03-02 10:30:00,11,x,0
    """,
    "death": """
        person_id,death_date,death_datetime
        2,2012-06-01,
        2,2012-05-01,
    """,
    "observation_period": """
        observation_period_id,person_id,observation_period_start_date,observation_period_end_date
        1,1,2000-01-01,2005-01-01
        2,1,2008-01-01,2013-12-31
        3,8,2008-01-01,2013-12-31
    """,
    "concept": """
        concept_id,concept_name,domain_id,vocabulary_id,concept_class_id,standard_concept,concept_code
        192671,Gastrointestinal hemorrhage,Condition,SNOMED,Clinical Finding,S,74474003
        35208414,Gastrointestinal hemorrhage unspecified,Condition,ICD10CM,4-char billing code,,K92.2
        1118088,celecoxib 200 MG,Drug,RxNorm,Branded Drug,S,213469
        4107731,Biopsy,Procedure,SNOMED,Procedure,S,180256009
        3016723,Creatinine,Measurement,LOINC,Lab Test,S,2160-0
        3036277,Body height,Measurement,LOINC,Clinical Observation,S,8302-2
        8840,milligram per deciliter,Unit,UCUM,Unit,S,mg/dL
        9191,Positive,Meas Value,SNOMED,Qualifier Value,S,10828004
        8863,Skilled Nursing Facility,Visit,CMS Place of Service,Visit,S,31
        32037,Intensive Care,Visit,Visit,Visit,S,OMOP4822460
    """,
    "concept_ancestor": """
        ancestor_concept_id,descendant_concept_id,min_levels_of_separation,max_levels_of_separation
        9201,32037,1,1
        9202,5,1,1
    """,
    "drug_era": "drug_era_id,person_id\n1,1",
}
IDS = ("concept_id", "person_id", "occurrence_id", "exposure_id", "_of_birth")


def folder(path, suffix=".csv", upper=False, **changes):
    for name, text in (TABLES | changes).items():
        if text is not None:
            write_table(path / f"{name.upper() if upper else name}{suffix}", text)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("omop")
    return import_source("omop", folder(path / "raw"), path / "meds")


def of(dataset, subject):
    return rows_of(events_of(dataset).filter(subject_id=subject), "numeric_value", "visit_id", "unit", "text_value")


def plain(time, code, visit=None):
    return time, code, None, visit, None, None


def test_every_row_of_a_person(dataset):
    assert of(dataset, 1) == [
        plain(None, "ETHNICITY//italian"),
        plain(None, "GENDER//M"),
        plain(None, "RACE//5"),
        plain("1960-05-20 00:00:00", "MEDS_BIRTH"),
        plain("2010-03-01 08:30:00", "HOSPITAL_ADMISSION//VISIT//IP", 11),
        plain("2010-03-01 09:00:00", "SNOMED//74474003", 11),
        ("2010-03-01 10:00:00", "LOINC//2160-0", pytest.approx(1.2), 11, "mg/dL", None),
        ("2010-03-01 10:30:00", "OMOP//4275495", None, 11, None, "never"),
        ("2010-03-02 10:00:00", "LOINC//2160-0", None, 11, None, "Positive"),
        plain("2010-03-02 10:30:00", "OMOP//4145656", 11),
        # Known by date only, or in a table where every time is midnight: at the end of the day.
        plain("2010-03-02 23:59:59", "ICD10CM//K92.2", 11),
        plain("2010-03-02 23:59:59", "RXNORM//213469", 11),
        ("2010-03-03 10:00:00", "LOINC//2160-0", None, 11, "mg/dl", "n/a"),
        ("2010-03-03 10:00:00", "LOINC//8302-2", 171.0, 11, "cm", None),
        plain("2010-03-03 11:00:00", "SNOMED//180256009", 11),
        plain("2010-03-04 16:00:00", "HOSPITAL_DISCHARGE//CMS_PLACE_OF_SERVICE//31", 11),
        plain("2010-04-01 10:00:00", "VISIT//OP", 12),
        plain("2010-05-02 23:59:59", "OMOP_SOURCE//odd code"),
        plain("2010-05-03 23:59:59", "OMOP//77"),
    ]


def test_stays_visits_and_deaths(dataset):
    assert of(dataset, 2) == [
        plain(None, "ETHNICITY//Not_Hispanic"),
        plain(None, "GENDER//F"),
        plain("1970-01-01 00:00:00", "MEDS_BIRTH"),
        plain("2011-01-01 00:00:00", "HOSPITAL_ADMISSION//VISIT//OMOP4822460", 21),
        plain("2011-01-01 23:59:59", "HOSPITAL_DISCHARGE//UNKNOWN", 21),
        plain("2011-02-05 09:00:00", "HOSPITAL_ADMISSION//VISIT//IP", 22),
        plain("2011-03-01 09:00:00", "VISIT//UNKNOWN", 23),
        plain("2012-05-01 23:59:59", "MEDS_DEATH"),
    ]
    assert of(dataset, 3) == []


def test_drops_and_conflicts_are_counted(dataset):
    manifest = dataset.manifest
    reasons = {
        "before birth": 1, "more than 125 years after birth": 1, "subject not in person": 1, "without a code": 1,
        "without a date": 1,
    }  # fmt: skip
    assert manifest["tables"]["condition_occurrence"] == {
        "rows": 9, "events": 4, "rows_with_events": 4, "dropped": reasons, "rows_dropped": reasons,
    }  # fmt: skip
    assert manifest["tables"]["visit_occurrence"] == {
        "rows": 5,
        "events": 7,
        "rows_with_events": 5,
        "dropped": {"visit without a start, or stay without an end that follows its start": 1},
        "columns_missing": ["discharged_to_concept_id"],
    }
    assert manifest["tables"]["measurement"]["unreadable"] == {"value_as_number": 1}
    assert manifest["conflicts"] == {
        "events_of_visits_that_are_not_in_visit_occurrence": 1,
        "further_deaths_of_a_person": 1,
        "observation_periods_of_unknown_persons": 1,
        "observation_periods_that_end_before_they_start": 0,
        "visits_stated_more_than_once": 0,
        "observation_periods_without_a_plausible_end": 0,
    }
    assert manifest["date_only"] is False
    assert manifest["codes_without_concept"] == 3
    assert manifest["tables_missing"] == [] and manifest["tables_not_read"] == ["drug_era"]
    assert manifest["counts"]["subjects"] == 2
    assert sum(manifest["events_by_kind"].values()) == manifest["counts"]["events"] == len(events_of(dataset))


def test_codes_have_kinds_and_descriptions(dataset):
    codes = {code: rest for code, *rest in dataset.codes().rows()}
    assert codes["SNOMED//74474003"] == ["Gastrointestinal hemorrhage", "diagnosis", False]
    assert codes["LOINC//2160-0"] == ["Creatinine", "lab", True]
    assert codes["LOINC//8302-2"] == ["Body height", "vital", True]
    assert codes["HOSPITAL_ADMISSION//VISIT//IP"] == ["Inpatient Visit", "encounter", False]
    assert codes["GENDER//F"] == ["Female", "demographic", False]
    assert codes["OMOP//4275495"] == [None, "other", False]
    assert set(codes) == set(events_of(dataset)["code"])


def test_observation_ends_with_the_last_period(dataset):
    ends = dataset.observation_end()
    assert ends is not None
    assert [(subject, str(end)) for subject, end in ends.rows()] == [(1, "2013-12-31 23:59:59")]


@pytest.mark.parametrize(("suffix", "upper"), [(".csv.gz", True), (".parquet", False), (".parquet", True)])
def test_formats_and_spellings_give_the_same(tmp_path, dataset, suffix, upper):
    readable = TABLES["measurement"].replace("n/a", "")
    plain = import_source("omop", folder(tmp_path / "csv", measurement=readable), tmp_path / "expected")
    made = import_source("omop", folder(tmp_path / "raw", suffix, upper, measurement=readable), tmp_path / "meds")
    assert made.fingerprint == plain.fingerprint


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_identifiers_written_as_floats(tmp_path, dataset, suffix):
    raw = folder(tmp_path / "raw", measurement=TABLES["measurement"].replace("n/a", ""))
    expected = import_source("omop", raw, tmp_path / "expected")
    for file in list(raw.iterdir()):
        frame = pl.read_csv(file, infer_schema=False)
        numbers = [name for name in frame.columns if name.endswith(IDS)]
        floats = frame.with_columns(pl.col(numbers).cast(pl.Float64))
        file.unlink()
        if suffix == ".csv":
            floats.write_csv(file)
            assert "192671.0" in file.read_text() or file.stem != "condition_occurrence"
        else:
            floats.write_parquet(file.with_suffix(suffix))
    assert import_source("omop", raw, tmp_path / "meds").fingerprint == expected.fingerprint


def test_version_5_4_and_parts_and_tabs(tmp_path, dataset):
    """Renamed columns of 5.4, a table in parts, and the vocabulary as OHDSI distributes it."""
    visits = TABLES["visit_occurrence"].replace("discharge_to_concept_id", "discharged_to_concept_id")
    raw = folder(tmp_path / "raw", visit_occurrence=visits)
    conditions = pl.read_csv(raw / "condition_occurrence.csv", infer_schema=False)
    (raw / "condition_occurrence.csv").unlink()
    (raw / "condition_occurrence").mkdir()
    conditions[:3].write_csv(raw / "condition_occurrence/part-0.csv")
    conditions[3:].write_csv(raw / "condition_occurrence/part-1.csv")
    (raw / "condition_occurrence/_SUCCESS").touch()
    concepts = pl.read_csv(raw / "concept.csv", infer_schema=False)
    (raw / "concept.csv").unlink()
    concepts.write_csv(raw / "CONCEPT.csv", separator="\t", quote_style="never")
    assert import_source("omop", raw, tmp_path / "meds").fingerprint == dataset.fingerprint


def test_data_of_dates_alone_keep_midnight(tmp_path):
    tables = {name: text for name, text in TABLES.items() if name in ("person", "concept", "observation_period")}
    tables["condition_occurrence"] = """
        person_id,condition_concept_id,condition_start_date,condition_start_datetime
        1,192671,2010-03-01,2010-03-01 00:00:00
        1,192671,2010-03-02,
    """
    tables["visit_occurrence"] = """
        visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_end_date
        11,1,9201,2010-03-01,2010-03-01
    """
    dataset = import_source("omop", folder(tmp_path / "raw", **(dict.fromkeys(TABLES) | tables)), tmp_path / "meds")
    assert dataset.manifest["date_only"] is True
    assert [(time, code) for time, code, *_ in of(dataset, 1) if time] == [
        ("1960-05-20 00:00:00", "MEDS_BIRTH"),
        ("2010-03-01 00:00:00", "HOSPITAL_ADMISSION//VISIT//IP"),
        ("2010-03-01 00:00:00", "HOSPITAL_DISCHARGE//UNKNOWN"),
        ("2010-03-01 00:00:00", "SNOMED//74474003"),
        ("2010-03-02 00:00:00", "SNOMED//74474003"),
    ]
    assert [str(end) for end in dataset.observation_end()["observation_end"]] == ["2013-12-31 00:00:00"]


def test_without_concepts_and_visits(tmp_path):
    missing = dict.fromkeys(("concept", "concept_ancestor", "visit_occurrence"))
    dataset = import_source("omop", folder(tmp_path / "raw", **missing), tmp_path / "meds")
    rows = of(dataset, 1)
    assert plain("2010-03-01 09:00:00", "OMOP//192671", 11) in rows
    assert plain(None, "GENDER//M") in rows, "concepts that everyone uses are known"
    assert ("2010-03-01 10:00:00", "OMOP//3016723", pytest.approx(1.2), 11, "OMOP//8840", None) in rows
    assert plain("2010-05-02 23:59:59", "OMOP_SOURCE//odd code", 999) in rows, "no table says that the visit is none"
    assert dataset.observation_end() is not None


CONDITIONS = TABLES["condition_occurrence"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"person": None}, r"raw lacks table person; got concept, .*; expected person\.csv or person\.csv\.gz or"),
        (
            {"condition_occurrence": "condition_id,person_id\n1,1"},
            r"condition_occurrence\.csv lacks condition_concept_id, condition_start_date; got columns condition_id",
        ),
        (
            {"condition_occurrence": CONDITIONS.replace("2010-03-02,", "02.03.2010,")},
            r"column condition_start_date of .*condition_occurrence\.csv has 1 values that are no times; "
            r"got '02\.03\.2010' in row 2",
        ),
        (
            {"condition_occurrence": CONDITIONS.replace("1,1,192671", "1,1,192671.5")},
            r"column condition_concept_id of .* no whole numbers; got '192671\.5' in row 1; expected such as 17 or",
        ),
        ({"person": TABLES["person"] + "1,0,,,,,0,0,,,\n"}, r"person\.csv repeats values of person_id; got 1, first"),
        ({"person": "person_id,year_of_birth\n"}, r"person\.csv has no person_id; got 0 rows; expected at least one"),
    ],
)  # fmt: skip
def test_bad_tables_are_named_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        import_source("omop", folder(tmp_path / "raw", **changes), tmp_path / "meds")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_table_that_is_there_twice(tmp_path):
    raw = folder(tmp_path / "raw")
    write_table(raw / "PERSON.parquet", TABLES["person"])
    with pytest.raises(DataError, match=r"raw has table person twice; got PERSON\.parquet and person\.csv"):
        import_source("omop", raw, tmp_path / "meds")


def test_damaged_and_mistyped_parquet(tmp_path):
    raw = folder(tmp_path / "raw", ".parquet", measurement=None)
    file = raw / "death.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"death\.parquet is malformed; got .*expected a parquet file"):
        import_source("omop", raw, tmp_path / "meds")
    pl.DataFrame({"person_id": [1.5], "death_date": ["2010-01-01"]}).write_parquet(file)
    with pytest.raises(DataError, match=r"column person_id of .*death\.parquet .* got 1\.5 in row 1"):
        import_source("omop", raw, tmp_path / "meds")
    pl.DataFrame({"person_id": [1], "death_date": [14_000]}).write_parquet(file)
    with pytest.raises(
        DataError, match=r"column death_date of .*death\.parquet has 1 values that are no times; got 14000"
    ):
        import_source("omop", raw, tmp_path / "meds")


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="nowhere is missing; expected a folder"):
        import_source("omop", tmp_path / "nowhere", tmp_path / "meds")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is no folder; expected a folder"):
        import_source("omop", tmp_path / "file", tmp_path / "meds")


def test_strict_turns_drops_into_errors(tmp_path):
    message = (
        r"condition_occurrence\.csv has 5 events that would be dropped; got without a code: subject 1, .* in row 4"
    )
    visits = TABLES["visit_occurrence"].replace("2011-02-01", "2011-02-07")
    with pytest.raises(DataError, match=message):
        import_source("omop", folder(tmp_path / "raw", visit_occurrence=visits), tmp_path / "meds", strict=True)


def test_results_outside_their_range_are_flagged_and_codes_have_parents(tmp_path):
    measurement = """
        measurement_id,person_id,measurement_concept_id,measurement_date,measurement_datetime,value_as_number,range_low,range_high,unit_concept_id,visit_occurrence_id,measurement_source_value
        1,1,3016723,2010-03-01,2010-03-01 10:00:00,2.2,0.4,1.1,8840,11,x
        2,1,3016723,2010-03-02,2010-03-02 10:00:00,0.3,0.4,,8840,11,x
        3,1,3016723,2010-03-03,2010-03-03 10:00:00,1.1,0.4,1.1,8840,11,x
        4,1,3016723,2010-03-03,2010-03-03 11:00:00,9.9,0,0,8840,11,x
        5,1,0,2010-03-03,2010-03-03 12:00:00,9.9,1,2,8840,11,
        6,1,0,2010-03-03,2010-03-03 13:00:00,9.9,1,2,8840,11,local
    """
    concept = (
        TABLES["concept"]
        + """
        1118084,celecoxib,Drug,RxNorm,Ingredient,S,140587
        21603991,coxibs,Drug,ATC,ATC 4th,C,M01AH
        40225722,celecoxib Oral Capsule,Drug,RxNorm,Clinical Drug Form,S,1
        443530,Hemorrhage of digestive tract,Condition,SNOMED,Clinical Finding,S,87763006
    """
    )
    ancestor = (
        TABLES["concept_ancestor"]
        + """
        1118084,1118088,3,3
        40225722,1118088,1,1
        21603991,1118088,4,4
        1118088,1118088,0,0
        443530,192671,1,1
        77777,192671,1,1
        1118084,192671,2,2
    """
    )
    raw = folder(tmp_path / "raw", measurement=measurement, concept=concept, concept_ancestor=ancestor)
    dataset = import_source("omop", raw, tmp_path / "meds")
    flags = events_of(dataset).filter(pl.col("code").str.starts_with("LAB_FLAG"))
    assert rows_of(flags, "numeric_value", "visit_id") == [
        ("2010-03-01 10:00:00", "LAB_FLAG//LOINC//2160-0//high", None, 11),
        ("2010-03-02 10:00:00", "LAB_FLAG//LOINC//2160-0//low", None, 11),
        ("2010-03-03 13:00:00", "LAB_FLAG//OMOP_SOURCE//local//high", None, 11),
    ]
    assert dataset.manifest["tables"]["measurement"]["dropped"] == {"without a code": 1}
    names = dict(dataset.codes().select("code", "description").iter_rows())
    assert names["LAB_FLAG//LOINC//2160-0//high"] == "Creatinine: high"
    codes = pl.read_parquet(dataset.path / "metadata" / "codes.parquet").drop_nulls("parent_codes")
    assert dict(codes.select("code", "parent_codes").iter_rows()) == {
        "RXNORM//213469": ["RXNORM//140587"],
        "SNOMED//74474003": ["SNOMED//87763006"],
    }


def test_midnights_beside_times_of_day_keep_midnight_and_are_counted(tmp_path):
    drugs = """
        drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date,drug_exposure_start_datetime,visit_occurrence_id
        1,1,1118088,2010-03-02,2010-03-02 00:00:00,11
        2,1,1118088,2010-03-02,2010-03-02 08:00:00,11
        3,1,1118088,2010-03-03,,11
        4,1,1118088,2010-03-04,2010-03-04 00:00:00,11
    """
    dataset = import_source("omop", folder(tmp_path / "raw", drug_exposure=drugs), tmp_path / "meds")
    assert dataset.manifest["events_at_midnight"] == {"drug_exposure": 2}
    told = [note for note in dataset.manifest["notes"] if "keep midnight" in note]
    assert [note.rpartition(": ")[2] for note in told] == ["drug_exposure 2 of 4."]
    days = events_of(dataset).filter(pl.col("code") == "RXNORM//213469")["time"]
    assert [f"{time:%d %H:%M:%S}" for time in days] == ["02 00:00:00", "02 08:00:00", "03 23:59:59", "04 00:00:00"]
