import gzip
import shutil

import polars as pl
import pytest
from raw_tables import events_of, rows_of, write_table

from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import DataError

TABLES = {
    "hosp/patients": """
        subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod
        1,F,60,2150,2011 - 2013,2151-03-05
        2,M,91,2160,2014 - 2016,
        3,F,40,2140,2014 - 2016,2141-08-09
    """,
    "hosp/admissions": """
        subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admission_location,\
        discharge_location,insurance,language,marital_status,race,edregtime,edouttime,hospital_expire_flag
        1,11,2150-01-02 10:00:00,2150-01-05 12:00:00,,EW EMER.,EMERGENCY ROOM,\
        HOME,Medicare,?,MARRIED,WHITE,2150-01-02 07:00:00,2150-01-02 11:00:00,0
        1,12,2151-03-01 08:00:00,2151-03-05 00:00:00,2151-03-05 22:10:00,URGENT,,\
        DIED,Medicare,ENGLISH,WIDOWED,WHITE,,,1
        2,21,2160-05-01 09:00:00,2160-05-02 09:00:00,,ELECTIVE,PHYSICIAN REFERRAL,\
        ,Other,ENGLISH,,ASIAN,,,0
    """,
    "hosp/transfers": """
        subject_id,hadm_id,transfer_id,eventtype,careunit,intime,outtime
        1,11,901,admit,Med/Surg,2150-01-02 11:00:00,2150-01-05 12:00:00
        1,11,902,discharge,,2150-01-05 12:00:00,
    """,
    "hosp/services": """
        subject_id,hadm_id,transfertime,prev_service,curr_service
        1,11,2150-01-02 10:30:00,,MED
    """,
    "hosp/diagnoses_icd": """
        subject_id,hadm_id,seq_num,icd_code,icd_version
        1,11,1,4280,9
        1,11,2,E8497,9
        1,12,1,I509,10
        2,99,1,I10,10
    """,
    "hosp/procedures_icd": """
        subject_id,hadm_id,seq_num,chartdate,icd_code,icd_version
        1,11,1,2150-01-03,3961,9
        1,12,1,2151-03-02,02HV33Z,10
    """,
    "hosp/d_icd_diagnoses": """
        icd_code,icd_version,long_title
        4280,9,Congestive heart failure unspecified
    """,
    "hosp/hcpcsevents": """
        subject_id,hadm_id,chartdate,hcpcs_cd,seq_num,short_description
        2,21,2160-05-01,99219,1,Hospital observation services
    """,
    "hosp/drgcodes": """
        subject_id,hadm_id,drg_type,drg_code,description,drg_severity,drg_mortality
        1,11,APR,194,HEART FAILURE,3,2
    """,
    "hosp/d_labitems": """
        itemid,label,fluid,category
        50912,Creatinine,Blood,Chemistry
        51094,pH,Urine,Hematology
    """,
    "hosp/labevents": """
        labevent_id,subject_id,hadm_id,specimen_id,itemid,charttime,storetime,value,valuenum,valueuom,ref_range_lower,ref_range_upper,flag,priority,comments
        1,1,11,5,50912,2150-01-02 12:00:00,2150-01-02 13:30:00,2.1,2.1,mg/dL,0.4,1.1,abnormal,ROUTINE,
        2,1,,5,51094,2149-12-01 08:00:00,,NEG,,,,,,ROUTINE,
        3,1,11,5,50912,2150-01-03 12:00:00,2150-01-03 13:30:00,___,high,mg/dL,0.4,1.1,,ROUTINE,
        4,7,,5,50912,2150-01-03 12:00:00,,1,1,mg/dL,,,,ROUTINE,
        5,1,,5,50912,1900-01-03 12:00:00,,1,1,mg/dL,,,,ROUTINE,
        6,2,,5,50912,2290-01-03 12:00:00,,1,1,mg/dL,,,,ROUTINE,
        7,2,,5,50912,,,1,1,mg/dL,,,,ROUTINE,
        8,2,,5,50912,2500-01-03 12:00:00,,1,1,mg/dL,,,,ROUTINE,
    """,
    "hosp/microbiologyevents": """
        microevent_id,subject_id,hadm_id,chartdate,charttime,spec_type_desc,storedate,storetime,\
        test_name,org_name,ab_name,dilution_text,dilution_comparison,dilution_value,interpretation
        1,1,11,2150-01-02 00:00:00,2150-01-02 12:00:00,URINE,2150-01-04 00:00:00,2150-01-04 09:00:00,\
        URINE CULTURE,ESCHERICHIA  COLI,CEFEPIME,<=1,<=,1,S
        2,1,11,2150-01-02 00:00:00,,URINE,,,URINE CULTURE,,,,,,
    """,
    "hosp/prescriptions": """
        subject_id,hadm_id,pharmacy_id,starttime,stoptime,drug_type,drug,gsn,ndc,dose_val_rx,dose_unit_rx
        1,11,1,2150-01-02 14:00:00,,MAIN,Furosemide,,00517570425,40,mg
        1,11,2,2150-01-02 15:00:00,,MAIN,Sodium Chloride 0.9%  Flush,,0,3-10,mL
    """,
    "hosp/emar": """
        subject_id,hadm_id,emar_id,charttime,medication,event_txt
        1,11,1-1,2150-01-02 16:00:00,Furosemide,Administered
        1,11,1-2,2150-01-02 17:00:00,,Administered
    """,
    "hosp/omr": """
        subject_id,chartdate,seq_num,result_name,result_value
        2,2160-03-01,1,Blood Pressure,110/70
        2,2160-03-01,1,Weight (Lbs),150.5
    """,
    "icu/d_items": """
        itemid,label,abbreviation,linksto
        226559,Foley,Foley,outputevents
        225792,Invasive Ventilation,IV,procedureevents
        220045,Heart Rate,HR,chartevents
        221906,Norepinephrine,Norepinephrine,inputevents
    """,
    "icu/icustays": """
        subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los
        1,12,1201,MICU,CCU,2151-03-01 09:00:00,2151-03-05 22:10:00,4.5
    """,
    "icu/outputevents": """
        subject_id,hadm_id,stay_id,caregiver_id,charttime,storetime,itemid,value,valueuom
        1,12,1201,1,2151-03-01 10:00:00,2151-03-01 10:20:00,226559,150,ml
    """,
    "icu/procedureevents": """
        subject_id,hadm_id,stay_id,caregiver_id,starttime,endtime,storetime,itemid,value,valueuom,ORIGINALAMOUNT
        1,12,1201,1,2151-03-01 11:00:00,2151-03-01 13:00:00,2151-03-01 13:05:00,225792,120,min,120
    """,
    "icu/inputevents": """
        subject_id,hadm_id,stay_id,caregiver_id,starttime,endtime,storetime,itemid,amount,amountuom,rate,rateuom,\
        orderid,statusdescription
        1,12,1201,1,2151-03-01 12:00:00,2151-03-01 14:00:00,2151-03-01 12:05:00,221906,4.5,mg,0.5,mcg/kg/min,7,Stopped
        1,12,1201,1,2151-03-01 12:00:00,2151-03-01 14:00:00,2151-03-01 12:02:00,221906,9,mg,1,mcg/kg/min,7,Rewritten
        1,12,1201,1,2151-03-01 15:00:00,2151-03-01 15:01:00,2151-03-01 15:30:00,225158,10,ml,,,8,FinishedRunning
    """,
    "icu/chartevents": """
        subject_id,hadm_id,stay_id,caregiver_id,charttime,storetime,itemid,value,valuenum,valueuom,warning
        1,12,1201,1,2151-03-01 09:30:00,2151-03-01 09:45:00,220045,88,88,bpm,0
        1,12,1201,1,2151-03-01 09:30:00,2151-03-01 09:45:00,220048,SR (Sinus Rhythm),,,0
    """,
    "icu/datetimeevents": """
        subject_id,hadm_id,stay_id,caregiver_id,charttime,storetime,itemid,value,valueuom,warning
        1,12,1201,1,2151-03-01 09:50:00,2151-03-01 09:50:00,225343,2151-02-11 00:00:00,Date,0
    """,
}


