"""Every fault is found by a dataset with just that fault, and its near miss stays silent."""

from datetime import datetime, timedelta

import polars as pl
import pytest
from inspected import SUBJECTS, TODAY, Rows, day, event, healthy, write

from ehrsequencing.data.inspect import Inspection, inspect
from ehrsequencing.data.inspect_findings import Finding
from ehrsequencing.data.inspect_values import known_factor

LAB = "LOINC//2160-0"


def findings(tmp_path, shards: Rows) -> Inspection:
    for rows in shards.values():
        rows.sort(key=lambda row: row["subject_id"])
        ordered = sorted(range(len(rows)), key=lambda i: (rows[i]["subject_id"], rows[i]["time"] or datetime(1, 1, 1)))
        rows[:] = [rows[i] for i in ordered]
    return inspect(write(tmp_path / "meds", shards), today=TODAY)


def only(tmp_path, shards: Rows) -> Finding:
    found = findings(tmp_path, shards).findings
    assert len(found) == 1, [finding.what for finding in found]
    assert found[0].remedy
    return found[0]


def with_rows(*rows: dict) -> Rows:
    """The healthy dataset with more rows, each in the split of its subject; further subjects are in train."""
    shards = healthy()
    for row in rows:
        split = next((split for split, subjects in SUBJECTS.items() if row["subject_id"] in subjects), "train")
        shards[f"{split}/0"].append(row)
    return shards


def without(code: str, *subjects: int) -> Rows:
    return {
        name: [row for row in rows if row["code"] != code or row["subject_id"] not in subjects]
        for name, rows in healthy().items()
    }


def born(subject: int) -> datetime:
    return datetime(1950 + subject % 30, 1, 1)


DEAD = (event(7, day(500), "MEDS_DEATH"), event(8, day(500), "MEDS_DEATH"))
LATE = timedelta(days=1)

FAULTS = {
    "birth missing": (
        lambda: without("MEDS_BIRTH", 5, 6), "birth", "warning", "no MEDS_BIRTH with a date",
        "2 of 120 subjects (1.7 %)", (5, 6),
    ),
    "birth twice": (
        lambda: with_rows(event(9, datetime(1961, 1, 1), "MEDS_BIRTH")), "birth", "error",
        "several times of MEDS_BIRTH", "1 of 120 subjects (0.8 %)", (9,),
    ),
    "death twice": (
        lambda: with_rows(*DEAD, event(8, day(501), "MEDS_DEATH")), "death", "error", "several times of MEDS_DEATH",
        "1 of 120 subjects (0.8 %)", (8,),
    ),
    "before birth": (
        lambda: with_rows(*child(), event(300, day(300) - timedelta(seconds=1), "A")), "birth", "error",
        "events before birth", "1 of 1,443 events (0.069 %)", (300,),
    ),
    "after death": (
        lambda: with_rows(*DEAD, event(8, day(500) + LATE, "A")), "death", "warning",
        "events a day or more after death", "1 of 1,441 events (0.069 %)", (8,),
    ),
    "long after death": (
        lambda: with_rows(*DEAD, event(8, day(590), "A"), event(8, day(589), "A")), "death", "error",
        "events a day or more after death, 1 of them later than 90 days", "2 of 1,442 events (0.1 %)", (8,),
    ),
    "future": (
        lambda: with_rows(event(4, TODAY + LATE, "A"), *bridge()), "dates", "error", "events in the future",
        "1 of 1,467 events (0.068 %)", (4,),
    ),
    "duplicate": (
        lambda: with_rows(event(2, day(2), "ICD10CM//I10")), "duplicates", "note",
        "events that repeat another in every column", "1 of 1,681 events (0.059 %)", (2,),
    ),
    "text": (
        lambda: with_rows(*(event(s, day(2), "LOINC//1", text_value=text) for s, text in ((2, " 7,5"), (3, "-3e2")))),
        "text", "warning", "numbers in text_value without a numeric_value", "2 events", (2, 3),
    ),
    "infinite": (
        lambda: with_rows(event(2, day(2), LAB, numeric_value=float("inf"), unit="mg/dL")), "values", "error",
        "infinite values", "1 events", (2,),
    ),
    "constant": (
        lambda: with_rows(*(event(s, day(3), "SCORE//1", numeric_value=-1.0) for s in range(1, 21))), "values", "note",
        "codes whose value never varies", "1 of 2 codes and units (50.0 %)", (1,),
    ),
    "two sexes": (
        lambda: with_rows(event(2, None, "GENDER//M")), "sex", "warning", "two sexes on record",
        "1 of 120 subjects (0.8 %)", (2,),
    ),
    "one event": (
        lambda: with_rows(*aged(1950)[:2], event(300, None, "GENDER//F")),
        "history", "note", "at most one event with a date", "1 of 121 subjects (0.8 %)", (300,),
    ),
    "old": (
        lambda: with_rows(*aged(1890)), "age", "warning", "events beyond an age of 120",
        "1 of 1,442 events (0.069 %)", (300,),
    ),
    "refused age": (
        lambda: with_rows(*aged(1880)), "age", "error",
        "events beyond an age of 120, 2 of them beyond 125, which prepare refuses", "2 of 1,442 events (0.1 %)", (300,),
    ),
    "early birth": (
        lambda: with_rows(aged(1779)[0]), "dates", "error", "births before 1780", "1 of 121 subjects (0.8 %)", (300,),
    ),
    "split missing": (
        lambda: {name: rows for name, rows in healthy().items() if name != "tuning/0"}, "splits", "warning",
        "no subject in tuning", "1 of 3 splits (33.3 %)", (),
    ),
}  # fmt: skip


