import math
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrsequencing.baselines import features as module
from ehrsequencing.baselines.features import RECENCY_DAYS, WINDOWS_DAYS, CountFeatures
from ehrsequencing.baselines.rollup import groups_of_code
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR, EVENT_SCHEMA, KINDS, STATIC_TIME
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import SplitStore, TokenStore
from ehrsequencing.errors import LabelError

DAY = 86_400_000_000
CODES = ("ICD10CM//E11.9", "ICD10CM//E11.2", "ICD10CM//I10", "ICD9CM//428.0", "ATC//A10BA02", "DRUG//insulin//Up")


def write_store(folder: Path, subjects: int = 60, seed: int = 0) -> TokenStore:
    """Random histories with overlapping visits, two units, equal times, rare codes and missing dates of birth."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[object, ...]] = []
    for subject in range(subjects):
        if subject % 5:
            rows.append((subject, datetime(1950, 1, 1) + timedelta(days=subject * 100), BIRTH_CODE, None, None, None))
        if subject % 3:
            rows.append((subject, None, f"GENDER//{'MF'[subject % 2]}", None, None, None))
        start = datetime(2015, 1, 1)
        for visit in range(int(rng.integers(1, 7))):
            start += timedelta(days=int(rng.integers(0, 200)))
            for _ in range(int(rng.integers(1, 7))):
                time = start + timedelta(days=int(rng.integers(0, 30)))
                rows.append((subject, time, CODES[rng.integers(len(CODES))], None, visit, None))
                value, unit = float(rng.normal(7, 2)), ("%", "mmol/mol")[rng.integers(2)]
                rows.append((subject, time, "LOINC//4548-4", value, visit, unit))
            rows.append((subject, start, "VISITS_BEFORE", float(rng.integers(3)), visit, None))
        rows.append((subject, start, f"RARE//{subject}", None, None, None))
    columns = ("subject_id", "time", "code", "numeric_value", "visit_id", "unit")
    path = folder / "meds" / "data" / "train" / "0.parquet"
    path.parent.mkdir(parents=True)
    pl.DataFrame(rows, schema={column: EVENT_SCHEMA[column] for column in columns}, orient="row").write_parquet(path)
    return prepare(folder / "meds", folder / "store")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("features"))


def examples_at(split: SplitStore, seed: int = 0) -> Examples:
    """Two prediction times per subject: at one of its own events, and some days after another."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(len(split)), 2)
    until = []
    for number, subject in enumerate(index):
        times = split.time[split.offsets[subject] : split.offsets[subject + 1]]
        until.append(int(rng.choice(times[times != STATIC_TIME])) + (number % 2) * int(rng.integers(DAY * 40)))
    return Examples(index, np.array(until), None, split.subject_id[index])


def as_dicts(features: CountFeatures, split: SplitStore, examples: Examples) -> list[dict[str, float]]:
    """Stored cells of each example, by name."""
    matrix = features.transform(split, examples)
    assert matrix.dtype == np.float32
    assert matrix.shape == (len(examples), len(features.names))
    names = np.array(features.names)
    return [
        dict(zip(names[row.indices].tolist(), row.data.tolist(), strict=True))
        for row in (matrix[i] for i in range(matrix.shape[0]))
    ]


