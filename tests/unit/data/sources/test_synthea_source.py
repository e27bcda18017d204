import datetime

import polars as pl
import pytest
from raw_tables import events_of, number_of, rows_of, write_table
from tests.hostile import check_source

from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import DataError

ANNA, BERT, STRANGER = (f"{letter * 8}-aaaa-bbbb-cccc-000000000001" for letter in "abc")
CLINIC, STAY, ER = (f"e{number}e{number}e{number}e{number}-0000-1111-2222-333333333333" for number in range(3))
SUBJECT = {name: number_of(name) for name in (ANNA, BERT)}
VISIT = {name: number_of(name) for name in (CLINIC, STAY, ER)}

NEWEST = {
    "patients": f"""
        Id,BIRTHDATE,DEATHDATE,SSN,PREFIX,FIRST,MIDDLE,LAST,MARITAL,RACE,ETHNICITY,GENDER,FIPS,INCOME
        {ANNA},1960-05-20,,999-17-5017,,Anna1,B2,C3,M,white,nonhispanic,F,25017,5000
        {BERT},1970-01-02,2021-06-01,999-17-5018,,Bert1,,C4,,asian,hispanic,M,,7000
    """,
    "encounters": f"""
        Id,START,STOP,PATIENT,ORGANIZATION,PROVIDER,PAYER,ENCOUNTERCLASS,CODE,DESCRIPTION,BASE_ENCOUNTER_COST,REASONCODE
        {CLINIC},2020-03-01T08:30:00Z,2020-03-01T08:45:00Z,{ANNA},o,p,q,wellness,162673000,General examination,77.49,
        {STAY},2020-04-01T23:00:00Z,2020-04-03T10:00:00Z,{ANNA},o,p,q,inpatient,183452005,Inpatient,9.1,22298006
        {ER},2021-05-31T23:00:00Z,2021-06-01T00:30:00Z,{BERT},o,p,q,emergency,50849002,Emergency room admission,77.49,
    """,
    "conditions": f"""
        START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION
        2020-02-27,2020-04-02,{ANNA},{CLINIC},http://snomed.info/sct,195662009,Acute viral pharyngitis (disorder)
        2020-04-01,,{ANNA},{STAY},SNOMED-CT,22298006,Myocardial infarction (disorder)
    """,
    "allergies": f"""
        START,STOP,PATIENT,ENCOUNTER,CODE,SYSTEM,DESCRIPTION,TYPE,CATEGORY,REACTION1,DESCRIPTION1,SEVERITY1
        2020-03-01,,{ANNA},{CLINIC},1191,RxNorm,Aspirin,allergy,medication,,,
        2020-03-01,,{ANNA},{CLINIC},84489001,Unknown,Mold (organism),allergy,environment,76067001,Sneezing,MILD
        2020-03-01,,{ANNA},{CLINIC},7984,Unknown,Penicillin V,allergy,medication,,,
    """,
    "medications": f"""
        START,STOP,PATIENT,PAYER,ENCOUNTER,CODE,DESCRIPTION,BASE_COST,DISPENSES,TOTALCOST,REASONCODE
        2020-04-02T09:00:00Z,2020-05-02T09:00:00Z,{ANNA},q,{STAY},855332,Warfarin Sodium 5 MG Oral Tablet,1.0,2,2.0,
        2020-03-01T08:40:00Z,2020-03-01T08:45:00Z,{ANNA},q,{CLINIC},313782,Acetaminophen 325 MG Oral Tablet,1.0,1,1.0,
    """,
    "immunizations": f"""
        DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,BASE_COST
        2020-03-01T08:30:00Z,{ANNA},{CLINIC},140,Influenza  seasonal  injectable  preservative free,140.52
    """,
    "procedures": f"""
        START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION,BASE_COST,REASONCODE,REASONDESCRIPTION
        2020-04-02T11:00:00Z,2020-04-02T12:00:00Z,{ANNA},{STAY},SNOMED-CT,232717009,Coronary artery bypass,1.0,,
    """,
    "careplans": f"""
        Id,START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION
        c1,2020-04-03,2020-04-20,{ANNA},{STAY},53950000,Respiratory therapy,,
    """,
    "devices": f"""
        START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION,UDI
        2020-04-02T11:00:00Z,,{ANNA},{STAY},705643001,Coronary artery stent (physical object),(01)13465995954590
    """,
    "supplies": f"""
        DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,QUANTITY
        2020-04-02,{ANNA},{STAY},713779008,Nitrile glove  non-powdered,24
    """,
    "imaging_studies": f"""
        Id,DATE,PATIENT,ENCOUNTER,SERIES_UID,BODYSITE_CODE,BODYSITE_DESCRIPTION,MODALITY_CODE,MODALITY_DESCRIPTION,INSTANCE_UID
        i1,2020-04-02T10:00:00Z,{ANNA},{STAY},1,51185008,Chest,CT,Computed Tomography,1.1
        i1,2020-04-02T10:00:00Z,{ANNA},{STAY},1,51185008,Chest,CT,Computed Tomography,1.2
    """,
    "observations": f"""
        DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE
        2020-03-01T08:30:00Z,{ANNA},{CLINIC},vital-signs,8302-2,Body Height,171.5,cm,numeric
        2020-03-01T08:30:00Z,{ANNA},{CLINIC},laboratory,2093-3,Total Cholesterol,180,mg/dL,numeric
        2020-03-01T08:30:00Z,{ANNA},{CLINIC},survey,72166-2,Tobacco smoking status,Never smoker,,text
        2020-03-01T08:30:00Z,{ANNA},{CLINIC},survey,93025-5,Protocol,7,null,text
        2020-05-20T08:30:00Z,{ANNA},,,QALY,QALY,59.5,a,numeric
    """,
    "claims": "Id,PATIENTID\n1,2",
}


