"""Our survival metrics are lifelines' and scikit-survival's, ties included, or equal a count of every pair."""

import warnings

import lifelines
import lifelines.datasets as datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines.utils import concordance_index as lifelines_concordance
from lifelines.utils import restricted_mean_survival_time
from sksurv import metrics as sksurv
from sksurv.nonparametric import cumulative_incidence_competing_risks
from sksurv.util import Surv

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.survival import (
    antolini_concordance,
    concordance_index,
    uno_concordance,
    wolbers_concordance,
)
from ehrsequencing.evaluation.survival_curves import (
    aalen_johansen,
    censoring_curve,
    kaplan_meier,
    nelson_aalen,
    restricted_mean,
)
from ehrsequencing.evaluation.survival_pairs import PairCounts
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction
from ehrsequencing.evaluation.survival_scores import brier_score, cumulative_auc, integrated_brier

CLOSE = {"rel": 1e-9, "abs": 1e-9}
TABLES = {
    "rossi": ("week", "arrest", "age"),
    "gbsg2": ("time", "cens", "age"),
    "lung": ("time", "status", "age"),
    "larynx": ("time", "death", "age"),
    "kidney_transplant": ("time", "death", "age"),
    "multicenter_aids_cohort_study": ("T", "D", "AIDSY"),
}


