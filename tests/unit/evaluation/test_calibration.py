import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.calibration import calibration_curve, wilson


@given(st.integers(0, 50), st.integers(1, 50), st.sampled_from([0.5, 0.9, 0.95]))
def test_the_score_interval_equals_scipys(hits, trials, level):
    hits = min(hits, trials)
    expected = binomtest(hits, trials).proportion_ci(level, method="wilson")
    assert wilson(hits / trials, trials, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0])), min_size=1, max_size=80),
    st.integers(1, 12),
)
def test_bins_hold_every_row_once_and_part_no_ties(rows, bins):
    y, p = (np.array(column) for column in zip(*rows, strict=True))
    curve = calibration_curve(y, p, bins=bins)
    assert sum(row["n"] for row in curve) == len(rows)
    assert sum(row["n"] * row["observed"] for row in curve) == pytest.approx(y.sum())
    assert sum(row["n"] * row["predicted"] for row in curve) == pytest.approx(p.sum())
    assert [row["predicted"] for row in curve] == sorted(row["predicted"] for row in curve)
    assert len(curve) <= min(bins, len(np.unique(p)))
    assert all(0 <= row["low"] <= row["observed"] <= row["high"] <= 1 for row in curve)


def test_the_interval_holds_the_share_in_spite_of_rounding():
    for trials in range(1, 40):
        for share in (0.0, 1.0):
            low, high = wilson(share, trials)
            assert 0 <= low <= share <= high <= 1


def test_no_bins():
    with pytest.raises(MetricError, match="at least one bin"):
        calibration_curve([0, 1], [0.1, 0.2], bins=0)