def folder(path, suffix=".csv", upper=False, **changes):
    """The tables above, one or more replaced (`hosp__labevents=...`; None leaves a table out)."""
    tables = TABLES | {name.replace("__", "/"): text for name, text in changes.items()}
    for name, text in tables.items():
        if text is not None:
            write_table(path / f"{name.upper() if upper else name}{suffix}", text)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("mimic")
    return import_source("mimic-iv", folder(path / "raw"), path / "meds")


def of(dataset, subject):
    return rows_of(events_of(dataset).filter(subject_id=subject), "numeric_value", "visit_id", "unit", "text_value")


def test_every_row_of_a_subject(dataset):
    none = (None,) * 3
    expected = [
        (None, "GENDER//F", None, None, None, None),
        ("2090-01-01 00:00:00", "MEDS_BIRTH", None, None, None, None),
        ("2149-12-01 08:00:00", "LAB//51094", None, None, None, "NEG"),
        *((time, code, None, 11, None, None) for time, code in (
            ("2150-01-02 07:00:00", "ED_REGISTRATION"),
            ("2150-01-02 10:00:00", "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM"),
            ("2150-01-02 10:00:00", "INSURANCE//Medicare"),
            ("2150-01-02 10:00:00", "MARITAL_STATUS//MARRIED"),
            ("2150-01-02 10:00:00", "RACE//WHITE"),
            ("2150-01-02 10:30:00", "SERVICE//MED"),
            ("2150-01-02 11:00:00", "ED_OUT"),
            ("2150-01-02 11:00:00", "TRANSFER_TO//admit//Med/Surg"),
        )),
        ("2150-01-02 13:30:00", "LAB//50912//mg/dL", pytest.approx(2.1), 11, "mg/dL", None),
        ("2150-01-02 13:30:00", "LAB_FLAG//50912//abnormal", None, 11, None, None),
        ("2150-01-02 13:30:00", "LAB_FLAG//50912//high", None, 11, None, None),
        ("2150-01-02 14:00:00", "DRUG//Furosemide", 40.0, 11, "mg", None),
        ("2150-01-02 15:00:00", "DRUG//Sodium Chloride 0.9% Flush", None, 11, "mL", "3-10"),
        ("2150-01-02 16:00:00", "EMAR//Furosemide//Administered", None, 11, None, None),
        ("2150-01-02 23:59:59", "MICROBIOLOGY//URINE CULTURE", None, 11, None, None),
        ("2150-01-03 13:30:00", "LAB//50912//mg/dL", None, 11, "mg/dL", None),
        ("2150-01-04 09:00:00", "MICROBIOLOGY//URINE CULTURE//ESCHERICHIA COLI//CEFEPIME//S", 1.0, 11, None, "<=1"),
        ("2150-01-05 12:00:00", "DRG//APR//194", 3.0, 11, None, None),
        *(("2150-01-05 12:00:00", code, None, 11, None, None) for code in (
            "HOSPITAL_DISCHARGE//HOME", "ICD9CM//428.0", "ICD9CM//E849.7", "ICD9PROC//39.61",
            "TRANSFER_TO//discharge//UNKNOWN",
        )),
        ("2151-03-01 08:00:00", "HOSPITAL_ADMISSION//URGENT//UNKNOWN", None, 12, None, None),
        ("2151-03-01 08:00:00", "LANGUAGE//ENGLISH", None, 12, None, None),
        ("2151-03-01 08:00:00", "MARITAL_STATUS//WIDOWED", None, 12, None, None),
        ("2151-03-01 09:00:00", "ICU_ADMISSION//MICU", None, 12, None, None),
        ("2151-03-01 09:45:00", "CHART//220045", 88.0, 12, "bpm", None),
        ("2151-03-01 09:45:00", "CHART//220048", None, 12, None, "SR (Sinus Rhythm)"),
        ("2151-03-01 09:50:00", "DATETIME//225343", None, 12, None, "2151-02-11 00:00:00"),
        ("2151-03-01 10:20:00", "OUTPUT//226559", 150.0, 12, "ml", None),
        ("2151-03-01 11:00:00", "PROCEDURE//START//225792", None, 12, None, None),
        ("2151-03-01 12:05:00", "INPUT//START//221906", 0.5, 12, "mcg/kg/min", None),
        ("2151-03-01 13:00:00", "PROCEDURE//END//225792", 120.0, 12, "min", None),
        ("2151-03-01 14:00:00", "INPUT//END//221906", 4.5, 12, "mg", None),
        ("2151-03-01 15:30:00", "INPUT//END//225158", 10.0, 12, "ml", None),
        ("2151-03-01 15:30:00", "INPUT//START//225158", None, 12, None, None),
        *(("2151-03-05 22:10:00", code, None, 12, *none[:2]) for code in (
            "HOSPITAL_DISCHARGE//DIED", "ICD10CM//I50.9", "ICD10PCS//02HV33Z", "ICU_DISCHARGE//CCU", "MEDS_DEATH",
        )),
    ]  # fmt: skip
    assert of(dataset, 1) == expected


