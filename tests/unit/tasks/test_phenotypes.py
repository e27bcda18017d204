import datetime as dt

import polars as pl
import pytest
from small_datasets import write_dataset

from ehrsequencing.data.synthetic_model import load_model
from ehrsequencing.errors import ConfigError
from ehrsequencing.tasks.base import CohortRules
from ehrsequencing.tasks.codes import CodeTable
from ehrsequencing.tasks.cohorts import build_labels
from ehrsequencing.tasks.parsing import parse_task
from ehrsequencing.tasks.phenotypes import read_phenotypes

GIBLEED = {
    "anemia": "271737000", "asthma": "233678006", "atrial_fibrillation": "49436004", "coronary_disease": "53741008",
    "chronic_obstructive_pulmonary_disease": "87433001", "dementia": "26929004", "fracture": "65966004",
    "gastrointestinal_bleeding": "74474003", "hypothyroidism": "40930008", "osteoarthritis": "396275006",
    "osteoporosis": "64859006", "peptic_ulcer": "13200003", "pneumonia": "233604007",
    "rheumatoid_arthritis": "69896004", "stroke": "230690007", "urinary_tract_infection": "38822007",
}  # fmt: skip
"""Conditions of the Eunomia GiBleed records by SNOMED CT identifier."""


def nothing():
    return CodeTable(pl.DataFrame(schema={"code": pl.String, "spelling": pl.String}))


def test_the_shipped_set_covers_every_system():
    phenotypes = read_phenotypes("common")
    assert len(phenotypes.codes) >= 12
    assert list(phenotypes.codes) == sorted(phenotypes.codes)
    for name, codes in phenotypes.codes.items():
        assert {code.partition("//")[0] for code in codes} == {"ICD10CM", "ICD9CM", "SNOMED"}, name
        assert len(set(codes)) == len(codes), name
        for code in codes:
            rest = code.partition("//")[2]
            assert rest.isdigit() if code.startswith("SNOMED") else len(rest.partition(".")[0]) in (2, 3), code


def test_the_shipped_set_meets_the_synthetic_records():
    codes = pl.Series([code for code in load_model().book.codes if code.startswith("ICD10CM//")])
    for name, patterns in read_phenotypes("common").codes.items():
        assert len(nothing().matching(codes, patterns)), name


@pytest.mark.parametrize(("name", "code"), GIBLEED.items())
def test_the_shipped_set_meets_snomed(name, code):
    codes = pl.Series([f"SNOMED//{code}", f"SNOMED//{code}1", f"OTHER//{code}"])
    assert nothing().matching(codes, read_phenotypes("common").codes[name]).to_list() == [f"SNOMED//{code}"]


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("diabetes_type_2", ["ICD9CM//250.02", "ICD10CM//E11.9"], ["ICD9CM//250.01", "ICD10CM//E10.9"]),
        ("fracture", ["ICD9CM//829.0", "ICD9CM//800.1", "ICD10CM//S72.001A"], ["ICD9CM//830.0", "ICD10CM//S93.401A"]),
        ("heart_failure", ["ICD9CM//402.91", "ICD10CM//I13.2"], ["ICD9CM//402.90", "ICD10CM//I13.10"]),
        (
            "stroke", ["ICD10CM//I63.9", "ICD9CM//433.11", "ICD9CM//434.91", "DIAGNOSIS//ICD//9//43401"],
            ["ICD10CM//G45.9", "ICD9CM//433.10", "ICD9CM//434.00", "DIAGNOSIS//ICD//9//43490", "ICD9CM//435.9"],
        ),
        ("sepsis", ["ICD9CM//785.52", "ICD10CM//R65.21"], ["ICD9CM//785.51", "ICD9CM//995.93"]),
        (
            "urinary_tract_infection", ["ICD10CM//N11.1", "ICD10CM//N30.01", "ICD9CM//595.0", "ICD9CM//590.00"],
            ["ICD10CM//N30.10", "ICD10CM//N30.41", "ICD9CM//595.1", "ICD9CM//595.82", "ICD9CM//597.80"],
        ),
        ("chronic_kidney_disease", ["DIAGNOSIS//ICD//9//5856"], ["DIAGNOSIS//ICD//9//5849"]),
        (
            "gastrointestinal_bleeding",
            ["ICD10CM//K25.4", "ICD10CM//I85.11", "ICD9CM//456.20", "ICD10CM//K57.33", "ICD9CM//562.13",
             "ICD10CM//K55.21", "ICD10CM//K31.811", "ICD9CM//569.85", "ICD9CM//537.83", "ICD10CM//K29.71"],
            ["ICD10CM//K25.9", "ICD10CM//I85.10", "ICD9CM//456.21", "ICD10CM//K57.30", "ICD9CM//562.11",
             "ICD10CM//K55.20", "ICD10CM//K31.819", "ICD9CM//569.84", "ICD9CM//537.82", "ICD9CM//535.50"],
        ),
    ],
)  # fmt: skip
def test_where_phenotypes_end(name, inside, outside):
    found = nothing().matching(pl.Series(inside + outside), read_phenotypes("common").codes[name])
    assert sorted(found) == sorted(inside)


