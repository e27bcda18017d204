from datetime import datetime, timedelta

import polars as pl
import pytest

from ehrsequencing.data.dataset import MedsDataset, MedsWriter
from ehrsequencing.data.labels import read_labels, validate_labels, write_labels
from ehrsequencing.data.sources.uci_diabetes import NOTES
from ehrsequencing.errors import ConfigError, LabelError
from ehrsequencing.tasks.temporal import parse_date, split_by_time

CUT = datetime(2020, 1, 1)
SPLIT_OF = {1: "train", 2: "tuning", 3: "held_out"}


def days(number):
    return timedelta(days=number)


def dataset_at(path, notes=()):
    with MedsWriter(path) as writer:
        for subject, split in SPLIT_OF.items():
            writer.write_events(split, 0, pl.DataFrame({"subject_id": [subject], "time": [CUT], "code": ["A//1"]}))
        writer.finish(pl.DataFrame({"code": ["A//1"]}), source="test", options={}, notes=list(notes))
    return MedsDataset.open(path)


@pytest.fixture
def dataset(tmp_path):
    return dataset_at(tmp_path / "meds")


def labels_of(*pairs):
    """Labels of (subject, prediction time), every other one positive."""
    frame = pl.DataFrame(
        {
            "subject_id": [subject for subject, _ in pairs],
            "prediction_time": [time for _, time in pairs],
            "boolean_value": [index % 2 == 0 for index in range(len(pairs))],
        },
        schema_overrides={"prediction_time": pl.Datetime("us")},
    )
    return validate_labels(frame, "test")


EVERYWHERE = [(subject, CUT + days(offset)) for subject in SPLIT_OF for offset in (-400, -31, -30, -1, 0, 1, 400)]


def offsets(rows, subject):
    return [(time - CUT) / days(1) for time in rows.filter(subject_id=subject)["prediction_time"]]


def test_windows_end_before_the_date_and_judgement_begins_on_it(dataset):
    kept, manifest = split_by_time(dataset, labels_of(*EVERYWHERE), {"horizon_days": 30}, train_before=CUT)
    # The window (t, t + 30 days] of t = -30 ends on the date itself, when nothing is learned any more.
    assert offsets(kept, 1) == offsets(kept, 2) == [-400, -31]
    assert offsets(kept, 3) == [0, 1, 400]
    assert manifest["temporal"]["train_before"] == manifest["temporal"]["test_after"] == "2020-01-01T00:00:00"
    assert [(row["step"], row["rows"], row["subjects"]) for row in manifest["flow"]] == [
        ("train and tuning with outcomes known before 2020-01-01", 4, 2),
        ("held out and predicted on or after 2020-01-01", 3, 1),
    ]
    assert manifest["splits"]["held_out"] == {"rows": 3, "subjects": 1, "positives": 2}


def test_an_instant_before_the_date_counts_as_before(dataset):
    instant = timedelta(microseconds=1)
    rows = labels_of(
        (1, CUT - days(30) - instant), (1, CUT - days(30)), (2, CUT - days(99)), (3, CUT - instant), (3, CUT)
    )
    kept, _ = split_by_time(dataset, rows, {"horizon_days": 30}, train_before=CUT)
    assert kept["prediction_time"].to_list() == [CUT - days(30) - instant, CUT - days(99), CUT]


def test_a_gap_between_training_and_testing(dataset):
    kept, manifest = split_by_time(
        dataset, labels_of(*EVERYWHERE), {}, train_before=CUT - days(365), test_after=CUT + days(1), horizon_days=0
    )
    assert (offsets(kept, 1), offsets(kept, 2), offsets(kept, 3)) == ([-400], [-400], [1, 400])
    assert manifest["temporal"]["horizon_days"] == 0


def test_the_result_is_a_label_file_like_any_other(dataset, tmp_path):
    kept, manifest = split_by_time(dataset, labels_of(*EVERYWHERE), {"horizon_days": 30}, train_before=CUT)
    write_labels(tmp_path / "labels.parquet", kept, manifest)
    again, stated = read_labels(tmp_path / "labels.parquet")
    assert again.equals(kept)
    assert stated == manifest
    with pytest.raises(LabelError, match="split by time already; got 2020-01-01"):
        split_by_time(dataset, again, stated, train_before=CUT)


@pytest.mark.parametrize("notes", [NOTES, ["Dates are shifted per subject by the publisher."]])
def test_dates_that_are_none_are_refused_by_the_datasets_note(tmp_path, notes):
    with pytest.raises(LabelError, match="no calendar dates, so time cannot split it; got the note .*split by subject"):
        split_by_time(
            dataset_at(tmp_path / "odd", notes), labels_of(*EVERYWHERE), {"horizon_days": 30}, train_before=CUT
        )


@pytest.mark.parametrize(
    ("manifest", "options", "message"),
    [
        ({}, {}, "length of the label window is unknown.*--horizon-days"),
        ({"horizon_days": None}, {}, "label window is unknown"),
        ({}, {"horizon_days": -1}, "label window is unknown; got -1"),
        ({"horizon_days": 30}, {"horizon_days": 29}, "shorter than the label window; got 29; expected 30 days or more"),
        ({}, {"horizon_days": 3, "test_after": CUT - days(1)}, "testing would begin before training ends"),
    ],
)
def test_options_that_make_no_sense(dataset, manifest, options, message):
    with pytest.raises(ConfigError, match=message):
        split_by_time(dataset, labels_of(*EVERYWHERE), manifest, train_before=CUT, **options)


def test_dates_that_leave_a_split_empty_or_nothing_out(dataset):
    with pytest.raises(
        LabelError, match="no label of split train is left; got 7 predictions from 2018.*windows of 30 days"
    ):
        split_by_time(dataset, labels_of(*EVERYWHERE), {"horizon_days": 30}, train_before=CUT - days(500))
    with pytest.raises(LabelError, match="no label of split held_out is left.*on or after 2023"):
        split_by_time(
            dataset, labels_of(*EVERYWHERE), {"horizon_days": 1}, train_before=CUT, test_after=datetime(2023, 1, 1)
        )
    parted = labels_of((1, CUT - days(9)), (2, CUT - days(9)), (3, CUT))
    with pytest.raises(LabelError, match="the dates leave nothing out; got 3 predictions"):
        split_by_time(dataset, parted, {"horizon_days": 1}, train_before=CUT)
    with pytest.raises(LabelError, match="1 labels are of subjects that .* does not hold"):
        split_by_time(dataset, labels_of((9, CUT)), {"horizon_days": 1}, train_before=CUT)


@pytest.mark.parametrize("text", ["2020-13-01", "1.1.2020", "", "2020-01-01T00:00:00"])
def test_dates_are_written_one_way(text):
    with pytest.raises(ConfigError, match="--train-before is no date.*expected YYYY-MM-DD"):
        parse_date(text, "--train-before")
