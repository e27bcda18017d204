import numpy as np
import pytest
from scipy.stats import norm

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.bootstrap import evaluate
from ehrsequencing.evaluation.sample_size import (
    auroc_standard_error,
    expected_half_width,
    guidance,
    positives_needed,
    split_guidance,
)


def test_the_formula_by_hand():
    # A = 0.8, 3 positives, 4 negatives: Q1 = 0.8/1.2, Q2 = 1.28/1.8.
    variance = (0.16 + 2 * (0.8 / 1.2 - 0.64) + 3 * (1.28 / 1.8 - 0.64)) / 12
    assert auroc_standard_error(0.8, 3, 4) == pytest.approx(variance**0.5, rel=1e-12)


def test_it_foretells_the_interval_of_the_scores_it_assumes():
    """Exponential scores: positives with rate A/(1 - A) of the negatives' have exactly the formula's Q1 and Q2."""
    rng = np.random.default_rng(0)
    y = np.arange(1200) < 200
    scores = rng.exponential(np.where(y, 3.0, 1.0))
    found = evaluate(y, scores / (1 + scores), np.arange(1200), metrics=["auroc"], resamples=1000)["auroc"]
    foretold = expected_half_width(200, 1000, auroc=found.value)
    assert (found.high - found.low) / 2 == pytest.approx(foretold, rel=0.1)


def test_it_is_on_the_wide_side_for_normal_scores():
    rng = np.random.default_rng(0)
    y = np.arange(3000) < 300
    p = norm.cdf(rng.normal(np.where(y, norm.ppf(0.75) * 2**0.5, 0.0)))
    found = evaluate(y, p, np.arange(3000), metrics=["auroc"], resamples=500)["auroc"]
    assert (found.high - found.low) / 2 < expected_half_width(300, 2700, auroc=found.value)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_positives_needed_is_the_smallest_number_that_does(share):
    needed = positives_needed(0.03, share)

    def half(positives):
        return expected_half_width(positives, max(1, round(positives * (1 - share) / share)))

    assert half(needed) <= 0.03 < half(needed - 1)


def test_guidance_of_a_manifest():
    lines = split_guidance(
        {
            "train": {"rows": 9, "positives": 3},
            "tuning": {"rows": 40, "positives": 0},
            "held_out": {"rows": 101, "positives": 50},
        }
    )
    assert lines[0].startswith("held-out: 50 positives of 101 rows, so an AUROC of 0.75 will be known to about ±0.09")
    assert lines[1] == "tuning: 0 positives of 40 rows: no AUROC can be computed"
    assert split_guidance({"held_out": {"rows": 10, "subjects": 5}}) == []
    assert "needs" not in guidance(10_000, 90_000)
    assert guidance(1, 1).startswith("held-out: 1 positives of 2 rows, so an AUROC of 0.75 will be known to about ±0.5")


def test_what_cannot_be_asked():
    with pytest.raises(MetricError, match="AUROC needs both classes; got 0 positives and 5 negatives"):
        expected_half_width(0, 5)
    with pytest.raises(MetricError, match=r"an AUROC is out of range; got 1.2; expected 0 to 1"):
        auroc_standard_error(1.2, 5, 5)
    with pytest.raises(MetricError, match="level of an interval is out of range"):
        expected_half_width(5, 5, level=1.0)
    with pytest.raises(MetricError, match="half width and share lie between 0 and 1"):
        positives_needed(0.02, 1.0)
    with pytest.raises(MetricError, match="no cohort is large enough"):
        positives_needed(1e-7, 0.5)
