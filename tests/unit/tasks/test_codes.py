import datetime as dt

import polars as pl
import pytest
from small_datasets import write_dataset

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.errors import DataError
from ehrsequencing.tasks.base import CohortRules
from ehrsequencing.tasks.codes import CodeTable
from ehrsequencing.tasks.cohorts import build_labels
from ehrsequencing.tasks.landmarks import OnsetTask

NOTHING = CodeTable(pl.DataFrame(schema={"code": pl.String, "spelling": pl.String}))


def matching(codes, *patterns, table=NOTHING):
    return table.matching(pl.Series(list(codes), dtype=pl.String), patterns).to_list()


def test_prefixes():
    codes = ["ICD10CM//I50.9", "ICD10CM//I5", "XICD10CM//I50", "ICD9CM//428.0", "ICD9CM//42"]
    assert matching(codes, "ICD10CM//I50", "ICD9CM//428") == ["ICD10CM//I50.9", "ICD9CM//428.0"]
    assert matching(codes, "ICD10CM//") == ["ICD10CM//I5", "ICD10CM//I50.9"]
    assert matching([], "A") == []


@pytest.mark.parametrize("system", ["SNOMED", "RXNORM", "LOINC"])
def test_identifiers_are_whole(system):
    codes = [f"{system}//123", f"{system}//1234", f"{system}//123//Q1"]
    assert matching(codes, f"{system}//123") == [f"{system}//123", f"{system}//123//Q1"]
    assert matching(codes, f"{system}//") == sorted(codes), "a system alone is a prefix"


@pytest.mark.parametrize(
    ("code", "pattern"),
    [
        ("SNOMED/22298006", "SNOMED//22298006"),
        ("DIAGNOSIS//ICD//10//I509", "ICD10CM//I50.9"),
        ("DIAGNOSIS//ICD//10//C7A1", "ICD10CM//C7A.1"),
        ("DIAGNOSIS//ICD//9//4280", "ICD9CM//428.0"),
        ("DIAGNOSIS//ICD//9//V4281", "ICD9CM//V42.81"),
        ("DIAGNOSIS//ICD//9//E8889", "ICD9CM//E888.9"),
        ("DIAGNOSIS//ICD//9//428", "ICD9CM//428"),
        ("ICD10CM//I509", "ICD10CM//I50.9"),
        ("ICD9CM//25002", "ICD9CM//250.02"),
        ("ICD9CM//25002", "ICD9CM//25002"),
        ("DIAGNOSIS//ICD//9//4280", "DIAGNOSIS//ICD//9//428"),
    ],
)
def test_other_spellings(code, pattern):
    assert matching([code], pattern) == [code]


def test_a_spelling_does_not_stretch():
    assert matching(["DIAGNOSIS//ICD//9//4280", "ICD9CM//0428"], "ICD9CM//42.8", "ICD9CM//28") == []
    assert matching(["PROCEDURE//ICD//9//4280"], "ICD9CM//428") == []


PARENTS = {"X//leaf": ["X//middle", "SNOMED/22298006"], "X//middle": ["X//top"], "X//top": ["X//leaf"], "Y": []}


def test_ancestors(tmp_path):
    """Parents of parents, codes that are no event, another spelling, and a table that runs in a circle."""
    rows = [(1, None, code, None) for code in PARENTS]
    table = CodeTable.of(write_dataset(tmp_path / "d", rows, parents=PARENTS))
    for pattern in ("X//top", "X//middle", "SNOMED//22298006", "X//leaf"):
        assert "X//leaf" in matching(PARENTS, pattern, table=table)
    assert matching(PARENTS, "SNOMED//22298006", table=table) == ["X//leaf", "X//middle", "X//top"]
    assert matching(["X//leaf", "Y"], "X//to", table=table) == ["X//leaf"]
    assert matching(["Y"], "X//", table=table) == []


def test_long_chains(tmp_path):
    chain = {f"c{number}": [f"c{number + 1}"] for number in range(60)}
    table = CodeTable.of(write_dataset(tmp_path / "d", [(1, None, code, None) for code in chain], parents=chain))
    assert matching(["c0", "c59"], "c60", table=table) == ["c0", "c59"]


@pytest.mark.parametrize("dtype", [pl.String, pl.Null])
def test_parents_of_other_tools(tmp_path, dtype):
    """One string instead of a list, or an empty column."""
    dataset = write_dataset(tmp_path / "d", [(1, None, "X", None)])
    parent = ["ICD10CM/I50.9"] if dtype == pl.String else [None]
    pl.DataFrame({"code": ["X"], "parent_codes": pl.Series(parent, dtype=dtype)}).write_parquet(
        dataset.path / "metadata/codes.parquet"
    )
    found = matching(["X"], "ICD10CM//I50", table=CodeTable.of(MedsDataset.open(dataset.path)))
    assert found == (["X"] if dtype == pl.String else [])


def test_parents_of_a_wrong_type(tmp_path):
    dataset = write_dataset(tmp_path / "d", [(1, None, "X", None)])
    pl.DataFrame({"code": ["X"], "parent_codes": [1]}).write_parquet(dataset.path / "metadata/codes.parquet")
    with pytest.raises(DataError, match=r"parent_codes of .*codes\.parquet has the wrong type; got Int64"):
        CodeTable.of(dataset)


def test_a_damaged_code_table(tmp_path):
    dataset = write_dataset(tmp_path / "d", [(1, None, "X", None)])
    (dataset.path / "metadata/codes.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"codes\.parquet is not readable parquet"):
        CodeTable.of(dataset)


def test_a_task_follows_ancestors(tmp_path):
    start = dt.datetime(2020, 1, 1)
    rows = [
        (subject, start + dt.timedelta(days=day), code, None)
        for subject, codes in ((1, ("A", "LOCAL//9", "A")), (2, ("A", "B", "A")))
        for day, code in zip((0, 5, 90), codes, strict=True)
    ]
    dataset = write_dataset(tmp_path / "d", rows, parents={"LOCAL//9": ["SNOMED//84114007"]})
    rules = CohortRules(0, 10_000, 0)
    labels, manifest = build_labels(dataset, OnsetTask("t", ("SNOMED//84114007",), 30), rules)
    assert labels["boolean_value"].to_list() == [True, False]
    assert manifest["codes"] == ["SNOMED//84114007"]
    assert manifest["matched_codes"] == ["LOCAL//9"]
