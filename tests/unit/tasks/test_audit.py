import polars as pl
import pytest
from audit_world import result

from ehrsequencing.errors import AuditError, ConfigError, LabelError
from ehrsequencing.tasks.audit import CHECKS, audit


def test_clean_synthetic_data_pass(clean):
    report = clean.audit()
    assert [found.result for found in report.results] == ["passed"] * len(CHECKS)
    assert [row["check"] for row in report.rows()] == list(CHECKS)
    assert report.notes() == []
    report.raise_errors()


@pytest.fixture
def faulty(clean):
    """Positives half a day early, and a prevalent case."""
    data = clean.data()
    early = clean.moved(lambda positive: -0.5 * positive)
    known = data.outcome_time < 2**62
    subject = int(data.subject_id[known][0])
    onset = int(data.outcome_time[known][0])
    row = pl.DataFrame({"subject_id": [subject], "prediction_time": [onset], "boolean_value": [True]})
    row = row.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    return early.with_labels(pl.concat([early.labels, row], how="diagonal")), subject


def test_errors_fail_in_one_line(faulty):
    world, subject = faulty
    with pytest.raises(AuditError) as caught:
        world.audit().raise_errors()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the audit found 3 errors: windows: the days from the last event")
    assert "| prevalent: subjects have a code of the task" in message
    assert f"subject {subject}" in message
    assert message.endswith(
        "Remedy: correct the labels or the data, or, knowing better, pass --accept windows --accept prevalent"
    )


def test_one_error(faulty):
    world, subject = faulty
    with pytest.raises(AuditError) as caught:
        world.audit(accept=["windows"]).raise_errors()
    assert str(caught.value) == (
        "the audit found 1 error: prevalent: subjects have a code of the task (ICD10CM//I10, ICD10CM//E11) at or "
        f"before the prediction time; got 1 label of 1 subjects, 1 of them positive, such as subject {subject}; "
        "expected prevalent cases left out of a task of onset. Remedy: correct the labels or the data, or, knowing "
        "better, pass --accept prevalent"
    )


def test_accepted_errors_are_stated(faulty):
    report = faulty[0].audit(accept=["windows", "prevalent", "dates"])
    report.raise_errors()
    assert [found.check for found in report.of("accepted")] == ["windows", "prevalent"]
    notes = report.notes()
    assert notes[0].startswith("Accepted in spite of the audit (windows): error: the days from")
    assert notes[1].startswith("Accepted in spite of the audit (prevalent): error: subjects have")
    assert result(report, "dates").result == "passed"
    assert result(report, "dates").lines() == ["accepted, and there was no error to accept"]


def test_an_unknown_name_is_refused(clean):
    with pytest.raises(ConfigError) as caught:
        clean.audit(accept=["prevalence", "dates"])
    assert str(caught.value).startswith("--accept names no check of the audit; got prevalence; expected future-input, ")


def test_labels_of_strangers(clean):
    with pytest.raises(LabelError, match=r"no labelled subject is in .*; got 1,\d{3} examples\. Remedy: build"):
        audit(clean.store, clean.labels.with_columns(pl.col("subject_id") + 10**15), {})


@pytest.mark.parametrize("kind", ["survival", "multilabel"])
def test_labels_of_another_kind(clean, kind):
    with pytest.raises(LabelError, match=f"labels of a {kind} task lack values; got nulls in .*_value"):
        audit(clean.store, clean.labels, {"kind": kind})


def test_kinds_are_read_off_the_columns_where_no_manifest_says(clean):
    assert clean.with_labels(clean.labels, kind=None).data().kind == "binary"
    named = clean.labels.with_columns(boolean_value=pl.lit(None, dtype=pl.Boolean), categorical_value=pl.lit("a"))
    data = clean.with_labels(named, kind=None).data()
    assert (data.kind, data.categories) == ("multilabel", ("a",))


def test_several_categories_of_one_example(clean):
    rows = clean.labels.with_columns(boolean_value=pl.lit(None, dtype=pl.Boolean))
    both = pl.concat([rows.with_columns(categorical_value=pl.lit(name)) for name in ("a", "b")])
    none = rows.head(5).with_columns(categorical_value=pl.lit("[none]"))
    both = pl.concat([both.join(none, on=["subject_id", "prediction_time"], how="anti"), none])
    data = clean.with_labels(both, kind="multilabel").data()
    assert data.categories == ("a", "b")
    assert len(data.subject_id) == len(clean.labels)
    assert data.positive.sum(axis=1).tolist() == [len(clean.labels) - 5] * 2


def test_a_survival_task_is_audited_whole(clean):
    data = clean.data()
    days = pl.Series([1.0 + place % 7 for place in range(len(data.subject_id))], dtype=pl.Float32)
    rows = clean.labels.with_columns(
        integer_value=pl.col("boolean_value").cast(pl.Int64),
        float_value=days,
        boolean_value=pl.lit(None, dtype=pl.Boolean),
    )
    report = clean.with_labels(rows, kind="survival", horizon_days=None).audit()
    assert {found.check for found in report.results if found.result != "passed"} == set()
    assert clean.with_labels(rows, kind="survival").data().categories == ("event",)
