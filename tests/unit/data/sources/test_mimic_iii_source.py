import polars as pl
import pytest
from raw_tables import events_of, rows_of, write_table
from tests.hostile import check_source, check_wrong_source

from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import DataError

TABLES = {
    "PATIENTS": """
        ROW_ID,SUBJECT_ID,GENDER,DOB,DOD,DOD_HOSP,DOD_SSN,EXPIRE_FLAG
        1,1,F,2090-06-05 00:00:00,2151-03-05 00:00:00,2151-03-05 00:00:00,,1
        2,2,M,1850-05-01 00:00:00,,,,0
        3,3,F,2100-02-03 00:00:00,,,2141-08-09 00:00:00,1
    """,
    "ADMISSIONS": """
        ROW_ID,SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,DEATHTIME,ADMISSION_TYPE,ADMISSION_LOCATION,DISCHARGE_LOCATION,\
        INSURANCE,LANGUAGE,RELIGION,MARITAL_STATUS,ETHNICITY,EDREGTIME,EDOUTTIME,DIAGNOSIS,HOSPITAL_EXPIRE_FLAG,\
        HAS_CHARTEVENTS_DATA
        1,1,11,2150-01-02 10:00:00,2150-01-05 12:00:00,,EMERGENCY,EMERGENCY ROOM ADMIT,HOME,Medicare,,UNOBTAINABLE,\
        MARRIED,WHITE,2150-01-02 07:00:00,2150-01-02 11:00:00,SEPSIS,0,1
        2,1,12,2151-03-01 08:00:00,2151-03-05 22:10:00,2151-03-05 22:10:00,URGENT,,DEAD/EXPIRED,Medicare,ENGL,CATHOLIC,\
        UNKNOWN (DEFAULT),WHITE,,,PNEUMONIA,1,1
        3,2,21,2150-05-01 09:00:00,2150-05-12 09:00:00,,ELECTIVE,PHYS REFERRAL/NORMAL DELI,SNF,Private,,,,\
        UNKNOWN/NOT SPECIFIED,,,CABG,0,1
    """,
    "TRANSFERS": """
        ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,DBSOURCE,EVENTTYPE,PREV_CAREUNIT,CURR_CAREUNIT,PREV_WARDID,CURR_WARDID,\
        INTIME,OUTTIME,LOS
        1,1,11,501,carevue,admit,,MICU,,52,2150-01-02 10:05:00,2150-01-03 12:00:00,26
        2,1,11,,carevue,transfer,MICU,,52,45,2150-01-03 12:00:00,2150-01-05 12:00:00,48
    """,
    "SERVICES": """
        ROW_ID,SUBJECT_ID,HADM_ID,TRANSFERTIME,PREV_SERVICE,CURR_SERVICE
        1,1,11,2150-01-02 10:30:00,,MED
    """,
    "CALLOUT": """
        ROW_ID,SUBJECT_ID,HADM_ID,CALLOUT_SERVICE,CALLOUT_OUTCOME,CREATETIME,OUTCOMETIME
        1,1,11,MED,Discharged,2150-01-03 09:00:00,2150-01-03 12:00:00
    """,
    "ICUSTAYS": """
        ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,DBSOURCE,FIRST_CAREUNIT,LAST_CAREUNIT,INTIME,OUTTIME,LOS
        1,1,11,501,carevue,MICU,CCU,2150-01-02 10:05:00,2150-01-03 12:00:00,1.1
    """,
    "DIAGNOSES_ICD": """
        ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE
        1,1,11,1,99591
        2,1,11,2,E8497
        3,1,12,,
    """,
    "PROCEDURES_ICD": """
        ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE
        1,1,11,1,0331
    """,
    "D_ICD_DIAGNOSES": """
        ROW_ID,ICD9_CODE,SHORT_TITLE,LONG_TITLE
        1,99591,Sepsis,Sepsis without organ dysfunction
    """,
    "CPTEVENTS": """
        ROW_ID,SUBJECT_ID,HADM_ID,COSTCENTER,CHARTDATE,CPT_CD,CPT_NUMBER,SECTIONHEADER,SUBSECTIONHEADER,DESCRIPTION
        1,1,11,ICU,,99254,99254,Evaluation and management,Consultations,
    """,
    "DRGCODES": """
        ROW_ID,SUBJECT_ID,HADM_ID,DRG_TYPE,DRG_CODE,DESCRIPTION,DRG_SEVERITY,DRG_MORTALITY
        1,1,11,HCFA,148,MAJOR BOWEL PROCEDURES,,
    """,
    "D_LABITEMS": """
        ROW_ID,ITEMID,LABEL,FLUID,CATEGORY,LOINC_CODE
        1,50912,Creatinine,Blood,Chemistry,2160-0
        2,50800,SPECIMEN TYPE,BLOOD,BLOOD GAS,
    """,
    "LABEVENTS": """
        ROW_ID,SUBJECT_ID,HADM_ID,ITEMID,CHARTTIME,VALUE,VALUENUM,VALUEUOM,FLAG
        1,1,,50912,2149-12-01 08:00:00,2.1,2.1,mg/dL,abnormal
        2,1,11,50800,2150-01-02 12:00:00,ART,,,
    """,
    "PRESCRIPTIONS": """
        ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,STARTDATE,ENDDATE,DRUG_TYPE,DRUG,DOSE_VAL_RX,DOSE_UNIT_RX
        1,1,11,501,2150-01-02 00:00:00,2150-01-04 00:00:00,MAIN,Furosemide,40,mg
        2,1,11,,2150-01-05 00:00:00,2150-01-05 00:00:00,MAIN,Aspirin,1-2,TAB
    """,
    "MICROBIOLOGYEVENTS": """
        ROW_ID,SUBJECT_ID,HADM_ID,CHARTDATE,CHARTTIME,SPEC_TYPE_DESC,ORG_NAME,AB_NAME,DILUTION_TEXT,DILUTION_VALUE,\
        INTERPRETATION
        1,1,11,2150-01-02 00:00:00,2150-01-02 11:00:00,URINE,ESCHERICHIA COLI,CEFEPIME,<=1,1,S
        2,2,21,2150-05-02 00:00:00,,SPUTUM,,,,,
        3,1,,2149-11-02 00:00:00,2149-11-02 10:00:00,SWAB,,,,,
    """,
    "INPUTEVENTS_CV": """
        ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,CHARTTIME,ITEMID,AMOUNT,AMOUNTUOM,RATE,RATEUOM,STORETIME,STOPPED
        1,1,11,501,2150-01-02 13:00:00,30056,400,ml,,,2150-01-02 13:40:00,
        2,1,11,501,2150-01-02 14:00:00,30120,,,0.03,mcgkgmin,2150-01-02 13:55:00,
        3,1,11,501,2150-01-02 15:00:00,30120,,,,,2150-01-02 15:05:00,D/C'd
    """,
    "INPUTEVENTS_MV": """
        ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,STARTTIME,ENDTIME,ITEMID,AMOUNT,AMOUNTUOM,RATE,RATEUOM,STORETIME,\
        CANCELREASON,STATUSDESCRIPTION
        1,1,12,502,2151-03-01 11:00:00,2151-03-01 13:00:00,221906,4.5,mg,0.5,mcg/kg/min,2151-03-01 11:10:00,0,Stopped
        2,1,12,502,2151-03-01 11:00:00,2151-03-01 13:00:00,221906,9,mg,1,mcg/kg/min,2151-03-01 11:20:00,1,Rewritten
        3,1,12,502,2151-03-01 15:00:00,2151-03-01 14:00:00,225158,10,ml,,,2151-03-01 15:10:00,0,FinishedRunning
    """,
    "OUTPUTEVENTS": """
        ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,CHARTTIME,ITEMID,VALUE,VALUEUOM,STORETIME,ISERROR
        1,1,11,501,2150-01-02 16:00:00,40055,39,ml,2150-01-02 16:20:00,
        2,1,11,501,2150-01-02 17:00:00,40055,9999,ml,2150-01-02 17:20:00,1
    """,
    "PROCEDUREEVENTS_MV": """
        ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,STARTTIME,ENDTIME,ITEMID,VALUE,VALUEUOM,STORETIME,STATUSDESCRIPTION
        1,1,12,502,2151-03-01 12:00:00,2151-03-01 14:00:00,225792,120,min,2151-03-01 14:05:00,FinishedRunning
    """,
    "D_ITEMS": """
        ROW_ID,ITEMID,LABEL,ABBREVIATION,DBSOURCE,LINKSTO
        1,221906,Norepinephrine,Norepinephrine,metavision,inputevents_mv
        2,211,Heart Rate,,carevue,chartevents
    """,
    "CHARTEVENTS": """
        ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,ITEMID,CHARTTIME,STORETIME,CGID,VALUE,VALUENUM,VALUEUOM,WARNING,ERROR,\
        RESULTSTATUS,STOPPED
        1,1,11,501,211,2150-01-02 18:00:00,2150-01-02 18:05:00,7,88,88,BPM,,,,NotStopd
        2,1,11,501,212,2150-01-02 18:00:00,2150-01-02 18:05:00,7,Normal Sinus,,,,,,NotStopd
        3,1,11,501,211,2150-01-02 19:00:00,2150-01-02 19:05:00,7,880,880,BPM,1,1,,
    """,
    "DATETIMEEVENTS": """
        ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,ITEMID,CHARTTIME,STORETIME,CGID,VALUE,VALUEUOM,WARNING,ERROR,RESULTSTATUS
        1,1,11,501,5684,2150-01-02 20:00:00,2150-01-02 20:10:00,7,2150-01-01 00:00:00,Date,,0,
    """,
}


