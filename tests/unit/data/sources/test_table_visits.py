import pytest
from raw_tables import events_of, write_table

from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import DataError

MAPPING = """
[subjects]
file = "people.csv"
subject = "who"
sex = "sex"
[visits]
file = "stays.csv"
subject = "who"
visit = "stay"
start = "start"
end = "end"
class = "class"
inpatient = ["ward"]
[[tables]]
file = "bills.csv"
subject = "who"
visit = "stay"
at_visit = "end"
code = "code"
kind = "diagnosis"
[[tables]]
file = "labs.csv"
subject = "who"
visit = "stay"
time = "time"
code = "code"
kind = "lab"
"""
PEOPLE = "who,sex,status\n1,F,active\n2,M,merged\n"
STAYS = """
    who,stay,start,end,class
    1,11,2020-01-01 08:00:00,2020-01-04 12:00:00,ward
    1,12,2020-02-01 08:00:00,2020-02-01 09:00:00,clinic
    2,21,2020-03-01 08:00:00,2020-03-04 12:00:00,ward
"""
BILLS = "who,stay,code\n1,11,A\n1,12,B\n2,21,C\n"
LABS = "who,stay,time,code\n1,11,2020-01-02 10:00:00,L\n1,,2020-01-02 11:00:00,M\n2,21,2020-03-02 10:00:00,N\n"
DROPPED = "subject not in the table of subjects"
NO_VISIT = "of a visit unknown, excluded by where, or without end"
NO_ID = "no identifier of the visit, so that its events are of none"


def imported(tmp_path, mapping=MAPPING, people=PEOPLE, stays=STAYS, bills=BILLS, labs=LABS, **options):
    for name, text in (("people", people), ("stays", stays), ("bills", bills), ("labs", labs)):
        write_table(tmp_path / f"raw/{name}.csv", text)
    file = tmp_path / "mapping.toml"
    file.write_text(mapping)
    return import_source("table", tmp_path / "raw", tmp_path / "meds", mapping=file, **options)


def codes(dataset, visit=None):
    events = events_of(dataset)
    return sorted(events["code"] if visit is None else events.filter(visit_id=visit)["code"])


def only(status):
    return MAPPING.replace("[visits]", f"where = {{ status = {status} }}\n[visits]")


def test_sound_tables_have_nothing_to_count(tmp_path):
    dataset = imported(tmp_path, strict=True)
    assert dataset.manifest["conflicts"] == {"events_of_visits_that_are_not_in_the_table_of_visits": 0}
    assert codes(dataset, 11) == ["A", "HOSPITAL_ADMISSION//ward", "HOSPITAL_DISCHARGE//UNKNOWN", "L"]


def test_who_is_excluded_is_no_subject(tmp_path):
    dataset = imported(tmp_path, only("'active'"))
    assert set(events_of(dataset)["subject_id"]) == {1} and dataset.manifest["counts"]["subjects"] == 1
    assert dataset.manifest["events_dropped"] == {DROPPED: 4}
    tables = dataset.manifest["tables"]
    for name in ("stays", "bills", "labs"):
        assert tables[name]["rows_dropped"] == {DROPPED: 1}
    with pytest.raises(DataError, match=r"stays\.csv has 2 events that would be dropped; got subject not in the table"):
        imported(tmp_path, only("'active'"), strict=True, overwrite=True)


def test_who_has_one_row_that_is_not_excluded_is_a_subject(tmp_path):
    people = PEOPLE + "2,M,active\n"
    dataset = imported(tmp_path, only("['active']"), people, strict=True)
    assert set(events_of(dataset)["subject_id"]) == {1, 2}
    assert codes(dataset).count("GENDER//M") == 1


def test_a_filter_that_excludes_everyone_is_refused(tmp_path):
    message = r"where in \[subjects\] excludes everyone in .*people\.csv; got 2 rows; .*Remedy: mend where in the mapp"
    with pytest.raises(DataError, match=message):
        imported(tmp_path, only("'here'"))


@pytest.mark.parametrize(
    ("stay", "end", "dropped"),
    [
        ("11", "2019-12-01 08:00:00", {NO_VISIT: 1, "visit without a start, or stay without an end that": 1}),
        ("12", "2020-01-31 08:00:00", {NO_VISIT: 1}), ("12", "", {NO_VISIT: 1}), ("12", "2020-02-01 08:00:00", {}),
    ],
    ids=["a stay", "a clinic visit", "no end", "an end at the start"],
)  # fmt: skip
def test_what_is_known_at_an_end_before_the_start_is_dropped(tmp_path, stay, end, dropped):
    before = {"11": "2020-01-04 12:00:00", "12": "2020-02-01 09:00:00"}[stay]
    dataset = imported(tmp_path, stays=STAYS.replace(before, end))
    found = {reason[:50]: count for reason, count in dataset.manifest["events_dropped"].items()}
    assert found == {reason[:50]: count for reason, count in dropped.items()}
    bill = {"11": "A", "12": "B"}[stay]
    assert (bill in codes(dataset)) == (not dropped)
    visit = events_of(dataset).filter(visit_id=int(stay))
    begun = visit.filter(visit["code"].str.contains("^(HOSPITAL_ADMISSION|VISIT)//"))["time"].item()
    assert visit["time"].min() == begun


