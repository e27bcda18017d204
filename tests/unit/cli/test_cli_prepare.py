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
    assert "units: 40 numbers of 1 pairs of code and unit converted, 0 pairs respelt\n" in said
    assert "train: 1 subjects, 1 visits, 80 events\n" in said
    rules = Rules.of(tmp_path / "store")
    assert (rules.visits, rules.order_within_visit, rules.long_histories) == ("gap:12h", "canonical", "visits")
    assert (rules.values, rules.roll_up) == ("none", ("icd10=3",))
    assert rules.units is not None


def test_numbers_that_keep_their_value_are_not_converted(meds, tmp_path, capsys):
    assert ehrseq("prepare", meds, tmp_path / "store", "--units", "spelling") == 0
    assert "units: 0 numbers of 0 pairs of code and unit converted, 1 pairs respelt\n" in capsys.readouterr().out


def test_the_share_of_unknown_events_is_said(meds, tmp_path, capsys):
    tuning = pl.read_parquet(meds / "data/train/0.parquet").with_columns(subject_id=2)
    (meds / "data" / "tuning").mkdir()
    tuning.with_columns(code=pl.col("code").str.replace("E11.9", "I10", literal=True)).write_parquet(
        meds / "data/tuning/0.parquet"
    )
    assert ehrseq("prepare", meds, tmp_path / "store", "--min-count", "21") == 0
    said = capsys.readouterr().out
    assert "tuning: 1 subjects, 10 visits, 80 events\n" in said
    assert "unknown (UNK): 50.0 % of the events of train, 50.0 % of the events of all splits\n" in said
    assert ehrseq("prepare", meds, tmp_path / "other", "--min-count", "1") == 0
    assert "UNK): 0.0 % of the events of train, 12.5 % of the events of all splits\n" in capsys.readouterr().out


def test_rules_that_change_nothing_are_allowed_where_that_is_asked_for(meds, tmp_path, capsys):
    unused = ("--roll-up", "atc=4", "--units", "spelling")
    plain = pl.read_parquet(meds / "data/train/0.parquet").with_columns(unit=pl.lit(None, dtype=pl.String))
    plain.write_parquet(meds / "data/train/0.parquet")
    assert ehrseq("prepare", meds, tmp_path / "store", *unused) == 2
    assert "units would change nothing; " in (line := capsys.readouterr().err) and "or pass allow_unused" in line
    assert ehrseq("prepare", meds, tmp_path / "store", *unused, "--allow-unused") == 0
    said = capsys.readouterr().out
    assert "roll-up: 3 codes became 3\n" in said
    assert "units: 0 numbers of 0 pairs of code and unit converted, 0 pairs respelt\n" in said
    assert ehrseq("prepare", meds, tmp_path / "other", "--allow-unused") == 2
    assert "allow_unused would have no effect: no roll-up and no units. Remedy: leave it out" in capsys.readouterr().err


def test_a_rule_that_is_none_is_one_line(meds, tmp_path, capsys):
    assert ehrseq("prepare", meds, tmp_path / "store", "--visits", "week") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the rule of visits; got week; expected visit_id, day, gap:24h" in line