def folder(path, suffix=".csv", lower=False, **changes):
    """The tables above, one or more replaced (None leaves a table out); `lower` writes every header in lower case."""
    for name, text in (TABLES | changes).items():
        if text is not None:
            text = text.replace("\\\n", "")
            if lower:
                header, _, rest = text.strip().partition("\n")
                name, text = name.lower(), f"{header.lower()}\n{rest}"
            write_table(path / f"{name}{suffix}", text)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("mimic")
    return import_source("mimic-iii", folder(path / "raw"), path / "meds")


def of(dataset, subject):
    return rows_of(events_of(dataset).filter(subject_id=subject), "numeric_value", "visit_id", "unit", "text_value")


def test_every_row_of_a_subject(dataset):
    def plain(time, visit, *codes):
        return [(time, code, None, visit, None, None) for code in codes]

    expected = [
        *plain(None, None, "GENDER//F"),
        *plain("2090-06-05 00:00:00", None, "MEDS_BIRTH"),
        # Eight days after a specimen that no admission dates
        *plain("2149-11-10 10:00:00", None, "MICROBIOLOGY//SWAB"),
        *plain("2149-12-01 08:00:00", None, "LAB_FLAG//50912//abnormal"),
        ("2149-12-01 08:00:00", "LOINC//2160-0", pytest.approx(2.1), None, "mg/dL", None),
        *plain("2150-01-02 07:00:00", 11, "ED_REGISTRATION"),
        *plain(
            "2150-01-02 10:00:00", 11, "HOSPITAL_ADMISSION//EMERGENCY//EMERGENCY ROOM ADMIT", "INSURANCE//Medicare",
            "MARITAL_STATUS//MARRIED", "RACE//WHITE",
        ),
        *plain("2150-01-02 10:05:00", 11, "ICU_ADMISSION//MICU", "TRANSFER_TO//admit//MICU"),
        *plain("2150-01-02 10:30:00", 11, "SERVICE//MED"),
        *plain("2150-01-02 11:00:00", 11, "ED_OUT"),
        ("2150-01-02 12:00:00", "LAB//50800", None, 11, None, "ART"),
        ("2150-01-02 13:40:00", "INPUT//AMOUNT//30056", 400.0, 11, "ml", None),
        ("2150-01-02 14:00:00", "INPUT//RATE//30120", pytest.approx(0.03), 11, "mcgkgmin", None),
        ("2150-01-02 15:05:00", "INPUT//CHARTED//30120", None, 11, None, "D/C'd"),
        ("2150-01-02 16:20:00", "OUTPUT//40055", 39.0, 11, "ml", None),
        ("2150-01-02 18:05:00", "CHART//211", 88.0, 11, "BPM", None),
        ("2150-01-02 18:05:00", "CHART//212", None, 11, None, "Normal Sinus"),
        ("2150-01-02 20:10:00", "DATETIME//5684", None, 11, None, "2150-01-01 00:00:00"),
        ("2150-01-02 23:59:59", "DRUG//Furosemide", 40.0, 11, "mg", None),
        *plain("2150-01-03 09:00:00", 11, "CALLOUT//MED"),
        *plain(
            "2150-01-03 12:00:00", 11, "CALLOUT_OUTCOME//Discharged", "ICU_DISCHARGE//CCU",
            "TRANSFER_TO//transfer//NO ICU",
        ),
        *plain("2150-01-05 12:00:00", 11, "CPT//99254", "DRG//HCFA//148"),
        # Prescribed on the day of discharge: known when the subject leaves
        ("2150-01-05 12:00:00", "DRUG//Aspirin", None, 11, "TAB", "1-2"),
        *plain(
            "2150-01-05 12:00:00", 11, "HOSPITAL_DISCHARGE//HOME", "ICD9CM//995.91", "ICD9CM//E849.7",
            "ICD9PROC//03.31",
        ),
        # A culture of an admission shorter than eight days
        ("2150-01-05 12:00:00", "MICROBIOLOGY//URINE//ESCHERICHIA COLI//CEFEPIME//S", 1.0, 11, None, "<=1"),
        *plain("2151-03-01 08:00:00", 12, "HOSPITAL_ADMISSION//URGENT//UNKNOWN", "LANGUAGE//ENGL"),
        *plain("2151-03-01 08:00:00", 12, "RELIGION//CATHOLIC"),
        ("2151-03-01 11:10:00", "INPUT//START//221906", 0.5, 12, "mcg/kg/min", None),
        *plain("2151-03-01 12:00:00", 12, "PROCEDURE//START//225792"),
        ("2151-03-01 13:00:00", "INPUT//END//221906", 4.5, 12, "mg", None),
        ("2151-03-01 14:00:00", "PROCEDURE//END//225792", 120.0, 12, "min", None),
        *plain("2151-03-01 15:10:00", 12, "INPUT//START//225158"),
        *plain("2151-03-05 22:10:00", 12, "HOSPITAL_DISCHARGE//DEAD/EXPIRED", "MEDS_DEATH"),
    ]  # fmt: skip
    assert of(dataset, 1) == expected


