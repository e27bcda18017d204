import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ehrsequencing.errors import ConfigError, MetricError
from ehrsequencing.evaluation.metrics import auroc, log_loss
from ehrsequencing.evaluation.recalibration import SMALLEST, calibration_fit, fit_recalibration, logit


def miscalibrated(n=2000, slope=2.0, shift=1.0, seed=0):
    """Outcomes, and predictions whose log odds are `slope` times too wide and `shift` too high."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-1, 1, n)
    y = rng.random(n) < 1 / (1 + np.exp(-truth))
    return y, 1 / (1 + np.exp(-(slope * truth + shift)))


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose decision function is its single feature."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.is_fitted_ = True
        return self

    def decision_function(self, X):
        return X[:, 0]

    def predict(self, X):
        return X[:, 0] > 0


def test_platt_is_scikit_learns():
    y, p = miscalibrated(400)
    x = logit(p)[:, None]
    theirs = CalibratedClassifierCV(FrozenEstimator(Given().fit(x, y)), method="sigmoid", ensemble=False).fit(x, y)
    ours = fit_recalibration("platt", y, p)
    np.testing.assert_allclose(ours.apply(p), theirs.predict_proba(x)[:, 1], atol=2e-6)


def test_isotonic_is_scikit_learns_and_never_decreases():
    y, p = miscalibrated(400)
    grid = np.linspace(0, 1, 101)
    ours = fit_recalibration("isotonic", y, p).apply(grid)
    np.testing.assert_array_equal(ours, IsotonicRegression(out_of_bounds="clip").fit(p, y).predict(grid))
    assert (np.diff(ours) >= 0).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_recalibration_mends_other_rows(method):
    y, p = miscalibrated()
    new_y, new_p = miscalibrated(seed=2)
    mended = fit_recalibration(method, y, p).apply(new_p)
    subjects = np.arange(len(new_y))
    before = calibration_fit(new_y, [new_p], subjects, resamples=50)
    assert before.slope.high < 0.6
    assert before.intercept.high < 0
    assert log_loss(new_y, mended) < log_loss(new_y, new_p) - 0.02
    after = calibration_fit(new_y, [mended], subjects, resamples=50)
    assert after.intercept.low < 0.05
    assert after.intercept.high > -0.05
    if method == "platt":
        assert after.slope.low < 1 < after.slope.high
        assert auroc(new_y, mended) == pytest.approx(auroc(new_y, new_p), abs=1e-12)


def test_smoothed_targets_keep_platt_finite_where_one_threshold_parts_the_classes():
    fitted = fit_recalibration("platt", [0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert 0 < fitted.slope < 10
    # Two of two positives are worth 3/4 under Laplace's rule, and no more.
    assert fitted.apply([1.0]).item() < 1
    assert np.mean(fitted.apply([0.1, 0.2, 0.8, 0.9])) == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_probabilities_of_0_and_1_are_taken(method):
    y = np.tile([0, 1, 0, 1, 1], 20)
    p = np.tile([0.0, 1.0, 0.4, 0.6, 0.0], 20)
    found = fit_recalibration(method, y, p).apply([0.0, 0.5, 1.0])
    assert ((found >= 0) & (found <= 1)).all()
    assert logit([0.0, 1.0]).tolist() == pytest.approx([np.log(SMALLEST), -np.log(SMALLEST)], rel=1e-4)


def test_what_cannot_be_recalibrated():
    y, p = miscalibrated(200)
    with pytest.raises(ConfigError, match="unknown recalibration; got beta; expected platt, isotonic"):
        fit_recalibration("beta", y, p)
    with pytest.raises(MetricError, match="slope on tuning is not positive.*turn the ranking round"):
        fit_recalibration("platt", y, 1 - p)
    with pytest.raises(MetricError, match="a recalibration is undefined on one class"):
        fit_recalibration("isotonic", np.zeros(200), p)
    with pytest.raises(MetricError, match=r"only probabilities can be recalibrated; expected values in \[0, 1\]"):
        fit_recalibration("platt", y, p).apply([np.nan])


def test_slope_and_intercept_are_those_of_logistic_regressions():
    y, p = miscalibrated(500)
    x = logit(p)
    found = calibration_fit(y, [p], np.arange(500), resamples=20)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[:, None], y)
    assert found.slope.value == pytest.approx(theirs.coef_.item(), abs=1e-6)
    # With the slope fixed at 1 the maximum of the likelihood is where as many are expected as happened.
    assert np.mean(1 / (1 + np.exp(-(x + found.intercept.value)))) == pytest.approx(y.mean(), abs=1e-10)


def test_intervals_are_the_percentiles_of_refits_on_resampled_subjects():
    y, p = miscalibrated(120)
    subjects = np.arange(120) // 2
    found = calibration_fit(y, [p], subjects, resamples=40, seed=3)
    rng = np.random.default_rng(3)
    drawn = rng.integers(60, size=(40, 60))
    slopes = []
    for chosen in drawn:
        rows = np.concatenate([np.flatnonzero(subjects == subject) for subject in chosen])
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(p[rows])[:, None], y[rows])
        slopes.append(model.coef_.item())
    assert (found.slope.low, found.slope.high) == pytest.approx(np.quantile(slopes, [0.025, 0.975]), abs=1e-5)


def test_repeated_rows_of_a_subject_add_no_certainty():
    y, p = miscalibrated(300)
    once = calibration_fit(y, [p], np.arange(300), resamples=60)
    thrice = calibration_fit(np.tile(y, 3), [np.tile(p, 3)], np.tile(np.arange(300), 3), resamples=60)
    assert (thrice.slope.low, thrice.slope.high) == pytest.approx((once.slope.low, once.slope.high), abs=1e-6)


def test_several_seeds_are_averaged_per_seed():
    y, p = miscalibrated(300)
    q = 1 / (1 + np.exp(-0.5 * logit(p)))
    alone = [calibration_fit(y, [one], np.arange(300), resamples=20).slope.value for one in (p, q)]
    both = calibration_fit(y, [p, q], np.arange(300), resamples=40)
    assert both.slope.value == pytest.approx(np.mean(alone), abs=1e-9)
    assert alone[1] == pytest.approx(2 * alone[0], rel=1e-6)
    # One of two seeds is drawn each time: the interval reaches towards both.
    assert both.slope.low < 1.1 * alone[0]
    assert both.slope.high > 0.9 * alone[1]


def test_where_there_is_no_slope():
    y, subjects = np.array([0, 0, 1, 1]), np.arange(4)
    with pytest.raises(MetricError, match="no end: one threshold parts the classes"):
        calibration_fit(y, [[0.1, 0.2, 0.2, 0.9]], subjects)
    with pytest.raises(MetricError, match="no end"):
        calibration_fit(y, [[0.9, 0.8, 0.2, 0.1]], subjects)
    with pytest.raises(MetricError, match="predicts one probability has no calibration slope"):
        calibration_fit(y, [[0.3] * 4], subjects)
    with pytest.raises(MetricError, match="a calibration slope is undefined on one class"):
        calibration_fit(np.ones(4), [[0.1, 0.2, 0.3, 0.4]], subjects)
    with pytest.raises(MetricError, match="no probabilities to judge; got 0 seeds"):
        calibration_fit(y, [], subjects)


def test_a_rare_outcome_and_extreme_predictions_converge():
    rng = np.random.default_rng(0)
    y = np.arange(1000) < 6
    p = np.where(rng.random(1000) < 0.5, 0.0, 1e-4 + 0.999 * rng.random(1000) * np.where(y, 1, 0.01))
    p[:2] = 0.0
    found = calibration_fit(y, [p], np.arange(1000), resamples=50)
    theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(logit(p)[:, None], y)
    assert found.slope.value == pytest.approx(theirs.coef_.item(), rel=1e-3)
    assert np.isfinite([found.slope.low, found.slope.high, found.intercept.low, found.intercept.high]).all()