def by_hand(
    store: TokenStore, split: SplitStore, subject: int, until: int, age_scale: tuple[float, float], max_rows: int | None
) -> dict:
    """The same features, one row of the history after the other."""
    vocabulary, values = store.vocabulary, store.values
    rows = [r for r in range(split.offsets[subject], split.offsets[subject + 1]) if split.time[r] <= until]
    if max_rows is not None and len(rows) > max_rows:
        static = [r for r in rows if split.time[r] == STATIC_TIME][: max_rows // 2]
        rows = static + rows[len(rows) - (max_rows - len(static)) :]
    final_visit = split.visit[rows[-1]]
    found: dict[str, float] = {}
    counts: dict[str, float] = {}
    series: dict[int, list[tuple[float, float]]] = {}
    visit_start: dict[int, float] = {}
    distinct, static = set(), 0
    for r in rows:
        token = vocabulary.tokens[split.code[r]]
        token = "[unknown]" if token == "[UNK]" else token
        code = "[unknown]" if token == "[unknown]" else vocabulary.base_codes[vocabulary.base_ids[split.code[r]]]
        days = math.nan if split.time[r] == STATIC_TIME else (until - int(split.time[r])) / DAY
        last = split.visit[r] == final_visit and not math.isnan(days)
        distinct.add(code)
        kind = KINDS[split.kind[r]]
        counted = [f"count {code}", *(f"count {group}" for group in groups_of_code(code)), f"{kind} events"]
        counted += [f"count {token}"] if token != code else []
        counted += [f"{kind} events in last visit", "events in last visit"] if last else []
        if math.isnan(days):
            static += 1
        else:
            counted.append("events")
            counted += [f"events in {window} days" for window in WINDOWS_DAYS if days <= window]
            found[f"recency {code}"] = 1 / (1 + days / RECENCY_DAYS)
            visit_start.setdefault(int(split.visit[r]), days)
            found["days since last event"] = math.log1p(days)
        if last:
            found |= {f"last visit {name}": 1.0 for name in (token, *groups_of_code(code))}
        for name in counted:
            counts[name] = counts.get(name, 0) + 1
        if split.statistic[r] >= 0 and not math.isnan(split.value[r]):
            s = int(split.statistic[r])
            z = (float(split.value[r]) - values.mean[s]) / values.sd[s]
            series.setdefault(s, []).append((-days / DAYS_PER_YEAR, max(-10.0, min(10.0, z))))
    zero = ["events", "events in last visit", *(f"events in {window} days" for window in WINDOWS_DAYS)]
    zero += [f"{kind} events{suffix}" for kind in KINDS for suffix in ("", " in last visit")]
    found |= {name: math.log1p(n) for name, n in (dict.fromkeys(zero, 0.0) | counts).items()}
    starts = list(visit_start.values())
    found |= {"visits": math.log1p(len(starts)), "distinct codes": math.log1p(len(distinct))}
    found["years of history"] = math.log1p(max(starts) / DAYS_PER_YEAR)
    found |= {f"visits in {w} days": math.log1p(sum(d <= w for d in starts)) for w in WINDOWS_DAYS}
    if len(starts) > 1:
        starts.sort(reverse=True)
        found["days since previous visit"] = math.log1p(starts[-2] - starts[-1])
        found["mean days between visits"] = math.log1p((starts[0] - starts[-1]) / (len(starts) - 1))
    if split.birth_time[subject] != STATIC_TIME:
        z = ((until - int(split.birth_time[subject])) / DAY / DAYS_PER_YEAR - age_scale[0]) / age_scale[1]
        found |= {"age": z, "age squared": z**2}
    for s, points in series.items():
        name = f"{values.codes[s]} [{values.units[s]}]" if values.units[s] else values.codes[s]
        times, z = np.array(points).T
        found[f"last {name}"], found[f"mean {name}"] = z[-1], z.mean()
        if len(z) > 1:
            found[f"change {name}"] = z[-1] - z[-2]
            if np.ptp(times) > 0:
                found[f"slope {name}"] = float(np.clip(np.polyfit(times, z, 1)[0], -10, 10))
    return found


@pytest.mark.parametrize("max_rows", [None, 7])
def test_every_cell_equals_one_computed_by_hand(store, max_rows):
    split = store.split("train")
    examples = examples_at(split)
    features = CountFeatures.fit(split, examples, store.vocabulary, store.values, min_examples=1, max_rows=max_rows)
    known = split.birth_time[examples.index] != STATIC_TIME
    ages = (examples.until - split.birth_time[examples.index])[known] / DAY / DAYS_PER_YEAR
    for row, found in enumerate(as_dicts(features, split, examples)):
        expected = by_hand(store, split, int(examples.index[row]), int(examples.until[row]), (ages.mean(), ages.std()),
                           max_rows)  # fmt: skip
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=2e-3, abs=2e-4), name


