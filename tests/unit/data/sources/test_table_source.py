import datetime as dt
import tomllib
from typing import get_args

import polars as pl
import pytest
from raw_tables import events_of, rows_of, write_table

from ehrsequencing.data.schema import KINDS
from ehrsequencing.data.sources import csv_files, import_source
from ehrsequencing.data.sources.table_mapping import EXAMPLE, KindName, Mapping
from ehrsequencing.errors import ConfigError, DataError
from ehrsequencing.tasks.cohorts import build_labels

TABLES = {
    "patients": """
        Patient_ID,date_of_birth,sex,race,date_of_death
        1,1950-05-01,F,white,
        2,1960-01-31,M,,2020-03-04
        3,,,,
    """,
    "encounters": """
        encounter_id,patient_id,admitted,discharged,class,disposition
        11,1,2020-01-01 08:00:00,2020-01-03 12:30:00,inpatient,home
        12,1,2020-02-01 10:00:00,2020-02-01 10:20:00,clinic,
        21,2,2020-03-01 20:00:00,2020-03-04,acute,
        22,2,2020-03-09 09:00:00,2020-03-08 09:00:00,acute,home
    """,
    "diagnoses": """
        patient_id,encounter_id,icd10,diagnosis
        1,11,E11.9,Type 2 diabetes
        1,99,I10,Hypertension
        2,21,I50.9,
    """,
    "labs": """
        patient_id,encounter_id,collected,reported,test,result,unit,status
        1,11,2020-01-01 09:00:00,2020-01-01 11:00:00,CREA,1.2,mg/dL,final
        1,11,2020-01-01 09:00:00,,CREA,<0.5,mg/dL,corrected
        1,,2020-01-01 09:00:00,,CREA,NULL,mg/dL,final
        1,11,2020-01-01 09:00:00,,CREA,7,mg/dL,preliminary
        9,,2020-01-01 09:00:00,,CREA,7,mg/dL,final
    """,
    "vitals": """
        patient_id,measured,hr,weight,ecg
        1,2020-01-01 08:05:00,80,,sinus
        1,2020-01-01 09:05:00,,,
        2,2020-03-01 21:00:00,fast,70.5,
    """,
    "tests": """
        test,name
        CREA,Creatinine
    """,
}  # fmt: skip


def folder(path, suffix=".csv", **changes):
    for name, text in (TABLES | changes).items():
        if text is not None:
            write_table(path / f"{name}{suffix}", text)
    return path


def written(path, text):
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("table")
    mapping = written(path / "mapping.toml", EXAMPLE)
    return import_source("table", folder(path / "raw"), path / "meds", mapping=mapping)


def test_kinds():
    assert get_args(KindName) == KINDS