def test_a_shifted_birth_is_91_years_before_the_first_admission(dataset):
    assert of(dataset, 2)[:2] == [
        (None, "GENDER//M", None, None, None, None),
        ("2059-05-01 00:00:00", "MEDS_BIRTH", None, None, None, None),
    ]
    # The culture of a stay longer than eight days, taken on a day without a time
    assert ("2150-05-10 23:59:59", "MICROBIOLOGY//SPUTUM", None, 21, None, None) in of(dataset, 2)
    assert len(of(dataset, 2)) == 6
    assert dataset.manifest["conflicts"]["subjects_older_than_89_of_unknown_age"] == 1


def test_leap_days_have_a_birth(tmp_path):
    raw = folder(
        tmp_path / "raw",
        PATIENTS=TABLES["PATIENTS"].replace("1850-05-01", "1852-02-29"),
        ADMISSIONS=TABLES["ADMISSIONS"].replace("2150-05-01 09", "2152-02-29 09").replace("2150-05-12", "2152-05-12"),
    )
    births = events_of(import_source("mimic-iii", raw, tmp_path / "meds")).filter(subject_id=2, code="MEDS_BIRTH")
    assert births["time"].dt.to_string("%Y-%m-%d").to_list() == ["2061-02-28"]


def test_a_birth_that_no_shift_explains_is_left_out_and_counted(tmp_path):
    raw = folder(tmp_path / "raw", PATIENTS=TABLES["PATIENTS"].replace("2090-06-05", "1900-06-05"))
    dataset = import_source("mimic-iii", raw, tmp_path / "meds")
    assert dataset.manifest["events_dropped"]["more than 125 years after birth"] > 10
    assert dataset.manifest["conflicts"]["subjects_older_than_89_of_unknown_age"] == 1


