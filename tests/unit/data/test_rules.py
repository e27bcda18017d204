import json
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from small_data import day

from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.rules import RULES_FILE, Rules, refuse_other_rules
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, DataError, StoreError, VocabularyMismatchError

GLUCOSE = "LOINC//2345-7"
FULL = {
    "visits": "gap:12h", "order_within_visit": "canonical", "long_histories": "visits", "values": "none",
    "roll_up": ["icd10=3"], "units": "standard",
}  # fmt: skip


@pytest.fixture
def meds(write_meds):
    """Glucose in two units under three spellings, diagnoses below two categories, a code book with parents."""
    events = []
    for subject in (1, 2):
        for number in range(8):
            mine = (subject, day(2 * number + subject))
            events += [
                (*mine, GLUCOSE, 90.0 + number, None, ("mg/dL", "MG/DL")[number % 2]),
                (*mine, GLUCOSE, 5.0, None, "mmol/L"),
                (*mine, "LAB//1", 3.0, None, "K/uL"),
                (*mine, f"ICD10CM//E11.{number % 3}"),
                (mine[0], mine[1] + timedelta(hours=11), "ICD10CM//I50.9", None, 7),
                (*mine, "RXNORM//1"),
            ]
    path = write_meds(train=[events], held_out=[[(9, day(0), GLUCOSE, 6.0, None, "mmol/l")]])
    (path / "metadata").mkdir()
    pl.DataFrame(
        {
            "code": [GLUCOSE, "ICD10CM//E11", "RXNORM//1"],
            "description": ["Glucose", "Type 2 diabetes", None],
            "parent_codes": [["LOINC//LP1"], None, ["RXNORM//9"]],
        }
    ).write_parquet(path / "metadata" / "codes.parquet")
    return path


def tokens_of(store, split="train"):
    return [store.vocabulary.tokens[token] for token in store.split(split).code]


def test_default_rules_leave_no_trace_in_the_store_but_are_stated(meds, tmp_path):
    plain = prepare(meds, tmp_path / "plain")
    stated = prepare(meds, tmp_path / "stated", visits="visit_id+day", values="bins", long_histories="events")
    assert not (plain.path / RULES_FILE).exists()
    assert plain.manifest == stated.manifest
    assert plain.manifest["rules"] == {
        "visits": "visit_id+day", "order_within_visit": "time", "long_histories": "events", "values": "bins",
        "roll_up": [], "units": None,
    }  # fmt: skip
    assert "units" not in plain.manifest and "roll_up" not in plain.manifest


def test_every_rule_changes_the_fingerprint(meds, tmp_path):
    prints = {prepare(meds, tmp_path / "plain").fingerprint}
    for name, value in FULL.items():
        prints.add(prepare(meds, tmp_path / name, **{name: value}).fingerprint)
    assert len(prints) == 1 + len(FULL)


def test_units_are_converted_before_anything_is_fitted_and_counted(meds, tmp_path):
    store = prepare(meds, tmp_path / "store", units="standard")
    assert list(zip(store.values.codes, store.values.units, strict=True)) == [
        ("LAB//1", "10*3/uL"), (GLUCOSE, "mg/dL"),
    ]  # fmt: skip
    assert store.values.n.tolist() == [16, 32]
    train = store.split("train")
    values = sorted(set(train.value[train.statistic == 1].tolist()))
    np.testing.assert_allclose(values, [*range(90, 98)[:1], 90.078, *range(91, 98)], rtol=1e-5)
    assert store.split("held_out").value.tolist() == [np.float32(6 * 18.0156)]
    assert store.manifest["units"] == [
        {"code": "LAB//1", "from": "K/uL", "to": "10*3/uL", "factor": 1.0, "offset": 0.0, "events": 16},
        {"code": GLUCOSE, "from": "MG/DL", "to": "mg/dL", "factor": 1.0, "offset": 0.0, "events": 8},
        {"code": GLUCOSE, "from": "mmol/L", "to": "mg/dL", "factor": 18.0156, "offset": 0.0, "events": 16},
        {"code": GLUCOSE, "from": "mmol/l", "to": "mg/dL", "factor": 18.0156, "offset": 0.0, "events": 1},
    ]
    spelling = prepare(meds, tmp_path / "spelling", units="spelling")
    assert list(zip(spelling.values.codes, spelling.values.units, strict=True)) == [
        ("LAB//1", "10*3/uL"), (GLUCOSE, "mg/dL"), (GLUCOSE, "mmol/L"),
    ]  # fmt: skip


def test_a_conversion_beyond_float32_is_refused(write_meds, tmp_path):
    meds = write_meds(train=[[(1, day(number), GLUCOSE, 3e38, None, "mmol/L") for number in range(9)]])
    with pytest.raises(DataError, match="infinite values in train; got 9, of code LOINC//2345-7"):
        prepare(meds, tmp_path / "store", units="standard")