FILE = """
horizon_days = 20
[[phenotype]]
name = "b"
codes = ["B", " C.1 "]
[[phenotype]]
name = "a"
description = "first"
codes = ["A"]
source = "here"
"""


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "my set@2.toml"
    path.write_text(FILE)
    phenotypes = read_phenotypes(str(path))
    assert phenotypes.codes == {"a": ("A",), "b": ("B", "C.1")}
    task = parse_task(f"phenotype:{path}")
    assert task.horizon_days == 20
    assert task.codes == ("A", "B", "C.1")
    assert parse_task(f"phenotype:{path}@7").horizon_days == 7
    start = dt.datetime(2020, 1, 1)
    rows = [(s, start + dt.timedelta(days=d), c, None) for s in range(40) for d, c in ((0, "X"), (9, "B"), (60, "A"))]
    labels, manifest = build_labels(write_dataset(tmp_path / "d", rows), task, CohortRules(0, 9999, 0))
    assert set(labels["categorical_value"]) == {"b"}
    assert manifest["kind"] == "multilabel"
    assert manifest["categories"] == ["b"]
    assert manifest["definitions"] == {"a": ["A"], "b": ["B", "C.1"]}
    assert manifest["phenotypes_file"] == {"name": str(path), "hash": phenotypes.hash}
    assert manifest["matched_codes"] == ["A", "B"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[phenotype]", "is not readable TOML; got"),
        ("", "is no set of phenotypes; got keys none"),
        ("phenotype = 3", "is no set of phenotypes; got keys phenotype"),
        ("phenotype = [1]", "is no set of phenotypes"),
        ("phenotype = []", "is no set of phenotypes"),
        ("horizon = 3\n[[phenotype]]\nname='a'\ncodes=['A']", "is no set of phenotypes; got keys horizon, phenotype"),
        (
            "horizon_days = '3'\n[[phenotype]]\nname='a'\ncodes=['A']",
            "horizon_days of .*got '3'",
        ),
        ("horizon_days = true\n[[phenotype]]\nname='a'\ncodes=['A']", "horizon_days of .*got True"),
        ("[[phenotype]]\ncodes=['A']", "phenotype 1 of .* has no name; got None; expected lower-case"),
        ("[[phenotype]]\nname='[none]'\ncodes=['A']", r"has no name; got '\[none\]'"),
        ("[[phenotype]]\nname='a'", r"phenotype 1 of .* \(a\) has no codes; got None"),
        ("[[phenotype]]\nname='a'\ncodes=[]", r"\(a\) has no codes"),
        ("[[phenotype]]\nname='a'\ncodes=['']", r"\(a\) has no codes"),
        ("[[phenotype]]\nname='a'\ncodes=[3]", r"\(a\) has no codes"),
        ("[[phenotype]]\nname='a'\ncodes='A'", r"\(a\) has no codes"),
        (
            "[[phenotype]]\nname='a'\ncodes=['A']\ncode='B'",
            "phenotype 1 of .* has unknown keys; got code;",
        ),
        ("[[phenotype]]\nname='a'\ncodes=['A']\n[[phenotype]]\nname='a'\ncodes=['B']", "names phenotype a twice"),
    ],
)
def test_files_that_are_no_set(tmp_path, content, message):
    path = tmp_path / "set.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_phenotypes(str(path))


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="no phenotypes at nowhere; expected a TOML file, or .*: common"):
        parse_task("phenotype:nowhere@30")
    with pytest.raises(ConfigError, match="no phenotypes at"):
        read_phenotypes(str(tmp_path))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml is not readable TOML"):
        read_phenotypes(str(tmp_path / "binary.toml"))


@pytest.mark.parametrize("content", ["x = " + "[" * 9000, "x = " + "9" * 5000])
def test_toml_that_is_too_deep_or_too_long(tmp_path, content):
    file = tmp_path / "deep.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match="deep.toml is not readable TOML; got "):
        read_phenotypes(str(file))
