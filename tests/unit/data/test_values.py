import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import percentileofscore

from ehrsequencing.data.values import GRID_POINTS, MAX_DISCRETE_BINS, ValueStatistics
from ehrsequencing.errors import StoreError


def fit(groups, *, value_bins=5, min_count=5, **options):
    """Statistics of {(code, unit): values}."""
    histograms = [np.unique(np.asarray(values, dtype=np.float32), return_counts=True) for values in groups.values()]
    return ValueStatistics.fit(
        [code for code, _ in groups],
        [unit for _, unit in groups],
        np.concatenate([[0], np.cumsum([len(distinct) for distinct, _ in histograms])]).astype(np.int64),
        np.concatenate([distinct for distinct, _ in histograms]),
        np.concatenate([counts for _, counts in histograms]),
        value_bins=value_bins,
        min_count=min_count,
        **options,
    )


def bins_of(statistics, values, row=0):
    return statistics.bin(np.full(len(values), row), np.asarray(values, dtype=np.float32)).tolist()


def test_continuous_values_fall_in_bins_of_equal_mass():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    bins = bins_of(fit({("A", ""): values}), values)
    assert np.bincount(bins).tolist() == [0, 200, 200, 200, 200, 200]


finite = st.floats(-1e6, 1e6, width=32)


