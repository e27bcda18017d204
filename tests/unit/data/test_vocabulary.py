import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrsequencing.data.schema import KINDS
from ehrsequencing.data.vocabulary import CLS, MASK, NUM_SPECIAL, PAD, SEP, SPECIAL_TOKENS, UNK, Vocabulary
from ehrsequencing.errors import DataError, StoreError

LAB, DIAGNOSIS = KINDS.index("lab"), KINDS.index("diagnosis")


def fitted(min_count=5):
    counts = np.array([[0, 9, 4], [7, 0, 0], [3, 1, 0]])
    return Vocabulary.from_counts(
        ["LOINC//1", "ICD10CM//Ä", "RARE"], [LAB, DIAGNOSIS, LAB], counts, min_count=min_count
    )


def of_codes(*codes):
    counts = np.full((len(codes), 1), 9, dtype=np.int64)
    return Vocabulary.from_counts(codes, [DIAGNOSIS] * len(codes), counts, min_count=1)


def test_special_tokens_are_distinct_and_first():
    assert (PAD, UNK, CLS, SEP, MASK) == (0, 1, 2, 3, 4)
    assert fitted().tokens[:NUM_SPECIAL] == SPECIAL_TOKENS


def test_rare_codes_have_no_token_and_rare_bins_read_as_the_bare_code():
    vocabulary = fitted()
    assert vocabulary.tokens[NUM_SPECIAL:] == ("LOINC//1", "LOINC//1//Q1", "ICD10CM//Ä")
    table = vocabulary.lookup_table(["ICD10CM//Ä", "LOINC//1", "RARE", "never seen"], bins=2)
    assert table.tolist() == [[7, 7, 7], [5, 6, 5], [UNK] * 3, [UNK] * 3]
    assert vocabulary.base_codes == ("LOINC//1", "ICD10CM//Ä")
    assert vocabulary.base_ids.tolist() == [-1] * 5 + [0, 0, 1]
    assert vocabulary.kinds[NUM_SPECIAL:].tolist() == [LAB, LAB, DIAGNOSIS]


def test_min_count_counts_a_code_with_and_without_values():
    assert "RARE" in fitted(min_count=4).tokens
    assert "RARE//Q1" not in fitted(min_count=4).tokens


def test_a_code_book_gives_every_numeric_code_all_its_bins():
    vocabulary = Vocabulary.from_code_book(["A", "B"], [LAB, DIAGNOSIS], [True, False], value_bins=3)
    assert vocabulary.tokens[NUM_SPECIAL:] == ("A", "A//Q1", "A//Q2", "A//Q3", "B")


def test_unknown_tokens_are_unk_and_only_seen_tokens_are_used():
    vocabulary = fitted()
    assert vocabulary.id("LOINC//1//Q1") == 6
    assert vocabulary.id("LOINC//1//Q2") == UNK
    counted = vocabulary.with_counts(np.array([0, 50, 0, 0, 0, 2, 0, 1]))
    assert counted.used.tolist() == [False] * 5 + [True, False, True]


def test_a_code_named_like_a_bin_is_refused_or_unknown():
    with pytest.raises(DataError, match="LOINC//1//Q1"):
        Vocabulary.from_code_book(["LOINC//1", "LOINC//1//Q1"], [LAB, LAB], [True, False], value_bins=2)
    assert (fitted().lookup_table(["LOINC//1//Q1"], bins=2) == UNK).all()


def test_the_hash_knows_order_names_and_kinds_but_not_counts():
    vocabulary = fitted()
    assert vocabulary.with_counts(np.arange(len(vocabulary))).hash == vocabulary.hash
    assert of_codes("A", "B").hash != of_codes("B", "A").hash
    other_kind = Vocabulary.from_counts(["A", "B"], [LAB, LAB], np.full((2, 1), 9), min_count=1)
    assert other_kind.hash != of_codes("A", "B").hash


codes = st.lists(st.text(min_size=1, max_size=4).map(lambda text: f"X//{text}/"), unique=True, max_size=12)


@given(codes, codes)
def test_extension_keeps_old_ids_and_appends_what_is_new(old, new):
    first, second = of_codes(*old), of_codes(*new)
    extended = first.extend(second)
    assert extended.tokens[: len(first)] == first.tokens
    assert set(extended.tokens) == set(first.tokens) | set(second.tokens)
    assert [extended.id(token) for token in first.tokens] == list(range(len(first)))
    assert extended.counts.sum() == first.counts.sum() + second.counts.sum()
    for index, base in enumerate(extended.base_ids[NUM_SPECIAL:], start=NUM_SPECIAL):
        assert extended.base_codes[base] == extended.tokens[index]
    assert extended.extend(second).tokens == extended.tokens


def test_what_is_saved_is_loaded(tmp_path):
    vocabulary = fitted().with_counts(np.arange(8))
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert (loaded.tokens, loaded.base_codes, loaded.hash) == (
        vocabulary.tokens,
        vocabulary.base_codes,
        vocabulary.hash,
    )
    for name in ("counts", "kinds", "base_ids"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(vocabulary, name))
        assert getattr(loaded, name).dtype == getattr(vocabulary, name).dtype


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "not readable JSON"),
        (lambda text: text.replace("LOINC//1", "LOINC//2"), "was changed"),
        (lambda text: text.replace('"lab"', '"lap"'), "no vocabulary"),
        (lambda text: text.replace("[MASK]", "[X]"), "no vocabulary"),
        (lambda text: text.replace('"hash"', '"hush"'), "no vocabulary"),
        (lambda text: json.dumps(json.loads(text)["tokens"]), "no JSON object"),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, message):
    path = tmp_path / "vocabulary.json"
    fitted().save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(StoreError, match=message):
        Vocabulary.load(path)
