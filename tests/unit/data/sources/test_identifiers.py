import polars as pl
import pytest

from ehrsequencing.data.sources.identifiers import identifier, refuse_collisions, with_identifier
from ehrsequencing.errors import DataError


def test_numbers_are_stable_and_not_negative():
    numbers = [identifier(f"{number:08x}-0000-1111-2222-333333333333") for number in range(1000)]
    assert len(set(numbers)) == 1000
    assert all(0 <= number < 2**63 for number in numbers)
    assert max(numbers) > 2**62


def test_every_row_gets_its_number():
    rows = pl.DataFrame({"row": [1, 2, 3, 4], "patient": ["b", None, "a", "B"]})
    assert with_identifier(rows, "patient", "n")["n"].to_list() == [
        identifier("b"), None, identifier("a"), identifier("b"),
    ]  # fmt: skip


def test_two_texts_of_one_number_are_refused():
    pairs = pl.DataFrame({"id": ["x", "y", "z"], "n": [7, 7, 8]})
    with pytest.raises(DataError, match="two identifiers of patients.csv have the same number; got x and y, both 7"):
        refuse_collisions(pairs, "id", "n", "patients.csv")
