"""Plain words claim what the intervals carry and nothing more."""

from __future__ import annotations

import pytest

from ehrsequencing.tracking.words import best_model, plain_words, primary_key

ROWS = [
    {"model": "behrt", "name": "BEHRT", "kind": "transformer"},
    {"model": "xgb", "name": "XGBoost", "kind": "baseline"},
    {"model": "lr", "name": "Logistic regression", "kind": "baseline"},
]


def entry(value: float, half: float = 0.04, **more) -> dict:
    return {"value": value, "low": value - half, "high": value + half, "n": 1000, "positives": 250} | more


def summary(behrt: float, xgb: float, metric: str = "auroc", **more) -> dict:
    return {
        "metrics": {"behrt": {f"hf/{metric}": entry(behrt, **more)}, "xgb": {f"hf/{metric}": entry(xgb, **more)}},
    }


def pair(value: float, low: float, high: float, metric: str = "hf/auroc") -> dict:
    return {"a": "behrt", "b": "xgb", "metric": metric, "value": value, "low": low, "high": high}


def say(*args, **options) -> str:
    return "\n".join(plain_words(*args, models=ROWS, **options))


def test_an_interval_over_zero_tells_nothing_apart():
    text = say(summary(0.82, 0.81), differences=[pair(0.01, -0.01, 0.03)])
    assert "BEHRT has the highest AUROC, 0.820 (0.780 to 0.860)" in text
    assert "AUROC +0.010 (-0.010 to +0.030)" in text
    assert "the interval of the difference includes zero: these data do not tell them apart" in text
    assert "a benefit of the best larger model (BEHRT) over the best baseline (XGBoost) is not shown here" in text
    assert "excludes zero" not in text and "beats" not in text


@pytest.mark.parametrize("bound", [0.0, -0.0])
def test_an_interval_that_touches_zero_includes_it(bound):
    assert "includes zero" in say(summary(0.82, 0.80), differences=[pair(0.02, bound, 0.04)])


def test_an_interval_beyond_zero_names_the_better_one_by_the_metric_direction():
    better = say(summary(0.85, 0.80), differences=[pair(0.05, 0.02, 0.08)])
    assert "excludes zero: BEHRT is the better one" in better
    assert "So the best larger model (BEHRT) beats the best baseline (XGBoost) here." in better
    lower = say(summary(0.10, 0.15, "brier"), differences=[pair(-0.05, -0.08, -0.02, "hf/brier")])
    assert "BEHRT has the lowest Brier score, 0.100" in lower
    assert "excludes zero: BEHRT is the better one" in lower
    assert "(BEHRT) beats the best baseline" in lower


def test_a_baseline_that_wins_is_said_to_win():
    text = say(summary(0.75, 0.80), differences=[pair(-0.05, -0.08, -0.02)])
    assert "XGBoost has the highest AUROC" in text
    assert "the best baseline (XGBoost) beats every larger model here: the larger model was not worth it" in text


def test_a_difference_is_read_the_same_way_round_or_the_other():
    turned = {"a": "xgb", "b": "behrt", "metric": "hf/auroc", "value": -0.05, "low": -0.08, "high": -0.02}
    assert "BEHRT is the better one" in say(summary(0.85, 0.80), differences=[turned])
    assert "(BEHRT) beats the best baseline" in say(summary(0.85, 0.80), differences=[turned])


def test_without_a_paired_difference_no_model_is_called_better():
    text = say(summary(0.9, 0.6))
    assert "does not tell whether any of these models is better" in text
    assert "beats" not in text and "better one" not in text


def test_larger_model_and_baseline_that_were_never_paired_leave_the_question_open():
    metrics = {model: {"hf/auroc": entry(value)} for model, value in (("behrt", 0.8), ("xgb", 0.79), ("lr", 0.7))}
    difference = pair(0.1, 0.05, 0.15) | {"b": "lr"}
    assert "whether the larger model was worth it stays open" in say({"metrics": metrics}, differences=[difference])


def test_few_positives_limit_what_is_known():
    few = say(summary(0.8, 0.7, positives=64))
    assert "only 64 positives" in few and "plus or minus 0.040" in few and "cannot settle small differences" in few
    many = say(summary(0.8, 0.7, positives=2500))
    assert "There are 2,500 positives" in many and "only" not in many.split("There are")[1]
    assert "1,000 held-out predictions, 64 of them positive (6.4%)" in few


