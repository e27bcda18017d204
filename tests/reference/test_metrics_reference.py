"""Our metrics are scikit-learn's, ties and edges included, and so are their weighted forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve as reference_curve

from ehrsequencing.evaluation.bootstrap import evaluate
from ehrsequencing.evaluation.calibration import calibration_curve
from ehrsequencing.evaluation.metrics import (
    METRICS,
    RankedScores,
    auprc,
    auroc,
    brier,
    ece,
    f1,
    f1_threshold,
    log_loss,
    precision_recall_points,
    roc_points,
)

TOLERANCE = {"rel": 1e-12, "abs": 1e-12}
REFERENCE = {
    "auroc": lambda y, p, w: reference.roc_auc_score(y, p, sample_weight=w),
    "auprc": lambda y, p, w: reference.average_precision_score(y, p, sample_weight=w),
    "brier": lambda y, p, w: reference.brier_score_loss(y, p, sample_weight=w),
    "log_loss": lambda y, p, w: reference.log_loss(y, p, sample_weight=w, labels=[False, True]),
    "f1": lambda y, p, w: reference.f1_score(y, p >= 0.5, sample_weight=w, zero_division=0),
}


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Both classes, 2 to 60 rows; probabilities with many ties, or few, or at 0 and 1."""
    n = draw(st.integers(2, 60))
    y = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    first, second = draw(st.permutations(range(n)))[:2]
    y[first], y[second] = True, False
    value = draw(
        st.sampled_from(
            [st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1), st.floats(0, 1, width=32), st.just(0.3)]
        )
    )
    return y, np.array(draw(st.lists(value, min_size=n, max_size=n)))


@settings(deadline=None, max_examples=100)
@given(predictions())
def test_metrics_equal_scikit_learns(drawn):
    y, p = drawn
    for ours, name in ((auroc, "auroc"), (auprc, "auprc"), (brier, "brier"), (log_loss, "log_loss"), (f1, "f1")):
        assert ours(y, p) == pytest.approx(REFERENCE[name](y, p, None), **TOLERANCE), name


@settings(deadline=None, max_examples=100)
@given(predictions(), st.data())
def test_multiplicities_equal_sample_weights(drawn, data):
    y, p = drawn
    weights = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(y), max_size=len(y))))
    weights[np.argmax(y)], weights[np.argmin(y)] = 1, 2
    scores = RankedScores(y, p)
    for name, expected in REFERENCE.items():
        found = METRICS[name].weighted(scores, weights[None, scores.order].astype(float), 0.5)
        assert found[0] == pytest.approx(expected(y, p, weights), **TOLERANCE), name


@settings(deadline=None, max_examples=100)
@given(predictions())
def test_curves_equal_scikit_learns(drawn):
    y, p = drawn
    fpr, tpr, _ = reference.roc_curve(y, p, drop_intermediate=False)
    np.testing.assert_allclose(roc_points(y, p), (fpr, tpr), rtol=0, atol=1e-12)
    precision, recall, _ = reference.precision_recall_curve(y, p)
    # Theirs rises in threshold and ends in an added point of recall 0.
    ours = [column[::-1] for column in precision_recall_points(y, p)]
    np.testing.assert_allclose(ours, (recall[:-1], precision[:-1]), rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(predictions())
def test_the_f1_threshold_is_the_best_and_the_highest_of_equals(drawn):
    y, p = drawn
    of_threshold = {t: reference.f1_score(y, p >= t, zero_division=0) for t in np.unique(p)}
    chosen = f1_threshold(y, p)
    assert of_threshold[chosen] == pytest.approx(max(of_threshold.values()), **TOLERANCE)
    assert all(of_threshold[t] < of_threshold[chosen] - 1e-12 for t in of_threshold if t > chosen)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(2, 10), st.integers(0, 2**32 - 1))
def test_the_calibration_curve_without_ties_equals_scikit_learns(rows_per_bin, bins, seed):
    rng = np.random.default_rng(seed)
    p = rng.permutation(np.linspace(0.01, 0.99, rows_per_bin * bins))
    y = rng.random(len(p)) < p
    observed, predicted = reference_curve(y, p, n_bins=bins, strategy="quantile")
    curve = calibration_curve(y, p, bins=bins)
    assert [row["n"] for row in curve] == [rows_per_bin] * bins
    np.testing.assert_allclose([row["observed"] for row in curve], observed, rtol=0, atol=1e-12)
    np.testing.assert_allclose([row["predicted"] for row in curve], predicted, rtol=0, atol=1e-12)


def test_ece_is_the_mean_gap_of_the_ten_bin_curve():
    rng = np.random.default_rng(0)
    for p in (rng.random(237), rng.random(237).round(1)):
        y = rng.random(237) < p**2
        gap = sum(row["n"] * abs(row["observed"] - row["predicted"]) for row in calibration_curve(y, p)) / 237
        assert ece(y, p) == pytest.approx(gap, **TOLERANCE)


def test_the_interval_equals_a_loop_over_rows_of_drawn_subjects():
    rng = np.random.default_rng(5)
    subjects = rng.integers(40, size=200)
    y = rng.random(200) < 0.4
    p = np.clip(0.3 * y + 0.6 * rng.random(200), 0, 1).round(2)
    found = evaluate(y, p, subjects, metrics=tuple(REFERENCE), resamples=60, seed=3)
    distinct = np.unique(subjects)
    drawn = np.random.default_rng(3).integers(len(distinct), size=(60, len(distinct)))
    rows = [np.concatenate([np.flatnonzero(subjects == distinct[s]) for s in draw]) for draw in drawn]
    for name, expected in REFERENCE.items():
        low, high = np.quantile([expected(y[row], p[row], None) for row in rows], [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx((low, high), **TOLERANCE), name
        assert found[name].redrawn == 0
