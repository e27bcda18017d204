import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.decision import decision_curve, default_thresholds, net_benefit


def cohort(n=400, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.2
    return y, np.round(1 / (1 + np.exp(-(1.5 * y - 1.5 + rng.normal(size=n)))), 2)


@pytest.mark.parametrize("threshold", [0.01, 0.17, 0.5, 0.83])
def test_net_benefit_is_the_formulas(threshold):
    y, p = cohort()
    (_, false), (_, true) = confusion_matrix(y, p >= threshold)
    by_hand = true / len(y) - false / len(y) * threshold / (1 - threshold)
    assert net_benefit(y, p, [threshold]).item() == pytest.approx(by_hand, abs=1e-12)


def test_the_papers_reading():
    """At the threshold where everyone is treated, the net benefit of treating all is 0 exactly at the prevalence."""
    y, p = cohort()
    curve = decision_curve(y, [p], np.arange(400), thresholds=[0.1, float(y.mean())], resamples=20)
    assert curve.treat_all[1] == pytest.approx(0, abs=1e-12)
    assert curve.treat_all[0] == pytest.approx(y.mean() - (1 - y.mean()) / 9)


def test_a_model_that_treats_everyone_is_worth_what_treating_everyone_is():
    y, _ = cohort()
    curve = decision_curve(y, [np.ones(400)], np.arange(400), thresholds=[0.05, 0.1], resamples=50)
    assert [point.value for point in curve.net_benefit] == pytest.approx(curve.treat_all.tolist())
    assert [(point.low, point.value, point.high) for point in curve.gain] == [pytest.approx((0, 0, 0), abs=1e-12)] * 2


def test_a_row_at_the_threshold_is_treated():
    assert net_benefit([1, 0], [0.5, 0.4], [0.5]).item() == 0.5
    assert net_benefit([1, 0], [0.5, 0.4], [0.500001]).item() == 0.0


def test_intervals_are_those_of_resampled_subjects_and_gains_are_paired():
    y, p = cohort(120)
    subjects = np.arange(120) // 3
    curve = decision_curve(y, [p], subjects, thresholds=[0.1], resamples=300, seed=5)
    drawn = np.random.default_rng(5).integers(40, size=(300, 40))
    benefits, gains = [], []
    for chosen in drawn:
        rows = np.concatenate([np.flatnonzero(subjects == subject) for subject in chosen])
        own = net_benefit(y[rows], p[rows], [0.1]).item()
        everyone = net_benefit(y[rows], np.ones(len(rows)), [0.1]).item()
        benefits.append(own)
        gains.append(own - max(everyone, 0))
    for found, samples in ((curve.net_benefit[0], benefits), (curve.gain[0], gains)):
        assert (found.low, found.high) == pytest.approx(np.quantile(samples, [0.025, 0.975]), abs=1e-12)


def test_seeds_are_averaged_as_net_benefits():
    y, p = cohort()
    _, q = cohort(seed=1)
    curve = decision_curve(y, [p, q], np.arange(400), thresholds=[0.2], resamples=20)
    mean = (net_benefit(y, p, [0.2]) + net_benefit(y, q, [0.2])).item() / 2
    assert curve.net_benefit[0].value == pytest.approx(mean)


def test_default_thresholds_follow_the_prevalence_within_bounds():
    assert default_thresholds(np.arange(1000) < 1)[-1] == 0.2
    assert default_thresholds(np.arange(100) < 60)[-1] == 0.99
    y, p = cohort()
    assert len(decision_curve(y, [p], np.arange(400), resamples=10).net_benefit) == 40


@pytest.mark.parametrize("thresholds", [[0.0], [1.0], [np.nan], [], [[0.1]]])
def test_thresholds_out_of_range(thresholds):
    with pytest.raises(MetricError, match="thresholds of a decision curve lie between 0 and 1"):
        net_benefit([1, 0], [0.2, 0.3], thresholds)


def test_hostile_input():
    with pytest.raises(MetricError, match="no probabilities to judge"):
        decision_curve([1, 0], [], [1, 2])
    with pytest.raises(MetricError, match=r"probabilities must lie in \[0, 1\]"):
        decision_curve([1, 0], [[0.2, np.nan]], [1, 2])
    with pytest.raises(MetricError, match="two vectors of one length"):
        decision_curve([1, 0, 1], [[0.2, 0.3, 0.1], [0.2, 0.3]], [1, 2, 3])
