"""Brier score and AUC at horizons. Equality with other software is in tests/reference."""

import numpy as np
import pytest

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.metrics import auroc, brier
from ehrsequencing.evaluation.survival_scores import brier_score, cumulative_auc, integrated_brier


def test_without_censoring_they_are_brier_and_auroc():
    rng = np.random.default_rng(0)
    durations, cause, p = rng.exponential(100, size=300), rng.integers(1, 3, size=300), rng.random(300).round(1)
    case = (cause == 1) & (durations <= 80)
    assert brier_score(durations, cause, p, 80)[0] == pytest.approx(brier(case, p))
    assert cumulative_auc(durations, cause, p, 80)[0][0] == pytest.approx(auroc(case, p))


def test_censoring_does_not_bias_them():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40_000)
    event = rng.exponential(np.exp(-x))
    censored = rng.exponential(1.5, size=len(x))
    p = 1 - np.exp(-np.exp(x))
    seen = (np.minimum(event, censored), event <= censored)
    assert brier_score(*seen, p, 1)[0] == pytest.approx(brier(event <= 1, p), abs=0.005)
    assert cumulative_auc(*seen, x, 1)[0][0] == pytest.approx(auroc(event <= 1, p), abs=0.01)


def test_the_mean_auc_weighs_by_events_and_infinite_risks_are_ordered():
    durations, event = [1, 2, 3, 4], [1, 1, 1, 0]
    areas, mean = cumulative_auc(durations, event, [[np.inf, 0], [0, 1], [1, 2], [-np.inf, -1]], [1, 3])
    assert areas.tolist() == [1, 1]
    areas, mean = cumulative_auc(durations, event, [[1, 1], [2, 1], [3, 1], [4, 1]], [1, 3])
    assert areas.tolist() == [0, 0.5]
    assert mean == pytest.approx(0.5 * 2 / 3)


def test_horizons_are_refused_by_name():
    durations, event, p = [1, 2, 3, 4], [1, 0, 1, 0], [0.9, 0.1, 0.8, 0.2]
    for score in (brier_score, cumulative_auc):
        with pytest.raises(MetricError, match="beyond the end of follow-up; got 9 days; expected at most 4. Remedy"):
            score(durations, event, p, 9)
        with pytest.raises(MetricError, match="a horizon lies where nobody is uncensored any more; got 4 .* below 4"):
            score(durations, event, p, 4)
        with pytest.raises(MetricError, match=r"rise from above 0; got \[3.0, 2.0\]"):
            score(durations, event, np.ones((4, 2)), [3, 2])
        with pytest.raises(MetricError, match="rise from above 0; got"):
            score(durations, event, p, 0)
        with pytest.raises(MetricError, match="rise from above 0; got"):
            score(durations, event, np.ones((4, 0)), [])
    with pytest.raises(MetricError, match="needs cases and controls; got 0 cases and 4 controls by 0.5 days. Remedy"):
        cumulative_auc(durations, event, p, 0.5)
    with pytest.raises(MetricError, match="needs cases and controls; got 0 cases"):
        cumulative_auc(durations, [0, 0, 0, 0], p, 2)
    with pytest.raises(MetricError, match="got 4 cases and 0 controls by 4 days"):
        cumulative_auc(durations, [1, 1, 1, 1], p, 4)


def test_malformed_predictions_are_refused():
    durations, event = [1, 2, 3, 4], [1, 0, 1, 0]
    with pytest.raises(MetricError, match=r"one column per horizon; got \(4,\); expected \(4, 2\)"):
        brier_score(durations, event, [0.5] * 4, [1, 2])
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(MetricError, match=r"incidences must lie in \[0, 1\]; got 1 of 4 that do not. Remedy"):
            brier_score(durations, event, [0.5, 0.5, bad, 0.5], 2)
    with pytest.raises(MetricError, match="needs at least two horizons; got 1"):
        integrated_brier(durations, event, [0.5] * 4, 2)
    with pytest.raises(MetricError, match=r"risk needs one column per horizon; got \(4, 3\); expected \(4, 2\)"):
        cumulative_auc(durations, event, np.ones((4, 3)), [1, 2])
    with pytest.raises(MetricError, match="risk must not be NaN; got 1 of 8"):
        cumulative_auc(durations, event, [[1, 1], [1, np.nan], [1, 1], [1, 1]], [1, 2])
    with pytest.raises(MetricError, match="causes must be whole numbers"):
        brier_score(durations, [0.5, 0, 1, 1], [0.5] * 4, 2)
