"""With `strict`, whatever would be dropped or read as missing is an error that names file, row and value."""

import datetime as dt

import polars as pl
import pytest
import test_mimic_iii_source as mimic_iii
import test_mimic_iv_source as mimic_iv
import test_omop_source as omop
import test_physionet2012_source as physionet
import test_synthea_source as synthea
import test_uci_source as uci
from test_table_source import SMALL, small

from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import DataError

OMOP = {
    # Events that strict would stop at before.
    "condition_occurrence": """
        condition_occurrence_id,person_id,condition_concept_id,condition_start_date,condition_end_date,condition_source_value,condition_source_concept_id
        1,1,192671,2010-03-01,,K92.2,35208414
        2,1,192671,2010-03-02,{},K92.2,35208414
    """,
    "visit_occurrence": omop.TABLES["visit_occurrence"].replace("2011-02-01", "2011-02-07"),
    "measurement": omop.TABLES["measurement"].replace("n/a", "3", 1),
}


def refused(tmp_path, kind, raw):
    with pytest.raises(DataError) as problem:
        import_source(kind, raw, tmp_path / "meds", strict=True)
    (line,) = str(problem.value).splitlines()
    return line.replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"measurement": omop.TABLES["measurement"]},
            "column value_as_number of /raw/measurement.csv has 1 values that are no numbers; got 'n/a' in row 3.",
        ),
        (
            {"end": "2500-01-01"},
            "column condition_end_date of /raw/condition_occurrence.csv has 1 values that are before 1850 or after "
            "2300; got '2500-01-01' in row 2.",
        ),
        (
            {"end": "2010-03-01"},
            "/raw/condition_occurrence.csv has 1 rows with condition_end_date before condition_start_date; got "
            "condition_end_date 2010-03-01 00:00:00, condition_start_date 2010-03-02 00:00:00 in row 2.",
        ),
    ],
)
def test_omop(tmp_path, tables, message):
    made = OMOP | {name: text for name, text in tables.items() if name != "end"}
    made["condition_occurrence"] = made["condition_occurrence"].format(tables.get("end", ""))
    assert refused(tmp_path, "omop", omop.folder(tmp_path / "raw", **made)).startswith(message)


def test_omop_in_parts_names_the_part_and_its_row(tmp_path):
    raw = omop.folder(tmp_path / "raw", **OMOP | {"person": None, "condition_occurrence": None})
    (raw / "person").mkdir()
    for part in ("a", "b"):
        (raw / "person" / f"{part}.csv").write_text(
            "person_id,year_of_birth,birth_datetime\n"
            + f"{1 if part == 'a' else 2},1960,\n{3 if part == 'a' else 4},1960,{'2500-01-01' if part == 'b' else ''}\n"
        )
    found = refused(tmp_path, "omop", raw)
    assert "birth_datetime of /raw/person has 1 values that are before 1850 or after 2300" in found
    assert "got '2500-01-01' in row 2 of /raw/person/b.csv. Remedy: mend the file, or import without strict" in found


def test_mimic_iv(tmp_path):
    diagnoses = mimic_iv.TABLES["hosp/diagnoses_icd"].replace("2,99,1", "2,21,1")
    raw = mimic_iv.folder(tmp_path / "raw", hosp__diagnoses_icd=diagnoses)
    found = refused(tmp_path, "mimic-iv", raw)
    assert "column valuenum of /raw/hosp/labevents.csv has 1 values that are no numbers; got 'high' in row 3." in found


def test_mimic_iii(tmp_path):
    raw = mimic_iii.folder(
        tmp_path / "raw", DIAGNOSES_ICD=mimic_iii.TABLES["DIAGNOSES_ICD"].replace("3,1,12,,", "3,1,12,1,486")
    )
    found = refused(tmp_path, "mimic-iii", raw)
    assert "/raw/INPUTEVENTS_MV.csv has 1 events that would be dropped; got start or end without a time" in found
    assert "subject 1, code INPUT//END//" in found and "time None in row 3." in found


