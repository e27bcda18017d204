from dataclasses import replace

import numpy as np
import polars as pl
from audit_world import DAY

from ehrsequencing.data import sequences
from ehrsequencing.data.schema import KINDS
from ehrsequencing.tasks import checks_windows

# input later than the prediction time


def test_rows_out_of_order_bring_the_future_into_the_window(clean, tmp_path):
    split, rows, _, stop = clean.split_labels("train")
    time = np.array(split.time)
    late = stop - 2
    time[late] = rows["prediction_time"].to_physical().to_numpy() + 1
    finding = clean.tampered(tmp_path / "store", "train", time=time).only("future-input")
    assert finding.what == "input events are later than the prediction time"
    assert len(finding.subjects) == 3
    assert set(finding.subjects) <= set(rows["subject_id"])


def test_the_windows_themselves_are_looked_at(clean, monkeypatch):
    bounds = sequences.history_bounds

    def one_too_many(split, indices, until):
        start, stop = bounds(split, indices, until)
        return start, np.where(until > 0, np.minimum(stop + 1, split.offsets[indices + 1]), stop)

    monkeypatch.setattr(sequences, "history_bounds", one_too_many)
    finding = clean.only("future-input")
    later = [
        stop < split.offsets[split.index_of(rows["subject_id"].to_numpy()) + 1]
        for split, rows, _, stop in map(clean.split_labels, ("train", "tuning", "held_out"))
    ]
    # Events at the very prediction time are input, and every row of the clean labels has one.
    assert finding.got.startswith(f"{sum(map(np.sum, later)):,} events in ")


def test_an_event_at_the_prediction_time_is_input(clean):
    split, rows, _, stop = clean.split_labels("train")
    assert (split.time[stop - 1] == rows["prediction_time"].to_physical().to_numpy()).all()
    assert clean.found("future-input") == []


def test_clinical_events_without_a_date_are_stated(clean, tmp_path):
    split = clean.store.split("train")
    static = np.flatnonzero(split.visit < 0)
    kind = np.array(split.kind)
    assert (kind[static] == KINDS.index("demographic")).all()
    kind[static] = KINDS.index("diagnosis")
    finding = clean.tampered(tmp_path / "store", "train", kind=kind).only("future-input", "warning")
    assert finding.what == "clinical events without a date are fed at every prediction time"


# windows that differ between classes


def test_a_gap_for_one_class(clean):
    finding = clean.moved(lambda positive: np.where(positive, -0.5, 0)).found("windows")[0]
    assert finding.severity == "error"
    assert "the days from the last event to the prediction time alone tells positives" in finding.what


def test_an_exact_gap_that_half_of_one_class_shares(clean):
    place = np.arange(len(clean.labels)) % 10
    off = np.random.default_rng(0).uniform(0.1, 20, len(place))
    both = clean.moved(lambda positive: np.where(place < np.where(positive, 7, 4), 0, off))
    assert both.found("windows") == []
    findings = clean.moved(lambda positive: np.where(positive & (place < 7), 0, off)).found("windows")
    assert findings[0].what == "one class shares an exact gap between its last event and the prediction time"
    assert findings[0].severity == "error"
    assert findings[0].got.startswith(("0 days in 6", "0 days in 7"))


def stays(clean, hours):
    """Labels `hours(positive)` after every admission of train and tuning, a third of them positive by chance."""
    random, parts = np.random.default_rng(0), []
    wanted = np.array([str(token).startswith("VISIT//inpatient") for token in clean.store.vocabulary.tokens])
    for name in ("train", "tuning", "held_out"):
        split = clean.store.split(name)
        row = np.flatnonzero(wanted[split.code])
        owner = np.searchsorted(split.offsets, row, side="right") - 1
        positive = random.random(len(row)) < 1 / 3
        parts.append(
            pl.DataFrame(
                {
                    "subject_id": split.subject_id[owner],
                    "prediction_time": split.time[row] + (hours(positive) * DAY / 24).astype(np.int64),
                    "boolean_value": positive,
                }
            ).with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
        )
    labels = pl.concat([clean.labels.clear(), *parts], how="diagonal")
    return clean.with_labels(labels.unique(["subject_id", "prediction_time"]), codes=None)


def test_a_longer_wait_after_the_admission_for_one_class(clean):
    findings = stays(clean, lambda positive: np.where(positive, 6, 3)).found("windows")
    told = [finding.what for finding in findings]
    assert "the days from the admission to the prediction time alone tells positives from the others" in told
    assert {finding.severity for finding in findings} == {"error"}
    assert findings[-1].got.endswith("1 more like it")
    assert stays(clean, lambda positive: np.full(len(positive), 3)).found("windows") == []