def test_subjects_with_and_without_admissions(dataset):
    assert of(dataset, 2) == [
        (None, "GENDER//M", None, None, None, None),
        ("2069-01-01 00:00:00", "MEDS_BIRTH", None, None, None, None),
        ("2160-03-01 23:59:59", "OMR//Blood Pressure//DIASTOLIC", 70.0, None, None, None),
        ("2160-03-01 23:59:59", "OMR//Blood Pressure//SYSTOLIC", 110.0, None, None, None),
        ("2160-03-01 23:59:59", "OMR//Weight (Lbs)", 150.5, None, "Lbs", None),
        *((("2160-05-01 09:00:00"), code, None, 21, None, None) for code in (
            "HOSPITAL_ADMISSION//ELECTIVE//PHYSICIAN REFERRAL", "INSURANCE//Other", "LANGUAGE//ENGLISH", "RACE//ASIAN",
        )),
        ("2160-05-02 09:00:00", "HCPCS//99219", None, 21, None, None),
        ("2160-05-02 09:00:00", "HOSPITAL_DISCHARGE//UNKNOWN", None, 21, None, None),
    ]  # fmt: skip
    assert of(dataset, 3) == [
        (None, "GENDER//F", None, None, None, None),
        ("2100-01-01 00:00:00", "MEDS_BIRTH", None, None, None, None),
        ("2141-08-09 23:59:59", "MEDS_DEATH", None, None, None, None),
    ]