def test_a_visit_that_is_excluded_dates_nothing(tmp_path):
    dataset = imported(tmp_path, MAPPING.replace("[[tables]]", "where = { stay = [11, 21] }\n[[tables]]", 1))
    assert dataset.manifest["events_dropped"] == {NO_VISIT: 1}
    assert "B" not in codes(dataset) and "A" in codes(dataset)
    assert not any(code.startswith("VISIT") for code in codes(dataset))


@pytest.mark.parametrize("at_visit", [True, False])
@pytest.mark.parametrize("name", ["start", "end", "class"])
def test_a_visit_stated_twice_and_differently_is_refused(tmp_path, name, at_visit):
    row = {"start": "2020-02-01 07:00:00", "end": "2020-02-01 09:00:00", "class": "clinic"}
    row[name] = {"start": "2020-02-01 08:30:00", "end": "2020-02-01 10:00:00", "class": "ward"}[name]
    row["start"] = row["start"] if name == "start" else "2020-02-01 08:00:00"
    mapping = MAPPING if at_visit else MAPPING.replace('at_visit = "end"', "undated = true")
    message = r"stays states a visit twice, and differently; got row 2 of .*stays\.csv and row 4 of .*stays\.csv; expe"
    with pytest.raises(DataError, match=message):
        imported(tmp_path, mapping, stays=f"{STAYS}1,12,{row['start']},{row['end']},{row['class']}\n")


def test_a_visit_in_equal_rows_is_one_that_is_repeated(tmp_path):
    """So is the same number for another subject, and a row that `where` leaves out."""
    stays = STAYS + STAYS.splitlines()[2] + "\n2,12,2020-03-09 08:00:00,2020-03-09 12:00:00,clinic\n"
    stays += "1,12,2020-02-01 08:00:00,2020-02-07 12:00:00,void\n"
    where = "where = { class = ['ward', 'clinic'] }\n[[tables]]"
    dataset = imported(tmp_path, MAPPING.replace("[[tables]]", where, 1), stays=stays)
    assert dataset.manifest["events_repeated"] == 2
    assert dataset.manifest["visits"] == 4 and dataset.manifest["events_dropped"] == {}


def test_visits_without_an_identifier_are_counted(tmp_path):
    dataset = imported(tmp_path, stays=STAYS + "1,,2020-06-01 08:00:00,2020-06-04 12:00:00,ward\n")
    assert dataset.manifest["tables"]["stays"]["contradictions"] == {NO_ID: 1}
    assert events_of(dataset).filter(code="HOSPITAL_ADMISSION//ward")["visit_id"].null_count() == 1
    with pytest.raises(DataError, match=r"stays\.csv has 1 rows with no identifier of the visit.* in row 4"):
        imported(
            tmp_path, stays=STAYS + "1,,2020-06-01 08:00:00,2020-06-04 12:00:00,ward\n", strict=True, overwrite=True
        )


def test_visits_that_the_table_of_visits_lacks_are_counted(tmp_path):
    dataset = imported(tmp_path, labs=LABS + "1,21,2020-03-02 10:00:00,P\n1,99,2020-03-02 10:00:00,Q\n")
    assert dataset.manifest["conflicts"] == {"events_of_visits_that_are_not_in_the_table_of_visits": 2}
    visits = dict(events_of(dataset).select("code", "visit_id").rows())
    assert (visits["L"], visits["P"], visits["Q"]) == (11, None, None)


def test_visits_of_other_tables_stand_where_no_table_of_visits_does(tmp_path):
    blocks = MAPPING.split("[[tables]]")
    mapping = f"{blocks[0].split('[visits]')[0]}[[tables]]{blocks[2]}"
    dataset = imported(tmp_path, mapping)
    assert "conflicts" not in dataset.manifest
    assert events_of(dataset).filter(code="L")["visit_id"].to_list() == [11]


@pytest.mark.parametrize(
    ("stays", "got"),
    [
        ("who,stay,start,end,class\n", "a header and no row"),
        ("who,stay,start,end,class\n1,12,2020-02-01 08:00:00,2020-02-01 09:00:00,\n", "1 rows without a class"),
        ("who,stay,start,end,class\n1,12,2020-02-01 08:00:00,2020-02-01 09:00:00,x\n", "x"),
    ],
)
def test_what_stands_in_place_of_a_class(tmp_path, stays, got):
    with pytest.raises(DataError, match=f"stays has no visit of class ward; got {got}. Remedy: mend inpatient"):
        imported(tmp_path, stays=stays)


@pytest.mark.parametrize(
    ("kind", "column", "people", "stays"),
    [
        ("ids", "who", PEOPLE.replace("2,M", "2\0,M"), STAYS),
        ("visit_ids", "stay", PEOPLE, STAYS.replace("2,21", "2,21\0")),
    ],
)
def test_identifiers_with_nul_are_refused(tmp_path, kind, column, people, stays):
    message = rf"column {column} of .* has 1 values that are no identifiers; got '.*\\x00' in row .; expected text wi"
    with pytest.raises(DataError, match=message) as raised:
        imported(tmp_path, f"{kind} = 'text'\n{MAPPING}", people, stays)
    assert "Remedy: mend the file: NUL bytes mean that it is damaged, or in UTF-16" in str(raised.value)
    sound = imported(tmp_path, f"{kind} = 'text'\n{MAPPING}")
    assert sound.manifest["events_dropped"] == {}
