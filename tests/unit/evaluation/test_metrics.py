import numpy as np
import pytest

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.metrics import METRICS, f1_threshold, roc_points
from ehrsequencing.tracking.summary import HIGHER_IS_BETTER

Y, P = [True, False, True, False], [0.9, 0.2, 0.6, 0.6]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("y", "p", "words"),
    [
        (Y, [0.9, 0.2, np.nan, 0.6], "got 1 of 4"),
        (Y, [0.9, 0.2, 1.2, -3.0], "logits need a sigmoid"),
        (Y, P[:3], "one length"),
        ([], [], "one length"),
        ([[True, False]], [[0.1, 0.2]], "one length"),
        ([0, 1, 2, 1], P, "0 or 1"),
        ([0, 1, np.nan, 1], P, "0 or 1"),
    ],
)
def test_unusable_input_is_refused(name, y, p, words):
    with pytest.raises(MetricError, match=words):
        METRICS[name].fn(y, p)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("outcome", [0, 1])
def test_one_class_is_an_error_where_the_metric_needs_two(name, outcome):
    y, p = [outcome] * 3, [0.1, 0.5, 0.9]
    if METRICS[name].needs_both_classes:
        with pytest.raises(MetricError, match=f"{3 * outcome} positives in 3 rows"):
            METRICS[name].fn(y, p)
    else:
        assert np.isfinite(METRICS[name].fn(y, p))


def test_one_class_has_neither_threshold_nor_curve():
    for function in (f1_threshold, roc_points):
        with pytest.raises(MetricError, match="one class"):
            function([1, 1], [0.2, 0.3])


def test_directions_agree_with_those_of_summaries():
    for name, metric in METRICS.items():
        assert HIGHER_IS_BETTER[name] == metric.higher_is_better
        perfect, worst = metric.fn(Y, [1, 0, 1, 0]), metric.fn(Y, [0, 1, 0, 1])
        assert (perfect > worst) == metric.higher_is_better


def test_all_tied_is_chance():
    assert METRICS["auroc"].fn(Y, [0.3] * 4) == 0.5
    assert METRICS["auprc"].fn(Y, [0.3] * 4) == 0.5


def test_certainty_that_fails_costs_a_finite_loss():
    assert METRICS["log_loss"].fn([1, 0], [0.0, 1.0]) == pytest.approx(-np.log(np.finfo(float).eps))
