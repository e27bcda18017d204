import math
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import write_split

from ehrsequencing.data.batching import UNKNOWN_AGE, Batch, BatchSource, plan_batches
from ehrsequencing.data.rules import Rules
from ehrsequencing.data.schema import MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.values import GRID_POINTS, ValueStatistics
from ehrsequencing.data.vocabulary import CLS, PAD, SEP
from ehrsequencing.errors import ConfigError

DAY = MICROSECONDS_PER_DAY
PERCENTS = ValueStatistics(["A"], [""], [101], [50.0], [29.0], [list(range(GRID_POINTS))], [[50.0]])
"""Values 0 to 100, so the share of a value is a hundredth of it."""

lengths_strategy = st.lists(st.integers(1, 40), max_size=60)


@given(
    lengths_strategy,
    st.integers(40, 200),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([None, 1, 5]),
)
def test_a_plan_holds_every_example_once_within_the_budget(lengths, budget, seed, epoch, shuffle, most):
    options = {"seed": seed, "epoch": epoch, "shuffle": shuffle, "max_examples": most}
    plan = plan_batches(np.array(lengths, dtype=np.int64), budget, **options)
    assert sorted(index for batch in plan for index in batch.tolist()) == list(range(len(lengths)))
    for batch in plan:
        assert 1 <= len(batch) <= (most or len(lengths))
        assert len(batch) * max(lengths[index] for index in batch) <= budget
    again = plan_batches(np.array(lengths, dtype=np.int64), budget, **options)
    assert [batch.tolist() for batch in plan] == [batch.tolist() for batch in again]


def test_without_shuffling_lengths_ascend_whatever_the_seed():
    lengths = np.array([9, 3, 5, 3, 7])
    plans = [plan_batches(lengths, 10, seed=seed, epoch=seed, shuffle=False) for seed in (0, 5)]
    assert [batch.tolist() for batch in plans[0]] == [[1, 3], [2], [4], [0]]
    assert [batch.tolist() for batch in plans[1]] == [batch.tolist() for batch in plans[0]]


def test_epochs_and_seeds_shuffle_anew_and_mix_neighbours():
    lengths = np.random.default_rng(0).integers(20, 200, 400)
    plans = [
        {frozenset(batch.tolist()) for batch in plan_batches(lengths, 2000, seed=seed, epoch=epoch)}
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for one in range(3):
        for other in range(one):
            assert len(plans[one] & plans[other]) < len(plans[one]) / 2


def test_sorting_by_length_pads_little():
    lengths = np.random.default_rng(0).lognormal(4, 0.8, 3000).astype(int).clip(1, 512)
    plan = plan_batches(lengths, 8192, seed=0, epoch=0)
    padded = sum(len(batch) * lengths[batch].max() for batch in plan)
    assert 1 - lengths.sum() / padded < 0.08
    assert len(plan) < 1.15 * lengths.sum() / 8192 + 2


def test_a_budget_below_the_longest_history_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"token_budget .*got 8; expected at least 9"):
        plan_batches(np.array([3, 9]), 8, seed=0, epoch=0)
    split = write_split(tmp_path, {1: [{"time": 0}] * 20})
    with pytest.raises(ConfigError, match="at least 21"):
        BatchSource(split, Examples.whole_histories(split), PERCENTS, token_budget=20)
    assert (
        BatchSource(split, Examples.whole_histories(split), PERCENTS, token_budget=20, max_length=20).num_batches(0)
        == 1
    )


def test_options_out_of_range_are_refused(tmp_path):
    split = write_split(tmp_path, {1: [{"time": 0}]})
    examples = Examples.whole_histories(split)
    for options in ({"max_length": 1}, {"max_examples": 0}):
        with pytest.raises(ConfigError):
            BatchSource(split, examples, PERCENTS, **options)
    with pytest.raises(ConfigError, match="no batch 1"):
        BatchSource(split, examples, PERCENTS).batch(0, 1)