def test_drops_are_counted_and_explained(dataset):
    manifest = dataset.manifest
    reasons = {
        "before birth": 1, "more than 125 years after birth": 1, "subject not in patients": 1, "without a time": 1,
        "before 1850 or after 2300": 1,
    }  # fmt: skip
    assert manifest["tables"]["hosp/labevents"] == {
        "rows": 8,
        "events": 5,
        "rows_with_events": 3,
        "rows_dropped": reasons,
        "dropped": reasons,
        "unreadable": {"valuenum": 1},
        "implausible": {"charttime": 1},
    }  # fmt: skip
    assert manifest["tables"]["hosp/diagnoses_icd"]["dropped"] == {
        "admission unknown, or without a time of discharge": 1
    }
    assert manifest["tables"]["hosp/emar"] == {
        "rows": 2, "events": 1, "rows_with_events": 1, "rows_dropped": {"without a code": 1},
        "dropped": {"without a code": 1},
    }  # fmt: skip
    assert manifest["tables"]["icu/inputevents"] == {
        "rows": 3, "events": 4, "rows_with_events": 2, "rows_without_events": {"rewritten or cancelled": 1},
    }  # fmt: skip
    assert manifest["events_dropped"]["subject not in patients"] == 1
    assert sum(manifest["events_by_kind"].values()) == manifest["counts"]["events"] == len(events_of(dataset))
    assert manifest["visits"] == 3
    assert manifest["subjects_without_birth"] == manifest["events_after_death"] == 0
    assert manifest["conflicts"]["admissions_discharged_at_deathtime"] == 1
    assert manifest["tables_missing"] == ["hosp/d_icd_procedures"]
    assert manifest["tables_not_read"] == []
    assert any("At discharge: billing diagnoses" in note for note in manifest["notes"])


def test_codes_have_kinds_and_descriptions(dataset):
    codes = {code: rest for code, *rest in dataset.codes().rows()}
    assert codes["LAB//50912//mg/dL"] == ["Creatinine", "lab", True]
    assert codes["LAB_FLAG//50912//abnormal"] == ["Creatinine: abnormal", "lab", False]
    assert codes["LAB_FLAG//50912//high"] == ["Creatinine: high", "lab", False]
    assert codes["ICD9CM//428.0"] == ["Congestive heart failure unspecified", "diagnosis", False]
    assert codes["ICD9PROC//39.61"] == [None, "procedure", False]
    assert codes["DRG//APR//194"] == ["HEART FAILURE", "encounter", True]
    assert codes["OUTPUT//226559"] == ["Foley", "vital", True]
    assert codes["CHART//220045"] == ["Heart Rate", "vital", True]
    assert codes["INPUT//START//221906"] == ["Norepinephrine, start", "drug", True]
    assert codes["DRUG//Furosemide"][1] == codes["EMAR//Furosemide//Administered"][1] == "drug"
    assert set(codes) == set(events_of(dataset)["code"])


def test_observation_ends_a_year_after_the_last_discharge(dataset):
    ends = dataset.observation_end()
    assert ends is not None
    assert [(subject, str(end)) for subject, end in ends.rows()] == [
        (1, "2152-03-04 22:10:00"),
        (2, "2161-05-02 09:00:00"),
    ]


