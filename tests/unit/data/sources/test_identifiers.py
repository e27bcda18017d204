import polars as pl
import pytest
from raw_tables import number_of

from ehrsequencing.data.sources.identifiers import identifiers, refuse_collisions, with_identifier
from ehrsequencing.errors import DataError

UUIDS = [f"{number:08x}-aaaa-1111-2222-333333333333" for number in range(1000)]


def test_numbers_are_stable_and_not_negative():
    numbers = identifiers(pl.Series(UUIDS))
    assert numbers.to_list() == [number_of(text) for text in UUIDS]
    assert numbers.n_unique() == 1000 and numbers.dtype == pl.Int64
    assert numbers.min() >= 0 and numbers.max() > 2**62
    assert identifiers(pl.Series(["aaaaaaaa-aaaa-bbbb-cccc-000000000001"])).item() == 632175288201658719  # b2sum -l 64
    assert identifiers(pl.Series(UUIDS).str.to_uppercase()).equals(numbers)
    assert identifiers(pl.Series([], dtype=pl.String)).len() == 0


def test_every_row_gets_its_number():
    rows = pl.DataFrame({"row": [1, 2, 3, 4], "patient": ["b", None, "a", "B"]})
    assert with_identifier(rows, "patient", "n")["n"].to_list() == [
        number_of("b"),
        None,
        number_of("a"),
        number_of("b"),
    ]
    nobody = with_identifier(rows.with_columns(patient=pl.lit(None, dtype=pl.String)), "patient", "n")
    assert nobody["n"].to_list() == [None] * 4


def test_two_texts_of_one_number_are_refused():
    pairs = pl.DataFrame({"id": ["x", "y", "z"], "n": [7, 7, 8]})
    with pytest.raises(DataError, match="two identifiers of patients.csv have the same number; got x and y, both 7"):
        refuse_collisions(pairs, "id", "n", "patients.csv")
