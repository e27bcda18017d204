"""The grid that is fitted to train, and the plan's losses and figures."""

import dataclasses

import numpy as np
import pytest
import torch
from test_plans import Source, batch, vocabulary

from ehrsequencing.config import FinetuneConfig, NvpOptions, SurvivalOptions, load_config
from ehrsequencing.data.sequences import Examples
from ehrsequencing.errors import ConfigError, LabelError
from ehrsequencing.evaluation.survival import concordance_index, wolbers_concordance
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.survival import BEHRTForSurvival
from ehrsequencing.training.next_visit import NextVisitPlan
from ehrsequencing.training.plans import rates
from ehrsequencing.training.survival import SurvivalGoal, SurvivalPlan, fit_grid

EDGES = (0.0, 30.0, 90.0, 365.0)


def examples(days, cause, causes=("event",)) -> Examples:
    n = len(days)
    target = np.stack([np.asarray(days, dtype=np.float64), np.asarray(cause, dtype=np.float64)], axis=1)
    return Examples(np.arange(n), np.zeros(n, dtype=np.int64), target, np.arange(n), causes=causes)


def labelled(causes: int = 1):
    generator = torch.Generator().manual_seed(3)
    days = torch.randint(1, 500, (64,), generator=generator).float()
    cause = torch.randint(0, causes + 1, (64,), generator=generator).float()
    return dataclasses.replace(batch(), targets=torch.stack((days, cause), dim=1))


def model(attention: str = "bidirectional", **options) -> BEHRTForSurvival:
    torch.manual_seed(0)
    config = BEHRTConfig.small(25, hidden_dim=16, embedding_dim=8, ffn_dim=16, attention=attention)
    return BEHRTForSurvival(config, edges_days=EDGES, **options).eval()


def test_the_horizon_is_the_runs_the_labels_or_the_follow_ups():
    days, cause = np.arange(1.0, 101.0), np.arange(100) % 2
    assert fit_grid(days, cause, SurvivalOptions(intervals=4))[0][-1] == 100
    assert fit_grid(days, cause, SurvivalOptions(intervals=4), horizon_days=60)[0][-1] == 60
    assert fit_grid(days, cause, SurvivalOptions(intervals=4), horizon_days=1000)[0][-1] == 100
    assert fit_grid(days, cause, SurvivalOptions(intervals=4, horizon_days=50.0), horizon_days=60)[0][-1] == 50
    with pytest.raises(
        ConfigError, match="survival.horizon_days lies beyond the follow-up of train; got 101 days; exp"
    ):
        fit_grid(days, cause, SurvivalOptions(horizon_days=101.0))
    with pytest.raises(LabelError, match="no event of train lies within 1 days; got 50 later ones"):
        fit_grid(days, cause, SurvivalOptions(horizon_days=1.0))


def test_merged_and_empty_intervals_are_noted():
    days = np.array([5.0] * 30 + [9.0] * 10)
    edges, notes = fit_grid(days, np.ones(40), SurvivalOptions(intervals=10))
    assert edges == [0, 5, 9]
    assert notes == ["the grid has 2 intervals, not 10: events that share a day share an interval"]
    edges, notes = fit_grid(days, np.ones(40), SurvivalOptions(intervals=9, grid="uniform"))
    assert np.diff(edges) == pytest.approx(1)
    assert notes == ["7 of 9 intervals hold no event of train: their hazards start near 0"]


def test_what_lies_beyond_the_grid_is_counted():
    config = load_config(FinetuneConfig, overrides={"survival.horizon_days": 20.0, "survival.intervals": 2})
    rows = examples([5, 10, 15, 30, 40], [1, 1, 1, 1, 0])
    goal = SurvivalGoal(config, {"train": rows, "tuning": examples([5, 50], [1, 1])}, {})
    assert goal.notes == [
        "2 of 5 durations of train lie beyond the grid's end at 20 days and are censored there; 1 were events",
        "1 of 2 durations of tuning lie beyond the grid's end at 20 days and are censored there; 1 were events",
    ]
    assert goal.config.survival.loss == "discrete"
    again = SurvivalGoal(goal.config, {"train": rows, "tuning": rows}, {})
    assert again.edges == goal.edges, "a resolved configuration gives the same grid"