def test_the_example_gives_these_events(dataset):
    events = events_of(dataset)
    columns = ("numeric_value", "visit_id", "unit", "text_value")
    assert rows_of(events.filter(subject_id=1), *columns) == [
        (None, "GENDER//F", None, None, None, None),
        (None, "RACE//white", None, None, None, None),
        ("1950-05-01 00:00:00", "MEDS_BIRTH", None, None, None, None),
        ("2020-01-01 08:00:00", "HOSPITAL_ADMISSION//inpatient", None, 11, None, None),
        ("2020-01-01 08:05:00", "VITAL//Heart rate", 80.0, None, None, None),
        ("2020-01-01 08:05:00", "VITAL//Rhythm//sinus", None, None, None, None),
        ("2020-01-01 09:00:00", "LAB//CREA", None, 11, "mg/dL", "<0.5"),
        ("2020-01-01 09:00:00", "LAB//CREA", None, None, "mg/dL", None),
        ("2020-01-01 11:00:00", "LAB//CREA", pytest.approx(1.2), 11, "mg/dL", None),
        ("2020-01-03 12:30:00", "HOSPITAL_DISCHARGE//home", None, 11, None, None),
        ("2020-01-03 12:30:00", "ICD10CM//E11.9", None, 11, None, None),
        ("2020-02-01 10:00:00", "VISIT//clinic", None, 12, None, None),
    ]
    # A discharge and a death known by their dates are stamped at the end of that day: other tables have times.
    assert rows_of(events.filter(subject_id=2), *columns) == [
        (None, "GENDER//M", None, None, None, None),
        ("1960-01-31 00:00:00", "MEDS_BIRTH", None, None, None, None),
        ("2020-03-01 20:00:00", "HOSPITAL_ADMISSION//acute", None, 21, None, None),
        ("2020-03-01 21:00:00", "VITAL//Heart rate", None, None, None, "fast"),
        ("2020-03-01 21:00:00", "VITAL//Weight", 70.5, None, "kg", None),
        ("2020-03-04 23:59:59", "HOSPITAL_DISCHARGE//UNKNOWN", None, 21, None, None),
        ("2020-03-04 23:59:59", "ICD10CM//I50.9", None, 21, None, None),
        ("2020-03-04 23:59:59", "MEDS_DEATH", None, None, None, None),
        ("2020-03-09 09:00:00", "HOSPITAL_ADMISSION//acute", None, 22, None, None),
    ]
    codes = {code: rest for code, *rest in dataset.codes().rows()}
    assert codes["LAB//CREA"] == ["Creatinine", "lab", True]
    assert codes["ICD10CM//E11.9"] == ["Type 2 diabetes", "diagnosis", False]
    assert codes["VITAL//Weight"] == [None, "vital", True]


def test_every_row_is_accounted_for(dataset):
    tables = dataset.manifest["tables"]
    assert tables["patients"] == {
        "rows": 3, "events": 6, "rows_with_events": 2,
        "rows_without_events": {"excluded by where, nothing stated, or stated in another row": 1},
    }  # fmt: skip
    assert tables["encounters"]["dropped"] == {
        "visit without a start, or stay without an end that follows its start": 1
    }
    assert tables["diagnoses"]["rows_dropped"] == {"of a visit unknown, excluded by where, or without end": 1}
    assert tables["labs"] == {
        "rows": 5, "events": 3, "rows_with_events": 3, "rows_without_events": {"excluded by where": 1},
        "rows_dropped": {"subject not in the table of subjects": 1},
        "dropped": {"subject not in the table of subjects": 1}, "texts": {"result": 1},
    }  # fmt: skip
    assert tables["vitals"]["rows_without_events"] == {"excluded by where, or all columns empty": 1}
    assert tables["vitals"]["texts"] == {"hr": 1}
    assert dataset.manifest["source"] == "our-hospital"
    assert dataset.manifest["tables_not_read"] == []


SMALL = """
[[tables]]
subject = "who"
time = "when"
code = "what"
kind = "lab"
"""


def small(tmp_path, text, mapping=SMALL, name="one.csv", encoding="utf-8", **options):
    (tmp_path / name).write_bytes(text.encode(encoding))
    file = written(tmp_path / "mapping.toml", mapping)
    return import_source("table", tmp_path / name, tmp_path / "meds", mapping=file, **options)


def test_one_file_without_a_table_of_subjects(tmp_path):
    dataset = small(tmp_path, "who,when,what\n7,2020-01-01,a  b\n3,2020-01-02,c\n")
    assert events_of(dataset).select("subject_id", "time", "code").rows() == [
        (3, dt.datetime(2020, 1, 2), "c"), (7, dt.datetime(2020, 1, 1), "a b"),
    ]  # fmt: skip


