import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrsequencing.data.units import ANY_CODE, Conversion, UnitTable, spelled
from ehrsequencing.errors import ConfigError, DataError

STANDARD = UnitTable.of("standard")


def converted(code, unit, value, table=STANDARD):
    row = table.changes(pl.DataFrame({"code": [code], "unit": [unit]})).row(0, named=True)
    return value * row["factor"] + row["offset"], row["new_unit"]


@pytest.mark.parametrize(
    ("code", "unit", "value", "wanted", "target"),
    [
        ("LOINC//2345-7", "mmol/L", 7.0, 126.1, "mg/dL"),
        ("LOINC//14749-6", "MG/DL", 126.0, 6.994, "mmol/L"),
        ("LOINC//2160-0", "µmol/L", 88.4, 1.0, "mg/dL"),
        ("LOINC//2093-3", "mmol/l", 5.17, 199.9, "mg/dL"),
        ("LOINC//2571-8", "mmol/L", 1.693, 149.9, "mg/dL"),
        ("LOINC//1975-2", "umol/L", 17.1, 1.0, "mg/dL"),
        ("LOINC//17861-6", "mmol/L", 2.495, 10.0, "mg/dL"),
        ("LOINC//3094-0", "mmol/L", 7.14, 20.0, "mg/dL"),
        ("LOINC//718-7", "g/L", 145.0, 14.5, "g/dL"),
        ("LOINC//4548-4", "mmol/mol", 48.0, 6.543, "%"),
        ("LOINC//59261-8", "%", 6.5, 47.53, "mmol/mol"),
        ("LOINC//6690-2", "cells/uL", 7200.0, 7.2, "10*3/uL"),
        ("LOINC//2703-7", "kPa", 13.3, 99.76, "mm[Hg]"),
        ("ANY//TEMPERATURE", "°F", 98.6, 37.0, "Cel"),
        ("OMR//Weight", "lbs", 154.0, 69.85, "kg"),
        ("LOINC//29463-7", "oz", 120.0, 3.402, "kg"),
        ("OMR//Height", "Inches", 70.0, 177.8, "cm"),
    ],
)
def test_known_results_in_two_units(code, unit, value, wanted, target):
    """Figures of published tables: AMA factors, and pairs that guidelines state in both units."""
    found, unit = converted(code, unit, value)
    assert unit == target
    assert found == pytest.approx(wanted, rel=1.5e-3)


def test_back_and_forth_is_the_same_number():
    """A unit that two codes of one analyte convert in opposite directions: the factors agree."""
    factors = {}
    for row in STANDARD.conversions:
        factors.setdefault((row.unit, row.target), []).append(row.factor)
    both = [row for row in STANDARD.conversions if (row.target, row.unit) in factors]
    alone = {
        row.code for row in both if min(abs(row.factor * back - 1) for back in factors[row.target, row.unit]) > 1e-6
    }
    assert len(both) > 30
    assert alone == {"LOINC//2524-7", "LOINC//32693-4"}, "lactate, which is reported in mmol/L everywhere"


@given(st.sampled_from(STANDARD.conversions))
def test_what_was_converted_is_not_converted_again(row):
    code = "HOUSE//1" if row.code == ANY_CODE else row.code
    again = STANDARD.changes(pl.DataFrame({"code": [code], "unit": [row.target]}))
    assert again.is_empty()


@pytest.mark.parametrize(
    ("units", "one"),
    [
        (["mg/dL", "MG/DL", "mg/dl", " mg / dL ", "mg/100mL"], "mg/dL"),
        (["K/uL", "10*3/uL", "x10^9/L", "10^9/L", "THOU/uL", "x10E3/µL"], "10*3/uL"),
        (["m/uL", "10*12/L", "x10^6/uL"], "10*6/uL"),
        (["mm Hg", "mmHg", "MMHG"], "mm[Hg]"),
        (["mEq/L", "meq/l"], "meq/L"),
        (["G/L"], "G/L"),
        (["g/L", "gm/L"], "g/L"),
        (["m", "M", "tablet", ""], None),
    ],
)
def test_spellings_of_one_unit(units, one):
    assert [spelled(unit) for unit in units] == (units if one is None else [one] * len(units))


def test_canonical_spellings_are_their_own():
    targets = {row.target for row in STANDARD.conversions} | {row.unit for row in STANDARD.conversions}
    assert {spelled(unit) for unit in targets} == targets


def write(path, *rows, header="code,from,to,factor,offset"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_a_file_goes_before_the_standard_table(tmp_path):
    own = UnitTable.of(
        write(
            tmp_path / "own.csv",
            "LOINC//2345-7,mg/dl,mmol/l,0.0555,0", "LAB//1,stones,kg,6.35,", "*,[in_i],mm,25.4,0",
        )
    )  # fmt: skip
    assert converted("LOINC//2345-7", "mg/dL", 100, own) == (pytest.approx(5.55), "mmol/L")
    assert own.changes(pl.DataFrame({"code": ["LOINC//2345-7"], "unit": ["mmol/L"]})).is_empty()
    assert converted("LAB//1", "stones", 10, own) == (63.5, "kg")
    assert converted("X", "in", 100, own) == (pytest.approx(2540), "mm")
    assert converted("LOINC//4548-4", "mmol/mol", 48, own) == converted("LOINC//4548-4", "mmol/mol", 48)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["A,mg,g,x,0"], "row 1 of .*own.csv is no conversion; got A, mg, g, x, 0"),
        (["A,mg,g,1,0", "A,g,kg,0,0"], "row 2 of"),
        (["A,mg,g,-1,0"], "row 1"),
        (["A,mg,g,inf,0"], "row 1"),
        (["A,mg,g,1,nan"], "row 1"),
        ([",mg,g,1,0"], "row 1"),
        (["A,mg"], "row 1"),
        (["A,mg,MG,1,0"], None),
        (["A,mg/dl,MG/DL,1,0"], "converts a unit into itself; got A, mg/dL"),
        (["A,MG/DL,g,1,0", "A,mg/dl,kg,1,0"], "a code and unit twice; got A, mg/dL"),
        (["A,u,v,1,0", "A,v,w,1,0"], "converts again; got A: u to v to w"),
        (["*,u,v,1,0", "A,v,w,1,0"], "converts again; got A: u to v to w"),
        (["A,u,v,1,0", "*,v,w,1,0"], "converts again; got A: u to v to w"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, rows, message):
    file = write(tmp_path / "own.csv", *rows)
    if message is None:
        assert converted("A", "mg", 1, UnitTable.of(file)) == (1, "MG")
        return
    with pytest.raises(DataError, match=message):
        UnitTable.of(file)


def test_files_that_are_no_table_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"units; got .*nowhere.csv; expected spelling, standard or a CSV file"):
        UnitTable.of(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"lacks factor; got columns code, from, to; expected code, from, to, factor"):
        UnitTable.of(write(tmp_path / "own.csv", header="code,from,to"))
    (tmp_path / "latin.csv").write_bytes("code,from,to,factor\nA,µ,g,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not in UTF-8"):
        UnitTable.of(tmp_path / "latin.csv")
    assert UnitTable.of(write(tmp_path / "empty.csv")) == STANDARD


def test_tables_travel_as_json():
    assert UnitTable.from_json(STANDARD.to_json()) == STANDARD
    assert UnitTable.of("spelling") != STANDARD
    assert len(STANDARD.conversions) > 100
    assert UnitTable([Conversion("A", "u", "v", 2.0, 1.0)]).to_json() == [["A", "u", "v", 2.0, 1.0]]
    assert np.isfinite([[row.factor, row.offset] for row in STANDARD.conversions]).all()
