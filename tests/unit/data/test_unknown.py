import polars as pl
from tests.unit.data.small_data import day

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.unknown import MOST_NAMED, unknown_codes
from ehrsequencing.data.vocabulary import UNK


def test_a_second_site_names_what_is_lost(write_meds, tmp_path):
    home = write_meds(
        train=[[(1, day(n), code) for n in range(5) for code in ("ICD10CM//I10", "LOINC//1")]], name="home"
    )
    prepare(home, tmp_path / "home_store")
    away = write_meds(
        name="away",
        train=[[(1, day(0), "ICD10CM//I10"), (1, day(0), "ICD10CM//E11"), (1, day(-99), "MEDS_BIRTH")]],
        held_out=[
            [*((2, day(n), "RXNORM//7") for n in range(3)), (2, day(9), "ICD10CM//E11"), (2, day(9), "LOINC//1")]
        ],
    )
    store = prepare(away, tmp_path / "away_store", vocabulary_from=tmp_path / "home_store")
    found = store.manifest["unknown"]
    assert {key: found[key] for key in ("events", "unknown_events", "codes", "unknown_codes")} == {
        "events": 7, "unknown_events": 5, "codes": 4, "unknown_codes": 2,
    }  # fmt: skip
    assert found["kinds"]["diagnosis"] == {"events": 3, "unknown_events": 2, "codes": 2, "unknown_codes": 1}
    assert found["kinds"]["lab"]["unknown_events"] == 0
    assert found["most_frequent"] == [
        {"code": "RXNORM//7", "kind": "drug", "events": 3}, {"code": "ICD10CM//E11", "kind": "diagnosis", "events": 2},
    ]  # fmt: skip
    in_store = sum(int((store.split(split).code == UNK).sum()) for split in ("train", "tuning", "held_out"))
    assert in_store == found["unknown_events"]
    assert "unknown" not in TokenStore.open(tmp_path / "home_store").manifest


def test_only_so_many_are_named_the_most_frequent_first(write_meds, tmp_path):
    home = write_meds(train=[[(1, day(n), "A//0") for n in range(5)]], name="home")
    vocabulary = prepare(home, tmp_path / "store").vocabulary
    events = [{"code": f"B//{n:02}", "kind": "other", "events": 2 - n // 30} for n in range(40)]
    found = unknown_codes(pl.DataFrame(events), vocabulary)
    assert len(found["most_frequent"]) == MOST_NAMED
    assert found["most_frequent"][0] == {"code": "B//00", "kind": "other", "events": 2}
    assert found["unknown_codes"] == 40