def test_what_comes_later_and_who_stands_beside_change_nothing(store, monkeypatch):
    split = store.split("train")
    examples = examples_at(split)
    features = CountFeatures.fit(split, examples, store.vocabulary, store.values)
    together = features.transform(split, examples)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 25)
    assert (features.transform(split, examples) != together).nnz == 0
    last = np.argmax(examples.until)
    alone = Examples(examples.index[[last]], examples.until[[last]], None, examples.subject_id[[last]])
    assert (features.transform(split, alone) != together[last]).nnz == 0


def test_events_after_the_prediction_time_are_not_seen(tmp_path):
    """The same subjects with a future cut off, through the whole path, give the same features."""
    whole = write_store(tmp_path / "whole")
    split = whole.split("train")
    cut = datetime(2015, 6, 1)
    data = tmp_path / "cut" / "meds" / "data" / "train"
    data.mkdir(parents=True)
    events = pl.read_parquet(tmp_path / "whole" / "meds" / "data" / "train" / "0.parquet")
    events.filter(pl.col("time").is_null() | (pl.col("time") <= cut)).write_parquet(data / "0.parquet")
    short = prepare(tmp_path / "cut" / "meds", tmp_path / "cut" / "store", vocabulary_from=whole.path).split("train")
    until = np.full(len(split), (cut - datetime(1970, 1, 1)) // timedelta(microseconds=1))
    seen, shown = (Examples(np.arange(len(s)), until[: len(s)], None, s.subject_id) for s in (split, short))
    assert split.subject_id.tolist() == short.subject_id.tolist()
    assert len(short.code) < len(split.code)
    features = CountFeatures.fit(split, seen, whole.vocabulary, whole.values)
    assert (features.transform(split, seen) != features.transform(short, shown)).nnz == 0


def test_columns_that_few_examples_fill_are_left_out(store):
    split = store.split("train")
    examples = Examples.whole_histories(split)
    all_names = CountFeatures.fit(split, examples, store.vocabulary, store.values, min_examples=1).names
    names = CountFeatures.fit(split, examples, store.vocabulary, store.values, min_examples=50).names
    assert set(names) < set(all_names)
    assert "count ICD10CM//E11" in names
    assert "count [unknown]" in all_names
    assert len(set(all_names)) == len(all_names)


def test_a_measured_average_is_not_a_missing_value(tmp_path):
    """A value at the mean of train is a stored zero; a subject without the code has no cell."""
    rows = [(s, datetime(2020, 1, 1 + s), "VALUE", float(s % 3 - 1), s, None) for s in range(9)]
    rows += [(9, datetime(2020, 1, 1), "OTHER", None, 9, None)] * 5
    columns = ("subject_id", "time", "code", "numeric_value", "visit_id", "unit")
    path = tmp_path / "meds" / "data" / "train" / "0.parquet"
    path.parent.mkdir(parents=True)
    pl.DataFrame(rows, schema={column: EVENT_SCHEMA[column] for column in columns}, orient="row").write_parquet(path)
    store = prepare(tmp_path / "meds", tmp_path / "store")
    split = store.split("train")
    examples = Examples.whole_histories(split)
    features = CountFeatures.fit(split, examples, store.vocabulary, store.values, min_examples=1)
    cells = as_dicts(features, split, examples)
    assert cells[1]["last VALUE"] == 0
    assert "last VALUE" not in cells[9]


def test_nothing_to_fit_on(store):
    split = store.split("train")
    none = Examples(*[np.zeros(0, dtype=np.int64)] * 2, None, np.zeros(0, dtype=np.int64))
    with pytest.raises(LabelError, match="no examples"):
        CountFeatures.fit(split, none, store.vocabulary, store.values)
