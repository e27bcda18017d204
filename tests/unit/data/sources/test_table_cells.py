"""Cells of mapped tables: text among numbers, dates among times, sexes, and errors that name the mapping's keys."""

import datetime as dt

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_tables import events_of, rows_of
from test_table_source import SMALL, small, written

from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import ConfigError, DataError

WIDE = """
[[tables]]
subject = "who"
time = "when"
prefix = "LAB"
kind = "lab"
columns = { CRP = "crp", Weight = { column = "kg", unit = "kg" } }
"""


@pytest.mark.parametrize(("decimal", "number"), [(".", "0.5"), (",", '"0,5"')])
def test_wide_cells_are_numbers_or_text(tmp_path, decimal, number):
    """Each filled cell is one event, with the number that it reads as or else its text."""
    other = {"0.5": '"0,5"', '"0,5"': "0.5"}[number]
    text = f'who,when,crp,kg\n1,2020-01-01,{number},70\n1,2020-01-02,"<0,5",\n1,2020-01-03,positive , \n'
    text += f"1,2020-01-04,{other},1e99\n1,2020-01-05,,\n"
    dataset = small(tmp_path, text, f'decimal = "{decimal}"\n' + WIDE)
    assert rows_of(events_of(dataset), "numeric_value", "text_value", "unit") == [
        ("2020-01-01 00:00:00", "LAB//CRP", 0.5, None, None),
        ("2020-01-01 00:00:00", "LAB//Weight", 70.0, None, "kg"),
        ("2020-01-02 00:00:00", "LAB//CRP", None, "<0,5", None),
        ("2020-01-03 00:00:00", "LAB//CRP", None, "positive", None),
        ("2020-01-04 00:00:00", "LAB//CRP", None, other.strip('"'), None),
        ("2020-01-04 00:00:00", "LAB//Weight", None, "1e99", "kg"),
    ]
    assert dataset.manifest["tables"]["one"] == {
        "rows": 5, "events": 6, "rows_with_events": 4, "texts": {"crp": 3, "kg": 1},
        "rows_without_events": {"excluded by where, or all columns empty": 1},
    }  # fmt: skip
    codes = {code: numeric for code, _, _, numeric in dataset.codes().rows()}
    assert codes == {"LAB//CRP": True, "LAB//Weight": True}


def test_strict_takes_text_that_is_kept(tmp_path):
    dataset = small(tmp_path, "who,when,crp,kg\n1,2020-01-01,<5,\n", WIDE, strict=True)
    assert events_of(dataset)["text_value"].to_list() == ["<5"]
    narrow = SMALL + 'value = "v"\ntext = "V"\n'
    dataset = small(tmp_path, "who,when,what,v\n1,2020-01-01,a,<5\n", narrow, strict=True, overwrite=True)
    assert dataset.manifest["tables"]["one"]["texts"] == {"v": 1}
    assert events_of(dataset).select("numeric_value", "text_value").rows() == [(None, "<5")]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.one_of(
            st.none(), st.floats(-1e6, 1e6, width=32).map(repr), st.text("<>+-.,05eEnaif %", min_size=1, max_size=6)
        ),
        min_size=1,
        max_size=50,
    ),
    st.booleans(),
)
def test_no_wide_cell_is_lost(tmp_path_factory, cells, comma):
    folder = tmp_path_factory.mktemp("wide")
    schema = {"who": pl.Int64, "when": pl.String, "crp": pl.String, "kg": pl.String}
    rows = [(1, f"2020-01-01 00:{place:02}", cell, None) for place, cell in enumerate([*cells, "1"])]
    made = pl.DataFrame(rows, schema=schema, orient="row")
    dataset = small(folder, made.write_csv(), ('decimal = ","\n' if comma else "") + WIDE)
    filled = [cell for cell in made["crp"] if cell is not None and cell.strip()]
    events = events_of(dataset).sort("time")
    assert len(events) == len(filled)
    for cell, number, text in zip(filled, events["numeric_value"], events["text_value"], strict=True):
        if number is None:
            assert text == cell.strip()
        else:
            assert text is None
            assert float(cell.replace(".", "").replace(",", ".") if comma else cell) == pytest.approx(number, rel=1e-6)


STAYS = """
[subjects]
file = "people.csv"
subject = "who"
death = "died"
observed_until = "seen"
[visits]
file = "stays.csv"
subject = "who"
visit = "stay"
start = "from"
end = "to"
inpatient = true
[[tables]]
file = "bills.csv"
subject = "who"
visit = "stay"
at_visit = "{}"
code = "code"
kind = "diagnosis"
"""
PEOPLE = "who,died,seen\n1,2020-03-04,2020-03-05 12:00:00\n2,2020-03-04 09:00:00,2020-03-04\n3,,2020-03-04 00:00:00\n"
VISITS = (
    "stay,who,from,to\n11,1,2020-03-01 08:00:00,2020-03-04\n12,1,2020-03-01,2020-03-02 10:00:00\n"
    "13,2,2020-03-03 08:00:00,2020-03-03\n14,2,2020-03-03 08:00:00,2020-03-04 00:00:00\n15,3,2020-03-03,2020-03-02\n"
)