def folder(path, tables, suffix=".csv", upper=False):
    for name, text in tables.items():
        if text is not None:
            write_table(path / f"{name.upper() if upper else name}{suffix}", text)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthea")
    return import_source("synthea", folder(path / "raw", NEWEST), path / "meds")


def of(dataset, subject):
    rows = rows_of(
        events_of(dataset).filter(subject_id=SUBJECT[subject]), "numeric_value", "visit_id", "unit", "text_value"
    )
    names = {number: name for name, number in VISIT.items()}
    return [(time, code, value, names.get(visit, visit), unit, text) for time, code, value, visit, unit, text in rows]


def plain(time, code, visit=None):
    return time, code, None, visit, None, None


def test_every_row_of_a_patient(dataset):
    assert of(dataset, ANNA) == [
        plain(None, "ETHNICITY//nonhispanic"),
        plain(None, "GENDER//F"),
        plain(None, "RACE//white"),
        plain("1960-05-20 00:00:00", "MEDS_BIRTH"),
        # Began days before, known at the encounter that recorded it.
        plain("2020-03-01 08:30:00", "CVX//140", CLINIC),
        ("2020-03-01 08:30:00", "LOINC//2093-3", 180.0, CLINIC, "mg/dL", None),
        ("2020-03-01 08:30:00", "LOINC//72166-2", None, CLINIC, None, "Never smoker"),
        ("2020-03-01 08:30:00", "LOINC//8302-2", 171.5, CLINIC, "cm", None),
        ("2020-03-01 08:30:00", "LOINC//93025-5", None, CLINIC, None, "7"),
        plain("2020-03-01 08:30:00", "SNOMED//195662009", CLINIC),
        plain("2020-03-01 08:30:00", "VISIT//wellness//SNOMED//162673000", CLINIC),
        plain("2020-03-01 08:40:00", "RXNORM//313782", CLINIC),
        # Known by date alone: at the end of the day.
        plain("2020-03-01 23:59:59", "ALLERGY//RXNORM//1191", CLINIC),
        plain("2020-03-01 23:59:59", "ALLERGY//RXNORM//7984", CLINIC),
        plain("2020-03-01 23:59:59", "ALLERGY//SNOMED//84489001", CLINIC),
        plain("2020-04-01 23:00:00", "HOSPITAL_ADMISSION//SNOMED//183452005", STAY),
        plain("2020-04-01 23:59:59", "SNOMED//22298006", STAY),
        plain("2020-04-02 09:00:00", "RXNORM//855332", STAY),
        plain("2020-04-02 10:00:00", "IMAGING//CT//51185008", STAY),
        plain("2020-04-02 11:00:00", "SNOMED//232717009", STAY),
        plain("2020-04-02 11:00:00", "SNOMED//705643001", STAY),
        ("2020-04-02 23:59:59", "SNOMED//713779008", 24.0, STAY, None, None),
        # An end belongs to the visit in which it happened.
        plain("2020-04-02 23:59:59", "STOP//SNOMED//195662009", STAY),
        plain("2020-04-03 10:00:00", "HOSPITAL_DISCHARGE//UNKNOWN", STAY),
        plain("2020-04-03 23:59:59", "SNOMED//53950000", STAY),
        plain("2020-04-20 23:59:59", "STOP//SNOMED//53950000"),
        plain("2020-05-02 09:00:00", "STOP//RXNORM//855332"),
        ("2020-05-20 08:30:00", "SYNTHEA//QALY", 59.5, None, "a", None),
    ]