def test_deaths_of_the_social_security_register(dataset):
    assert of(dataset, 3)[-1] == ("2141-08-09 23:59:59", "MEDS_DEATH", None, None, None, None)


def test_observation_ends_90_days_after_the_last_discharge(dataset):
    ends = dataset.observation_end()
    assert ends is not None
    assert [(subject, str(end)) for subject, end in ends.rows()] == [
        (1, "2151-06-03 22:10:00"),
        (2, "2150-08-10 09:00:00"),
    ]


def test_rows_that_the_publisher_withdrew_make_no_event(dataset):
    tables = dataset.manifest["tables"]
    assert tables["inputevents_mv"] == {
        "rows": 3, "events": 3, "rows_with_events": 2, "rows_without_events": {"rewritten or cancelled": 1},
        "dropped": {"start or end without a time, or end before the start": 1},
    }  # fmt: skip
    for table in ("outputevents", "chartevents"):
        assert tables[table]["rows_without_events"] == {"marked as an error": 1}
    assert tables["diagnoses_icd"]["rows_dropped"] == {"without a code": 1}
    assert dataset.manifest["tables_missing"] == ["d_icd_procedures"]
    assert dataset.manifest["visits"] == 3


@pytest.mark.parametrize(
    ("created", "outcome", "dropped"),
    [
        ("2150-01-03 12:00:00", "2150-01-03 09:00:00", 1), ("2150-01-03 09:00:00", "", 1),
        ("2150-01-03 09:00:00", "2150-01-03 09:00:00", 0),
    ],
)  # fmt: skip
def test_an_outcome_before_its_callout_is_dropped(tmp_path, created, outcome, dropped):
    callout = TABLES["CALLOUT"].replace("2150-01-03 09:00:00,2150-01-03 12:00:00", f"{created},{outcome}")
    dataset = import_source("mimic-iii", folder(tmp_path / "raw", CALLOUT=callout), tmp_path / "meds")
    account = dataset.manifest["tables"]["callout"]
    assert account["events"] == 2 - dropped
    reason = "createtime or outcometime missing, or outcome before createtime"
    assert account.get("dropped", {}) == ({reason: 1} if dropped else {})