def stays(tmp_path, end="end", bills="who,stay,code\n1,11,A\n1,12,B\n2,13,C\n2,14,D\n3,15,E\n", **texts):
    for name, text in {"people": PEOPLE, "stays": VISITS, "bills": bills, **texts}.items():
        written(tmp_path / f"{name}.csv", text)
    file = written(tmp_path / "mapping.toml", STAYS.format(end))
    return import_source("table", tmp_path, tmp_path.parent / f"{tmp_path.name}-{end}", mapping=file)


def test_dates_of_visits_and_deaths_among_times_are_known_at_their_end(tmp_path):
    dataset = stays(tmp_path)
    found = events_of(dataset)
    ends = found.filter(pl.col("code") == "HOSPITAL_DISCHARGE//UNKNOWN").sort("visit_id")
    assert [f"{time:%d %H:%M:%S}" for time in ends["time"]] == [
        "04 23:59:59", "02 10:00:00", "03 23:59:59", "04 00:00:00",
    ]  # fmt: skip
    # Starts stay at the beginning of their day, before everything of the visit.
    starts = found.filter(pl.col("code") == "HOSPITAL_ADMISSION//UNKNOWN").sort("visit_id")["time"]
    assert [f"{time:%d %H}" for time in starts] == ["01 08", "01 00", "03 08", "03 08", "03 00"]
    bills = dict(found.filter(pl.col("code").is_in(list("ABCDE"))).select("code", "time").rows())
    assert {code: f"{time:%d %H:%M:%S}" for code, time in bills.items()} == {
        "A": "04 23:59:59", "B": "02 10:00:00", "C": "03 23:59:59", "D": "04 00:00:00",
    }  # fmt: skip
    assert dataset.manifest["tables"]["bills"]["dropped"] == {
        "of a visit unknown, excluded by where, or without end": 1
    }
    deaths = found.filter(pl.col("code") == "MEDS_DEATH").sort("subject_id")["time"].to_list()
    assert deaths == [dt.datetime(2020, 3, 4, 23, 59, 59), dt.datetime(2020, 3, 4, 9)]
    assert dict(dataset.observation_end().rows()) == {
        1: dt.datetime(2020, 3, 5, 12), 2: dt.datetime(2020, 3, 4, 23, 59, 59), 3: dt.datetime(2020, 3, 4),
    }  # fmt: skip


def test_what_is_known_at_the_start_of_a_visit_by_date_is_known_at_the_end_of_that_day(tmp_path):
    found = events_of(stays(tmp_path, "start"))
    bills = dict(found.filter(pl.col("code").is_in(list("ABCDE"))).select("code", "time").rows())
    assert {code: f"{time:%d %H:%M:%S}" for code, time in bills.items()} == {
        "A": "01 08:00:00", "B": "01 23:59:59", "C": "03 08:00:00", "D": "03 08:00:00", "E": "03 23:59:59",
    }  # fmt: skip


def test_midnights_beside_times_are_counted(tmp_path):
    text = "who,when,what\n1,2020-01-01 00:00:00,a\n1,2020-01-02 10:00:00,b\n1,2020-01-03,c\n1,2020-01-04 00:00,d\n"
    dataset = small(tmp_path, text)
    assert dataset.manifest["events_at_midnight"] == {"one": 2}
    assert (
        "Events written as 00:00:00 in a table that has times of day keep midnight, which may mean the date alone: "
        "one 2 of 4." in dataset.manifest["notes"]
    )
    dataset = small(tmp_path, text.replace("10:00:00", "00:00:00"), overwrite=True)
    assert dataset.manifest["events_at_midnight"] == {}
    assert not [note for note in dataset.manifest["notes"] if "keep midnight" in note]


def test_an_impossible_year_is_one_reason(tmp_path):
    text = "who,when,what\n1,2999-01-01,a\n1,,b\n1,2020-01-01,c\n1,2020-01-01,\n"
    account = small(tmp_path, text).manifest["tables"]["one"]
    assert account["dropped"] == {"before 1850 or after 2300": 1, "without a time": 1, "without a code": 1}
    assert account["implausible"] == {"when": 1}


SEXES = '[subjects]\nsubject = "who"\nsex = "sex"\n{}\n' + SMALL