def test_an_auroc_around_a_half_is_guessing():
    assert "cannot be told from guessing" in say(summary(0.52, 0.50))
    assert "cannot be told from guessing" not in say(summary(0.62, 0.50))


def test_figures_without_intervals_say_so():
    text = say({"metrics": {"behrt": {"hf/auroc": {"value": 0.8, "n": 10}}}})
    assert "BEHRT reaches AUROC 0.800" in text
    assert "No interval was computed" in text
    assert "Intervals are" not in text


def test_models_judged_on_different_rows_do_not_compare():
    metrics = {"behrt": {"hf/auroc": entry(0.8)}, "xgb": {"hf/auroc": entry(0.7) | {"n": 900}}}
    assert "not judged on the same number of rows" in say({"metrics": metrics})


def test_auprc_stands_beside_what_guessing_scores():
    metrics = {
        "behrt": {"hf/auroc": entry(0.8), "hf/auprc": entry(0.4)},
        "xgb": {"hf/auroc": entry(0.7), "hf/auprc": entry(0.5)},
    }
    text = say({"metrics": metrics})
    assert "XGBoost has the best AUPRC, 0.500 (0.460 to 0.540), where guessing scores 0.250" in text
    assert "AUROC is the chance that a randomly chosen positive" in text and "AUPRC is the average share" in text


def test_many_intervals_are_not_corrected():
    metrics = {f"m{i}": {"hf/auroc": entry(0.7 + i / 100)} for i in range(6)}
    pairs = [pair(0.05, 0.01, 0.1) | {"a": "m5", "b": f"m{i}"} for i in range(5)]
    assert "one in twenty" in say({"metrics": metrics}, differences=pairs)


MLM = {"metrics": {"behrt": {"mlm/mlm_loss": {"value": 2.2}, "mlm/mlm_accuracy": {"value": 0.43}}}}
FLOORS = [
    {"name": "uniform", "loss": 6.1, "accuracy": 0.002},
    {"name": "copy", "loss": 2.8, "accuracy": 0.27},
]


def test_masked_codes_beside_their_floors():
    assert "It beats every floor that needs no model: uniform (loss 6.100, accuracy 0.2%)" in say(MLM, floors=FLOORS)
    hard = [*FLOORS, {"name": "unigram", "loss": 2.1, "accuracy": 0.5}]
    text = say(MLM, floors=hard)
    assert "does not beat every floor" in text and "fails against unigram in loss and accuracy" in text
    assert "nothing beyond it has been learned" in text and "It beats" not in text
    assert "cannot be judged" in say(MLM)
    assert "fails against copy in accuracy" in say(MLM, floors=[{"name": "copy", "loss": 2.8, "accuracy": 0.43}])


def test_seeds_behind_the_figures_are_stated():
    assert "each model was trained once" in say(summary(0.8, 0.7))
    assert "Figures rest on 3 trainings per model" in say(summary(0.8, 0.7, seeds=[0, 1, 2]))


def test_nothing_to_say_is_nothing_said():
    assert plain_words({}) == [] and plain_words({"metrics": {}}) == []


def test_the_best_model_respects_the_direction():
    values = {"a": {"value": 0.2, "higher_is_better": False}, "b": {"value": 0.1, "higher_is_better": False}}
    assert best_model(values, "x/own_error") == "b"
    assert primary_key(["hf/brier", "hf/auprc", "hf/auroc"]) == "hf/auroc"


def test_floors_may_come_as_baseline_models_and_are_not_praised_themselves():
    floors = {
        "Unigram": {"mlm/mlm_loss": {"value": 3.5}, "mlm/mlm_accuracy": {"value": 0.16}},
        "Copy": {"mlm/mlm_loss": {"value": 2.8}, "mlm/mlm_accuracy": {"value": 0.27}},
    }
    rows = [*ROWS, {"model": "Unigram", "kind": "baseline"}, {"model": "Copy", "kind": "baseline"}]
    summary = {"metrics": MLM["metrics"] | floors}
    for given in ((), [{"name": "unigram", "loss": 3.5, "accuracy": 0.16}]):
        paragraphs = plain_words(summary, floors=given, models=rows)
        assert len(paragraphs) == 1 and "BEHRT names 43.0%" in paragraphs[0] and "It beats every floor" in paragraphs[0]


def test_figures_on_tuning_are_not_called_held_out():
    text = say({"metrics": {"behrt": {"tuning:hf/auroc": entry(0.8)}}})
    assert "Hf, on tuning: judged on 1,000 tuning predictions" in text and "held-out" not in text