def test_identifiers_that_are_text_become_stated_numbers(tmp_path):
    mapping = 'ids = "text"\nvisit_ids = "text"\n' + SMALL + 'visit = "stay"\n'
    dataset = small(
        tmp_path, "who,when,what,stay\np-1,2020-01-01,a,x\n p-1 ,2020-01-02,b,y\n1,2020-01-02,c,x\n", mapping
    )
    events = events_of(dataset)
    names = pl.read_parquet(dataset.path / "metadata" / "subject_ids.parquet")
    assert sorted(names["identifier"]) == ["1", "p-1"]
    joined = events.join(names, on="subject_id").sort("code")
    assert joined["identifier"].to_list() == ["p-1", "p-1", "1"]
    assert joined["visit_id"].n_unique() == 2
    assert events["subject_id"].min() > 0


def test_two_texts_of_one_hash_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ehrsequencing.data.sources.table_cells.hashed", lambda text: 5)
    with pytest.raises(DataError, match="identifiers 'a' and 'b' have the same hash; got 5. Remedy: number"):
        small(tmp_path, "who,when,what\na,2020-01-01,x\nb,2020-01-02,y\n", 'ids = "text"\n' + SMALL)


@pytest.mark.parametrize(
    ("cell", "form", "expected"),
    [
        ("31.01.2020 08:05", "%d.%m.%Y %H:%M", dt.datetime(2020, 1, 31, 8, 5)),
        ("31.01.2020", "%d.%m.%Y", dt.datetime(2020, 1, 31)), ("2020", "%Y", dt.datetime(2020, 1, 1)),
        ("202003", "%Y%m", dt.datetime(2020, 3, 1)), ("Mar 5 2020", "%b %d %Y", dt.datetime(2020, 3, 5)),
        ("1.5", "days", dt.datetime(2000, 1, 2, 12)), ("-90", "minutes", dt.datetime(1999, 12, 31, 22, 30)),
        ("2", "years", dt.datetime(2001, 12, 31, 12)), ("0", "hours", dt.datetime(2000, 1, 1)),
    ],
)  # fmt: skip
def test_formats_of_time(tmp_path, cell, form, expected):
    origin = "origin = 2000-01-01\n" if form in ("days", "minutes", "years", "hours") else ""
    dataset = small(tmp_path, f"who,when,what\n1,{cell},a\n", f'{origin}{SMALL}time_format = "{form}"\n')
    assert events_of(dataset)["time"].to_list() == [expected]
    shifted = [note for note in dataset.manifest["notes"] if note.startswith("Dates are shifted")]
    assert bool(shifted) == bool(origin)


def test_date_and_clock_in_two_columns(tmp_path):
    mapping = SMALL.replace('"when"', '["day", "clock"]')
    text = "who,day,clock,what\n1,2020-01-01,08:05,a\n1,2020-01-01,,b\n1,,09:00,c\n"
    dataset = small(tmp_path, text, mapping)
    assert events_of(dataset).select("time", "code").rows() == [
        (dt.datetime(2020, 1, 1, 8, 5), "a"), (dt.datetime(2020, 1, 1, 23, 59, 59), "b"),
    ]  # fmt: skip
    assert dataset.manifest["events_dropped"] == {"without a time": 1}


@pytest.mark.parametrize(
    ("form", "date", "time"),
    [(None, "2020-01-0{}", "2020-01-0{} {}"), ("%d.%m.%Y %H:%M", "0{}.01.2020", "0{}.01.2020 {}")],
)
def test_a_date_among_times_is_known_at_its_end(tmp_path, form, date, time):
    """In the column of times and in that of reports, cell by cell; a midnight that is written is one."""
    mapping = SMALL.replace('time = "when"', 'time = "when"\nknown = "told"')
    if form is not None:
        mapping = mapping.replace('time = "when"', f'time_format = "{form}"\ntime = "when"')
    rows = [
        (time.format(1, "08:00"), date.format(2), "later day"),
        (time.format(1, "08:00"), date.format(1), "same day"),
        (date.format(1), "", "no report"),
        (date.format(1), time.format(2, "10:00"), "report with a clock"),
        (time.format(2, "08:00"), date.format(1), "report before"),
        (time.format(1, "00:00"), "", "midnight"),
    ]
    text = "who,when,told,what\n" + "".join(f"1,{','.join(row)}\n" for row in rows)
    found = dict(events_of(small(tmp_path, text, mapping)).select("code", "time").rows())
    assert {name: f"{found[name]:%d %H:%M:%S}" for *_, name in rows} == {
        "later day": "02 23:59:59", "same day": "01 23:59:59", "no report": "01 23:59:59",
        "report with a clock": "02 10:00:00", "report before": "02 08:00:00", "midnight": "01 00:00:00",
    }  # fmt: skip


