import subprocess
import sys
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import day, microseconds

from ehrsequencing.data import survey as survey_module
from ehrsequencing.data.dataset import MedsDataset, MedsWriter
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import KINDS, STATIC_TIME
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.vocabulary import NUM_SPECIAL, UNK
from ehrsequencing.errors import ConfigError, DataError, RunError, SplitError, StoreError

STATIC = None


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tokens_of(store, split="train"):
    return [store.vocabulary.tokens[token] for token in store.split(split).code]


def random_events(subjects, seed=0, codes=12):
    random = np.random.default_rng(seed)
    events = []
    for subject in subjects:
        events.append((subject, day(-20_000 - subject), "MEDS_BIRTH"))
        events.append((subject, STATIC, f"GENDER//{'FM'[subject % 2]}"))
        for _ in range(random.integers(0, 30)):
            code, at = random.integers(codes), day(random.integers(0, 900) / 4)
            system = ("ICD10CM", "LOINC", "RXNORM")[code % 3]
            value = float(np.float32(random.normal())) if system == "LOINC" else None
            visit = int(random.integers(5)) if random.random() < 0.5 else None
            events.append((subject, at, f"{system}//{code}", value, visit, "mg" if code % 2 else None))
    return events


def test_a_worked_example(write_meds, tmp_path):
    """Every column of a small dataset, as docs/token-store.md describes it."""
    birth = datetime(1970, 1, 1)
    meds = write_meds(
        train=[
            [
                (7, day(10.5), "LOINC//1", 4.0, 70, "mg"),
                (7, day(10.5), "ICD10CM//B", None, 70),
                (7, day(10.5), "ICD10CM//A", None, 70),
                (7, day(2), "RXNORM//9"),
                (7, STATIC, "GENDER//F"),
                (7, birth, "MEDS_BIRTH"),
                (7, day(10.25), "LOINC//1", 2.0, 70, "g"),
                (7, day(400), "MEDS_DEATH"),
                (3, day(1), "LOINC//1", 1.0, None, "mg"),
                (3, day(2), "LOINC//1", 1.0, None, "mg"),
                (3, day(3), "LOINC//1", None, None, "mg"),
            ]
        ]
    )
    store = prepare(meds, tmp_path / "store", min_count=1)
    train = store.split("train")
    assert train.subject_id.tolist() == [3, 7]
    assert train.offsets.tolist() == [0, 3, 9]
    assert train.birth_time.tolist() == [STATIC_TIME, 0]
    assert train.death_time.tolist() == [STATIC_TIME, microseconds(400)]
    assert tokens_of(store) == [
        *("LOINC//1//Q1", "LOINC//1//Q1", "LOINC//1"),
        *("GENDER//F", "RXNORM//9", "LOINC//1//Q1", "ICD10CM//A", "ICD10CM//B", "LOINC//1//Q2"),
    ]
    assert train.visit.tolist() == [0, 1, 2, -1, 0, 1, 1, 1, 1]
    times = [microseconds(number) for number in (1, 2, 3)]
    assert train.time.tolist() == [*times, STATIC_TIME, *map(microseconds, (2, 10.25, 10.5, 10.5, 10.5))]
    np.testing.assert_array_equal(train.value, np.float32([1, 1, np.nan, np.nan, np.nan, 2, np.nan, np.nan, 4]))
    units = [store.values.units[row] if row >= 0 else None for row in train.statistic]
    assert units == ["mg", "mg", None, None, None, "g", None, None, "mg"]
    years = (day(10.5) - birth).total_seconds() / (365.25 * 86400)
    np.testing.assert_allclose(train.age[6:], years, rtol=1e-6)
    assert np.isnan(train.age[:4]).all()
    assert [KINDS[kind] for kind in train.kind[3:6]] == ["demographic", "drug", "lab"]
    assert store.manifest["counts"]["train"] == {
        "subjects": 2, "events": 9, "visits": 5, "static_events": 1, "subjects_without_events": 0,
        "subjects_without_birth": 1, "deaths": 1, "unk_events": 0, "unk_share": 0.0, "numeric_events": 4,
        "numeric_events_without_statistics": 0,
    }  # fmt: skip