rows_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "code": st.integers(5, 30),
            "day": st.one_of(st.none(), st.integers(0, 8)),
            "visit": st.integers(0, 4),
            "value": st.one_of(st.none(), st.integers(0, 100)),
            "kind": st.integers(0, 7),
        }
    ),
    max_size=14,
)


def stored(rows, birth_day):
    """Rows as prepare would write them: static first, by time, ages from the birth."""
    ordered = sorted(rows, key=lambda row: (row["day"] is not None, row["day"] or 0))
    return [
        {
            "code": row["code"],
            "kind": row["kind"],
            "time": STATIC_TIME if row["day"] is None else row["day"] * DAY,
            "visit": -1 if row["day"] is None else row["visit"],
            "age": math.nan if row["day"] is None or birth_day is None else (row["day"] - birth_day) / 365.25,
            "value": math.nan if row["value"] is None else row["value"],
            "statistic": -1 if row["value"] is None else 0,
        }
        for row in ordered
    ]


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.integers(-9, 9),
        st.tuples(rows_strategy, st.sampled_from([None, -400 * 365, -9000, 0])),
        min_size=1,
        max_size=5,
    ),
    st.data(),
    st.integers(2, 9),
)
def test_a_batch_is_what_a_plain_reading_of_the_rows_gives(by_subject, data, max_length):
    """Truncation, static rows, visits, ties in time, unknown births, empty histories: against a loop over rows."""
    subjects = {subject: stored(*drawn) for subject, drawn in by_subject.items()}
    ids = sorted(subjects)
    asked = data.draw(st.lists(st.tuples(st.integers(0, len(ids) - 1), st.integers(-1, 9)), min_size=1, max_size=7))
    index = np.array([position for position, _ in asked])
    until = np.array([number * DAY for _, number in asked])
    target = np.arange(len(asked), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        births = {subject: birth * DAY for subject, (_, birth) in by_subject.items() if birth is not None}
        split = write_split(Path(folder), subjects, births=births)
        examples = Examples(index, until, target, split.subject_id[index])
        source = BatchSource(split, examples, PERCENTS, max_length=max_length, token_budget=40, seed=1)
        seen = []
        for batch in (source.batch(2, number) for number in range(source.num_batches(2))):
            assert batch.codes.numel() <= 40
            for row, example in enumerate(batch.example_ids.tolist()):
                seen.append(example)
                check_example(batch, row, subjects[ids[index[example]]], until[example], max_length)
                assert batch.subject_ids[row] == ids[index[example]]
                assert batch.targets[row] == target[example]
        assert sorted(seen) == list(range(len(asked)))


def calendar(time):
    return (time - 10_957 * DAY) / DAY / 365.25


def check_example(batch, row, events, until, max_length):
    visible = [event for event in events if event["time"] <= until]
    static = [event for event in visible if event["time"] == STATIC_TIME]
    if len(visible) > max_length - 1:
        static = static[: (max_length - 1) // 2]
    dated = [event for event in visible if event["time"] > STATIC_TIME]
    dated = dated[max(0, len(dated) - (max_length - 1 - len(static))) :]
    kept = static + dated
    ranks = {visit: rank for rank, visit in enumerate(sorted({event["visit"] for event in dated}), start=1)}
    width = batch.codes.shape[1]
    padding = width - 1 - len(kept)

    def age(event):
        return UNKNOWN_AGE if math.isnan(event["age"]) else min(int(max(event["age"], 0)), 119)

    def column(name, first, values, pad):
        assert getattr(batch, name)[row].tolist() == [first, *values, *[pad] * padding], name

    column("codes", CLS, [event["code"] for event in kept], PAD)
    column("mask", True, [True] * len(kept), False)
    column("kinds", 0, [event["kind"] + 1 for event in kept], 0)
    column("visit_ids", 0, [ranks.get(event["visit"], 0) for event in kept], 0)
    column("ages", age(dated[-1]) if dated else UNKNOWN_AGE, [age(event) for event in kept], 0)
    days = [0 if event["time"] == STATIC_TIME else (until - event["time"]) / DAY for event in kept]
    column("times", 0, days, 0)
    assert min(days, default=0) >= 0
    shares = [math.nan, *(event["value"] / 100 for event in kept), *[math.nan] * padding]
    np.testing.assert_allclose(batch.values[row].numpy(), np.float32(shares))
    everything = [event for event in visible if event["time"] > STATIC_TIME]
    gaps = {}
    for place, event in enumerate(dated, start=len(everything) - len(dated)):
        gaps.setdefault(event["visit"], (event["time"] - everything[max(place - 1, 0)]["time"]) / DAY)
    np.testing.assert_allclose(
        batch.gaps[row].numpy(),
        [0, *(0 if event["time"] == STATIC_TIME else gaps[event["visit"]] for event in kept), *[0] * padding],
    )
    years = [math.nan if event["time"] == STATIC_TIME else calendar(event["time"]) for event in kept]
    last = calendar(dated[-1]["time"]) if dated else math.nan
    np.testing.assert_allclose(batch.calendar[row].numpy(), np.float32([last, *years, *[math.nan] * padding]))
    exact = [dated[-1]["age"] if dated else math.nan, *(event["age"] for event in kept), *[math.nan] * padding]
    np.testing.assert_allclose(batch.age_years[row].numpy(), np.float32(exact), rtol=1e-5, atol=1e-5)
    known = [years for years in batch.ages[row, 1 + len(static) : 1 + len(kept)].tolist() if years != UNKNOWN_AGE]
    assert known == sorted(known)


@settings(max_examples=40)
@given(rows_strategy, st.integers(-1, 9), st.integers(2, 9), st.sampled_from([None, -9000]))
def test_canonical_order_is_by_visit_kind_and_code_and_changes_nothing_else(rows, until, max_length, birth_day):
    """The rows that are seen, the age at the last of them, and what belongs to each row stay the same."""
    # Visits numbered by their first row, as prepare numbers them.
    first = {}
    for row in sorted((row for row in rows if row["day"] is not None), key=lambda row: row["day"]):
        first.setdefault(row["visit"], len(first))
    rows = stored([{**row, "visit": first.get(row["visit"], 0)} for row in rows], birth_day)
    batches = []
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as other:
        Rules(order_within_visit="canonical").save(Path(other))
        for folder in (plain, other):
            split = write_split(Path(folder), {3: rows, 4: rows})
            examples = Examples(np.array([1, 0]), np.full(2, until * DAY), None, split.subject_id[[1, 0]])
            batches.append(BatchSource(split, examples, PERCENTS, max_length=max_length).build(np.arange(2)))
    names = ("visit_ids", "kinds", "codes", "values", "times", "ages", "mask")
    by_time, canonical = (
        [
            list(zip(*(getattr(batch, name)[row].nan_to_num(-1).tolist() for name in names), strict=True))
            for row in (0, 1)
        ]
        for batch in batches
    )
    for one, other in zip(by_time, canonical, strict=True):
        assert one[0] == other[0], "CLS and the age at the last event"
        assert sorted(one) == sorted(other)
        dated = [row for row in other[1:] if row[0] > 0]
        assert [row[:3] for row in dated] == sorted(row[:3] for row in dated)
    assert canonical[0] == canonical[1]


@settings(max_examples=40)
@given(rows_strategy, st.integers(-1, 9), st.integers(2, 12), st.sampled_from(["time", "canonical"]), st.booleans())
def test_separators_end_visits_and_fit_the_model(rows, until, max_length, order, whole):
    """The most recent rows that fit with their separators stay, whole visits where the rules ask for them."""
    first = {}
    for row in sorted((row for row in rows if row["day"] is not None), key=lambda row: row["day"]):
        first.setdefault(row["visit"], len(first))
    events = stored([{**row, "visit": first.get(row["visit"], 0)} for row in rows], None)
    options = {"order_within_visit": order, "long_histories": "visits" if whole else "events"}
    with tempfile.TemporaryDirectory() as folder:
        Rules(**options).save(Path(folder))
        split = write_split(Path(folder), {3: events})
        examples = Examples(np.array([0]), np.array([until * DAY]), None, split.subject_id)
        plain = BatchSource(split, examples, PERCENTS, max_length=max_length).build(np.array([0]))
        source = BatchSource(split, examples, PERCENTS, max_length=max_length, separators=True)
        batch = source.build(np.array([0]))
    assert batch.codes.shape[1] == source.lengths[0] <= max_length
    assert batch.mask.all()
    is_separator = batch.codes[0] == SEP
    ids = batch.visit_ids[0]
    ends = torch.cat((ids[1:] != ids[:-1], torch.tensor([True]))) if order == "canonical" else None
    for place in is_separator.nonzero()[:, 0].tolist():
        assert ids[place] == ids[place - 1] > 0
        assert (batch.kinds[0, place], batch.times[0, place]) == (0, batch.times[0, place - 1])
        assert torch.isnan(batch.values[0, place])
        assert place + 1 == len(ids) or ids[place + 1] != ids[place]
    if ends is not None:
        assert (is_separator == (ends & (ids > 0))).all()
    names = ("codes", "times", "kinds")
    kept, remaining = (
        [tuple(getattr(item, name)[0, place].item() for name in names) for place in range(len(item.codes[0]))]
        for item in (batch, plain)
    )
    for row, separator in zip(kept, is_separator.tolist(), strict=True):
        if not separator:
            remaining.remove(row)
    if remaining and not whole:
        # Another row needs a place, and one for its separator at most.
        assert len(kept) + 2 > max_length


def test_separators_by_hand(tmp_path):
    rows = [
        {"code": 7, "day": day, "visit": visit, "value": None, "kind": 0}
        for day, visit in ((0, 0), (0, 0), (5, 1), (9, 2), (9, 2))
    ]
    for rule, max_length, expected in (
        ("events", 9, [CLS, 7, 7, SEP, 7, SEP, 7, 7, SEP]),
        ("events", 8, [CLS, 7, SEP, 7, SEP, 7, 7, SEP]),
        ("visits", 8, [CLS, 7, SEP, 7, 7, SEP]),
        ("events", 3, [CLS, 7, SEP]),
    ):
        folder = tmp_path / f"{rule}{max_length}"
        folder.mkdir()
        Rules(long_histories=rule).save(folder)
        split = write_split(folder, {3: stored(rows, None)})
        source = BatchSource(split, Examples.whole_histories(split), PERCENTS, max_length=max_length, separators=True)
        assert next(source.fixed()).codes[0].tolist() == expected


def fields_of(batch):
    return {name: getattr(batch, name) for name in Batch.__dataclass_fields__}


def assert_same(one, other):
    for name, tensor in fields_of(one).items():
        torch.testing.assert_close(tensor, fields_of(other)[name], rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def many(tmp_path):
    random = np.random.default_rng(4)
    subjects = {}
    for subject in range(50):
        rows = [
            {"code": random.integers(5, 30), "day": int(number), "visit": int(number), "value": None, "kind": 0}
            for number in sorted(random.integers(0, 60, random.integers(0, 40)))
        ]
        subjects[subject] = stored(rows, -9000)
    return write_split(tmp_path, subjects, births=dict.fromkeys(subjects, -9000 * DAY)), subjects


def test_batches_are_a_pure_function_of_seed_epoch_and_index(many):
    split, _ = many
    examples = Examples.whole_histories(split)
    one, fresh = (BatchSource(split, examples, PERCENTS, token_budget=200, seed=3) for _ in range(2))
    other = pickle.loads(pickle.dumps(fresh))
    for _ in other.fixed():
        for epoch in range(1, 9):
            other.batch(epoch, 0)
    for epoch in (0, 5):
        for index in reversed(range(one.num_batches(epoch))):
            assert_same(one.batch(epoch, index), other.batch(epoch, index))
    for first, second in zip(
        one.fixed(), BatchSource(split, examples, PERCENTS, token_budget=200, seed=9).fixed(), strict=True
    ):
        assert_same(first, second)


def test_what_happens_after_the_prediction_time_changes_nothing(many, tmp_path):
    split, subjects = many
    changed = {
        subject: [row if row["time"] <= 30 * DAY else {**row, "code": 29, "visit": 59} for row in rows]
        + [{"code": 28, "time": 61 * DAY, "visit": 60}] * (subject % 3)
        for subject, rows in subjects.items()
    }
    later = write_split(tmp_path / "later", changed, births=dict.fromkeys(subjects, -9000 * DAY))
    until = np.full(len(split), 30 * DAY)
    batches = []
    for store in (split, later):
        examples = Examples(np.arange(len(store)), until, None, store.subject_id)
        batches.append(list(BatchSource(store, examples, PERCENTS, token_budget=300, max_length=16).fixed()))
    assert any((batch.codes != PAD).any() for batch in batches[0])
    for one, other in zip(*batches, strict=True):
        assert one.targets is None
        for name, tensor in fields_of(one).items():
            if tensor is not None:
                torch.testing.assert_close(tensor, getattr(other, name), rtol=0, atol=0, equal_nan=True)


def test_the_padding_share_is_that_of_the_batches(many):
    split, _ = many
    source = BatchSource(split, Examples.whole_histories(split), PERCENTS, token_budget=250)
    batches = [source.batch(1, index) for index in range(source.num_batches(1))]
    tokens = sum(batch.mask.sum().item() for batch in batches)
    cells = sum(batch.mask.numel() for batch in batches)
    assert source.padding_share(1) == pytest.approx(1 - tokens / cells)
    assert tokens == split.lengths.sum() + len(split)


def test_a_batch_moves_and_names_its_inputs(many):
    split, _ = many
    batch = next(BatchSource(split, Examples.whole_histories(split), PERCENTS).fixed())
    moved = batch.to("meta")
    assert moved.codes.device.type == moved.subject_ids.device.type == "meta"
    assert moved.targets is None
    inputs = batch.inputs(("codes", "mask"))
    assert list(inputs) == ["codes", "mask"] and inputs["codes"] is batch.codes
    dtypes = {name: tensor.dtype for name, tensor in fields_of(batch).items() if tensor is not None}
    longs = ("codes", "ages", "visit_ids", "kinds", "subject_ids", "example_ids")
    assert dtypes == {
        **dict.fromkeys(longs, torch.int64),
        "mask": torch.bool,
        "times": torch.float32,
        "values": torch.float32,
        "gaps": torch.float32,
        "age_years": torch.float32,
        "calendar": torch.float32,
    }


def test_no_examples_are_no_batches(tmp_path):
    split = write_split(tmp_path, {})
    source = BatchSource(split, Examples.whole_histories(split), PERCENTS)
    assert source.num_batches(0) == 0
    assert list(source.fixed()) == []
    assert source.padding_share(0) == 0.0


def test_a_multi_label_target_becomes_a_table_of_floats(tmp_path):
    split = write_split(tmp_path, {1: [{"time": 0}], 2: [{"time": 0}]})
    target = np.array([[True, False, True], [False, False, True]])
    examples = Examples(np.array([1, 0]), np.array([5, 5]), target, split.subject_id[[1, 0]], ("A", "B", "C"))
    batch = BatchSource(split, examples, PERCENTS, max_length=8).build(np.array([1, 0]))
    assert batch.targets.dtype == torch.float32
    assert batch.targets.tolist() == [[0, 0, 1], [1, 0, 1]]