def test_a_night_in_the_emergency_room_and_a_death(dataset):
    assert of(dataset, BERT) == [
        plain(None, "ETHNICITY//hispanic"),
        plain(None, "GENDER//M"),
        plain(None, "RACE//asian"),
        plain("1970-01-02 00:00:00", "MEDS_BIRTH"),
        plain("2021-05-31 23:00:00", "VISIT//emergency//SNOMED//50849002", ER),
        plain("2021-06-01 00:30:00", "STOP//VISIT//emergency", ER),
        plain("2021-06-01 23:59:59", "MEDS_DEATH"),
    ]


def test_the_account(dataset):
    manifest = dataset.manifest
    assert {name: (account["rows"], account["events"]) for name, account in manifest["tables"].items()} == {
        "patients": (2, 9), "encounters": (3, 5), "conditions": (2, 3), "allergies": (3, 3), "medications": (2, 3),
        "immunizations": (1, 1), "procedures": (1, 1), "careplans": (1, 2), "devices": (1, 1), "supplies": (1, 1),
        "imaging_studies": (2, 2), "observations": (5, 5),
    }  # fmt: skip
    assert manifest["ends_on_the_day_of_their_start"] == {"encounters": 1, "medications": 1, "procedures": 1}
    assert manifest["conflicts"] == {
        "events_before_their_encounter_stamped_at_its_start": 1,
        "events_of_encounters_that_are_not_in_encounters": 0,
        "further_images_of_a_study": 1,
    }
    assert manifest["events_dropped"] == {} and manifest["date_only"] is False
    assert manifest["tables_missing"] == [] and manifest["tables_not_read"] == ["claims"]


def test_kinds_and_descriptions(dataset):
    codes = {code: rest for code, *rest in dataset.codes().rows()}
    assert codes["SNOMED//22298006"] == ["Myocardial infarction (disorder)", "diagnosis", False]
    assert codes["STOP//SNOMED//195662009"] == ["Acute viral pharyngitis (disorder), end", "other", False]
    assert codes["STOP//VISIT//emergency"] == ["emergency, end", "other", False]
    assert codes["ALLERGY//RXNORM//1191"] == ["Aspirin", "other", False]
    assert codes["LOINC//2093-3"] == ["Total Cholesterol", "lab", True]
    assert codes["LOINC//8302-2"] == ["Body Height", "vital", True]
    assert codes["LOINC//72166-2"] == ["Tobacco smoking status", "other", False]
    assert codes["CVX//140"] == ["Influenza  seasonal  injectable  preservative free", "drug", False]
    assert codes["SNOMED//53950000"] == ["Respiratory therapy", "procedure", False]
    assert codes["IMAGING//CT//51185008"] == ["Computed Tomography, Chest", "procedure", False]
    assert codes["HOSPITAL_ADMISSION//SNOMED//183452005"] == ["Inpatient", "encounter", False]
    assert set(codes) == set(events_of(dataset)["code"])


OLDEST = {
    "patients": f"""
        ID,BIRTHDATE,DEATHDATE,SSN,DRIVERS,PASSPORT,PREFIX,FIRST,LAST,SUFFIX,MAIDEN,MARITAL,RACE,ETHNICITY,GENDER,BIRTHPLACE,ADDRESS
        {ANNA},1960-05-20,2016-01-05,999-17-5017,,,,Anna1,C3,,,M,white,irish,F,Boston,x
    """,
    "encounters": f"""
        ID,DATE,PATIENT,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION
        {CLINIC},2015-03-01,{ANNA},185349003,Outpatient Encounter,,
    """,
    "conditions": f"""
        START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION
        2015-03-01,2015-03-09,{ANNA},{CLINIC},195662009,Acute viral pharyngitis
    """,
    "allergies": f"""
        START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION
        2015-03-01,,{ANNA},{CLINIC},419474003,Allergy to mould
    """,
    "procedures": f"""
        DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION
        2015-03-01,{ANNA},{CLINIC},428191000124101,Documentation of current medications,,
    """,
    "observations": f"""
        DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,VALUE,UNITS
        2015-03-01,{ANNA},{CLINIC},8302-2,Body Height,171.5,cm
        2015-03-01,{ANNA},{CLINIC},2093-3,Total Cholesterol,180,mg/dL
        2015-03-01,{ANNA},{CLINIC},63513-6,Housing,high,{{nominal}}
    """,
}