def test_codes_are_rolled_up_with_kind_and_counts(meds, tmp_path):
    store = prepare(meds, tmp_path / "store", roll_up=["ICD10=3", "rxnorm=ingredient"])
    assert store.vocabulary.base_codes == ("ICD10CM//E11", "ICD10CM//I50", "LAB//1", GLUCOSE, "RXNORM//9")
    assert store.manifest["roll_up"] == {
        "codes_before": 8, "codes_after": 5, "rolled": 5, "left_with_several_parents": 0, "left_with_values": 0,
    }  # fmt: skip
    kinds = dict(zip(store.vocabulary.tokens, store.vocabulary.kinds.tolist(), strict=True))
    assert (kinds["ICD10CM//I50"], kinds["RXNORM//9"]) == (0, 1)
    assert store.vocabulary.counts[store.vocabulary.id("ICD10CM//E11")] == 16
    parents = prepare(meds, tmp_path / "parents", roll_up=["parents=1"])
    assert parents.manifest["roll_up"]["left_with_values"] == 1
    assert GLUCOSE in parents.vocabulary.base_codes, "a laboratory value is none of its parent"


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        (pl.Series([["RXNORM//9"]], dtype=pl.List(pl.Categorical)), None),
        (pl.Series([["RXNORM//9", None]]), None),
        (pl.Series([None]), "changes no code"),
        (pl.Series([[]], dtype=pl.List(pl.Null)), "changes no code"),
        (pl.Series(["RXNORM//9"]), "parent_codes of .*codes.parquet have the wrong type; got String; expected lists"),
        (pl.Series([[9]]), "have the wrong type; got List"),
    ],
)
def test_parents_of_other_tools(write_meds, tmp_path, parents, message):
    meds = write_meds(train=[[(1, day(number), "RXNORM//1") for number in range(9)]])
    (meds / "metadata").mkdir()
    pl.DataFrame({"code": ["RXNORM//1"], "parent_codes": parents}).write_parquet(meds / "metadata" / "codes.parquet")
    if message is None:
        store = prepare(meds, tmp_path / "store", roll_up=["rxnorm=ingredient"])
        assert store.vocabulary.base_codes == ("RXNORM//9",)
        assert store.rolled_codes == {"RXNORM//1": "RXNORM//9"}
        return
    with pytest.raises((ConfigError, DataError), match=message):
        prepare(meds, tmp_path / "store", roll_up=["rxnorm=ingredient"])


def test_numbers_without_bins_keep_their_distribution(meds, tmp_path):
    store = prepare(meds, tmp_path / "store", values="none")
    assert not [token for token in store.vocabulary.tokens if "//Q" in token]
    train = store.split("train")
    share = store.values.cdf(train.statistic, train.value)
    assert (~np.isnan(share) == ~np.isnan(train.value)).all() and (~np.isnan(share)).sum() == 48
    with pytest.raises(ConfigError, match="value_bins would have no effect: numbers have no tokens"):
        prepare(meds, tmp_path / "none", values="none", value_bins=4)


def test_visits_follow_the_rule(meds, tmp_path):
    counts = {
        rule: prepare(meds, tmp_path / rule.replace(":", ""), visits=rule).manifest["counts"]["train"]["visits"]
        for rule in ("visit_id+day", "day", "gap:10h", "gap:11h", "visit_id+gap:48h", "gap:72h")
    }
    assert counts == {"visit_id+day": 18, "day": 16, "gap:10h": 32, "gap:11h": 16, "visit_id+gap:48h": 4, "gap:72h": 2}
    with pytest.raises(DataError, match="needs a visit_id in every event"):
        prepare(meds, tmp_path / "none", visits="visit_id")


