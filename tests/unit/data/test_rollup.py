import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrsequencing.data.rollup import parse_roll_up, roll_up
from ehrsequencing.errors import ConfigError

PARENTS = {
    "RXNORM//pack": ["RXNORM//drug"],
    "RXNORM//drug": ["RXNORM//ingredient", "ATC//A10BA02"],
    "RXNORM//ingredient": ["ATC//A10BA02"],
    "RXNORM//both": ["RXNORM//one", "RXNORM//two"],
    "SNOMED//1": ["SNOMED//2"],
    "SNOMED//2": ["SNOMED//3"],
    "SNOMED//3": ["SNOMED//1"],
    "LOINC//1": ["LOINC//0"],
    "MEDS_BIRTH": ["SNOMED//1"],
}


def rolled(codes, *rules, numeric=()):
    table = roll_up(codes, rules, PARENTS, numeric).table
    return [table.get(code, code) for code in codes]


@pytest.mark.parametrize(
    ("rule", "code", "broader"),
    [
        ("icd10=3", "ICD10CM//E11.65", "ICD10CM//E11"),
        ("icd10=4", "ICD10CM//E11.65", "ICD10CM//E11.6"),
        ("icd10=3", "ICD10CM//C7A.021", "ICD10CM//C7A"),
        ("icd10=3", "ICD10//I50.0", "ICD10//I50"),
        ("icd10=4", "DIAGNOSIS//ICD//10//E1165", "DIAGNOSIS//ICD//10//E116"),
        ("icd9=3", "ICD9CM//250.01", "ICD9CM//250"),
        ("icd9=4", "ICD9CM//250.01", "ICD9CM//250.0"),
        ("icd9=3", "ICD9CM//V70.7", "ICD9CM//V70"),
        ("icd9=3", "ICD9CM//E849.7", "ICD9CM//E849"),
        ("icd9=3", "DIAGNOSIS//ICD//9//E8497", "DIAGNOSIS//ICD//9//E849"),
        ("icd9=3", "DIAGNOSIS_PRINCIPAL//ICD9CM//276.1", "DIAGNOSIS_PRINCIPAL//ICD9CM//276"),
        ("icd10pcs=4", "ICD10PCS//02HV33Z", "ICD10PCS//02HV"),
        ("icd9proc=2", "ICD9PROC//39.61", "ICD9PROC//39"),
        ("atc=4", "ATC//A10BA02", "ATC//A10B"),
        ("rxnorm=ingredient", "RXNORM//pack", "RXNORM//ingredient"),
        ("parents=1", "SNOMED//1", "SNOMED//2"),
        ("parents=2", "SNOMED//1", "SNOMED//3"),
        ("parents=9", "SNOMED//1", "SNOMED//3"),
    ],
)
def test_codes_become_broader_ones(rule, code, broader):
    assert rolled([code], rule) == [broader]


def test_what_is_no_code_of_the_system_stays():
    strangers = [
        "ICD10PCS//02HV33Z", "ICD9CM//250.01", "ICD10CM//NoDx", "ICD10CM//E11", "ICD10CM//", "MYICD10CM//E11.9",
        "LOINC//4548-4", "ICD10CM//E11.9//X", "MEDS_BIRTH", "E11.9",
    ]  # fmt: skip
    assert rolled([*strangers, "ICD10CM//E11.9"], "icd10=3") == [*strangers, "ICD10CM//E11"]
    strangers = ["ICD9CM//NoDx", "ICD9CM//E84", "ICD9CM//25", "ICD10CM//E11.9", "ICD9PROC//39.61"]
    assert rolled([*strangers, "ICD9CM//401.9"], "icd9=3") == [*strangers, "ICD9CM//401"]


def test_several_parents_and_numbers_leave_a_code_alone_and_are_counted():
    done = roll_up(["RXNORM//both", "SNOMED//1", "LOINC//1", "MEDS_BIRTH"], ["parents=1"], PARENTS, ["LOINC//1"])
    assert done.table == {"SNOMED//1": "SNOMED//2"}
    assert (done.ambiguous, done.with_values) == (1, 1)


def test_roll_ups_follow_each_other():
    parents = {"RXNORM//1": ["ATC//A10BA02"]}
    assert roll_up(["RXNORM//1"], ["parents=1", "atc=4"], parents).table == {"RXNORM//1": "ATC//A10B"}


def test_a_broader_code_of_the_book_stands_for_itself():
    done = roll_up(["ICD10CM//E11", "ICD10CM//E11.9", "ICD10CM//I10", "ICD10CM//I50.9"], ["icd10=3"], {})
    assert done.standing == {**done.table, "ICD10CM//E11": "ICD10CM//E11"}
    assert len(done.table) == 2


def test_a_roll_up_that_changes_nothing_is_refused_unless_it_came_with_a_vocabulary():
    codes = ["ICD10CM//E11", "LOINC//1"]
    with pytest.raises(ConfigError, match=r"roll-up icd10=3 changes no code; got 2 codes. Remedy: leave it out"):
        roll_up(codes, ["icd10=3"], {})
    with pytest.raises(ConfigError, match=r"rxnorm=ingredient changes no code; .*expected parent_codes in metadata"):
        roll_up(codes, ["rxnorm=ingredient"], {})
    with pytest.raises(ConfigError, match="roll-up icd9=3 changes no code"):
        roll_up([*codes, "ICD10CM//E11.9"], ["icd10=3", "icd9=3"], {})
    assert roll_up(codes, ["icd10=3", "rxnorm=ingredient"], {}, must_change=False).table == {}


digits = st.text("0123456789", max_size=2)
icd10 = st.builds(
    "ICD10CM//{}{}".format, st.sampled_from(["E11", "C7A", "Z00", "U07"]), digits.map(lambda d: "." * bool(d) + d)
)
icd9 = st.builds(
    "ICD9CM//{}{}".format, st.sampled_from(["250", "V70", "E849", "038"]), digits.map(lambda d: "." * bool(d) + d)
)


@given(st.lists(st.one_of(icd10, icd9), min_size=1, unique=True))
def test_a_roll_up_is_a_prefix_and_rolls_no_further(codes):
    rules = ["icd10=3", "icd9=3"]
    once = roll_up(codes, rules, {}, must_change=False).table
    for code, broader in once.items():
        assert code.startswith(broader) and code[len(broader)] == "."
        assert "." not in broader
    assert not roll_up([once.get(code, code) for code in codes], rules, {}, must_change=False).table
    assert all("." not in code for code in set(codes) - set(once))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("icd10", "roll-up icd10; got no number; expected characters of a code: 3, 4, 5, 6"),
        ("icd10=7", "got 7"),
        ("icd10=3.0", "got 3.0"),
        ("atc=2", "roll-up atc; got 2; expected characters of a code: 1, 3, 4, 5"),
        ("rxnorm=brand", "roll-up; got rxnorm=brand; expected icd10=3"),
        ("parents=0", "roll-up parents; got 0; expected steps: 1 to 20"),
        ("snomed=3", "roll-up; got snomed=3"),
        ("", "roll-up; got"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_roll_up(text)
