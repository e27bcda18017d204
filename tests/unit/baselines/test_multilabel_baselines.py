"""Copy-history and the other baselines of multi-label tasks."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from ehrsequencing.baselines.copying import COPY_SETTINGS, PRIOR_ROWS, CopyHistory, Past, columns_of_codes, past_of
from ehrsequencing.baselines.models import SHORT_BUDGET
from ehrsequencing.baselines.multilabel import MultiLabelData, cell_log_loss, fit_multilabel_baseline
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import EVENT_SCHEMA
from ehrsequencing.data.sequences import Examples
from ehrsequencing.errors import ConfigError, LabelError

START = datetime(2020, 1, 1)
CATEGORIES = ("ICD10CM//E11.9", "ICD10CM//I10", "never", "diabetes")
DEFINITIONS = {"diabetes": ["ICD10CM//E1", "SNOMED//44"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copying")
    events = ((0, "ICD10CM//E11.9"), (3, "ICD10CM//E10.1"), (5, "ICD10CM//E11.9"), (9, "ICD10CM//I10"))
    rows = [(1, None, "SNOMED//44", None), (1, None, "SNOMED//441", None)]
    rows += [(subject, START + timedelta(days=day), code, None) for subject in (1, 2) for day, code in events]
    schema = {name: EVENT_SCHEMA[name] for name in ("subject_id", "time", "code", "numeric_value")}
    path = folder / "meds" / "data" / "train" / "0.parquet"
    path.parent.mkdir(parents=True)
    pl.DataFrame(rows, schema=schema, orient="row").sort("subject_id", "time").write_parquet(path)
    return prepare(folder / "meds", folder / "store", min_count=1)


def past(store, subject, day, max_rows=None):
    split = store.split("train")
    index = split.index_of(np.array([subject]))
    until = (START + timedelta(days=day) - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    examples = Examples(index, np.array([until]), None, np.array([subject]), CATEGORIES)
    pairs = columns_of_codes(store.vocabulary, CATEGORIES, DEFINITIONS)
    found = past_of(split, examples, store.vocabulary, pairs, max_rows=max_rows)
    return found.count[0].tolist(), found.days[0].tolist()


def test_the_past_of_a_category_is_its_codes_up_to_the_prediction_time(store):
    assert past(store, 2, 8) == ([2, 0, 0, 3], [3.0, np.inf, np.inf, 3.0])
    assert past(store, 2, 4) == ([1, 0, 0, 2], [4.0, np.inf, np.inf, 1.0])
    count, days = past(store, 1, 0)
    assert count == [1, 0, 0, 2], "a whole code, undated, and no code that merely begins like it"
    assert days[3] == 0


def test_the_past_is_cut_as_the_histories_of_a_model_are(store):
    assert past(store, 2, 20, max_rows=2)[0] == [1, 1, 0, 1]


def test_copy_history_gives_the_shares_of_train():
    count = np.zeros((400, 2), dtype=np.uint16)
    count[:100, 0], count[100:200, 0], count[:40, 1] = 1, 7, 2
    days = np.where(count > 0, 10.0, np.inf).astype(np.float32)
    y = np.zeros((400, 2), dtype=bool)
    y[:50, 0], y[100:190, 0], y[200:210, 0] = True, True, True
    seen = CopyHistory.fit("seen", Past(count, days), y)
    pooled = (140 + 0.5) / (240 + 1)
    assert seen.rates[0, 1] == pytest.approx((140 + PRIOR_ROWS * pooled) / (200 + PRIOR_ROWS))
    p = CopyHistory.fit("frequency", Past(count, days), y).predict(Past(count, days))
    assert p[150, 0] > 0.8 > 0.6 > p[50, 0] > 0.4 > p[300, 0]
    with_dates = CopyHistory.fit("frequency and recency", Past(count, days), y)
    assert with_dates.rates.shape == (2, 1 + 5 * 5)


@pytest.fixture(scope="module")
def data():
    """Categories of which the first three follow features, the fourth its own past, the fifth nothing; one is rare."""
    rng = np.random.default_rng(0)
    X = sparse.random(1500, 30, density=0.3, format="csr", dtype=np.float32, rng=rng)
    count = (rng.random((1500, 6)) < 0.3).astype(np.uint16)
    logits = np.column_stack(
        [6 * X[:, :3].toarray() - 3, 3.0 * count[:, 3] - 2, np.full(1500, -1.5), np.full(1500, -9)]
    )
    y = rng.random((1500, 6)) < 1 / (1 + np.exp(-logits))
    days = np.where(count > 0, 5.0, np.inf).astype(np.float32)
    parts = {"train": slice(900), "tuning": slice(900, 1200), "held_out": slice(1200, None)}
    made = MultiLabelData(
        y[parts["train"]], y[parts["tuning"]], {name: X[part] for name, part in parts.items()},
        {name: Past(count[part], days[part]) for name, part in parts.items()},
    )  # fmt: skip
    return made, y[parts["held_out"]]


@pytest.mark.parametrize("name", ["copy_history", "linear", "logistic_regression", "xgboost"])
def test_every_baseline_beats_the_prevalence(data, name):
    made, truth = data
    steps = []
    fitted = fit_multilabel_baseline(name, made, threads=1, progress=lambda *step: steps.append(step))
    floor = fit_multilabel_baseline("prevalence", made)
    p = fitted.predict("held_out")
    assert p.shape == truth.shape and p.dtype == np.float32
    assert cell_log_loss(truth, p) < 0.98 * cell_log_loss(truth, floor.predict("held_out"))
    assert fitted.chosen["log_loss"] == pytest.approx(cell_log_loss(made.tuning, fitted.predict("tuning")), rel=1e-4)
    assert steps[-1][0] == steps[-1][1]
    again = fit_multilabel_baseline(name, made, threads=2)
    np.testing.assert_array_equal(again.predict("held_out"), p)


def test_settings_are_tried_in_equal_number(data):
    made, _ = data
    for name in ("copy_history", "linear"):
        assert len(fit_multilabel_baseline(name, made).tuning) == SHORT_BUDGET == len(COPY_SETTINGS)
    found = fit_multilabel_baseline("logistic_regression", made)
    assert found.chosen["settings per category"] == SHORT_BUDGET
    rare = int(((made.train.sum(0) == 0) | (made.tuning.sum(0) == 0)).sum())
    assert found.chosen["categories"] == 6 - rare
    assert sum(row["categories"] for row in found.tuning) == 6 - rare


def test_linear_learns_what_copying_cannot_and_starts_from_it(data):
    made, truth = data
    losses = {
        name: cell_log_loss(truth, fit_multilabel_baseline(name, made).predict("held_out"))
        for name in ("copy_history", "linear")
    }
    assert losses["linear"] < losses["copy_history"]
    without = fit_multilabel_baseline("linear", MultiLabelData(made.train, made.tuning, made.features, None))
    assert without.chosen["start"] == "prevalence"


def test_what_cannot_be_fitted_is_an_error(data):
    made, _ = data
    with pytest.raises(ConfigError, match="unknown multi-label baseline; got svm"):
        fit_multilabel_baseline("svm", made)
    with pytest.raises(LabelError, match="copy-history needs categories that are codes of the store"):
        fit_multilabel_baseline("copy_history", MultiLabelData(made.train, made.tuning, made.features, None))
    with pytest.raises(LabelError, match="labels of tuning have no positive; got 0 positives in 300 rows"):
        MultiLabelData(made.train, np.zeros_like(made.tuning), made.features, None)