def test_equal_visits_give_equal_tokens_in_canonical_order(write_meds, tmp_path):
    """One visit a subject, its events at other times of the day: equal for the model, but not where time decides."""
    random = np.random.default_rng(0)
    codes = ["ICD10CM//A", "ICD10CM//B", "LOINC//1", "LOINC//1", "RXNORM//2"]
    events = []
    for subject in range(20):
        for number, code in zip(random.permutation(5), codes, strict=True):
            value = float(number > 2) if code == "LOINC//1" else None
            events.append((subject, day(1) + timedelta(minutes=int(number)), code, value))
        events += [(subject, day(1), "LOINC//1", 1.0), (subject, day(2), "ICD10CM//A")]
    meds = write_meds(train=[events])
    distinct = {}
    for order in ("time", "canonical"):
        store = prepare(meds, tmp_path / order, order_within_visit=order, values="none")
        train = store.split("train")
        batch = BatchSource(train, Examples.whole_histories(train), store.values).build(np.arange(20))
        distinct[order] = len({tuple(row) for row in batch.codes.tolist()})
        assert (np.diff(train.time.reshape(20, -1)) >= 0).all(), "the store stays in the order of time"
    assert distinct["time"] > 10 and distinct["canonical"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"visits": "weekly"}, "the rule of visits; got weekly"),
        ({"order_within_visit": "code"}, "order_within_visit; got code; expected time or canonical"),
        ({"long_histories": "days"}, "long_histories; got days; expected events or visits"),
        ({"values": "cdf"}, "values; got cdf; expected bins or none"),
        ({"roll_up": ["icd10=3", "ICD10=4"]}, "two roll-ups of one system; got icd10"),
        ({"roll_up": ["icd9=3"]}, "roll-up icd9=3 changes no code"),
        ({"units": "metric"}, "units; got metric; expected spelling, standard or a CSV file"),
    ],
)
def test_rules_that_are_none_or_change_nothing_are_refused(meds, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare(meds, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_units_that_change_nothing_are_refused(write_meds, tmp_path):
    meds = write_meds(train=[[(1, day(number), GLUCOSE, 90.0, None, "mg/dL") for number in range(9)]])
    with pytest.raises(ConfigError, match="units would change nothing; got 1 pairs of code and unit"):
        prepare(meds, tmp_path / "store", units="standard")


def test_rules_come_with_the_vocabulary(meds, write_meds, tmp_path):
    home = prepare(meds, tmp_path / "home", **FULL)
    model = tmp_path / "model"
    model.mkdir()
    for name in ("vocabulary.json", "values.json", RULES_FILE):
        (model / name).write_bytes((home.path / name).read_bytes())
    quiet = write_meds("away", train=[[(1, day(number), "ICD10CM//I50", None, 4) for number in range(6)]])
    for source in (home.path, model):
        away = prepare(quiet, tmp_path / "away-store", vocabulary_from=source, overwrite=True)
        assert TokenStore.open(away.path).split("train").rules == Rules.of(home.path) == Rules.of(model)
        assert away.manifest["units"] == [] and away.manifest["roll_up"]["rolled"] == 0
        assert away.manifest["counts"]["train"]["visits"] == 6
        prepare(quiet, tmp_path / "away-store", vocabulary_from=source, overwrite=True, **FULL)
    with pytest.raises(ConfigError, match=r"other rules: visits; got day; expected gap:12h. Remedy: leave"):
        prepare(quiet, tmp_path / "no", vocabulary_from=model, visits="day")
    with pytest.raises(ConfigError, match=r"other rules: units; got a table of 0 .*expected a table of 1\d\d conv"):
        prepare(quiet, tmp_path / "no", vocabulary_from=model, units="spelling")
    with pytest.raises(ConfigError, match=r"other rules: roll_up; got icd10=4; expected icd10=3"):
        prepare(quiet, tmp_path / "no", vocabulary_from=model, roll_up=["icd10=4"])


def test_a_second_site_may_convert_its_units_into_those_of_the_first(write_meds, tmp_path):
    american = [(1, day(number), GLUCOSE, 80.0 + number, None, "mg/dL") for number in range(40)]
    european = [(1, day(number), GLUCOSE, 5.0 + number / 10, None, "mmol/L") for number in range(40)]
    home = prepare(write_meds("home", train=[american]), tmp_path / "home-store")
    away = write_meds("away", train=[european])
    lost = prepare(away, tmp_path / "lost", vocabulary_from=home.path)
    assert lost.manifest["counts"]["train"]["numeric_events_without_statistics"] == 40
    found = prepare(away, tmp_path / "found", vocabulary_from=home.path, units="standard")
    assert found.manifest["counts"]["train"]["numeric_events_without_statistics"] == 0
    assert found.vocabulary.hash == home.vocabulary.hash
    assert [row["events"] for row in found.manifest["units"]] == [40]
    with pytest.raises(ConfigError, match="home-store was prepared with other rules: visits"):
        prepare(away, tmp_path / "no", vocabulary_from=home.path, visits="day")
    refuse_other_rules(found.path, home.path)


def test_extension_keeps_the_rule_of_values(meds, write_meds, tmp_path):
    home = prepare(meds, tmp_path / "home", values="none")
    more = write_meds("more", train=[[(1, day(number), "LAB//new", float(number)) for number in range(50)]])
    away = prepare(more, tmp_path / "away", vocabulary_from=home.path, extend_vocabulary=True)
    assert away.vocabulary.tokens[len(home.vocabulary) :] == ("LAB//new",)


def test_a_model_refuses_a_store_of_other_rules(meds, tmp_path):
    one = prepare(meds, tmp_path / "one").path
    other = prepare(meds, tmp_path / "other", visits="day").path
    refuse_other_rules(one, one)
    with pytest.raises(
        VocabularyMismatchError,
        match=r"one was trained on a store with other rules: visits; got day; expected visit_id\+day",
    ):
        refuse_other_rules(other, one)
    with pytest.raises(VocabularyMismatchError, match="got visit_id"):
        refuse_other_rules(one, other)


def test_damaged_rules_are_refused(tmp_path):
    full = Rules().chosen(**FULL)
    full.save(tmp_path)
    assert Rules.of(tmp_path) == full
    content = json.loads((tmp_path / RULES_FILE).read_text())
    for damage in ({"visits": "weekly"}, {"roll_up": None}, {"units": [[1]]}, {"values": "cdf"}):
        (tmp_path / RULES_FILE).write_text(json.dumps(content | damage))
        with pytest.raises(StoreError, match=r"rules.json holds no rules"):
            Rules.of(tmp_path)
    (tmp_path / RULES_FILE).write_text("[]")
    with pytest.raises(StoreError, match=r"rules.json holds no JSON object"):
        Rules.of(tmp_path)
