import re
from pathlib import Path

import pytest

from ehrsequencing.errors import ConfigError
from ehrsequencing.tasks.parsing import NAMED_TASKS, TASK_FAMILIES, family_of, parse_task
from ehrsequencing.tasks.phenotypes import read_phenotypes
from ehrsequencing.tasks.stays import STAY_CODES, TRANSFER_HOURS

DOCUMENT = Path(__file__).parents[3] / "docs" / "tasks.md"


def test_names_of_tasks():
    assert parse_task("onset:ICD10CM//I50, ICD9CM//428@30").codes == ("ICD10CM//I50", "ICD9CM//428")
    for name in NAMED_TASKS:
        assert parse_task(name).name == name
        assert parse_task(name).horizon_days == 365
    for row in TASK_FAMILIES:
        for name in row.named:
            task = parse_task(name)
            assert task.name == name
            assert family_of(task) == row
            assert task.kind == row.kind


@pytest.mark.parametrize(
    ("name", "codes", "days"),
    [
        ("readmission_14d", (), 14),
        ("mortality_1d", (), 1),
        ("los_over_5d", (), 5),
        ("mortality_inpatient", (), None),
        ("next_visit_codes", (), None),
        ("time_to:death", (), None),
        ("time_to:death@1000", (), 1000),
        ("time_to:ICD10CM//I50, ICD9CM//428", ("ICD10CM//I50", "ICD9CM//428"), None),
        ("time_to:ICD10CM//I50@730", ("ICD10CM//I50",), 730),
        ("time_to:death|TX//a b, TX//c@730", (), 730),
        ("onset:LAB//a b@7", ("LAB//a b",), 7),
    ],
)
def test_what_a_name_means(name, codes, days):
    task = parse_task(name)
    assert (task.codes, task.horizon_days) == (codes, days)


def test_horizon_of_phenotypes():
    assert parse_task("phenotype:common").horizon_days == 365
    assert parse_task("phenotype:common@90").horizon_days == 90
    assert parse_task("phenotype:common").codes == tuple(sorted(set(parse_task("phenotype:common@9").codes)))


@pytest.mark.parametrize(
    "name",
    [
        "", "onset:@365", "onset:I50", "onset:I50,@9", "onset: ,I50@9", "death@30",
        "mortality_30", "readmission_d", "readmission_30d ", "los_over_3", "time_to:", "time_to:@30",
        "time_to:I50|", "time_to:I50|A|B", "onset:I50|I11@30", "phenotype:", "next_visit_codes@3", "onset:a@b@30",
        "Readmission_30d", "readmission_030d", "readmission_3\u0663d", "readmission_30.5d",
        "onset:I50@3.5",
        "mortality_inpatient_30d", "next_visit", "mortality_30d\n", "heart_failure",
    ],
)  # fmt: skip
def test_unknown_tasks(name):
    with pytest.raises(ConfigError, match=r"(?s)unknown task; .*expected .*Remedy: see `ehrseq task list`"):
        parse_task(name)


def test_an_unknown_task_names_what_is_near():
    with pytest.raises(ConfigError, match=r"got heart_failure; expected heart_failure_1y\."):
        parse_task("heart_failure")
    with pytest.raises(ConfigError, match=r"expected readmission_30d, readmission_"):
        parse_task("Readmission_30d")
    with pytest.raises(ConfigError, match="expected a name or pattern of `ehrseq task list`"):
        parse_task("xyz")


@pytest.mark.parametrize(
    "pattern", ["onset:I50@{}", "mortality_{}d", "readmission_{}d", "los_over_{}d", "time_to:I50@{}"]
)
@pytest.mark.parametrize("days", ["0", "-1", "36501", "99999999999", "9" * 5000])
def test_horizons_out_of_range(pattern, days):
    with pytest.raises(ConfigError, match=r"horizon of task .* is out of range; expected 1 to 36500 days"):
        parse_task(pattern.format(days))
    assert parse_task(pattern.format(36500)).horizon_days == 36500


def test_a_horizon_of_phenotypes_out_of_range():
    with pytest.raises(ConfigError, match="horizon of task phenotype:common@36501 is out of range"):
        parse_task("phenotype:common@36501")


@pytest.mark.parametrize("name", ["time_to:death,I50", "time_to:I50, death@30"])
def test_death_is_no_code(name):
    with pytest.raises(ConfigError, match=rf"death stands alone in a time_to task; got {name}; expected time_to:death"):
        parse_task(name)


@pytest.mark.parametrize(("name", "twice"), [("time_to:I50|death", "death"), ("time_to:death|death", "death"),
                                             ("time_to:A,B|C,B@9", "B")])  # fmt: skip
def test_a_cause_competes_once(name, twice):
    with pytest.raises(ConfigError, match=rf"time_to task has a cause twice; got {twice}; expected codes of another "):
        parse_task(name)


def test_competing_codes():
    task = parse_task("time_to:A@9")
    assert (task.competing, task.causes) == ((), ("event", "death"))
    task = parse_task("time_to:A|TX//a b, TX//c@9")
    assert (task.competing, task.causes) == (("TX//a b", "TX//c"), ("event", "death", "TX//a b,TX//c"))
    assert parse_task("time_to:death|TX").causes == ("death", "TX")


def test_the_document_holds_the_table():
    """The table of docs/tasks.md is the table of `ehrseq task list`, cell for cell."""
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rows]
    table = {row[0]: row[1:] for row in cells if len(row) == 7}
    assert list(table) == [f"`{row.pattern.replace(' or ', '` or `')}`" for row in TASK_FAMILIES]
    for row, found in zip(TASK_FAMILIES, table.values(), strict=True):
        assert found == [row.kind, row.asked, row.label, row.excluded, row.follow_up, row.death]


def test_the_document_holds_the_codes_of_stays():
    def shown(codes):
        return ", ".join(f"`{code}`" for code in codes)

    document = DOCUMENT.read_text()
    for row in STAY_CODES:
        cells = (row.source, shown(row.admission), shown(row.discharge), shown(row.died))
        assert f"| {' | '.join(cells)} |" in document
    assert f"within {TRANSFER_HOURS} hours of a discharge" in document
    assert f"a set of {len(read_phenotypes('common').codes)} phenotypes" in document


def test_named_onsets_know_both_versions_of_icd():
    for name, written in NAMED_TASKS.items():
        codes = parse_task(name).codes
        assert {code.partition("//")[0] for code in codes} == {"ICD10CM", "ICD9CM"}, written
    diabetes = next(row for row in read_phenotypes("common").codes.items() if row[0] == "diabetes_type_2")[1]
    assert set(parse_task("type_2_diabetes_1y").codes) == {code for code in diabetes if code.startswith("ICD")}