def test_stores_without_admissions_count_from_the_visit(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(checks_windows, "STAY_CODES", ())
    findings = stays(clean, lambda positive: np.where(positive, 6, 3)).found("windows")
    assert any("days from the admission" in finding.what for finding in findings)
    assert stays(clean, lambda positive: np.full(len(positive), 3)).found("windows") == []


def test_controls_at_the_very_end_of_their_record(clean):
    """Without a manifest nothing says how long nobody was seen after it."""
    last, first = (
        clean.labels.group_by("subject_id", "boolean_value").agg(getattr(pl.col("prediction_time"), side)())
        for side in ("max", "min")
    )
    ends = pl.concat(
        pl.DataFrame({"subject_id": split.subject_id, "end": split.time[split.offsets[1:] - 1]})
        for split in map(clean.store.split, ("train", "tuning", "held_out"))
    ).with_columns(pl.col("end").cast(pl.Datetime("us")))
    cases = first.filter("boolean_value")
    controls = last.filter(~pl.col("boolean_value")).join(ends, on="subject_id").with_columns(prediction_time="end")
    labels = pl.concat([clean.labels.clear(), pl.concat([cases, controls.drop("end")])], how="diagonal")
    world = replace(clean.with_labels(labels.unique(["subject_id", "prediction_time"])), manifest={})
    told = [finding for finding in world.found("windows") if "at the last event of their record" in finding.what]
    assert told[0].severity == "warning"
    assert told[0].got.startswith("100% of negatives and ")
    assert replace(clean, manifest={}).found("windows") == []


def test_landmarks_off_the_visits_are_silent_where_both_classes_have_them(clean):
    random = np.random.default_rng(0)
    # The sick come oftener: their gaps are a third as long.
    sick = clean.moved(lambda positive: random.uniform(0, 30, len(positive)) * np.where(positive, 0.35, 1))
    assert sick.found("windows") == []


def test_controls_at_their_last_visit_and_cases_at_their_first(clean):
    labels = clean.labels.with_columns(
        first=pl.col("prediction_time") == pl.col("prediction_time").min().over("subject_id"),
        last=pl.col("prediction_time") == pl.col("prediction_time").max().over("subject_id"),
        several=pl.len().over("subject_id") > 3,
    )
    chosen = pl.when("boolean_value").then("first").otherwise(pl.col("last") & pl.col("several"))
    findings = clean.with_labels(labels.filter(chosen)).found("windows")
    assert findings
    assert {finding.check for finding in findings} == {"windows"}
    assert any("number of visits" in finding.what or "days of history" in finding.what for finding in findings)


def test_a_longer_history_of_the_sick_is_legitimate(clean):
    """Positives among the longer half of histories, twice as likely to be kept as the others."""
    random = np.random.default_rng(1)
    first = pl.col("prediction_time").min().over("subject_id")
    late = (pl.col("prediction_time") - first).rank() / pl.len()
    kept = clean.labels.with_columns(late=late, draw=pl.Series(random.random(len(clean.labels))))
    biased = kept.filter(
        pl.when("boolean_value").then(pl.col("draw") < pl.col("late")).otherwise(pl.col("draw") < 1.3 - pl.col("late"))
    )
    assert clean.with_labels(biased).found("windows") == []


def test_times_counted_back_from_the_outcome(clean):
    data = clean.data()
    outcome = data.outcome_time
    until = clean.labels["prediction_time"].to_physical().to_numpy()
    positive = clean.labels["boolean_value"].to_numpy()
    random = np.random.default_rng(0).uniform(0.5, 30, len(until)) * DAY
    lead = np.where(positive, outcome - (30 * DAY + 7), until + random.astype(np.int64))
    # The prediction must not fall before the cohort's own, or nothing would be left of a short history.
    moved = clean.labels.with_columns(
        prediction_time=pl.Series(np.maximum(lead, until + 60_000_000)).cast(pl.Datetime("us"))
    )
    findings = clean.with_labels(moved).found("windows")
    counted_back = [finding for finding in findings if "counted back" in finding.what]
    assert "exactly 30 days before it" in counted_back[0].got
    honest = clean.moved(lambda positive: random / DAY)
    assert honest.found("windows") == []


def named(world, names):
    rows = world.labels.with_columns(categorical_value=pl.Series(names), boolean_value=pl.lit(None, dtype=pl.Boolean))
    return world.with_labels(rows, kind="multilabel")


def test_windows_of_several_classes(clean):
    """Each example has one class: each class may have windows of its own."""
    place = np.arange(len(clean.labels)) % 3
    names = np.array(["a", "b", "c"])[place]
    assert named(clean, names).found("windows") == []
    gap = clean.moved(lambda positive: np.where(place == 1, 0.5, 0))
    told = [finding.what for finding in named(gap, names).found("windows")]
    assert "the days from the last event to the prediction time alone tells positives of b from the others" in told


def test_categories_of_shared_examples_share_their_windows(clean):
    place = np.arange(len(clean.labels)) % 3
    gap = clean.moved(lambda positive: np.where(place == 1, 0.5, 0))
    first = named(gap, np.where(place == 1, "a", "[none]")).labels
    both = first.filter(pl.col("categorical_value") == "a").with_columns(categorical_value=pl.lit("b"))
    finding = gap.with_labels(pl.concat([first, both]), kind="multilabel").found("windows")[0]
    assert "of any category from the others" in finding.what