def test_strict_takes_what_the_publisher_withdrew(tmp_path):
    clean = {
        "INPUTEVENTS_MV": TABLES["INPUTEVENTS_MV"].replace("2151-03-01 14:00:00", "2151-03-01 16:00:00"),
        "DIAGNOSES_ICD": TABLES["DIAGNOSES_ICD"].replace("3,1,12,,", "3,1,12,1,486"),
    }
    dataset = import_source("mimic-iii", folder(tmp_path / "raw", **clean), tmp_path / "meds", strict=True)
    assert dataset.manifest["events_dropped"] == {}
    message = r"INPUTEVENTS_MV\.csv has 1 events that would be dropped; got start or end without a time, or end before"
    with pytest.raises(DataError, match=message):
        import_source(
            "mimic-iii", folder(tmp_path / "other", DIAGNOSES_ICD=clean["DIAGNOSES_ICD"]), tmp_path / "no", strict=True
        )


def test_codes_have_kinds_and_descriptions(dataset):
    codes = {code: rest for code, *rest in dataset.codes().rows()}
    assert codes["ICD9CM//995.91"] == ["Sepsis without organ dysfunction", "diagnosis", False]
    assert codes["LOINC//2160-0"] == ["Creatinine", "lab", True]
    assert codes["CPT//99254"] == ["Consultations", "procedure", False]
    assert codes["INPUT//START//221906"] == ["Norepinephrine, start", "drug", True]
    assert codes["CHART//211"] == ["Heart Rate", "vital", True]
    assert codes["DATETIME//5684"] == [None, "other", False]
    assert set(codes) == set(events_of(dataset)["code"])