def test_the_oldest_generation_of_dates_alone(tmp_path):
    """ID and DATE, no class of encounter, no CATEGORY, no TYPE; no time of day anywhere: days keep their midnight."""
    dataset = import_source("synthea", folder(tmp_path / "raw", OLDEST, upper=True), tmp_path / "meds")
    day = "2015-03-01 00:00:00"
    assert of(dataset, ANNA) == [
        plain(None, "ETHNICITY//irish"),
        plain(None, "GENDER//F"),
        plain(None, "RACE//white"),
        plain("1960-05-20 00:00:00", "MEDS_BIRTH"),
        plain(day, "ALLERGY//SNOMED//419474003", CLINIC),
        (day, "LOINC//2093-3", 180.0, CLINIC, "mg/dL", None),
        (day, "LOINC//63513-6", None, CLINIC, "{nominal}", "high"),
        (day, "LOINC//8302-2", 171.5, CLINIC, "cm", None),
        plain(day, "SNOMED//195662009", CLINIC),
        plain(day, "SNOMED//428191000124101", CLINIC),
        plain(day, "VISIT//SNOMED//185349003", CLINIC),
        plain("2015-03-09 00:00:00", "STOP//SNOMED//195662009"),
        plain("2016-01-05 00:00:00", "MEDS_DEATH"),
    ]
    assert dataset.manifest["date_only"] is True
    assert "unreadable" not in dataset.manifest["tables"]["observations"]
    assert dict(dataset.codes().select("code", "kind").rows())["LOINC//8302-2"] == "vital"


def test_a_generation_with_times_and_procedures_by_date(tmp_path):
    """2018 to 2020: START and STOP of encounters with a time of day, procedures by DATE, observations with TYPE."""
    tables = {
        "patients": OLDEST["patients"],
        "encounters": f"""
            Id,START,STOP,PATIENT,PROVIDER,ENCOUNTERCLASS,CODE,DESCRIPTION,COST,REASONCODE,REASONDESCRIPTION
            {STAY},2015-03-01T22:00:00Z,2015-03-02T07:00:00Z,{ANNA},p,inpatient,,Encounter Inpatient,129.16,,
        """,
        "procedures": f"""
            DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,COST,REASONCODE,REASONDESCRIPTION
            2015-03-02T05:00:00Z,{ANNA},{STAY},232717009,Coronary artery bypass grafting,1.0,,
        """,
        "observations": f"""
            DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,VALUE,UNITS,TYPE
            2015-03-02T00:00:00Z,{ANNA},{STAY},8302-2,Body Height,171.5,cm,numeric
            2015-03-02T05:00:00Z,{ANNA},{STAY},2093-3,Total Cholesterol,many,mg/dL,numeric
        """,
        "medications": f"""
            START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION,COST,DISPENSES,TOTALCOST,REASONCODE,REASONDESCRIPTION
            2015-03-01,2015-03-02,{ANNA},{STAY},855332,Warfarin Sodium 5 MG Oral Tablet,1.0,2,2.0,,
        """,
    }
    dataset = import_source("synthea", folder(tmp_path / "raw", tables), tmp_path / "meds")
    assert of(dataset, ANNA)[4:] == [
        plain("2015-03-01 22:00:00", "HOSPITAL_ADMISSION//UNKNOWN", STAY),
        plain("2015-03-01 23:59:59", "RXNORM//855332", STAY),
        # Midnight is a time in a table with times of day.
        ("2015-03-02 00:00:00", "LOINC//8302-2", 171.5, STAY, "cm", None),
        ("2015-03-02 05:00:00", "LOINC//2093-3", None, STAY, "mg/dL", "many"),
        plain("2015-03-02 05:00:00", "SNOMED//232717009", STAY),
        plain("2015-03-02 07:00:00", "HOSPITAL_DISCHARGE//UNKNOWN", STAY),
        plain("2015-03-02 23:59:59", "STOP//RXNORM//855332", STAY),
        plain("2016-01-05 23:59:59", "MEDS_DEATH"),
    ]
    assert dataset.manifest["tables"]["observations"]["unreadable"] == {"value": 1}
    assert {"careplans", "devices"} < set(dataset.manifest["tables_missing"])