def test_two_runs_give_the_same_bytes(write_meds, tmp_path):
    meds = write_meds(
        train=[random_events(range(40)), random_events(range(40, 60))], held_out=[random_events(range(60, 70))]
    )
    prepare(meds, tmp_path / "one")
    prepare(meds, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    prepare(meds, tmp_path / "two", overwrite=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_order_and_sharding_of_the_events_change_nothing(write_meds, tmp_path):
    events = random_events(range(40))
    shuffled = [events[index] for index in np.random.default_rng(1).permutation(len(events))]
    interleaved = [[event for event in shuffled if event[0] % 3 == part] for part in range(3)]
    one = prepare(write_meds("a", train=[events], tuning=[random_events([99])]), tmp_path / "one")
    two = prepare(write_meds("b", train=interleaved, tuning=[random_events([99])]), tmp_path / "two")
    assert one.manifest["counts"] == two.manifest["counts"]
    first, second = contents(one.path), contents(two.path)
    assert [str(name) for name in first if first[name] != second[name]] == ["manifest.json"]


def test_nothing_is_fitted_on_tuning_or_held_out(write_meds, tmp_path):
    train = random_events(range(30))
    wild = [(90, day(number), "LOINC//1", 1e6 * number, None, "mg") for number in range(50)]
    wild += [(90, day(number), "ICD9CM//new") for number in range(50)]
    calm = random_events([90])
    one = prepare(write_meds("a", train=[train], tuning=[random_events([80])], held_out=[calm]), tmp_path / "one")
    two = prepare(write_meds("b", train=[train], tuning=[random_events([80], 5)], held_out=[wild]), tmp_path / "two")
    for name in ("vocabulary.json", "values.json"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    assert one.fingerprint != two.fingerprint
    assert two.manifest["counts"]["held_out"]["unk_share"] == 0.5
    assert (two.vocabulary.counts == np.bincount(two.split("train").code, minlength=len(two.vocabulary))).all()


def test_rare_codes_become_unk(write_meds, tmp_path):
    events = [(1, day(number), "ICD10CM//A") for number in range(5)] + [
        (1, day(number), "ICD10CM//B") for number in range(4)
    ]
    store = prepare(write_meds(train=[events]), tmp_path / "store")
    assert tokens_of(store) == ["ICD10CM//A", "[UNK]"] * 4 + ["ICD10CM//A"]
    assert store.manifest["counts"]["train"]["unk_events"] == store.vocabulary.counts[UNK] == 4


def test_values_in_units_that_train_has_not_seen_read_as_the_bare_code(write_meds, tmp_path):
    train = [(1, day(number), "LOINC//1", float(number % 2), None, "mg") for number in range(20)]
    other = [(2, day(0), "LOINC//1", 1.0, None, "kg"), (2, day(1), "LOINC//1", 1.0, None, "mg")]
    store = prepare(write_meds(train=[train], held_out=[other]), tmp_path / "store")
    assert tokens_of(store, "held_out") == ["LOINC//1", "LOINC//1//Q2"]
    assert store.split("held_out").statistic.tolist() == [-1, 0]
    assert store.manifest["counts"]["held_out"]["numeric_events_without_statistics"] == 1


def test_subjects_without_events_stay(write_meds, tmp_path):
    events = [(1, day(number), "ICD10CM//A") for number in range(6)] + [
        (2, day(0), "MEDS_BIRTH"),
        (5, day(3), "MEDS_DEATH"),
    ]
    store = prepare(write_meds(train=[events]), tmp_path / "store")
    assert store.split("train").lengths.tolist() == [6, 0, 0]
    assert store.split("train").birth_time.tolist() == [STATIC_TIME, microseconds(0), STATIC_TIME]
    assert store.manifest["counts"]["train"]["subjects_without_events"] == 2


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000))
def test_columns_are_ordered_and_ages_run_forward(write_meds, tmp_path, seed):
    meds = write_meds(f"meds{seed}", train=[random_events(range(8), seed)])
    store = prepare(meds, tmp_path / f"store{seed}", overwrite=True, min_count=1)
    split = store.split("train")
    events = MedsDataset.open(meds).scan("train").filter(~pl.col("code").is_in(["MEDS_BIRTH"])).collect()
    assert len(split.code) == len(events)
    for index, subject in enumerate(split.subject_id.tolist()):
        rows = slice(*split.offsets[index : index + 2])
        time, visit, age = split.time[rows], split.visit[rows], split.age[rows]
        assert (np.diff(time.astype(object)) >= 0).all()
        dated = time > STATIC_TIME
        assert (np.diff(age[dated]) >= 0).all() and (age[dated] >= 0).all() and np.isnan(age[~dated]).all()
        assert set(visit[dated].tolist()) == set(range(len(set(visit[dated].tolist()))))
        mine = events.filter(subject_id=subject)
        stated = sorted(mine["code"].to_list())
        bases = [store.vocabulary.base_codes[store.vocabulary.base_ids[token]] for token in split.code[rows]]
        assert sorted(bases) == stated
        assert sorted(split.value[rows][~np.isnan(split.value[rows])].tolist()) == sorted(
            mine["numeric_value"].drop_nulls().to_list()
        )


def small(write_meds, extra=(), **splits):
    return write_meds(train=[[*((1, day(number), "ICD10CM//A") for number in range(9)), *extra]], **splits)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            [(1, day(4.5), "MEDS_BIRTH")],
            r"5 events in .* before birth; got 1 subjects, such as subject 1: ICD10CM//A at 2020",
        ),
        ([(1, datetime(1880, 1, 1), "MEDS_BIRTH")], r"9 events .* beyond an age of 125 years.*max_age_years"),
        ([(1, day(3), "LOINC//7", float("inf"))], r"infinite values in train; got 1, of code LOINC//7"),
        ([(1, day(3), "LOINC//7", float("-inf"))], r"infinite"),
        ([(1, day(-9), "MEDS_BIRTH"), (1, day(-8), "MEDS_BIRTH")], r"several times of MEDS_BIRTH; got subject 1"),
        ([(1, day(30), "MEDS_DEATH"), (1, day(31), "MEDS_DEATH")], r"several times of MEDS_DEATH"),
    ],
)
def test_implausible_data_are_refused_and_leave_nothing(write_meds, tmp_path, extra, message):
    meds = small(write_meds, extra)
    with pytest.raises(DataError, match=message):
        prepare(meds, tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meds"]


def test_infinite_values_are_refused_outside_train_too(write_meds, tmp_path):
    with pytest.raises(DataError, match=r"infinite values in .*held_out.*LOINC//7"):
        prepare(small(write_meds, held_out=[[(2, day(0), "LOINC//7", float("inf"))]]), tmp_path / "store")


def test_not_a_number_is_missing(write_meds, tmp_path):
    nan = [(1, day(number), "LOINC//7", float("nan")) for number in range(9)]
    store = prepare(small(write_meds, nan), tmp_path / "store")
    assert len(store.values) == 0
    assert tokens_of(store)[:2] == ["ICD10CM//A", "LOINC//7"]


def test_a_subject_in_two_splits_is_refused(write_meds, tmp_path):
    with pytest.raises(SplitError, match="1 subjects are in two splits"):
        prepare(small(write_meds, held_out=[[(1, day(0), "ICD10CM//A")]]), tmp_path / "store")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_count": 0}, "min_count"),
        ({"value_bins": 1}, "value_bins"),
        ({"value_bins": 101}, "value_bins"),
        ({"max_age_years": 0}, "max_age_years"),
        ({"extend_vocabulary": True}, "nothing to extend"),
    ],
)
def test_options_out_of_range_are_refused(write_meds, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare(small(write_meds), tmp_path / "store", **options)


def test_the_dataset_is_never_replaced(write_meds, tmp_path):
    meds = small(write_meds)
    for store in (meds, tmp_path, meds / "store"):
        with pytest.raises(ConfigError, match=f"the output {store} overlaps the input {meds};"):
            prepare(meds, store, overwrite=True)
    assert MedsDataset.open(meds).shards("train")


def test_a_folder_that_is_no_store_is_never_replaced(write_meds, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(RunError, match="mine exists already and is not a token store"):
        prepare(small(write_meds), tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "manifest.json").exists()


def test_an_existing_store_stays_unless_asked_and_until_the_new_one_is_whole(write_meds, tmp_path):
    meds = small(write_meds)
    prepare(meds, tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(RunError, match="exists already"):
        prepare(meds, tmp_path / "store", min_count=6)
    with pytest.raises(DataError, match="no code of the train split has a token"):
        prepare(meds, tmp_path / "store", overwrite=True, min_count=1000)
    assert contents(tmp_path / "store") == before


def test_a_full_disk_is_an_error_and_leaves_nothing(write_meds, tmp_path):
    """A limit on file size stands in for the disk: writes fail with an OSError in the middle of a column."""
    meds = write_meds(train=[random_events(range(300))])
    code = (
        "import resource, sys\nfrom ehrsequencing.data.prepare import prepare\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n    prepare(sys.argv[1], sys.argv[2])\nexcept OSError as problem:\n    print(type(problem).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, meds, tmp_path / "store"], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("OSError", 0), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meds"]


def test_progress_reaches_the_end(write_meds, tmp_path):
    seen = []
    meds = write_meds(train=[random_events(range(9)), random_events(range(9, 20))], tuning=[random_events([30])])
    prepare(meds, tmp_path / "store", progress=lambda done, total: seen.append((done, total)))
    # Three pieces to scan, and a block to write in each of two splits.
    assert seen == [(done, 5) for done in range(1, 6)]


@pytest.fixture
def two_sites(write_meds, tmp_path):
    home = write_meds("home", train=[random_events(range(60), codes=9)])
    away = [
        *random_events(range(60), seed=9, codes=15),
        *((5, day(number), "LOINC//1", 5e3, None, "kg") for number in range(9)),
    ]
    return prepare(home, tmp_path / "home-store"), write_meds("away", train=[away])


def test_another_sites_vocabulary_is_reused(two_sites, tmp_path):
    home, away = two_sites
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("vocabulary.json", "values.json"):
        (folder / name).write_bytes((home.path / name).read_bytes())
    for source in (home.path, folder):
        store = prepare(away, tmp_path / "store", vocabulary_from=source, overwrite=True)
        assert store.vocabulary.hash == home.vocabulary.hash
        assert store.values.hash == home.values.hash
        counts = store.manifest["counts"]["train"]
        own = prepare(away, tmp_path / "own", overwrite=True, min_count=1)
        unknown = sum(
            own.vocabulary.base_codes[base] not in home.vocabulary.base_codes
            for base in own.vocabulary.base_ids[own.split("train").code]
        )
        assert counts["unk_events"] == unknown > 0
        assert counts["unk_share"] == unknown / counts["events"]
        assert counts["numeric_events_without_statistics"] >= 9
        assert store.manifest["vocabulary"]["origin"] == "reused"


def test_extension_appends_and_keeps_old_ids_and_statistics(two_sites, tmp_path):
    home, away = two_sites
    store = prepare(away, tmp_path / "store", vocabulary_from=home.path, extend_vocabulary=True)
    old = len(home.vocabulary)
    assert store.vocabulary.tokens[:old] == home.vocabulary.tokens
    assert {"ICD10CM//9", "LOINC//10", "RXNORM//14"} <= set(store.vocabulary.tokens[old:])
    assert store.manifest["vocabulary"]["tokens_added"] == len(store.vocabulary) - old > 0
    np.testing.assert_array_equal(store.values.grid[: len(home.values)], home.values.grid)
    assert ("LOINC//1", "kg") in zip(
        store.values.codes[len(home.values) :], store.values.units[len(home.values) :], strict=True
    )
    assert store.manifest["counts"]["train"]["unk_share"] < 0.02
    assert store.manifest["counts"]["train"]["numeric_events_without_statistics"] == 0


def test_a_vocabulary_that_shares_nothing_is_refused(write_meds, two_sites, tmp_path):
    home, _ = two_sites
    foreign = write_meds("foreign", train=[[(1, day(number), "CPT//1") for number in range(9)]])
    with pytest.raises(DataError, match="shares no code with vocabulary_from"):
        prepare(foreign, tmp_path / "store", vocabulary_from=home.path)
    with pytest.raises(StoreError, match="holds no vocabulary"):
        prepare(foreign, tmp_path / "store", vocabulary_from=tmp_path / "foreign")


def write_book(path, subjects):
    book = pl.DataFrame(
        {"code": ["ICD10CM//A", "LOINC//1", "LOINC//2", "MEDS_BIRTH"], "numeric": [False, True, True, False]}
    )
    events = [(subject, day(number), "LOINC//1", float(number)) for subject in subjects for number in range(8)]
    with MedsWriter(path) as writer:
        frame = pl.DataFrame(events, schema=["subject_id", "time", "code", "numeric_value"], orient="row")
        writer.write_events("train", 0, frame)
        writer.finish(book, source="test", options={}, notes=[], fixed_code_book=True)
    return path


def test_a_fixed_code_book_is_the_vocabulary_whatever_occurs(tmp_path):
    one = prepare(write_book(tmp_path / "a", range(3)), tmp_path / "one", value_bins=3)
    two = prepare(write_book(tmp_path / "b", range(3, 50)), tmp_path / "two", value_bins=3)
    assert one.vocabulary.tokens[NUM_SPECIAL:] == (
        *("ICD10CM//A", "LOINC//1", "LOINC//1//Q1", "LOINC//1//Q2", "LOINC//1//Q3"),
        *("LOINC//2", "LOINC//2//Q1", "LOINC//2//Q2", "LOINC//2//Q3"),
    )
    assert one.vocabulary.hash == two.vocabulary.hash
    assert set(tokens_of(one)) == set(tokens_of(two)) == {"LOINC//1//Q1", "LOINC//1//Q2", "LOINC//1//Q3"}


def test_codes_outside_a_fixed_code_book_are_refused(tmp_path):
    meds = write_book(tmp_path / "meds", range(3))
    shard = next((meds / "data").rglob("*.parquet"))
    events = pl.read_parquet(shard)
    added = pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("ICD10CM//Z99.9")).otherwise("code").alias("code")
    events.with_columns(added).write_parquet(shard)
    expected = (
        r"codes outside its fixed code book; got 1 of them, for one ICD10CM//Z99.9; expected those of metadata/codes"
    )
    for options in ({}, {"roll_up": ["icd10=3"]}):
        with pytest.raises(DataError, match=expected):
            prepare(meds, tmp_path / "store", **options)
    file = meds / "metadata" / "dataset.json"
    file.write_text(file.read_text().replace('"fixed_code_book": true', '"fixed_code_book": false'))
    # In a vocabulary that is fitted the code list says what codes are, not which there are.
    assert "ICD10CM//Z99.9" in prepare(meds, tmp_path / "store", min_count=1).vocabulary.tokens


def test_the_values_of_a_crowded_code_stay_few_and_close(write_meds, tmp_path, monkeypatch):
    """However they are spread over shards; a fit keeps all values of a code with few."""
    random = np.random.default_rng(3)
    values = np.concatenate([random.normal(100, 40, 4000), [0.0, -0.0]]).astype(np.float32)
    events = [(index, day(0), "LOINC//1", float(value)) for index, value in enumerate(values)]
    meds = write_meds("one", train=[events])
    exact = prepare(meds, tmp_path / "exact").values
    monkeypatch.setattr(survey_module, "_MAX_DISTINCT", 500)
    rough = prepare(meds, tmp_path / "rough").values
    assert exact.n.tolist() == rough.n.tolist() == [len(values)]
    np.testing.assert_allclose(rough.grid, exact.grid, rtol=2.0**-12)
    np.testing.assert_allclose(rough.mean, exact.mean, rtol=2.0**-12)
    assert not np.array_equal(rough.grid, exact.grid)
    apart = prepare(write_meds("four", train=[events[part::4] for part in range(4)]), tmp_path / "apart").values
    assert apart.hash == rough.hash and apart.mean.tolist() == rough.mean.tolist()


def test_the_manifest_names_no_path(write_meds, tmp_path):
    store = prepare(small(write_meds), tmp_path / "store")
    assert str(tmp_path) not in (store.path / "manifest.json").read_text()
    assert TokenStore.open(store.path).manifest == store.manifest


def test_options_of_a_fit_are_refused_where_nothing_is_fitted(write_meds, two_sites, tmp_path):
    book = write_book(tmp_path / "book", range(3))
    with pytest.raises(
        ConfigError, match=f"min_count would have no effect: the vocabulary of {book} is its fixed code"
    ):
        prepare(book, tmp_path / "none", min_count=5)
    home, _ = two_sites
    for options, named in (({"min_count": 5}, "min_count"), ({"value_bins": 4, "min_count": 2}, "min_count and value")):
        with pytest.raises(ConfigError, match=f"{named}.* would have no effect: .* those of {home.path}"):
            prepare(small(write_meds), tmp_path / "none", vocabulary_from=home.path, **options)
    assert not (tmp_path / "none").exists()
    stated = prepare(book, tmp_path / "store").manifest["options"]
    assert (stated["min_count"], stated["value_bins"]) == (5, 5)


def test_a_number_too_large_for_float32_is_named(write_meds, tmp_path):
    meds = small(write_meds)
    shard = next((meds / "data" / "train").glob("*.parquet"))
    frame = pl.read_parquet(shard).with_columns(pl.col("numeric_value").cast(pl.Float64))
    frame = pl.concat([frame, frame.tail(1).with_columns(code=pl.lit("LOINC//9"), numeric_value=pl.lit(1e300))])
    frame.write_parquet(shard)
    with pytest.raises(DataError, match=r"values too large for float32; got 1, the first 1e\+300 of code LOINC//9"):
        prepare(meds, tmp_path / "store")


def test_the_end_of_observation_travels_where_the_dataset_states_it(write_meds, tmp_path):
    source = write_meds(train=[[(1, day(1), "A"), (2, day(1), "A"), (3, day(2), "A")]], tuning=[[(4, day(1), "A")]])
    store = prepare(source, tmp_path / "without", min_count=1)
    assert store.manifest["observation_end"] is False
    assert store.split("train").observation_end is None
    ends = pl.DataFrame({"subject_id": [3, 1, 4, 9], "observation_end": [day(30), day(10), None, day(5)]})
    (source / "metadata").mkdir(exist_ok=True)
    ends.write_parquet(source / "metadata" / "observation.parquet")
    store = prepare(source, tmp_path / "with", min_count=1)
    assert store.manifest["observation_end"] is True
    assert store.split("train").observation_end.tolist() == [microseconds(10), STATIC_TIME, microseconds(30)]
    assert store.split("tuning").observation_end.tolist() == [STATIC_TIME]
    assert store.split("held_out").observation_end.tolist() == []
