import numpy as np
import pytest

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.bootstrap import (
    DEFAULT_METRICS,
    evaluate,
    mean_of_drawn_seeds,
    paired_difference,
    summarise_seeds,
)
from ehrsequencing.evaluation.metrics import METRICS


def cohort(n=300, share=0.3, signal=1.0, seed=0):
    """Outcomes, probabilities and one subject per row."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < share
    return y, 1 / (1 + np.exp(-(signal * y + rng.normal(size=n)))), np.arange(n)


def test_estimates_state_population_direction_and_the_metric_itself():
    y, p, _ = cohort()
    subjects = np.arange(300) // 3
    found = evaluate(y, p, subjects, threshold=0.6, resamples=50)
    assert tuple(found) == DEFAULT_METRICS
    for name, estimate in found.items():
        direct = METRICS[name].fn(y, p, 0.6) if name == "f1" else METRICS[name].fn(y, p)
        assert estimate.value == pytest.approx(direct, abs=1e-12)
        assert estimate.low <= estimate.value <= estimate.high
        assert (estimate.n, estimate.positives, estimate.subjects) == (300, int(y.sum()), 100)
        assert estimate.higher_is_better == METRICS[name].higher_is_better
    assert found["auroc"].to_dict()["seeds"] == 1


def test_the_seed_decides_the_interval_and_the_order_of_rows_does_not():
    y, p, subjects = cohort()
    shuffled = np.random.default_rng(1).permutation(300)
    first = evaluate(y, p, subjects, resamples=100, seed=4)
    again = evaluate(y[shuffled], p[shuffled], subjects[shuffled], resamples=100, seed=4)
    assert {k: (v.low, v.high) for k, v in again.items()} == {
        k: pytest.approx((v.low, v.high), abs=1e-12) for k, v in first.items()
    }
    assert evaluate(y, p, subjects, resamples=100, seed=5)["auroc"].low != first["auroc"].low


def test_repeating_the_rows_of_a_subject_adds_no_certainty():
    y, p, subjects = cohort()
    once = evaluate(y, p, subjects, resamples=100)
    copies = evaluate(np.tile(y, 4), np.tile(p, 4), np.tile(subjects, 4), resamples=100)
    fooled = evaluate(np.tile(y, 4), np.tile(p, 4), np.arange(1200), resamples=100)
    for name in once:
        assert (copies[name].low, copies[name].high) == pytest.approx((once[name].low, once[name].high), abs=1e-9)
        assert fooled[name].high - fooled[name].low < 0.8 * (once[name].high - once[name].low)


@pytest.mark.parametrize("positives", [1, 2, 5, 40])
def test_a_perfect_ranking_of_few_is_no_certainty(positives):
    y = np.arange(500) < positives
    found = evaluate(y, np.where(y, 0.9, 0.1), np.arange(500), resamples=50)
    assert found["auroc"].high == 1.0
    assert found["auroc"].low == pytest.approx(positives / (positives + 1.959964**2), abs=1e-6)


def test_few_positives_give_a_wide_interval():
    y, p, subjects = np.arange(500) < 3, np.linspace(0.99, 0.01, 500), np.arange(500)
    p[:3] = [0.95, 0.6, 0.55]
    found = evaluate(y, p, subjects, resamples=200)["auroc"]
    assert found.high - found.low > 0.5
    assert found.redrawn > 0


def test_resamples_of_one_class_are_redrawn_and_counted():
    y = np.array([True] + [False] * 9)
    found = evaluate(y, np.linspace(1, 0, 10), np.arange(10), resamples=400)
    # A single positive is missed by (1 - 1/10)^10 = 35 % of the draws.
    assert found["auroc"].redrawn / (400 + found["auroc"].redrawn) == pytest.approx(0.9**10, abs=0.08)
    assert evaluate(y, np.linspace(1, 0, 10), np.arange(10), metrics=["brier"], resamples=400)["brier"].redrawn == 0


def test_chunks_join_without_a_seam(monkeypatch):
    y, p, subjects = cohort()
    whole = evaluate(y, p, subjects, resamples=64)
    monkeypatch.setattr("ehrsequencing.evaluation.bootstrap._CHUNK", 300 * 7)
    for name, estimate in evaluate(y, p, subjects, resamples=64).items():
        assert (estimate.low, estimate.high) == pytest.approx((whole[name].low, whole[name].high), abs=1e-12)


def test_a_model_does_not_differ_from_itself():
    y, p, subjects = cohort()
    same = paired_difference(y, p, p.copy(), subjects, resamples=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_pairing_beats_two_separate_intervals():
    y, p, subjects = cohort(800)
    other = np.clip(p + np.random.default_rng(3).normal(scale=0.02, size=800), 0, 1)
    a, b = (evaluate(y, x, subjects, metrics=["auroc"], resamples=200)["auroc"] for x in (p, other))
    paired = paired_difference(y, p, other, subjects, "auroc", resamples=200)
    assert paired.value == pytest.approx(a.value - b.value, abs=1e-12)
    assert paired.high - paired.low < 0.3 * (a.high - a.low)
    swapped = paired_difference(y, other, p, subjects, "auroc", resamples=200)
    assert (swapped.low, swapped.high) == pytest.approx((-paired.high, -paired.low), abs=1e-12)


def test_a_brier_difference_that_two_positives_decide_is_wide():
    rng = np.random.default_rng(0)
    y, subjects = np.arange(300) < 2, np.arange(300)
    careful, bold = np.full(300, 0.01), rng.uniform(0, 0.02, 300)
    bold[:2] = 0.2, 0.1
    few = paired_difference(y, careful, bold, subjects, "brier", resamples=200)
    assert few.low < 0 < few.high
    assert evaluate(y, careful, subjects, metrics=["brier"], resamples=200)["brier"].low == 0
    single = paired_difference(y[1:], careful[1:], bold[1:], subjects[1:], "brier", resamples=50)
    assert (single.low, single.high) == (-1, 1)
    many = paired_difference(np.tile(y, 20), np.tile(careful, 20), np.tile(bold, 20), np.arange(6000), "brier",
                             resamples=200)  # fmt: skip
    assert many.low > 0, "with forty positives resampling alone decides"


def test_a_difference_on_few_positives_is_wide():
    y, subjects = np.arange(400) < 2, np.arange(400)
    good, bad = np.linspace(1, 0, 400), np.full(400, 0.5)
    found = paired_difference(y, good, bad, subjects, "auroc", resamples=50)
    assert found.value == pytest.approx(0.5, abs=0.01)
    assert found.low < 0 < found.high


def test_differences_use_each_models_own_threshold():
    y, subjects = np.arange(100) < 40, np.arange(100)
    p = np.where(y, 0.3, 0.1)
    found = paired_difference(y, p, p, subjects, "f1", threshold_a=0.2, threshold_b=0.05, resamples=50)
    assert found.value == pytest.approx(1 - 2 * 40 / 140)


def test_seeds_that_agree_change_nothing_and_seeds_that_differ_widen():
    y, p, subjects = cohort()
    one = evaluate(y, p, subjects, resamples=200)
    for name, estimate in summarise_seeds(y, [p, p, p], subjects, resamples=200).items():
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
            (one[name].value, one[name].low, one[name].high), abs=1e-12
        )
        assert estimate.seeds == 3
    noise = np.random.default_rng(2).random((3, 300))
    spread = [noise[0], 0.5 * noise[1] + 0.5 * p, p]
    found = summarise_seeds(y, spread, subjects, metrics=["auroc"], resamples=200)["auroc"]
    assert found.value == pytest.approx(np.mean([METRICS["auroc"].fn(y, x) for x in spread]), abs=1e-12)
    assert found.high - found.low > 1.5 * (one["auroc"].high - one["auroc"].low)


def test_the_draw_of_seeds_has_the_variance_of_a_mean():
    """Where subjects do not matter, the spread of resamples is that of a mean of K seeds: s^2 / K."""
    by_seed = np.array([0.2, 0.5, 0.6, 0.9, 0.7])
    drawn = mean_of_drawn_seeds(np.repeat(by_seed[None, :, None], 20_000, axis=2), seed=0)
    assert drawn.shape == (1, 20_000)
    assert drawn.mean() == pytest.approx(by_seed.mean(), abs=0.005)
    assert drawn.var() == pytest.approx(by_seed.var(ddof=1) / 5, rel=0.05)


def test_thresholds_per_seed():
    y, subjects = np.arange(100) < 40, np.arange(100)
    p = np.where(y, 0.3, 0.1)
    found = summarise_seeds(y, [p, p / 3], subjects, metrics=["f1"], thresholds=[0.2, 0.07], resamples=20)["f1"]
    assert found.value == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": ["auc"]}, "unknown metric; got auc"),
        ({"subject_ids": np.arange(3)}, "name the subject of every row"),
        ({"subject_ids": np.zeros(300)}, "at least two"),
        ({"y_true": np.zeros(300, dtype=bool)}, "undefined on one class"),
        ({"resamples": 1}, "at least 2 resamples"),
        ({"level": 1.0}, "level between 0 and 1"),
    ],
)
def test_what_cannot_be_estimated_is_an_error(change, words):
    y, p, subjects = cohort()
    with pytest.raises(MetricError, match=words):
        evaluate(**{"y_true": y, "p": p, "subject_ids": subjects, "resamples": 10, **change})
    with pytest.raises(MetricError, match="0 seeds"):
        summarise_seeds(y, [], subjects)
