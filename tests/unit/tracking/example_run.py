"""A run directory with every section of a report, of figures made up for the layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.tracking.report_data import write_report_data

TASK = "heart_failure_1y"
MODELS = ("behrt_lora", "behrt_scratch", "logistic_regression", "xgboost", "random_forest")


def _entry(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": 1224, "positives": 74, "subjects": 310}


def metrics() -> dict[str, dict[str, dict[str, Any]]]:
    auroc = (0.842, 0.801, 0.823, 0.836, 0.818)
    table = {
        model: {
            f"{TASK}/auroc": _entry(value, 0.041),
            f"{TASK}/auprc": _entry(value - 0.53, 0.06),
            f"{TASK}/brier": _entry(0.9 - value, 0.008),
            f"{TASK}/ece": _entry(0.86 - value + 0.03, 0.01),
            f"{TASK}/f1": _entry(value - 0.45, 0.05),
        }
        for model, value in zip(MODELS, auroc, strict=True)
    }
    table["behrt_lora"] |= {
        "mlm/mlm_loss": {"value": 2.214, "low": 2.171, "high": 2.257, "n": 48211},
        "mlm/mlm_accuracy": {"value": 0.432, "n": 48211},
        "mlm/mlm_top10": {"value": 0.781, "n": 48211, "higher_is_better": True},
    }
    return table


def _roc(strength: float) -> dict[str, list[float]]:
    x = np.linspace(0, 1, 400)
    return {"x": x.tolist(), "y": (x ** (1 / strength)).tolist()}


def report_data() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    curves = {
        name: {
            "train_loss": [[epoch, 1.6 * 0.85**epoch + 0.9] for epoch in range(12)],
            "val_loss": [[epoch, 1.6 * 0.85**epoch + 1.0 + 0.05 * rng.random()] for epoch in range(12)],
        }
        for name in ("pretraining", *MODELS[:2])
    }
    curves["pretraining"]["val_accuracy"] = [[epoch, 0.43 * (1 - 0.7**epoch)] for epoch in range(12)]
    bins = np.linspace(0.01, 0.22, 10)
    calibration = {
        model: [
            {
                "predicted": p,
                "observed": max(0.0, p + rng.normal(0, 0.012)),
                "low": max(0.0, p - 0.03),
                "high": p + 0.035,
                "n": 122,
            }
            for p in bins.tolist()
        ]
        for model in MODELS[:3]
    }
    pairs = (("xgboost", 0.006, -0.018, 0.029), ("behrt_scratch", 0.041, 0.012, 0.070))
    return {
        "title": "Heart failure within a year, on synthetic records",
        "models": [
            {
                "model": "behrt_lora",
                "name": "BEHRT, pretrained + LoRA",
                "kind": "transformer",
                "trainable_parameters": 41_601,
                "total_parameters": 612_993,
                "seconds": 41.2,
            },
            {
                "model": "behrt_scratch",
                "name": "BEHRT, from scratch",
                "kind": "transformer",
                "trainable_parameters": 571_521,
                "total_parameters": 571_521,
                "seconds": 63.0,
            },
            {"model": "logistic_regression", "name": "Logistic regression", "kind": "baseline", "seconds": 2.1},
            {"model": "xgboost", "name": "XGBoost", "kind": "baseline", "seconds": 5.9},
            {"model": "random_forest", "name": "Random forest", "kind": "baseline", "seconds": 3.3},
        ],
        "curves": curves,
        "floors": [
            {"name": "Uniform over used codes", "loss": 6.118, "accuracy": 0.002, "top10": 0.022},
            {"name": "Unigram", "loss": 3.551, "accuracy": 0.159, "top10": 0.402},
            {"name": "Copy from own history", "loss": 2.781, "accuracy": 0.271, "top10": 0.655},
        ],
        "differences": [
            {"a": "behrt_lora", "b": b, "metric": f"{TASK}/auroc", "value": v, "low": low, "high": high, "n": 1224}
            for b, v, low, high in pairs
        ],
        "roc": {model: _roc(5.2 - 0.4 * index) for index, model in enumerate(MODELS)},
        "pr": {
            model: {"x": np.linspace(0, 1, 50).tolist(), "y": (0.06 + 0.7 * (1 - np.linspace(0, 1, 50)) ** 2).tolist()}
            for model in MODELS[:2]
        },
        "calibration": calibration,
        "confusion": {
            "classes": ["no heart failure", "heart failure"],
            "counts": [[1050, 100], [30, 44]],
            "model": "behrt_lora",
            "threshold": 0.118,
        },
        "parameters": {
            "behrt_lora": {
                "pretrained": {"embeddings": 555_008, "encoder layer 0": 65_792, "encoder layer 1": 65_792},
                "from_scratch": {"encoder layer 0": 8_192, "encoder layer 1": 8_192, "head": 129},
                "frozen": {"embeddings": 555_008, "encoder layer 0": 65_792, "encoder layer 1": 65_792},
                "received_gradient": {"encoder layer 0": 8_192, "encoder layer 1": 8_192, "head": 129},
            }
        },
        "cohort": {
            "flow": [
                {"step": "All subjects", "count": 3200},
                {"step": "At least one year of history", "count": 2915, "subjects": 1977},
                {"step": "No heart failure before the prediction time", "count": 2741},
                {"step": "Followed for a year, or event before", "count": 2690},
            ],
            "note": "Subjects who die within the year without heart failure count as negative.",
        },
        "data": {
            "Subjects": 3200,
            "Events": 412_880,
            "Codes in use": 512,
            "Median events per subject": 97.0,
            "Fingerprint": "6f1c2b7e9d",
        },
        "baselines": {
            "xgboost": {
                "features": "4,812 counts, last values, recency, demographics",
                "grid": [
                    {"max_depth": 3, "learning_rate": 0.05, "log_loss": 0.1931, "auroc": 0.829},
                    {"max_depth": 6, "learning_rate": 0.05, "log_loss": 0.1988, "auroc": 0.817},
                ],
                "chosen": {"max_depth": 3, "learning_rate": 0.05, "log_loss": 0.1931},
            },
            "prevalence": {"features": 0, "grid": {"nothing": [1, 2]}, "chosen": None},
        },
        "caveats": ["The records are synthetic: nothing here says how the models do on real patients."],
        "commands": [
            "ehrseq synth data/meds --subjects 3200 --seed 0",
            "ehrseq prepare data/meds data/store",
            "ehrseq pretrain data/store --out runs/pretrain",
            "ehrseq finetune data/store labels.parquet --from runs/pretrain --method lora --out runs/lora",
        ],
    }


def write_example_run(folder: Path) -> Path:
    """Write the run and return its directory."""
    with ExperimentTracker("demo", folder) as tracker:
        tracker.log_hyperparameters({"lr": 1e-3, "epochs": 12, "lora": {"rank": 8, "alpha": 16}})
        tracker.log_metadata({"device": "cpu", "fingerprint": "6f1c2b7e9d0a"})
        for epoch in range(4):
            tracker.log_metrics({"train_loss": 3.0 - epoch / 4, "val_loss": 3.1 - epoch / 5}, epoch)
        tracker.save_summary(metrics())
        write_report_data(tracker.run_dir, report_data())
    return tracker.run_dir