@given(st.lists(finite, min_size=1, max_size=300), st.lists(finite, min_size=1, max_size=20))
def test_percentiles_and_distribution_agree_with_the_definition_and_scipy(values, probes):
    values = np.asarray(values, dtype=np.float32)
    statistics = fit({("A", ""): values})
    # The inverted distribution in integers: numpy's own takes 0.28 * 25 for more than 7.
    ranks = -(-np.arange(GRID_POINTS) * len(values) // 100)
    np.testing.assert_array_equal(statistics.grid[0], np.sort(values)[np.maximum(ranks, 1) - 1])
    assert statistics.n[0] == len(values)
    np.testing.assert_allclose(statistics.mean[0], values.mean(dtype=np.float64), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(statistics.sd[0], values.std(dtype=np.float64), rtol=1e-6, atol=1e-6)
    probes = np.sort(np.concatenate([np.asarray(probes, dtype=np.float32), values]))
    shares = statistics.cdf(np.zeros(len(probes), dtype=int), probes)
    weak = percentileofscore(values.astype(np.float64), probes.astype(np.float64), kind="weak") / 100
    assert (np.diff(shares) >= 0).all()
    assert (shares >= 0).all() and (shares <= 1).all()
    np.testing.assert_array_equal(shares[probes >= values.max()], 1.0)
    np.testing.assert_array_equal(shares[probes < values.min()], 0.0)
    # Between two observed values the distribution is flat and ours a line, so the bound holds at the values.
    observed = np.isin(probes, values)
    np.testing.assert_allclose(shares[observed], weak[observed], atol=0.01 + 1e-6)


@given(st.lists(finite, min_size=1, max_size=200), st.integers(2, 12))
def test_bins_are_ordered_contiguous_and_none_is_empty(values, value_bins):
    statistics = fit({("A", ""): values}, value_bins=value_bins)
    ordered = bins_of(statistics, np.sort(np.asarray(values, dtype=np.float32)))
    assert set(ordered) == set(range(1, max(ordered) + 1))
    assert ordered == sorted(ordered)
    assert max(ordered) <= max(value_bins, MAX_DISCRETE_BINS)
    assert bins_of(statistics, [-2e6, 2e6]) == [1, max(ordered)]


def test_counts_have_a_bin_per_value_as_far_as_there_is_mass():
    visits = np.repeat([0, 1, 2, 3, 4, 5, 6, 7, 21], [600, 200, 100, 50, 20, 8, 6, 5, 3])
    assert bins_of(fit({("VISITS", ""): visits}), [0, 1, 2, 3, 4]) == [1, 2, 3, 4, 5]
    tail = bins_of(fit({("VISITS", ""): visits}), [5, 6, 7, 21, 40])
    assert tail == sorted(tail) and tail[0] > 5 and tail[-1] <= 7
    counts = np.bincount(bins_of(fit({("VISITS", ""): visits}), visits))[1:]
    assert counts.min() >= 0.01 * len(visits)


def test_min_count_asks_for_more_than_the_share_where_data_are_few():
    assert fit({("A", ""): [0] * 10 + [1] * 4}, min_count=5).bins == 1
    assert fit({("A", ""): [0] * 10 + [1] * 4}, min_count=4).bins == 2


def test_a_few_distinct_values_get_twelve_bins_at_most_or_as_many_as_asked():
    days = np.repeat(np.arange(1, 15), np.arange(28, 0, -2))
    assert fit({("DAYS", ""): days}).bins == MAX_DISCRETE_BINS
    assert fit({("DAYS", ""): days}, max_discrete_bins=5).bins == 5


def test_ties_narrow_the_quantile_bins():
    values = np.concatenate([np.zeros(700), np.arange(1, 301)])
    assert bins_of(fit({("A", ""): values}), [0, 1, 100, 101, 300]) == [1, 2, 2, 3, 3]


def test_a_constant_has_one_bin_and_is_the_largest_value():
    statistics = fit({("A", ""): [7.5] * 40})
    assert bins_of(statistics, [1, 7.5, 9]) == [1, 1, 1]
    assert statistics.cdf(np.zeros(3, dtype=int), np.array([1, 7.5, 9])).tolist() == [0, 1, 1]
    assert (statistics.mean[0], statistics.sd[0]) == (7.5, 0)


def test_units_are_kept_apart_and_unknown_pairs_have_neither_bin_nor_share():
    statistics = fit({("GLUCOSE", "mg/dL"): np.arange(50, 250), ("GLUCOSE", "mmol/L"): np.arange(50, 250) / 18})
    rows = statistics.rows(["GLUCOSE", "GLUCOSE", "GLUCOSE", "OTHER"], ["mg/dL", "mmol/L", "", "mg/dL"])
    assert rows.tolist() == [0, 1, -1, -1]
    value = np.array([7, 7, 7, 7], dtype=np.float32)
    assert statistics.bin(rows, value).tolist() == [1, 2, 0, 0]
    shares = statistics.cdf(rows, value)
    np.testing.assert_allclose(shares[:2], [0, 0.385], atol=0.01)
    assert np.isnan(shares[2:]).all()


def test_missing_values_have_neither_bin_nor_share():
    statistics = fit({("A", ""): np.arange(100)})
    assert bins_of(statistics, [np.nan]) == [0]
    assert np.isnan(statistics.cdf(np.array([0]), np.array([np.nan])))


def test_nothing_to_fit_is_no_error():
    statistics = ValueStatistics([], [], [], [], [], [], [])
    assert (len(statistics), statistics.bins) == (0, 0)
    assert statistics.bin(np.array([-1]), np.array([3.0])).tolist() == [0]
    assert np.isnan(statistics.cdf(np.array([-1]), np.array([3.0]))).all()


def test_extension_keeps_old_rows():
    old, new = (
        fit({("A", ""): np.arange(100)}),
        fit({("A", ""): np.zeros(9), ("B", "g"): [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]}),
    )
    extended = old.extend(new)
    assert extended.rows(["A", "B"], ["", "g"]).tolist() == [0, 1]
    np.testing.assert_array_equal(extended.grid[0], old.grid[0])
    assert bins_of(extended, [0, 50, 99]) == bins_of(old, [0, 50, 99])
    assert bins_of(extended, [1, 2], row=1) == bins_of(new, [1, 2], row=1) == [1, 2]


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    values = np.random.default_rng(1).lognormal(size=500).astype(np.float32)
    statistics = fit({("Ä", "µg"): values, ("B", ""): [0.1] * 9})
    statistics.save(tmp_path / "values.json")
    loaded = ValueStatistics.load(tmp_path / "values.json")
    for name in ("n", "mean", "sd", "grid", "edges"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(statistics, name))
    assert (loaded.codes, loaded.units, loaded.hash) == (statistics.codes, statistics.units, statistics.hash)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"edges": [', '"edges": [-9.0, ', "was changed"),
        ('"unit"', '"un"', "no value statistics"),
        ("]}", "", "not readable JSON"),
        ('"values"', '"v"', "no value statistics"),
    ],
)
def test_damaged_files_are_refused(tmp_path, old, new, message):
    path = tmp_path / "values.json"
    fit({("A", ""): np.arange(100)}).save(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(StoreError, match=message):
        ValueStatistics.load(path)