@pytest.mark.parametrize(("suffix", "upper"), [(".csv.gz", False), (".csv", True)])
def test_compressed_files_and_upper_case_names_give_the_same(tmp_path, dataset, suffix, upper):
    raw = folder(tmp_path / "raw", suffix, upper)
    assert import_source("mimic-iv", raw, tmp_path / "meds").fingerprint == dataset.fingerprint


def test_bom_crlf_shuffled_and_further_columns_give_the_same(tmp_path, dataset):
    raw = folder(tmp_path / "raw")
    for file in raw.rglob("*.csv"):
        frame = pl.read_csv(file, infer_schema=False)
        shuffled = frame.select(pl.lit("x").alias("further"), *reversed(frame.columns))
        file.write_bytes(b"\xef\xbb\xbf" + shuffled.write_csv().replace("\n", "\r\n").encode())
    assert import_source("mimic-iv", raw, tmp_path / "meds").fingerprint == dataset.fingerprint


def test_only_patients_and_admissions(tmp_path):
    raw = folder(tmp_path / "raw")
    shutil.rmtree(raw / "icu")
    for file in (raw / "hosp").iterdir():
        if file.stem not in ("patients", "admissions"):
            file.unlink()
    manifest = import_source("mimic-iv", raw, tmp_path / "meds").manifest
    assert manifest["counts"]["subjects"] == 3
    assert {"icu/icustays", "hosp/labevents", "hosp/emar"} <= set(manifest["tables_missing"])


def test_loinc_where_the_dictionary_gives_it(tmp_path):
    dictionary = "itemid,label,loinc_code\n50912,Creatinine,2160-0\n51094,pH,\n"
    raw = folder(tmp_path / "raw", hosp__d_labitems=dictionary)
    codes = events_of(import_source("mimic-iv", raw, tmp_path / "meds"))["code"].to_list()
    assert codes.count("LOINC//2160-0") == 2
    assert codes.count("LAB//51094") == 1


def test_a_discharge_before_the_admission_is_no_discharge(tmp_path):
    swapped = TABLES["hosp/admissions"].replace("2150-01-05 12:00:00", "2149-01-05 12:00:00")
    dataset = import_source("mimic-iv", folder(tmp_path / "raw", hosp__admissions=swapped), tmp_path / "meds")
    codes = events_of(dataset).filter(visit_id=11)["code"]
    assert not codes.str.starts_with("HOSPITAL_DISCHARGE").any()
    assert not codes.str.starts_with("ICD").any()
    assert dataset.manifest["events_dropped"]["admission unknown, or without a time of discharge"] == 5
    assert dataset.manifest["tables"]["hosp/admissions"]["dropped"] == {
        "admission or discharge without a time, or discharge before admission": 1
    }


def test_an_admission_without_hadm_id_is_counted(tmp_path):
    nameless = TABLES["hosp/admissions"].replace("2,21,", "2,,")
    dataset = import_source("mimic-iv", folder(tmp_path / "raw", hosp__admissions=nameless), tmp_path / "meds")
    account = dataset.manifest["tables"]["hosp/admissions"]
    assert account["contradictions"] == {"no hadm_id, so that the admission is no visit": 1}
    admitted = events_of(dataset).filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION"), subject_id=2)
    assert admitted["visit_id"].to_list() == [None]
    with pytest.raises(DataError, match=r"admissions\.csv has 1 rows with no hadm_id, so .*; got hadm_id None in row"):
        import_source("mimic-iv", tmp_path / "raw", tmp_path / "strict", strict=True)


def test_an_end_before_its_start_is_dropped_and_counted(tmp_path):
    swapped = {
        "icu__icustays": TABLES["icu/icustays"].replace("2151-03-05 22:10:00", "2151-02-05 22:10:00"),
        "icu__procedureevents": TABLES["icu/procedureevents"].replace("2151-03-01 13:00:00", "2151-03-01 10:00:00"),
    }
    dataset = import_source("mimic-iv", folder(tmp_path / "raw", **swapped), tmp_path / "meds")
    for table in ("icu/icustays", "icu/procedureevents"):
        account = dataset.manifest["tables"][table]
        assert account["dropped"] == {"start or end without a time, or end before the start": 1}
        assert account["events"] == account["rows_with_events"] == 1


def test_progress_ends_at_the_total(tmp_path):
    seen = []
    import_source("mimic-iv", folder(tmp_path / "raw"), tmp_path / "meds", progress=lambda *step: seen.append(step))
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(set(done)) and set(totals) == {done[-1]}