@pytest.mark.parametrize(
    ("values", "sexes", "unknown"),
    [
        ("", {"GENDER//M", "GENDER//W", "GENDER//d", "GENDER//F"}, ("GENDER//W (2 rows), GENDER//d (1 rows).", 3)),
        (
            'sex_values = { M = "M", W = "F" }', {"GENDER//M", "GENDER//F", "GENDER//d"},
            ("GENDER//F (1 rows), GENDER//d (1 rows).", 2),
        ),
        (
            'sex_values = { M = "M", W = "F", F = "M", d = "diverse" }', {"GENDER//M", "GENDER//F", "GENDER//diverse"},
            None,
        ),
    ],
)  # fmt: skip
def test_sexes(tmp_path, values, sexes, unknown):
    """With `sex_values`, a cell that it does not list is told even where it reads F or M: it may mean another sex."""
    rows = ["1,W", "2,W", "3,M", "4,d", "5,F", "6,"]
    text = "who,sex,when,what\n" + "".join(f"{row},2020-01-01,a\n" for row in rows)
    dataset = small(tmp_path, text, SEXES.format(values))
    events = events_of(dataset)
    assert set(events.filter(pl.col("code").str.starts_with("GENDER"))["code"]) == sexes
    one = dict(events.filter(pl.col("code").str.starts_with("GENDER")).select("subject_id", "code").rows())
    assert one[1] == ("GENDER//F" if values else "GENDER//W") and 6 not in one
    notes = [note for note in dataset.manifest["notes"] if note.startswith("Sexes")]
    found = dataset.manifest["tables"]["one"].get("contradictions", {})
    if unknown is None:
        assert notes == [] and found == {}
    else:
        (note,) = notes
        assert note.endswith(f"keep their own code: {unknown[0]}")
        assert found == {"a sex that is neither F nor M nor in sex_values, kept as its own code": unknown[1]}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (SMALL + 'time_format = "%d.%m.%y"\n', "tables[1].time_format: %y is a year of two digits, which may be"),
        (SMALL + 'time_format = "%D %H:%M"\n', "tables[1].time_format: %D is a year of two digits"),
        ('[subjects]\nsubject = "who"\nsex_values = { W = "F" }\n' + SMALL, "subjects: sex_values without sex has no"),
        ('[subjects]\nsubject = "who"\nsex = "s"\nsex_values = { W = "" }\n' + SMALL, "an empty value or sex at 'W'"),
        (
            '[subjects]\nsubject = "who"\nstatic = { GENDER = "s" }\n' + SMALL,
            "subjects: static has GENDER; give sex = .. instead",
        ),
    ],
)  # fmt: skip
def test_mappings_that_are_wrong(tmp_path, mapping, message):
    with pytest.raises(ConfigError) as problem:
        small(tmp_path, "who,when,what\n1,2020-01-01,a\n", mapping)
    assert message in str(problem.value)


@pytest.mark.parametrize(
    ("mapping", "text", "message"),
    [
        (SMALL, "1,31.01.2020,a\n", "Remedy: state time_format in the mapping, for example time_format = '%d.%m.%Y"),
        (
            SMALL + "time_format = '%d.%m.%Y'\n", "1,2020-01-31,a\n",
            "got '2020-01-31' in row 1; expected times such as 31.01.2020. Remedy: mend time_format = '%d.%m.%Y', or",
        ),
        (
            "origin = 2000-01-01\n" + SMALL + "time_format = 'days'\n", "1,soon,a\n",
            "expected numbers of days since origin. Remedy: mend time_format = 'days', or list the value in missing",
        ),
        (SMALL, "A1,2020-01-31,a\n", "Remedy: set ids = 'text' in the mapping"),
        (SMALL + "visit = 'what'\n", "1,2020-01-31,a\n", "Remedy: set visit_ids = 'text' in the mapping"),
        (
            'origin = 2000-01-01\n[subjects]\nsubject = "who"\nage = "what"\n' + SMALL, "1,2020-01-31,old\n",
            "got 'old' in row 1; expected ages in years at origin. Remedy: mend age, or list the value in missing",
        ),
        (SMALL, "1,2020-01-31,a,b\n", "Remedy: mend the file, or state delimiter in the mapping"),
        (
            "delimiter = ';'\n" + SMALL, "1,2020-01-31,a\n",
            "one.csv lacks who; got columns who,when,what; expected columns who. Remedy: mend the names, or delimiter",
        ),
    ],
)  # fmt: skip
def test_remedies_are_keys_of_the_mapping(tmp_path, mapping, text, message):
    with pytest.raises(DataError) as problem:
        small(tmp_path, "who,when,what\n" + text, mapping)
    assert message in str(problem.value)
