import json
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from audit_world import DAY

from ehrsequencing.data.schema import STATIC_TIME
from ehrsequencing.tasks.checks_labels import follow_up, prevalent

# follow-up


def at(clean, subject, time, positive=False):
    """The clean labels with one more row, of microseconds."""
    row = {"subject_id": [subject], "prediction_time": [time], "boolean_value": [positive]}
    row = pl.DataFrame(row).with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    return clean.with_labels(pl.concat([clean.labels, row], how="diagonal"))


def alive(clean, nth=0):
    """A living subject of train without a label, and the end of its follow-up."""
    split = clean.store.split("train")
    quiet = (split.death_time == STATIC_TIME) & ~np.isin(split.subject_id, clean.labels["subject_id"].to_numpy())
    index = np.flatnonzero(quiet & (split.observation_end - split.birth_time > 365 * 40 * DAY))[nth]
    return int(split.subject_id[index]), int(split.observation_end[index])


def test_a_window_that_ends_with_follow_up_is_seen(clean):
    subject, end = alive(clean)
    assert at(clean, subject, end - 730 * DAY).found("follow-up") == []
    finding = at(clean, subject, end - 730 * DAY + 1).only("follow-up")
    assert finding.got == f"1 of {len(clean.labels) + 1:,} labels, of 1 subjects"
    assert finding.subjects == (subject,)


def test_a_positive_past_the_stated_end_is_chosen_by_its_outcome(clean):
    subject, end = alive(clean)
    assert at(clean, subject, end - 730 * DAY, positive=True).found("follow-up") == []
    finding = at(clean, subject, end - 730 * DAY + 1, positive=True).only("follow-up", "warning")
    assert finding.what == "positive labels' windows run past the stated end of observation"
    assert finding.subjects == (subject,)


def test_the_dead_are_followed_to_their_end(clean):
    split = clean.store.split("train")
    dead = np.flatnonzero(split.death_time != STATIC_TIME)[0]
    subject, death = int(split.subject_id[dead]), int(split.death_time[dead])
    for positive in (False, True):
        assert at(clean, subject, death - 10 * DAY, positive).found("follow-up") == []


def test_what_the_source_followed_is_not_checked(clean):
    subject, end = alive(clean)
    labels = at(clean, subject, end)
    assert "followed" in follow_up(labels.with_labels(labels.labels, follow_up="source").data())
    assert follow_up(labels.with_labels(labels.labels, horizon_days=None).data()) == (
        "the labels' manifest states no horizon_days"
    )
    assert "admission" in follow_up(
        labels.with_labels(labels.labels, window="(prediction time, admission + 3 days]").data()
    )


def test_a_store_without_the_end_of_observation_warns(clean, tmp_path):
    manifest = json.loads((clean.path / "manifest.json").read_text())
    del manifest["observation_end"]
    world = clean.tampered(tmp_path / "store", "train")
    for name in [name for name in manifest["files"] if "observation_end" in name]:
        del manifest["files"][name]
        (world.path / name).unlink()
    (world.path / "manifest.json").write_text(json.dumps(manifest))
    assert world.store.split("train").observation_end is None
    assert "prepare it again" in world.only("follow-up", "warning").what


def survival(clean, days_before_end, status=0):
    """A duration per clean label that ends some days before the end of the subject's follow-up."""
    data = clean.data()
    days = np.full(len(data.subject_id), 1.0)
    for labels in data.splits:
        days[labels.example] = (labels.follow_up - labels.until) / DAY - days_before_end
    rows = clean.labels.with_columns(
        boolean_value=pl.lit(None, dtype=pl.Boolean),
        integer_value=pl.lit(status, dtype=pl.Int64),
        float_value=pl.Series(days, dtype=pl.Float32),
    )
    return clean.with_labels(rows, kind="survival", horizon_days=None)


def test_durations_end_with_follow_up(clean):
    assert survival(clean, 0).found("follow-up") == []
    for status in (0, 1):
        finding = survival(clean, -1, status).only("follow-up")
        assert finding.what == "durations run past the end of follow-up"
        assert finding.got.startswith("{0:,} of {0:,} labels".format(len(clean.labels)))


def test_a_multilabel_row_is_followed_to_the_end_whatever_it_names(clean):
    subject, end = alive(clean)

    def named(time):
        world = at(clean, subject, time)
        rows = world.labels.with_columns(
            categorical_value=pl.lit("a"), boolean_value=pl.lit(None, dtype=pl.Boolean)
        ).filter(subject_id=subject)
        return world.with_labels(rows, kind="multilabel")

    assert named(end - 730 * DAY).found("follow-up") == []
    assert named(end - 729 * DAY).only("follow-up").subjects == (subject,)


# classes


def test_a_class_missing_in_a_split(clean):
    _, held, _, _ = clean.split_labels("held_out")
    positive = held.filter("boolean_value")
    without = clean.with_labels(clean.labels.join(positive, on=["subject_id", "prediction_time"], how="anti"))
    finding = without.only("one-class")
    assert (finding.what, finding.got) == (
        "split held_out has one class",
        f"0 positives of {len(held) - len(positive)} labels",
    )
    one = clean.labels.join(positive.tail(-1), on=["subject_id", "prediction_time"], how="anti")
    assert clean.with_labels(one).found("one-class") == []
    negative = held.filter(~pl.col("boolean_value"))
    positives = clean.labels.join(negative, on=["subject_id", "prediction_time"], how="anti")
    assert clean.with_labels(positives).only("one-class").got == f"{len(positive)} positives of {len(positive)} labels"
    nothing = clean.with_labels(clean.labels.join(held, on="subject_id", how="anti"))
    assert nothing.only("one-class").what == "split held_out has no labels"


