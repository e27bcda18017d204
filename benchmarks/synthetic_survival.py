"""What the best survival prediction would score on synthetic records: C, its pairwise bound and Brier, by horizon.

    python benchmarks/synthetic_survival.py DATA --task time_to:ICD10CM//I50 --horizons 365,730,1095

Ceilings: the oracle knows the full hidden state at the prediction time, once per held-out subject. Labels, and so
censoring, do not enter.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.oracle import oracle_frame
from ehrsequencing.evaluation.oracle import concordance_bound, expected_brier, expected_concordance
from ehrsequencing.tasks.cohorts import build_labels, parse_task


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", default="time_to:ICD10CM//I50")
    parser.add_argument("--horizons", default="365,730,1095")
    options = parser.parse_args()
    dataset = MedsDataset.open(options.data)
    labels, manifest = build_labels(dataset, parse_task(options.task))
    held_out = dataset.subject_splits().filter(split="held_out")
    rows = labels.join(held_out, on="subject_id", how="semi", maintain_order="left")
    horizons = tuple(int(days) for days in options.horizons.split(","))
    frame = oracle_frame(dataset, rows, manifest, horizons_days=horizons)
    wide = frame.select("ceiling").to_numpy().reshape(len(rows), len(horizons))
    error = float(frame.select(pl.col("ceiling_se").median()).item())
    print(f"{options.task}: {len(rows):,} held-out subjects, Monte-Carlo error of a probability {error:.4f}\n")
    print("| days | P(T <= days) | C of the ceiling | pairwise bound on C | Brier |\n|---|---|---|---|---|")
    for number, days in enumerate(horizons):
        until, risk = wide[:, : number + 1], wide[:, number]
        scores = (risk.mean(), expected_concordance(until, risk), concordance_bound(until), expected_brier(risk))
        print(f"| {days} | " + " | ".join(f"{score:.3f}" for score in scores) + " |")


if __name__ == "__main__":
    main()
