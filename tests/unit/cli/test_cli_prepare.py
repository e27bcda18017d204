"""`ehrseq prepare`: every rule can be given, and what it did is said."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from ehrsequencing.cli.main import main
from ehrsequencing.data.rules import Rules


@pytest.fixture
def meds(tmp_path):
    times = [datetime(2020, 1, 1) + timedelta(hours=6 * number) for number in range(40)]
    events = pl.DataFrame(
        {
            "subject_id": [1] * 80,
            "time": times * 2,
            "code": ["LOINC//2345-7"] * 40 + ["ICD10CM//E11.9", "ICD10CM//E11.65"] * 20,
            "numeric_value": [5.0 + number / 10 for number in range(40)] + [None] * 40,
            "unit": ["mmol/l"] * 40 + [None] * 40,
        }
    )
    (tmp_path / "meds" / "data" / "train").mkdir(parents=True)
    events.write_parquet(tmp_path / "meds" / "data" / "train" / "0.parquet")
    return tmp_path / "meds"


def ehrseq(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_every_rule_can_be_given(meds, tmp_path, capsys):
    options = "--visits gap:12h --order-within-visit canonical --long-histories visits --values none --units standard"
    code = ehrseq("prepare", meds, tmp_path / "store", *options.split(), "--roll-up", "icd10=4", "--roll-up", "atc=4")
    assert code == 2
    assert "roll-up atc=4 changes no code" in capsys.readouterr().err
    assert ehrseq("prepare", meds, tmp_path / "store", *options.split(), "--roll-up", "icd10=3") == 0
    said = capsys.readouterr().out
    assert "roll-up: 3 codes became 2\n" in said
    assert "units: 40 numbers of 1 pairs of code and unit\n" in said
    rules = Rules.of(tmp_path / "store")
    assert (rules.visits, rules.order_within_visit, rules.long_histories) == ("gap:12h", "canonical", "visits")
    assert (rules.values, rules.roll_up) == ("none", ("icd10=3",))
    assert rules.units is not None


def test_a_rule_that_is_none_is_one_line(meds, tmp_path, capsys):
    assert ehrseq("prepare", meds, tmp_path / "store", "--visits", "week") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the rule of visits; got week; expected visit_id, day, gap:24h" in line