@pytest.mark.parametrize("loss", ["discrete", "piecewise", "cox"])
@pytest.mark.parametrize("causes", [1, 2])
def test_validation_is_the_loss_of_all_and_a_concordance(loss, causes):
    made = labelled(causes)
    tested = model(loss=loss, causes=causes)
    plan = SurvivalPlan(tested, Source(made), Source(made))
    found = plan.validate(tested, torch.device("cpu"))
    value, sums = plan.step(tested, made, 0, 0)
    assert found["loss"] == pytest.approx(value.item(), rel=1e-5)
    assert rates(sums)["loss"] == pytest.approx(value.item(), rel=1e-6)
    logits = tested(**made.inputs(tested.config.input_names)).logits.detach()
    risk = plan.risk(logits.double()).numpy()
    days, cause = made.targets[:, 0].numpy(), made.targets[:, 1].numpy().astype(int)
    if causes == 1:
        assert found["c_harrell"] == concordance_index(days, cause == 1, risk)
    else:
        assert found["c_wolbers"] == wolbers_concordance(days, cause, risk)


def test_the_reported_loss_is_the_likelihood_and_the_rest_stands_beside():
    made = labelled()
    tested = model(ranking=0.7)
    plan = SurvivalPlan(tested, Source(made), Source(made))
    value, sums = plan.step(tested, made, 0, 0)
    found = rates(sums)
    assert value.item() == pytest.approx(found["loss"] + 0.7 * found["ranking_loss"], rel=1e-6)
    assert plan.validate(tested, torch.device("cpu"))["loss"] == pytest.approx(found["loss"], rel=1e-5)


@pytest.mark.parametrize("attention", ["bidirectional", "visit_causal"])
def test_the_auxiliary_of_next_visits_trains_the_encoder_and_its_own_head(attention):
    made = labelled()
    ids = torch.arange(made.codes.shape[1]) // 4
    made = dataclasses.replace(made, visit_ids=ids.expand_as(made.codes) * made.mask)
    tested = model(attention, next_visit=True)
    source = Source(made)
    mode = "causal" if attention == "visit_causal" else "prefix"
    nvp = NextVisitPlan(tested.config, source, source, vocabulary(), NvpOptions(mode=mode), seed=0)
    plan = SurvivalPlan(tested, source, source, nvp=nvp, nvp_weight=0.5)
    value, sums = plan.step(tested, made, 0, 0)
    found = rates(sums)
    assert value.item() == pytest.approx(found["loss"] + 0.5 * found["nvp_loss"], rel=1e-6)
    value.backward()
    for part in (tested.next_head, tested.hazards, tested.behrt):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
    assert set(plan.validate(tested, torch.device("cpu"))) == {
        "loss", "c_harrell", "nvp_loss", "nvp_cross_entropy", "nvp_recall_at_10",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"survival.reading": "visits", "survival.loss": "discrete"}, "visits are judged from when they were known"),
        ({"survival.ranking": 1.0, "survival.loss": "cox"}, "the ranking term is of the landmark's hazards"),
        ({"survival.sigma": 0.5}, "sigma is the scale of the ranking term"),
        ({"survival.visit_pooling": "last"}, "visit_pooling is of reading=visits"),
        ({"survival.nvp": 1.0, "architecture": "lstm"}, "architecture lstm has no head of next visits"),
        ({"survival.reading": "visits", "architecture": "lstm"}, "reads no single visits"),
        ({"survival.nvp": 1.0, "method": "probe"}, "method probe freezes what the auxiliary loss"),
        ({"survival.intervals": 0}, "survival.intervals: Input should be greater than or equal to 1"),
        ({"survival.horizon_days": 0.0}, "survival.horizon_days: Input should be greater than 0"),
        ({"survival.interval": 5}, r"unknown key 'survival.interval' \(did you mean 'survival.intervals'"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        load_config(FinetuneConfig, overrides=options)