def bad(**changes):
    return lambda path: folder(path, **changes)


def without(column, name):
    lines = [line.split(",") for line in TABLES[name].strip().splitlines()]
    place = lines[0].index(column)
    return "\n".join(",".join(cell for i, cell in enumerate(line) if i != place) for line in lines)


LABS = TABLES["hosp/labevents"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad(hosp__patients=None), "raw lacks table hosp/patients; got hosp/admissions"),
        (bad(hosp__labevents=without("itemid", "hosp/labevents")), r"labevents\.csv lacks itemid; got columns"),
        (
            bad(hosp__labevents=LABS.replace("2150-01-03 12:00:00,2150-01-03", "03/01/2150,2150-01-03")),
            r"column charttime of .*labevents\.csv has 1 values that are no times; got '03/01/2150' in row 3",
        ),
        (
            bad(hosp__labevents=LABS.replace("3,1,11,5,50912", "3,1,eleven,5,50912")),
            r"column hadm_id of .*labevents\.csv has 1 values that are no whole numbers; got 'eleven' in row 3",
        ),
        (
            bad(hosp__labevents=LABS.replace("6,2,,5,50912,2290-01-03 12:00:00,,1,1,mg/dL,,,,ROUTINE,", "6,2")),
            r"labevents\.csv is malformed; got CSV parse error: Row #7: Expected 15 columns, got 2",
        ),
        (
            bad(hosp__patients=TABLES["hosp/patients"] + "1,F,60,2150,2011 - 2013,\n"),
            r"patients\.csv repeats values of subject_id; got 1, first in row 1; expected each once",
        ),
        (
            bad(hosp__admissions=TABLES["hosp/admissions"].replace("2,21,", "2,12,")),
            r"admissions\.csv repeats values of hadm_id; got 12, first in row 2",
        ),
        (bad(hosp__patients="subject_id,gender,anchor_age,anchor_year"), r"patients\.csv has no subject_id; got 0"),
        (bad(hosp__services="\n"), r"services\.csv is empty; expected a header and rows"),
        (bad(hosp__services="subject_id,SUBJECT_ID,hadm_id\n"), r"services\.csv repeats columns; got subject_id"),
    ],
)  # fmt: skip
def test_bad_tables_are_named_and_nothing_is_written(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        import_source("mimic-iv", make(tmp_path / "raw"), tmp_path / "meds")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_files_cut_short_and_other_encodings(tmp_path):
    raw = folder(tmp_path / "raw", ".csv.gz")
    file = raw / "hosp/labevents.csv.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"labevents\.csv\.gz is (damaged or cut short|malformed).*expected a UTF-8 CSV file"
    ):
        import_source("mimic-iv", raw, tmp_path / "meds")
    file.write_bytes(gzip.compress(gzip.decompress(whole).replace(b"NEG", "négatif".encode("latin-1"))))
    with pytest.raises(DataError, match=r"labevents\.csv\.gz is not in UTF-8; got another encoding in row 2"):
        import_source("mimic-iv", raw, tmp_path / "meds")
    file.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match=r"labevents\.csv\.gz is damaged or cut short; got Not a gzipped file"):
        import_source("mimic-iv", raw, tmp_path / "meds")


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(DataError, match="nowhere is missing or no folder; expected a folder with hosp/ and icu/"):
        import_source("mimic-iv", tmp_path / "nowhere", tmp_path / "meds")
    write_table(tmp_path / "raw/people.csv", "person_id\n1\n")
    with pytest.raises(DataError, match=r"raw has no folder hosp; got no folder; expected hosp/ and icu/"):
        import_source("mimic-iv", tmp_path / "raw", tmp_path / "meds")


def test_strict_turns_drops_into_errors(tmp_path):
    raw = folder(tmp_path / "raw")
    message = r"diagnoses_icd\.csv has 1 events that would be dropped; got admission unknown.*ICD10CM//I10, .* in row 4"
    with pytest.raises(DataError, match=message):
        import_source("mimic-iv", raw, tmp_path / "meds", strict=True)
    write_table(raw / "hosp/diagnoses_icd.csv", TABLES["hosp/diagnoses_icd"].replace("2,99,1", "2,21,1"))
    with pytest.raises(DataError, match=r"column valuenum of .*labevents\.csv has 1 values that are no numbers"):
        import_source("mimic-iv", raw, tmp_path / "meds", strict=True)