def test_drops_are_counted(tmp_path):
    tables = NEWEST | {
        "conditions": f"""
            START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION
            2020-02-27,2020-02-20,{ANNA},{CLINIC},195662009,ends before it begins
            2020-02-27,,{STRANGER},{CLINIC},195662009,of nobody
            1950-02-27,,{ANNA},,195662009,before birth
            ,2020-02-20,{ANNA},{CLINIC},195662009,no start
            2020-02-27,,{ANNA},{CLINIC},,no code
            2020-04-01,,{ANNA},{ER},22298006,encounter of another
            2020-04-01,,,{CLINIC},22298006,no patient
        """,
    }
    dataset = import_source("synthea", folder(tmp_path / "raw", tables), tmp_path / "meds")
    account = dataset.manifest["tables"]["conditions"]
    assert account["rows"] == 7 and account["events"] == 2 and account["rows_with_events"] == 2
    assert account["dropped"] == {
        "before birth": 1, "subject not in patients": 1, "without a code": 1, "without a subject": 1,
        "without a start, or with a stop before it": 3,
    }  # fmt: skip
    assert dataset.manifest["conflicts"]["events_of_encounters_that_are_not_in_encounters"] == 1
    infarction = events_of(dataset).filter(pl.col("code") == "SNOMED//22298006")
    assert infarction["visit_id"].to_list() == [None]
    with pytest.raises(DataError, match=r"conditions.csv has 7 events that would be dropped"):
        import_source("synthea", tmp_path / "raw", tmp_path / "strict", strict=True)


def test_without_encounters_visits_stay(tmp_path):
    tables = {name: text for name, text in NEWEST.items() if name in ("patients", "medications")}
    dataset = import_source("synthea", folder(tmp_path / "raw", tables), tmp_path / "meds")
    visits = events_of(dataset).filter(pl.col("code") == "RXNORM//855332")["visit_id"]
    assert visits.to_list() == [VISIT[STAY]]


@pytest.mark.parametrize(("suffix", "upper"), [(".csv.gz", True), (".csv", True)])
def test_compressed_and_upper_case(tmp_path, dataset, suffix, upper):
    tables = {}
    for name, text in NEWEST.items():
        head, _, rest = text.strip().partition("\n")
        tables[name] = f"{head.lower() if upper else head.upper()}\n{rest.replace(ANNA, ANNA.upper())}"
    made = import_source("synthea", folder(tmp_path / "raw", tables, suffix, upper), tmp_path / "meds")
    assert made.fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"conditions": NEWEST["conditions"].replace(ANNA, f"{ANNA}\0", 1)},
            r"column patient of .*conditions\.csv has 1 values that are no identifiers; got '.*x00' in row 1; expe",
        ),
        ({"patients": None}, r"lacks table patients; got allergies, .*; expected patients.csv or"),
        (
            {"encounters": NEWEST["encounters"] + NEWEST["encounters"].splitlines()[2]},
            "encounters has an encounter twice",
        ),
        ({"patients": NEWEST["patients"] + NEWEST["patients"].splitlines()[2]}, "patients.csv repeats values of id"),
        (
            {"conditions": "STOP,PATIENT,CODE\n2020-01-01,x,1"},
            r"conditions.csv lacks start; got columns stop, .*START or DATE",
        ),
        ({"conditions": "START,PATIENT\n2020-01-01,x"}, "conditions.csv lacks code"),
        (
            {"conditions": "START,PATIENT,CODE\nsoon,x,1"},
            "column start of .*conditions.csv has 1 values that are no times",
        ),
    ],
)
def test_errors(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as raised:
        import_source("synthea", folder(tmp_path / "raw", NEWEST | changes), tmp_path / "meds")
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "meds").exists()


def test_stays_serve_the_tasks(dataset):
    from ehrsequencing.tasks.stays import find_stays

    deaths = pl.DataFrame({"subject_id": [SUBJECT[BERT]], "death": [datetime.datetime(2021, 6, 1, 23, 59, 59)]})
    stays = find_stays(events_of(dataset), deaths)
    assert stays.select("subject_id", "admission", "discharge", "died").rows() == [
        (SUBJECT[ANNA], datetime.datetime(2020, 4, 1, 23), datetime.datetime(2020, 4, 3, 10), False)
    ]


ENDS = {name: [("start", "stop")] for name in ("encounters", "conditions", "medications", "procedures", "careplans")}


def test_damaged_tables(tmp_path):
    tables = {name: text for name, text in NEWEST.items() if name != "claims"}
    check_source("synthea", folder(tmp_path / "clean", tables), tmp_path, pairs=ENDS)