@pytest.mark.parametrize(("suffix", "lower"), [(".csv.gz", False), (".csv", True)])
def test_compressed_files_and_lower_case_names_give_the_same(tmp_path, dataset, suffix, lower):
    raw = folder(tmp_path / "raw", suffix, lower)
    assert import_source("mimic-iii", raw, tmp_path / "meds").fingerprint == dataset.fingerprint


def test_both_releases_agree_where_they_say_the_same(tmp_path, dataset):
    """The admission of subject 1, written as MIMIC-IV writes it, gives the same events."""
    raw = tmp_path / "iv"
    write_table(raw / "hosp/patients.csv", "subject_id,gender,anchor_age,anchor_year\n1,F,60,2150\n")
    for name in ("ADMISSIONS", "SERVICES", "DRGCODES", "LABEVENTS", "D_LABITEMS"):
        write_table(raw / f"hosp/{name.lower()}.csv", TABLES[name].replace("\\\n", "").replace("ETHNICITY", "RACE"))
    for name in ("ICUSTAYS", "D_ITEMS", "CHARTEVENTS", "OUTPUTEVENTS", "DATETIMEEVENTS"):
        write_table(raw / f"icu/{name.lower()}.csv", TABLES[name].replace("\\\n", ""))
    write_table(raw / "icu/inputevents.csv", TABLES["INPUTEVENTS_MV"].replace("\\\n", ""))
    write_table(raw / "icu/procedureevents.csv", TABLES["PROCEDUREEVENTS_MV"].replace("\\\n", ""))
    other = import_source("mimic-iv", raw, tmp_path / "meds")
    same = pl.col("code").str.contains("^(HOSPITAL|SERVICE|DRG/|LOINC|LAB|ICU|INPUT//(START|END)|PROC|DATETIME|CHART)")

    def kept(dataset):
        events = events_of(dataset).filter(same & (pl.col("subject_id") == 1))
        # Errors that only MIMIC-III marks
        return rows_of(events.filter(pl.col("numeric_value").ne_missing(880)), "numeric_value", "visit_id", "unit")

    assert kept(other) == kept(dataset)
    assert len(kept(other)) > 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PATIENTS": None}, "raw lacks table patients; got admissions"),
        ({"LABEVENTS": "SUBJECT_ID,HADM_ID\n"}, r"LABEVENTS\.csv lacks itemid, charttime, valuenum; got columns"),
        (
            {"DIAGNOSES_ICD": TABLES["DIAGNOSES_ICD"].replace("1,1,11,1,", "1,1,x,1,")},
            r"column hadm_id of .*DIAGNOSES_ICD\.csv has 1 values that are no whole numbers; got 'x' in row 1",
        ),
        (
            {"CHARTEVENTS": TABLES["CHARTEVENTS"].replace("2150-01-02 18:00:00", "18:00")},
            r"column charttime of .*CHARTEVENTS\.csv has 2 values that are no times; got '18:00' in row 1",
        ),
        (
            {"PATIENTS": TABLES["PATIENTS"] + "4,3,F,2100-02-03 00:00:00,,,,0\n"},
            r"PATIENTS\.csv repeats values of subject_id; got 3, first in row 3",
        ),
    ],
)
def test_bad_tables_are_named_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        import_source("mimic-iii", folder(tmp_path / "raw", **changes), tmp_path / "meds")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_folder_of_something_else(tmp_path):
    check_wrong_source("mimic-iv", folder(tmp_path / "raw"), "mimic-iii", tmp_path)
    check_wrong_source("physionet2012", tmp_path / "raw", "mimic-iii", tmp_path)


def test_hostile_input(tmp_path):
    spans = {
        "admissions": [("admittime", "dischtime"), ("edregtime", "edouttime")],
        "icustays": [("intime", "outtime")],
        "procedureevents_mv": [("starttime", "endtime")],
        "inputevents_mv": [("starttime", "endtime")],
        "callout": [("createtime", "outcometime")],
    }
    check_source("mimic-iii", folder(tmp_path / "clean"), tmp_path, pairs=spans, examples=15)