def bridge() -> list[dict]:
    """Two events a year, so that a late one does not stand alone."""
    return [event(4, datetime(year, month, 1), "A") for year in range(2011, 2024) for month in (2, 3)]


def aged(year: int) -> list[dict]:
    """A subject born on 20 January of a year, with an event before and one after that day in 2010."""
    return [event(300, datetime(year, 1, 20), "MEDS_BIRTH"), event(300, day(5), "A"), event(300, day(50), "A")]


def child() -> list[dict]:
    """A subject born while others are seen."""
    return [event(300, day(300), "MEDS_BIRTH"), event(300, day(300), "A"), event(300, day(310), "A")]


NEAR_MISSES = {
    "all born": healthy,
    "birth twice at one time": lambda: with_rows(event(9, born(9), "MEDS_BIRTH", visit_id=1)),
    "death once": lambda: with_rows(*DEAD),
    "at birth": lambda: with_rows(*child()),
    "on the day of death": lambda: with_rows(*DEAD, event(8, day(500) + LATE - timedelta(seconds=1), "A")),
    "today": lambda: with_rows(event(4, TODAY + timedelta(hours=23), "A"), *bridge()),
    "another visit": lambda: with_rows(event(2, day(2), "ICD10CM//I10", visit_id=4)),
    "another value": lambda: with_rows(event(2, day(2), LAB, numeric_value=0.5, unit="mg/dL")),
    "text beside a number": lambda: with_rows(event(2, day(2), "LOINC//1", text_value="7.5", numeric_value=7.5)),
    "text of words and ranges": lambda: with_rows(
        event(2, day(2), "LOINC//1", text_value="12-15"), event(2, day(2), "LOINC//1", text_value="<5"),
        event(2, day(2), "LOINC//1", text_value="POS"), event(2, day(2), "LOINC//1", text_value=" "),
    ),
    "NaN": lambda: with_rows(event(2, day(2), LAB, numeric_value=float("nan"), unit="mg/dL")),
    "constant but rare": lambda: with_rows(*(event(s, day(3), "S//1", numeric_value=-1.0) for s in range(1, 20))),
    "nearly constant": lambda: with_rows(
        *(event(s, day(3), "S//1", numeric_value=-1.0 if s > 3 else 2.0) for s in range(3, 120, 3))
    ),
    "no sex": lambda: without("GENDER//F", 2),
    "one sex twice": lambda: with_rows(event(2, day(2), "GENDER//F")),
    "two events": lambda: with_rows(*aged(1950)),
    "120 years": lambda: with_rows(*aged(1890)[:2], event(300, day(6), "A")),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_is_found_alone(tmp_path, name):
    build, check, severity, what, amount, subjects = FAULTS[name]
    found = findings(tmp_path, build()).findings
    mine = [finding for finding in found if finding.check == check and finding.what == what]
    assert len(mine) == 1, [finding.what for finding in found]
    assert (mine[0].severity, mine[0].amount(), mine[0].subjects) == (severity, amount, subjects)
    assert mine[0].remedy
    # The subject of that birth has no event.
    alone = {"early birth": {"history"}}.get(name, set())
    assert {finding.check for finding in found} - {check} <= alone


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_the_near_miss_is_silent(tmp_path, name):
    assert findings(tmp_path, NEAR_MISSES[name]()).findings == ()


def test_dates_before_1900(tmp_path):
    old = event(300, datetime(1899, 12, 31), "A")
    found = findings(tmp_path, with_rows(old, event(300, day(1), "A"), event(300, datetime(1890, 1, 1), "MEDS_BIRTH")))
    early = found.findings[0]
    assert (early.what, early.severity, early.count, early.subjects) == ("events before 1900", "error", 1, (300,))
    assert found.errors == 1
    kept = findings(tmp_path / "b", with_rows(event(300, datetime(1900, 1, 1, 1), "A"), event(300, day(1), "A")))
    assert not [finding for finding in kept.findings if finding.severity == "error"]


def test_placeholder_dates(tmp_path):
    rows = [event(subject, datetime(1970, 1, 1), "A") for subject in range(1, 10)]
    for row in rows:
        row["subject_id"] += 20  # born before 1970
    found = findings(tmp_path, with_rows(*rows)).findings
    named = [finding for finding in found if "midnight of 1970-01-01" in finding.what]
    assert (named[0].severity, named[0].count) == ("warning", 9)
    lived = with_rows(*(event(1, datetime(1965 + n // 6, 1 + n % 6, 1), "A") for n in range(300)))
    quiet = findings(tmp_path / "b", lived).findings
    assert not [finding for finding in quiet if "midnight" in finding.what]


def test_a_stray_year(tmp_path):
    rows = [event(1, day(number / 10), "A") for number in range(2000)]
    stray = only(tmp_path, with_rows(*rows, event(2, datetime(2021, 5, 1), "A")))
    assert stray.what == "events from 2021 on, after a year without any event of anybody"
    assert (stray.severity, stray.subjects) == ("warning", (2,))
    assert findings(tmp_path / "b", with_rows(*rows, event(2, datetime(2012, 5, 1), "A"))).findings == ()


def test_dates_shifted_by_the_publisher_are_no_fault(tmp_path):
    shards = healthy()
    for rows in shards.values():
        for row in rows:
            if row["time"] is not None:
                row["time"] = row["time"].replace(year=row["time"].year + 120)
    shifted = only(tmp_path, shards)
    assert (shifted.severity, shifted.count) == ("note", 1440)
    assert "shifted" in shifted.what


def test_events_after_the_end_of_observation(tmp_path):
    meds = write(tmp_path / "meds", healthy())
    (meds / "metadata").mkdir()
    for end, wrong in ((day(499), 0), (day(498), 2), (day(600), 0)):
        table = pl.DataFrame({"subject_id": range(1, 121), "observation_end": [end] * 120})
        table.write_parquet(meds / "metadata/observation.parquet")
        found = inspect(meds, today=TODAY).findings
        assert [finding.count for finding in found] == ([wrong] if wrong else [])


def units(*pairs: tuple[str | None, float, int], code: str = LAB) -> Rows:
    """The healthy dataset with values of one code in other units: (unit, factor, how many)."""
    rows = []
    for unit, factor, number in pairs:
        for count in range(number):
            value = factor * (0.7 + 0.01 * (count % 50))
            rows.append(event(1 + 7 * count % 120, day(60 + count / 20), code, numeric_value=value, unit=unit))
    return with_rows(*rows)


def test_units_that_differ_by_a_factor_are_named_with_the_conversion(tmp_path):
    found = only(tmp_path, units(("umol/L", 88.4, 100)))
    assert (found.check, found.severity) == ("units", "error")
    assert found.amount() == "1 of 1 codes with numbers (100.0 %)"
    line = found.details[0]
    assert line.startswith(f"{LAB}: mg/dL 87.8 % (median 0.95), umol/L 12.2 % (median ")
    assert line.endswith("times; creatinine: 1 mg/dL is 88.4 umol/L)")
    assert found.subjects == (1,)


@pytest.mark.parametrize(
    ("pairs", "severity"),
    [
        ([("umol/L", 88.4, 19)], None),  # too few to tell
        ([(None, 1.0, 100)], "note"),  # one scale, one of them without a unit
        ([("MG/DL", 1.0, 100)], "note"),
        ([("mg/L", 1.7, 100)], "note"),  # within the factor
        ([("mg/L", 10.0, 100)], "error"),
        ([(None, 10.0, 100)], "error"),
        ([("mg/L", -1.0, 100)], "note"),  # signs differ: no factor
    ],
)
def test_what_counts_as_another_scale(tmp_path, pairs, severity):
    found = findings(tmp_path, units(*pairs)).findings
    assert [finding.severity for finding in found if finding.check == "units"] == ([severity] if severity else [])


def test_a_drugs_doses_and_rare_units_are_warned_of(tmp_path):
    drug = findings(tmp_path, units(("mg", 500.0, 60), ("TAB", 1.0, 60), code="RXNORM//1")).findings
    assert [finding.severity for finding in drug] == ["warning"]
    rare = findings(tmp_path / "b", units(("mg/dL", 1.01, 2000), ("umol/L", 88.4, 20))).findings
    assert [finding.severity for finding in rare] == ["warning"]


@pytest.mark.parametrize(
    ("units_", "ratio", "text"),
    [
        (("umol/L", "mg/dL"), 1 / 88.4, "creatinine: 1 mg/dL is 88.4 umol/L"),
        (("mg/dL", "mmol/L"), 1 / 18.0, "glucose: 1 mg/dL is 0.0555 mmol/L"),
        (("mg/dL", "mmol/L"), 1 / 38.7, "cholesterol: 1 mg/dL is 0.0259 mmol/L"),
        (("µmol/L", "mg/dL"), 1 / 17.0, "bilirubin: 1 mg/dL is 17.1 µmol/L"),
        (("Lbs", "kg"), 0.45, "1 Lbs is 0.454 kg"),
        (("g/L", "g/dL"), 0.1, "1 g/dL is 10 g/L"),
        (("g/L", "mmol/L"), 0.62, None),
        (("lb", "kg"), 3.0, None),
    ],
)
def test_known_conversions(units_, ratio, text):
    assert known_factor(*units_, ratio) == text


def test_shards_out_of_order(tmp_path):
    shards = healthy()
    assert inspect(write(tmp_path / "sorted", shards), today=TODAY).findings == ()
    first = shards["train/0"]
    shards["train/0"] = [*first[1:], first[0]]
    scattered = inspect(write(tmp_path / "scattered", shards), today=TODAY).findings
    assert [(finding.check, finding.severity, finding.amount()) for finding in scattered] == [
        ("order", "warning", "1 of 3 shards (33.3 %)")
    ]
    assert scattered[0].details == ("data/train/0.parquet: a subject's rows do not stand together",)
    shards["train/0"] = [first[1], first[0], *first[2:]]
    undated_late = inspect(write(tmp_path / "late", shards), today=TODAY).findings
    assert undated_late[0].details == ("data/train/0.parquet: 1 rows after a later one of the subject",)


def test_subjects_in_any_order_are_fine(tmp_path):
    shards = healthy()
    rows = shards["train/0"]
    shards["train/0"] = sorted(rows, key=lambda row: -row["subject_id"])
    assert inspect(write(tmp_path / "meds", shards), today=TODAY).findings == ()


def test_splits_drawn_differently(tmp_path):
    shards = healthy()
    shards["tuning/0"] += [
        event(s, day(400 + n / 4), "OTHER//1") for s in SUBJECTS["tuning"] for n in range(3)
    ]  # fmt: skip
    found = only(tmp_path, shards)
    assert (found.check, found.severity, found.what) == ("splits", "warning", "tuning drawn differently from train")
    assert "tuning: events, median 16.0 against 13.0 in train (distance of the distributions 1.00)" in found.details
    assert "tuning: OTHER//1 in 100.0 % of subjects against 0.0 % in train" in found.details


def test_splits_by_time(tmp_path):
    shards = healthy()
    for row in shards["held_out/0"]:
        if row["code"] not in ("MEDS_BIRTH",) and row["time"] is not None:
            row["time"] += timedelta(days=200)
    lines = only(tmp_path, shards).details
    assert any(line.startswith("held_out: first date, median 2010-08") for line in lines)


def test_splits_that_chance_explains(tmp_path):
    shards = healthy()
    shards["tuning/0"] += [event(s, day(460), "OTHER//1") for s in list(SUBJECTS["tuning"])[:4]]
    assert findings(tmp_path, shards).findings == ()


def test_many_duplicates_are_a_warning(tmp_path):
    shards = healthy()
    copies = [row for row in shards["train/0"] if row["code"] == LAB and row["subject_id"] < 6]
    found = only(tmp_path, with_rows(*copies))
    assert (found.severity, found.count) == ("warning", 30)
    assert found.details == (f"{LAB}: 30",)


def test_a_dataset_of_single_events_is_a_warning(tmp_path):
    rows = [event(s, day(s % 40), "A") for s in range(1, 11)]
    found = findings(tmp_path, {"train/0": rows}).findings
    assert next(finding for finding in found if finding.check == "history").severity == "warning"


def test_long_lists_are_cut(tmp_path):
    rows = [event(2, day(2), f"LOINC//{number}", text_value="1") for number in range(14)]
    found = only(tmp_path, with_rows(*rows))
    assert len(found.details) == 11
    assert found.details[-1] == "4 more"