def test_semicolons_decimal_commas_and_latin_1(tmp_path):
    mapping = 'encoding = "latin-1"\ndelimiter = ";"\ndecimal = ","\n' + SMALL + 'value = "v"\nunit_is = "\u00b5g"\n'
    dataset = small(
        tmp_path,
        'who;when;what;v\n1;2020-01-01;"K\u00f6rper; a";1,5\n1;2020-01-02;b;1.5\n',
        mapping,
        encoding="latin-1",
    )
    assert events_of(dataset).select("code", "numeric_value", "unit").rows() == [
        ("K\u00f6rper; a", 1.5, "\u00b5g"), ("b", None, "\u00b5g"),
    ]  # fmt: skip
    assert dataset.manifest["tables"]["one"]["unreadable"] == {"v": 1}


def test_utf_16_where_it_is_stated(tmp_path):
    text = "who,when,what\n1,2020-01-01,\u2122\n"
    dataset = small(tmp_path, text, 'encoding = "utf-16"\n' + SMALL, encoding="utf-16")
    assert events_of(dataset)["code"].to_list() == ["\u2122"]
    with pytest.raises(DataError, match=r"one\.csv is not in UTF-8"):
        small(tmp_path, text, encoding="utf-16", overwrite=True)


def test_other_encodings_are_refused_with_the_row(tmp_path):
    with pytest.raises(
        DataError, match=r"one\.csv is not in UTF-8; got .* in row 2; .*Remedy: state encoding in the m"
    ):
        small(tmp_path, "who,when,what\n1,2020-01-01,a\n1,2020-01-02,\u00e9\n", encoding="latin-1")


def test_parquet_with_types(tmp_path):
    frame = pl.DataFrame({"who": [1, 2], "when": [dt.datetime(2020, 1, 1, 5), None], "what": ["a", "NA"]})
    frame.write_parquet(tmp_path / "one.parquet")
    file = written(tmp_path / "mapping.toml", 'missing = ["NA"]\n' + SMALL)
    dataset = import_source("table", tmp_path / "one.parquet", tmp_path / "meds", mapping=file)
    assert events_of(dataset).select("time", "code").rows() == [(dt.datetime(2020, 1, 1, 5), "a")]
    assert dataset.manifest["events_dropped"] == {"without a code": 1}


SURVIVAL = """
origin = 2000-01-01
[subjects]
subject = "id"
age = "age"
static = { DRUG = "drug" }
death = "years"
death_where = { dead = 1 }
observed_until = "years"
time_format = "years"
[[tables]]
subject = "id"
time = "year"
time_format = "years"
kind = "lab"
columns = { Bilirubin = { column = "bili", unit = "mg/dL" } }
"""