@st.composite
def outcomes(draw: st.DrawFn, causes: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """3 to 40 subjects: whole days (ties) or not, any share of events, risks with ties, infinite ones or none."""
    n = draw(st.integers(3, 40))

    def column(value: st.SearchStrategy) -> np.ndarray:
        return np.array(draw(st.lists(value, min_size=n, max_size=n)))

    day = draw(st.sampled_from([st.integers(1, 6).map(float), st.floats(0.5, 1000, width=32)]))
    risk = draw(st.sampled_from([st.integers(-2, 2).map(float), st.floats(-50, 50).map(lambda x: round(x, 4))]))
    return column(day), column(st.integers(0, causes)), column(risk)


def lifelines_table(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    frame = getattr(datasets, f"load_{name}")()
    duration, event, risk = (frame[column].to_numpy(dtype=float) for column in TABLES[name])
    known = np.isfinite(duration + risk) & (duration > 0)
    return duration[known], event[known] == event.max(), risk[known]


def sksurv_outcome(durations: np.ndarray, event: np.ndarray) -> np.ndarray:
    return Surv.from_arrays(event.astype(bool), durations)


@settings(deadline=None, max_examples=60)
@given(outcomes())
def test_harrells_c_equals_lifelines(drawn):
    durations, event, risk = drawn
    try:
        expected = lifelines_concordance(durations, -risk, event)
    except ZeroDivisionError:
        with pytest.raises(MetricError, match="without a comparable pair"):
            concordance_index(durations, event, risk)
        return
    assert concordance_index(durations, event, risk) == pytest.approx(expected, **CLOSE)


@settings(deadline=None, max_examples=60)
@given(outcomes(), st.sampled_from([None, 3.0, 5.0]))
def test_unos_c_equals_scikit_survivals(drawn, tau):
    durations, event, risk = drawn
    outcome = sksurv_outcome(durations, event) if event.any() else None
    try:
        with np.errstate(invalid="ignore"):
            expected = None if outcome is None else sksurv.concordance_index_ipcw(outcome, outcome, risk, tau=tau)[0]
    except (ValueError, sksurv.NoComparablePairException):
        expected = None
    # With tau before every event they divide 0 by 0.
    if expected is None or np.isnan(expected):
        with pytest.raises(MetricError):
            uno_concordance(durations, event, risk, tau=tau)
    else:
        assert uno_concordance(durations, event, risk, tau=tau) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_concordances_on_lifelines_tables(name):
    durations, event, risk = lifelines_table(name)
    outcome = sksurv_outcome(durations, event)
    tau = float(np.quantile(durations[event], 0.9))
    assert concordance_index(durations, event, risk) == pytest.approx(
        lifelines_concordance(durations, -risk, event), **CLOSE
    )
    assert concordance_index(durations, event, risk) == pytest.approx(
        sksurv.concordance_index_censored(event, durations, risk)[0], **CLOSE
    )
    assert uno_concordance(durations, event, risk, tau=tau) == pytest.approx(
        sksurv.concordance_index_ipcw(outcome, outcome, risk, tau=tau)[0], **CLOSE
    )


def test_scikit_survival_ties_risks_that_differ_by_a_hair():
    durations, event, risk = np.array([1.0, 2.0]), np.array([True, False]), np.array([1e-9, 0.0])
    assert concordance_index(durations, event, risk) == lifelines_concordance(durations, -risk, event) == 1
    assert sksurv.concordance_index_censored(event, durations, risk)[0] == 0.5


@settings(deadline=None, max_examples=60)
@given(outcomes(), st.integers(0, 2**32 - 1), st.booleans())
def test_brier_and_auc_equal_scikit_survivals(drawn, seed, other_subjects):
    durations, event, risk = drawn
    rng = np.random.default_rng(seed)
    horizons = np.unique(rng.uniform(durations.min(), durations.max(), size=3))
    if not event.any() or horizons[-1] >= durations.max():
        return
    outcome, given_curve = sksurv_outcome(durations, event), None
    train = outcome
    if other_subjects:
        days, seen = rng.integers(1, 2000, size=50).astype(float), rng.random(50) < 0.6
        train, given_curve = sksurv_outcome(days, seen), censoring_curve(days, seen)
    survival = np.minimum.accumulate(rng.random((len(durations), len(horizons))), axis=1)
    try:
        expected = sksurv.brier_score(train, outcome, survival, horizons)[1]
    except ValueError:
        return
    curve = given_curve or censoring_curve(durations, event)
    if curve.at([horizons[-1]])[0] == 0:
        # They drop the weights of everybody after the horizon; we refuse.
        with pytest.raises(MetricError, match="where nobody is uncensored any more"):
            brier_score(durations, event, 1 - survival, horizons, censoring=given_curve)
        return
    found = brier_score(durations, event, 1 - survival, horizons, censoring=given_curve)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    if len(horizons) > 1:
        assert integrated_brier(durations, event, 1 - survival, horizons, censoring=given_curve) == pytest.approx(
            sksurv.integrated_brier_score(train, outcome, survival, horizons), **CLOSE
        )
    for score in (risk, rng.integers(0, 4, size=(len(durations), len(horizons))).astype(float)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                areas, mean = sksurv.cumulative_dynamic_auc(train, outcome, score, horizons)
        except ValueError:
            # They want a weight of every event, those after the last horizon too.
            continue
        if np.isnan(areas).any():
            with pytest.raises(MetricError, match="AUC at a horizon needs cases and controls"):
                cumulative_auc(durations, event, score, horizons, censoring=given_curve)
        else:
            ours, our_mean = cumulative_auc(durations, event, score, horizons, censoring=given_curve)
            np.testing.assert_allclose(ours, areas, rtol=1e-9, atol=1e-9)
            assert our_mean == pytest.approx(mean, **CLOSE)


@settings(deadline=None, max_examples=30)
@given(outcomes())
def test_kaplan_meier_and_nelson_aalen_equal_lifelines(drawn):
    durations, event, _ = drawn
    theirs = lifelines.KaplanMeierFitter().fit(durations, event)
    ours = kaplan_meier(durations, event)
    np.testing.assert_allclose(ours.value, theirs.survival_function_.loc[ours.days].to_numpy()[:, 0], atol=1e-12)
    ends = theirs.confidence_interval_survival_function_.loc[ours.days].to_numpy()
    inner = (ours.value > 0) & (ours.value < 1)
    np.testing.assert_allclose(np.stack(ours.interval(ours.days), 1)[inner], ends[inner], atol=1e-9)
    hazard = lifelines.NelsonAalenFitter(nelson_aalen_smoothing=False).fit(durations, event)
    ours = nelson_aalen(durations, event)
    np.testing.assert_allclose(ours.value, hazard.cumulative_hazard_.loc[ours.days].to_numpy()[:, 0], atol=1e-12)
    ends = hazard.confidence_interval_.loc[ours.days].to_numpy()
    np.testing.assert_allclose(
        np.stack(ours.interval(ours.days), 1)[ours.value > 0], ends[ours.value > 0], rtol=1e-9, atol=1e-9
    )


@settings(deadline=None, max_examples=30)
@given(outcomes(causes=2))
def test_aalen_johansen_equals_lifelines_and_scikit_survivals(drawn):
    durations, cause, risk = drawn
    if not {1, 2} <= set(cause.tolist()):
        return
    with np.errstate(all="ignore"):
        _, theirs, ends = cumulative_incidence_competing_risks(
            cause, durations, conf_type="log-log", var_type="Dinse_Approx"
        )
    for k in (1, 2):
        ours = aalen_johansen(durations, cause, k)
        np.testing.assert_allclose(ours.value, theirs[k], atol=1e-12)
        # Where all at risk go at once, on the last day, they divide by 0.
        if (cause[durations == durations.max()] == 0).any():
            known = (ours.value > 0) & (ours.value < 1)
            np.testing.assert_allclose(np.stack(ours.interval(ours.days))[:, known], ends[k][:, known], atol=1e-9)
    untied = np.argsort(np.argsort(durations + 1e-9 * risk, kind="stable"), kind="stable") + 1.0
    if cause[np.argmax(untied)] == 0:
        theirs_one = lifelines.AalenJohansenFitter().fit(untied, cause, event_of_interest=1)
        ours = aalen_johansen(untied, cause)
        np.testing.assert_allclose(ours.variance, theirs_one.variance_.loc[ours.days], atol=1e-12)


def test_restricted_mean_equals_lifelines():
    durations, event, _ = lifelines_table("rossi")
    fitted = lifelines.KaplanMeierFitter().fit(durations, event)
    assert restricted_mean(durations, event, 40)[0] == pytest.approx(
        restricted_mean_survival_time(fitted, 40), abs=1e-9
    )


# What neither has, by counting every pair.


def brute_g(durations: np.ndarray, event: np.ndarray, day: float) -> float:
    """Not censored by a day, its events out of risk first."""
    g = 1.0
    for at in np.unique(durations[durations <= day]):
        censored = ((durations == at) & ~event).sum()
        g *= 1 - censored / max((durations >= at).sum() - ((durations == at) & event).sum(), 1)
    return g


def brute_pairs(durations: np.ndarray, cause: np.ndarray) -> list[tuple[int, int]]:
    pairs = []
    for i in np.flatnonzero(cause == 1):
        for j in range(len(durations)):
            later = durations[j] > durations[i] or (durations[j] == durations[i] and cause[j] == 0)
            if i != j and (later or cause[j] > 1):
                pairs.append((i, j))
    return pairs


def won(first: float, second: float) -> float:
    return 0.5 if abs(first - second) <= 1e-12 else float(first > second)


@settings(deadline=None, max_examples=60)
@given(outcomes(causes=3))
def test_wolbers_c_counts_every_pair(drawn):
    durations, cause, risk = drawn
    pairs = brute_pairs(durations, cause)
    if not pairs:
        with pytest.raises(MetricError, match="without a comparable pair"):
            wolbers_concordance(durations, cause, risk)
        return
    good = sum(won(risk[i], risk[j]) for i, j in pairs)
    assert wolbers_concordance(durations, cause, risk) == pytest.approx(good / len(pairs), **CLOSE)
    event = cause > 0
    if brute_g(durations, event, durations[cause == 1].max()) <= 0:
        with pytest.raises(MetricError, match="where nobody is uncensored any more"):
            wolbers_concordance(durations, cause, risk, weighted=True)
        return
    weights = [
        1
        / brute_g(durations, event, durations[i])
        / brute_g(durations, event, min(durations[i], durations[j]) if cause[j] > 1 else durations[i])
        for i, j in pairs
    ]
    good = sum(weight * won(risk[i], risk[j]) for weight, (i, j) in zip(weights, pairs, strict=True))
    assert wolbers_concordance(durations, cause, risk, weighted=True) == pytest.approx(good / sum(weights), **CLOSE)


@settings(deadline=None, max_examples=30)
@given(outcomes())
def test_without_competing_events_wolbers_c_is_harrells_and_unos(drawn):
    durations, event, risk = drawn
    for weighted, other in ((False, concordance_index), (True, uno_concordance)):
        try:
            expected = other(durations, event, risk)
        except MetricError:
            continue
        assert wolbers_concordance(durations, event, risk, weighted=weighted) == pytest.approx(expected, **CLOSE)


@st.composite
def curves(draw: st.DrawFn, causes: int) -> tuple[np.ndarray, np.ndarray, SurvivalPrediction]:
    """Outcomes and predictions that cross, with equal curves and hazards of one among them."""
    durations, cause, _ = draw(outcomes(causes=causes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hazards = rng.dirichlet(np.ones(causes + 1), size=(len(durations), 4)).transpose(0, 2, 1)[:, :causes]
    hazards[rng.random(len(durations)) < 0.3] = hazards[0]
    if draw(st.booleans()):
        hazards[-1, :, 1] = 1 / causes
    survival = np.cumprod(1 - hazards.sum(1), axis=1)
    before = np.concatenate([np.ones((len(durations), 1)), survival[:, :-1]], axis=1)
    return (
        durations,
        cause,
        SurvivalPrediction(np.array([1.5, 3.0, 4.0, 700.0]), survival, np.cumsum(hazards * before[:, None], axis=2)),
    )


@pytest.mark.parametrize("causes", [1, 2])
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_antolinis_c_counts_every_pair(causes, data):
    durations, cause, prediction = data.draw(curves(causes))
    pairs = [(i, j) for i, j in brute_pairs(durations, cause) if durations[i] <= 700]
    if not pairs:
        with pytest.raises(MetricError, match="without a comparable pair"):
            antolini_concordance(durations, cause, prediction)
        return
    days = np.unique(durations[durations <= 700])
    at = prediction.at(days)
    risk = -at.survival if causes == 1 else at.incidence[:, 0]
    good = sum(won(*risk[[i, j], np.searchsorted(days, durations[i])]) for i, j in pairs)
    assert antolini_concordance(durations, cause, prediction) == pytest.approx(good / len(pairs), **CLOSE)


@settings(deadline=None, max_examples=30)
@given(outcomes(causes=2), st.floats(0.5, 6), st.integers(0, 2**32 - 1))
def test_competing_brier_and_auc_count_every_subject(drawn, horizon, seed):
    durations, cause, risk = drawn
    event = cause > 0
    predicted = np.random.default_rng(seed).random(len(durations))
    if horizon > durations.max() or brute_g(durations, event, horizon) <= 0:
        with pytest.raises(MetricError, match="a horizon"):
            brier_score(durations, cause, predicted, horizon)
        return
    weights, case = np.zeros(len(durations)), (cause == 1) & (durations <= horizon)
    for i, day in enumerate(durations):
        if day > horizon:
            weights[i] = 1 / brute_g(durations, event, horizon)
        elif event[i]:
            weights[i] = 1 / brute_g(durations, event, day)
    expected = (weights * (case - predicted) ** 2).mean()
    assert brier_score(durations, cause, predicted, horizon)[0] == pytest.approx(expected, **CLOSE)
    pairs = [(i, j) for i in np.flatnonzero(case) for j in np.flatnonzero(~case & (weights > 0))]
    if not pairs:
        with pytest.raises(MetricError, match="needs cases and controls"):
            cumulative_auc(durations, cause, risk, horizon)
        return
    of_pair = np.array([weights[i] * weights[j] for i, j in pairs])
    good = of_pair @ [won(risk[i], risk[j]) for i, j in pairs]
    assert cumulative_auc(durations, cause, risk, horizon)[0][0] == pytest.approx(good / of_pair.sum(), **CLOSE)


@settings(deadline=None, max_examples=30)
@given(outcomes(), st.integers(0, 2**32 - 1))
def test_multiplicities_are_repeated_rows(drawn, seed):
    durations, event, risk = drawn
    times = np.random.default_rng(seed).integers(0, 4, size=(3, len(durations))).astype(float)
    kept = PairCounts(durations, event > 0, risk, keep=True)
    total, good = kept.sums(times, times)
    for row, repeats in enumerate(times.astype(int)):
        again = [np.repeat(column, repeats) for column in (durations, event, risk)]
        try:
            expected = lifelines_concordance(again[0], -again[2], again[1])
        except (ZeroDivisionError, ValueError):
            assert total[row] == 0
            continue
        assert good[row] / total[row] == pytest.approx(expected, **CLOSE)
