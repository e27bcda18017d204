"""Multi-label metrics equal scikit-learn's, on all rows and on every resample."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.metrics import f1
from ehrsequencing.evaluation.multilabel import (
    FEWEST_RESAMPLES,
    MOST_WORK,
    Thresholds,
    affordable_resamples,
    category_areas,
    choose_thresholds,
    evaluate_multilabel,
    multilabel_difference,
    recall_at,
)

TIGHT = {"rel": 1e-9, "abs": 1e-12}


def problem(rows=120, categories=7, seed=0, levels=None):
    """Outcomes, probabilities (on few levels for ties) and subjects of about three rows each."""
    rng = np.random.default_rng(seed)
    p = rng.random((rows, categories))
    p = p if levels is None else np.round(p * levels) / levels
    y = rng.random((rows, categories)) < 0.05 + 0.4 * p * np.linspace(0, 1, categories)
    return y, p, rng.integers(rows // 3, size=rows)


def by_hand(y, p, rows, cells, cut):
    """The metrics of these rows (repeated as drawn), category by category with scikit-learn."""
    both = [c for c in range(y.shape[1]) if 0 < (y & cells)[:, c].sum() < cells[:, c].sum()]
    auroc, auprc, f1_of = [], [], []
    for c in both:
        chosen = rows[cells[rows, c]]
        truth = y[chosen, c]
        if truth.any():
            f1_of.append(reference.f1_score(truth, p[chosen, c] >= cut.by_category[c]))
        if 0 < truth.sum() < len(truth):
            auroc.append(reference.roc_auc_score(truth, p[chosen, c]))
            auprc.append(reference.average_precision_score(truth, p[chosen, c]))
    inside = cells[rows][:, both]
    truth, score = y[rows][:, both][inside], p[rows][:, both][inside]
    return {
        "auroc_micro": reference.roc_auc_score(truth, score),
        "auroc_macro": np.mean(auroc),
        "auprc_micro": reference.average_precision_score(truth, score),
        "auprc_macro": np.mean(auprc),
        "f1_micro": reference.f1_score(truth, score >= cut.common),
        "f1_macro": np.mean(f1_of),
    }


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("part", [False, True])
def test_values_and_every_resample_are_those_of_scikit_learn(levels, part):
    y, p, subjects = problem(levels=levels)
    cells = np.random.default_rng(5).random(y.shape) < 0.6 if part else np.ones(y.shape, dtype=bool)
    cut = Thresholds(0.5, np.linspace(0.2, 0.7, y.shape[1]))
    found = evaluate_multilabel(y, [p], subjects, thresholds=[cut], cells=cells if part else None, resamples=40)
    for name, value in by_hand(y, p, np.arange(len(y)), cells, cut).items():
        assert found.estimates[name].value == pytest.approx(value, **TIGHT), name
    rng = np.random.default_rng(0)
    distinct = np.unique(subjects)
    for resample in range(40):
        drawn = distinct[rng.integers(len(distinct), size=len(distinct))]
        rows = np.concatenate([np.flatnonzero(subjects == subject) for subject in drawn])
        for name, value in by_hand(y, p, rows, cells, cut).items():
            assert found.samples[name][0, resample] == pytest.approx(value, rel=1e-6), (name, resample)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([1, 2, None]))
def test_tiny_tables_keep_to_their_range(rows, categories, seed, levels):
    y, p, _ = problem(rows + 1, categories, seed, levels)
    try:
        found = evaluate_multilabel(y, [p], np.arange(len(y)), at=(1, 2), resamples=8)
    except MetricError as problem_of_data:
        both = y.any(0) & ~y.all(0)
        assert not both.any() or "no resample" in str(problem_of_data)
        return
    for estimate in found.estimates.values():
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_recall_at_k_is_the_share_found_and_ties_count_by_what_fits():
    y = np.array([[True, True, False, False], [False, True, False, False], [False] * 4])
    p = np.array([[0.9, 0.1, 0.8, 0.2], [0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.1, 0.1]])
    assert recall_at(y, p, 2).tolist() == [0.5, 0.5, 0]
    assert recall_at(y, p, 4).tolist() == [1, 1, 0]
    found = evaluate_multilabel(y, [p], [1, 2, 3], at=(2,), resamples=50).estimates["recall_at_2"]
    assert found.value == 1, "of the two categories that some have and some lack"


def test_cells_outside_the_population_are_neither_ranked_nor_found():
    y, p, subjects = problem()
    cells = np.random.default_rng(1).random(y.shape) < 0.5
    other = np.where(cells, p, 0.999)
    one = evaluate_multilabel(y, [p], subjects, at=(2,), cells=cells, resamples=30)
    two = evaluate_multilabel(y | ~cells, [other], subjects, at=(2,), cells=cells, resamples=30)
    assert one.estimates == two.estimates


def test_a_category_without_positives_changes_nothing():
    y, p, subjects = problem()
    more = np.column_stack([y, np.zeros(len(y), dtype=bool), np.ones(len(y), dtype=bool)])
    found = evaluate_multilabel(more, [np.column_stack([p, p[:, :2]])], subjects, resamples=30)
    assert found.estimates == evaluate_multilabel(y, [p], subjects, resamples=30).estimates
    assert found.estimates["auroc_macro"].categories == y.shape[1]
    assert found.estimates["auroc_macro"].positives == y.sum()


def test_seeds_are_averaged_and_widen_the_interval():
    y, p, subjects = problem(300)
    noise = [np.clip(p + np.random.default_rng(seed).normal(scale=0.4, size=p.shape), 0, 1) for seed in range(3)]
    alone = [evaluate_multilabel(y, [q], subjects, resamples=60).estimates["auroc_macro"] for q in noise]
    together = evaluate_multilabel(y, noise, subjects, resamples=60).estimates["auroc_macro"]
    assert together.value == pytest.approx(np.mean([one.value for one in alone]))
    assert together.seeds == 3


def test_a_difference_is_paired():
    y, p, subjects = problem(300)
    worse = np.clip(p + np.random.default_rng(0).normal(scale=0.05, size=p.shape), 0, 1)
    a, b = (evaluate_multilabel(y, [q], subjects, resamples=200) for q in (p, worse))
    same = multilabel_difference(a, a, "auroc_macro")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    found = multilabel_difference(a, b, "auroc_macro")
    assert found.value == pytest.approx(a.estimates["auroc_macro"].value - b.estimates["auroc_macro"].value)
    alone = a.estimates["auroc_macro"]
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    with pytest.raises(MetricError, match="unknown metric; got f1_macro"):
        multilabel_difference(a, b, "f1_macro")
    with pytest.raises(MetricError, match="needs the same rows"):
        multilabel_difference(a, evaluate_multilabel(y[1:], [p[1:]], subjects[1:], resamples=200), "auroc_macro")


def test_few_subjects_with_a_positive_widen_the_interval():
    y = np.zeros((200, 2), dtype=bool)
    y[:3, 0] = True
    p = np.where(y, 0.9, 0.1)
    found = evaluate_multilabel(y, [p], np.arange(200), resamples=50).estimates["auroc_macro"]
    assert (found.value, found.high) == (1, 1)
    assert found.low < 0.6


def test_thresholds_are_the_best_of_tuning_and_rare_categories_share_one():
    y, p, _ = problem(400)
    y[:, 1] = False
    y[:9, 1] = True
    chosen = choose_thresholds(y, p)
    assert chosen.by_category[1] == chosen.common
    grid = np.unique(p[:, 5])
    best = max(f1(y[:, 5], p[:, 5], threshold) for threshold in grid)
    assert f1(y[:, 5], p[:, 5], chosen.by_category[5]) == pytest.approx(best)
    assert f1(y.ravel(), p.ravel(), chosen.common) >= f1(y.ravel(), p.ravel(), 0.5)


def test_areas_by_category_leave_out_what_is_undefined():
    y, p, _ = problem()
    y[:, 2] = False
    auroc, auprc = category_areas(y, p)
    assert np.isnan(auroc[2]) and np.isnan(auprc[2])
    assert auroc[4] == pytest.approx(reference.roc_auc_score(y[:, 4], p[:, 4]), **TIGHT)
    assert auprc[4] == pytest.approx(reference.average_precision_score(y[:, 4], p[:, 4]), **TIGHT)


def test_large_tables_get_fewer_resamples():
    assert affordable_resamples(int(MOST_WORK / 500), 1000) == 500
    assert affordable_resamples(10**12, 1000) == FEWEST_RESAMPLES
    assert affordable_resamples(10**12, 100) == 100


def test_what_cannot_be_judged_is_an_error():
    y, p, subjects = problem()
    with pytest.raises(MetricError, match="two tables of one shape"):
        evaluate_multilabel(y, [p[:, :3]], subjects)
    with pytest.raises(MetricError, match="lie in .0, 1.; got 1 of 840"):
        evaluate_multilabel(y, [np.where(np.arange(p.size).reshape(p.shape) == 3, np.nan, p)], subjects)
    with pytest.raises(MetricError, match="name the subject of every row"):
        evaluate_multilabel(y, [p], subjects[1:])
    with pytest.raises(MetricError, match="at least two; got 1"):
        evaluate_multilabel(y, [p], np.zeros(len(y)))
    with pytest.raises(MetricError, match="no category has both classes; got 0 positives in 840 cells"):
        evaluate_multilabel(np.zeros_like(y), [p], subjects)
    with pytest.raises(MetricError, match="one per seed"):
        evaluate_multilabel(y, [p, p], subjects, thresholds=[choose_thresholds(y, p)])