@pytest.mark.parametrize("block", [1 << 20, 40])
def test_durations_deaths_and_ends_of_follow_up(tmp_path, monkeypatch, block):
    """Also where a subject's rows lie in several blocks of the file, each of which states birth and sex again."""
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", block)
    text = "id,age,drug,years,dead,year,bili\n1,50,x,2,1,0,1.5\n1,50,x,2,1,1,2.5\n2,60,y,4,0,0,\n"
    dataset = small(tmp_path, text, SURVIVAL)
    events = events_of(dataset)
    death = dt.datetime(2000, 1, 1) + dt.timedelta(days=2 * 365.25)
    assert events.filter(code="MEDS_DEATH").select("subject_id", "time").rows() == [(1, death)]
    assert dataset.observation_end().rows() == [
        (1, death), (2, dt.datetime(2000, 1, 1) + dt.timedelta(days=4 * 365.25)),
    ]  # fmt: skip
    birth = events.filter(code="MEDS_BIRTH", subject_id=1)["time"].item()
    assert birth == dt.datetime(1949, 12, 31)
    assert events.filter(code="DRUG//x").height == 1
    assert events["numeric_value"].drop_nulls().to_list() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (SMALL.replace("kind", "kynd"), "unknown key 'tables[1].kynd' (the nearest valid one is 'kind')"),
        (SMALL + "tymezone = 1\n", "unknown key 'tables[1].tymezone' (the nearest valid one is 'time')"),
        ("tabels = []\n" + SMALL, "unknown key 'tabels' (the nearest valid one is 'tables')"),
        (SMALL + "columns = { a = { colum = 'x' } }\n", "(the nearest valid one is 'column')"),
        (SMALL.replace('"lab"', '"labs"'), "tables[1].kind: Input should be 'diagnosis', 'drug'"),
        (SMALL.replace('time = "when"', ""), "tables[1]: when is an event known? give one of time,"),
        (SMALL.replace('code = "what"', ""), "tables[1]: give one of code (columns), constant and"),
        (SMALL + 'at_visit = "end"\n', "give one of time, at_origin = true, at_visit and undated"),
        (SMALL.replace('time = "when"', 'at_visit = "end"'), "tables[1]: at_visit needs the visit column"),
        (SMALL.replace('time = "when"', 'at_visit = "end"\nvisit = "v"'), "at_visit needs [visits]"),
        (SMALL + 'time_format = "days"\n', "need the origin, for example origin = 2000-01-01"),
        ("origin = 2000-01-01\n" + SMALL, "origin has no effect"),
        (SMALL + 'unit = "u"\nunit_is = "mg"\n', "unit (a column) and unit_is (the unit itself) are both given"),
        (SMALL.replace('code = "what"', 'columns = { a = "b" }\nvalue = "v"'), "value with columns has no effect"),
        ('[subjects]\nsubject = "a"\nbirth = "b"\nage = "c"\n' + SMALL, "birth and age are both given; give one"),
        ('[subjects]\nsubject = "a"\ndeath_where = { x = 1 }\n' + SMALL, "death_where without death has no effect"),
        ('[visits]\nsubject = "a"\nvisit = "v"\nstart = "s"\ninpatient = true\n', "inpatient visits need an end"),
        (
            '[visits]\nsubject = "a"\nvisit = "v"\nstart = "s"\nend = "e"\ninpatient = ["x"]\n',
            "but there is no class column",
        ),
        ("encoding = 'latin-99'\n" + SMALL, "encoding latin-99 is unknown; for example latin-1"),
        ("source = 'x'\n", "nothing to import: give [visits] or [[tables]]"),
        ("[subjects\n", "is not valid TOML"),
    ],
)  # fmt: skip
def test_mappings_that_are_wrong(tmp_path, mapping, message):
    with pytest.raises(ConfigError) as raised:
        small(tmp_path, "who,when,what\n1,2020-01-01,a\n", mapping)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "meds").exists()


def test_all_problems_of_a_mapping_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"has 2 problems: .*ids.* \| unknown key 'tables\[1\]\.x'"):
        small(tmp_path, "who,when,what\n", 'ids = "number"\n' + SMALL + "x = 1\n")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (SMALL.replace('"what"', '"wat"'), r"one\.csv lacks wat; got columns who, when, what"),
        (SMALL + "where = { what = 'z' }\n", "no row of one makes an event; got 1 rows, excluded by where"),
        (SMALL + "file = 'two.csv'\n", r"one\.csv is one file, and the mapping names two\.csv; expected one\.csv"),
        (
            '[visits]\nsubject="who"\nvisit="who"\nstart="when"\nend="when"\nclass="what"\ninpatient=["x", "a"]\n',
            "one has no visit of class x; got a. Remedy: mend inpatient in ",
        ),
        (SMALL + 'time_format = "%d.%m.%Y"\n', r"column when .*has 1 values that are no times; got '2020-01-01'"),
    ],
)  # fmt: skip
def test_mappings_that_do_not_fit_the_files(tmp_path, mapping, message):
    with pytest.raises(DataError, match=message):
        small(tmp_path, "who,when,what\n1,2020-01-01,a\n", mapping)