def test_events_and_categories_missing_in_a_split(clean):
    assert {f.what for f in survival(clean, 0).found("one-class")} == {
        f"split {name} has one class" for name in ("train", "tuning", "held_out")
    }
    assert survival(clean, 0, status=1).found("one-class") == []
    train = pl.Series(clean.store.split("train").index_of(clean.labels["subject_id"].to_numpy()) >= 0)
    names = clean.labels.with_columns(
        categorical_value=pl.when(train).then(pl.lit("a")).otherwise(pl.lit("b")),
        boolean_value=pl.lit(None, dtype=pl.Boolean),
    )
    finding = clean.with_labels(names, kind="multilabel").only("one-class", "warning")
    assert finding.got == "1 of 2, such as b"


# splits


def test_a_subject_in_two_splits(clean, tmp_path):
    tuning, train = clean.store.split("tuning"), clean.store.split("train")
    ids = np.array(tuning.subject_id)
    shared = train.subject_id[np.searchsorted(train.subject_id, ids[7])]
    ids[7] = shared
    assert (np.diff(ids) > 0).all()
    finding = clean.tampered(tmp_path / "store", "tuning", subject_id=ids).only("split-overlap")
    assert finding.what == "subjects are in train and in tuning"
    assert (finding.got, finding.subjects) == ("1 subject", (int(shared),))
    assert clean.found("split-overlap") == []


def copied(clean, folder, **changed):
    """The first long record of tuning becomes that of a subject of train with as many rows, but for what is changed."""
    train, tuning = clean.store.split("train"), clean.store.split("tuning")
    both = [
        (a, b) for b in np.flatnonzero(tuning.lengths > 40) for a in np.flatnonzero(train.lengths == tuning.lengths[b])
    ]
    source, target = both[0]
    columns = {}
    for name in ("code", "visit", "time", "value", "statistic", "kind"):
        column = np.array(getattr(tuning, name))
        rows = slice(tuning.offsets[target], tuning.offsets[target + 1])
        column[rows] = getattr(train, name)[train.offsets[source] : train.offsets[source + 1]]
        if name in changed:
            column[rows] = changed[name](column[rows])
        columns[name] = column
    world = clean.tampered(folder, "tuning", **columns)
    return world, int(train.subject_id[source]), int(tuning.subject_id[target])


def test_a_subject_in_two_splits_under_two_numbers(clean, tmp_path):
    world, source, target = copied(clean, tmp_path / "store")
    finding = world.only("split-overlap", "warning")
    assert finding.got == f"1 subject (first: {target} is like {source})"


def test_the_same_codes_on_another_day_are_another_subject(clean, tmp_path):
    def later(time):
        return np.where(time > STATIC_TIME, time + DAY, time)

    assert copied(clean, tmp_path / "store", time=later)[0].found("split-overlap") == []


# prevalent cases


def first_code(clean):
    """A subject of train and its first matching code."""
    split = clean.store.split("train")
    vocabulary = clean.store.vocabulary
    wanted = np.array([code is not None and str(code).startswith("ICD10CM//E11") for code in vocabulary.tokens])
    row = np.flatnonzero(wanted[split.code])[0]
    return int(split.subject_id[np.searchsorted(split.offsets, row, side="right") - 1]), int(split.time[row])


def test_a_prevalent_case(clean):
    subject, onset = first_code(clean)
    finding = at(clean, subject, onset).only("prevalent")
    assert finding.got == "1 label of 1 subjects, 0 of them positive"
    assert finding.subjects == (subject,)
    assert "ICD10CM//I10, ICD10CM//E11" in finding.what


def test_a_code_just_after_the_prediction_is_onset(clean):
    subject, onset = first_code(clean)
    assert at(clean, subject, onset - 1, positive=True).found("prevalent") == []


def test_matched_codes_are_whole(clean):
    subject, onset = first_code(clean)
    world = at(clean, subject, onset)
    codes = [code for code in clean.store.vocabulary.base_codes if code.startswith("ICD10CM//E11")]
    assert world.with_labels(world.labels, matched_codes=codes).only("prevalent").subjects == (subject,)
    vocabulary = clean.store.vocabulary
    occur = np.concatenate([clean.store.split(name).code for name in ("train", "tuning", "held_out")])
    other = vocabulary.base_codes[np.setdiff1d(vocabulary.base_ids, vocabulary.base_ids[np.unique(occur)])[-1]]
    assert world.with_labels(world.labels, matched_codes=["ICD10CM//E1", other]).found("prevalent") == []
    # No token stands for any of them, so the check sees nothing and says so.
    assert "that the store can tell" in prevalent(world.with_labels(world.labels, matched_codes=["ICD10CM//E1"]).data())


@pytest.mark.parametrize("codes", [[], None])
def test_tasks_without_codes_have_no_prevalent_cases(clean, codes):
    assert isinstance(prevalent(clean.with_labels(clean.labels, codes=codes).data()), str)


def test_prediction_times_beyond_the_record_are_seen_by_follow_up(clean):
    subject, end = alive(clean)
    late = clean.labels.filter("boolean_value").head(1).with_columns(
        prediction_time=pl.lit(end).cast(pl.Datetime("us")) + timedelta(days=4000), boolean_value=pl.lit(False),
        subject_id=pl.lit(subject, dtype=pl.Int64),
    )  # fmt: skip
    assert clean.with_labels(pl.concat([clean.labels, late])).only("follow-up").subjects == (subject,)