def test_synthea(tmp_path):
    tables = synthea.NEWEST | {"observations": synthea.NEWEST["observations"].replace(",171.5,", ",tall,")}
    found = refused(tmp_path, "synthea", synthea.folder(tmp_path / "raw", tables))
    assert "column value of /raw/observations.csv has 1 values that are no numbers; got 'tall' in row 1." in found


def test_meds(tmp_path):
    (tmp_path / "raw").mkdir()
    pl.DataFrame(
        {"subject_id": [1, 1], "time": [dt.datetime(2020, 1, 1)] * 2, "code": ["A", "B"], "numeric_value": [1.0, 1e300]}
    ).write_parquet(tmp_path / "raw/0.parquet")
    found = refused(tmp_path, "meds", tmp_path / "raw")
    assert "column numeric_value of /raw/0.parquet has 1 values that are no numbers; got 1e+300 in row 2." in found


@pytest.mark.parametrize(("form", "place"), [("set-a.csv", "row 42"), ("set-a", "row 2 of /raw/set-a/5.txt")])
def test_physionet2012(tmp_path, form, place):
    records = physionet.RECORDS | {5: "00:00,Age,50\n02:00,K,high"}
    found = refused(tmp_path, "physionet2012", physionet.folder(tmp_path / "raw", form, records))
    assert "column value of /raw/set-a" in found and f"no numbers; got 'high' in {place}." in found
    records = physionet.RECORDS | {5: "00:00,Age,50\n02:00,Phosphate,3"}
    raw = physionet.folder(tmp_path / "dropped" / "raw", form, records)
    found = refused(tmp_path / "dropped", "physionet2012", raw)
    assert "got without a code: subject 5, code None, time 2000-01-01 02:00:00 in " + place in found


def test_uci(tmp_path):
    rows = [(30, 1, {}), (20, 2, {}), (10, 1, {"discharge_disposition_id": 11})]
    found = refused(tmp_path, "uci-diabetes", uci.folder(tmp_path / "raw", uci.encounters(*rows)))
    assert "has 1 encounters after a discharge by death; got encounter 30 of patient 1 on line 2." in found


@pytest.mark.parametrize(
    ("mapping", "rows", "message"),
    [
        (
            SMALL + 'value = "v"\n', "1,2020-01-01,a,1\n1,2020-01-02,a,1,5\n".replace("1,5", "high" + "x" * 100),
            f"column v of /one.csv has 1 values that are no numbers; got 'high{'x' * 53}...' in row 2. Remedy: set "
            "decimal = ',' or list the value in missing, in the mapping, or mend the file, or import without strict",
        ),
        (
            'decimal = ","\n' + SMALL + 'value = "v"\n', "1,2020-01-01,a,1.5\n",
            "column v of /one.csv has 1 values that are no numbers; got '1.5' in row 1. Remedy: set decimal = '.'",
        ),
        (
            SMALL, "1,2020-01-01,a,\n1,2999-01-02,a,\n",
            "column when of /one.csv has 1 values that are before 1850 or after 2300; got '2999-01-02' in row 2. "
            "Remedy: state time_format",
        ),
        (
            SMALL, "1,2020-01-01,a,\n1,2020-01-02,,\n",
            "/one.csv has 1 events that would be dropped; got without a code: subject 1, code None, time 2020-01-02 "
            "00:00:00 in row 2.",
        ),
        (
            '[visits]\nsubject = "who"\nvisit = "what"\nstart = "when"\nend = "v"\n', "1,2020-01-02,3,2020-01-01\n",
            "/one.csv has 1 rows with visits that end before they start; got end 2020-01-01 00:00:00, start 2020-01-02 "
            "00:00:00 in row 1.",
        ),
        (
            '[subjects]\nsubject = "who"\nsex = "v"\n' + SMALL, "1,2020-01-01,a,M\n2,2020-01-01,b,W\n",
            "/one.csv has 1 rows with a sex that is neither F nor M nor in sex_values, kept as its own code; got "
            "sex 'W' in row 2.",
        ),
    ],
)  # fmt: skip
def test_table(tmp_path, mapping, rows, message):
    with pytest.raises(DataError) as problem:
        small(tmp_path, "who,when,what,v\n" + rows, mapping, strict=True)
    assert str(problem.value).replace(str(tmp_path), "").startswith(message)