def test_a_file_that_is_not_there(tmp_path):
    file = written(tmp_path / "mapping.toml", EXAMPLE.replace('"labs.csv"', '"lab.csv"'))
    with pytest.raises(DataError, match="has no table lab; got diagnoses, .*Remedy: the nearest is labs"):
        import_source("table", folder(tmp_path / "raw"), tmp_path / "meds", mapping=file)
    with pytest.raises(ConfigError, match=r"mapping .*none\.toml is missing.*--example prints one"):
        import_source("table", tmp_path / "raw", tmp_path / "meds", mapping=tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="source table needs --mapping"):
        import_source("table", tmp_path / "raw", tmp_path / "meds")
    file = written(tmp_path / "mapping.toml", SMALL)
    with pytest.raises(ConfigError, match="a block of the mapping names no file"):
        import_source("table", tmp_path / "raw", tmp_path / "meds", mapping=file)


def test_a_subject_with_two_sexes(tmp_path):
    patients = TABLES["patients"] + "        1,1950-05-01,M,white,\n"
    file = written(tmp_path / "mapping.toml", EXAMPLE)
    with pytest.raises(DataError, match=r"repeats values of patient_id with other facts; got 1, first in row 1"):
        import_source("table", folder(tmp_path / "raw", patients=patients), tmp_path / "meds", mapping=file)


def test_gzip_and_parquet_give_the_same_dataset(tmp_path, dataset):
    file = written(tmp_path / "mapping.toml", EXAMPLE)
    raw = folder(tmp_path / "raw", suffix=".csv.gz")
    assert import_source("table", raw, tmp_path / "meds", mapping=file).fingerprint == dataset.fingerprint


def test_the_example_is_a_mapping():
    Mapping.model_validate(tomllib.loads(EXAMPLE))


STAYS = """
ids = "text"
[subjects]
file = "people.csv"
subject = "who"
birth = "born"
time_format = "%Y"
[visits]
file = "stays.csv"
subject = "who"
visit = "stay"
start = "from"
end = "to"
class = "class"
inpatient = ["ward"]
discharge = "how"
"""


def test_tasks_build_on_the_stays_of_a_mapping(tmp_path):
    people = [f"p{number}" for number in range(40)]
    write_table(tmp_path / "raw/people.csv", "who,born\n" + "".join(f"{who},1950\n" for who in people))
    rows = ["stay,who,from,to,class,how"]
    for place, who in enumerate(people):
        back = 20 if place % 2 else 90
        day = [dt.date(2020, 1, 1) + dt.timedelta(days=days) for days in (0, 5, back, back + 2)]
        how = "DIED" if place % 4 == 0 else "home"
        rows += [
            f"{2 * place},{who},{day[0]} 08:00:00,{day[1]} 12:00:00,ward,home",
            f"{2 * place + 1},{who},{day[2]} 08:00:00,{day[3]} 12:00:00,ward,{how}",
        ]
    write_table(tmp_path / "raw/stays.csv", "\n".join(rows))
    dataset = import_source(
        "table", tmp_path / "raw", tmp_path / "meds", mapping=written(tmp_path / "mapping.toml", STAYS)
    )
    for task, positive in (("readmission_30d", 20), ("los_over_3d", 40), ("mortality_inpatient", 10)):
        labels, _ = build_labels(dataset, task)
        assert labels["boolean_value"].sum() == positive, task
