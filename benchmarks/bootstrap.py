"""How fast intervals are: our bootstrap over subjects beside a loop that calls scikit-learn on the drawn rows.

    python benchmarks/bootstrap.py [--rows 10000] [--subjects 5000] [--resamples 1000] [--loop 50]

The loop runs a part of the resamples and is scaled up. Both draw the same subjects, so they find the same values.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn import metrics as reference

from ehrsequencing.evaluation.bootstrap import evaluate

REFERENCE = {
    "auroc": reference.roc_auc_score,
    "auprc": reference.average_precision_score,
    "brier": reference.brier_score_loss,
    "f1": lambda y, p: reference.f1_score(y, p >= 0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--subjects", type=int, default=5_000)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--loop", type=int, default=50)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1, size=arguments.rows)
    y = rng.random(arguments.rows) < 1 / (1 + np.exp(-logit))
    p = 1 / (1 + np.exp(-logit - rng.normal(size=arguments.rows)))
    subjects = rng.integers(arguments.subjects, size=arguments.rows)

    print(f"{arguments.rows:,} rows, {len(np.unique(subjects)):,} subjects, {arguments.resamples:,} resamples")
    print(f"{'metrics':<24} {'ours, s':>8} {'loop, s':>8} {'ratio':>7}   largest difference of a resample's interval")
    for names in (["auroc"], ["auprc"], list(REFERENCE)):
        start = time.perf_counter()
        evaluate(y, p, subjects, metrics=names, resamples=arguments.resamples)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        looped = _loop(y, p, subjects, names, arguments.loop)
        loop = (time.perf_counter() - start) * arguments.resamples / arguments.loop
        same = evaluate(y, p, subjects, metrics=names, resamples=arguments.loop)
        gap = max(
            float(np.abs(np.quantile(looped[name], [0.025, 0.975]) - [same[name].low, same[name].high]).max())
            for name in names
        )
        print(f"{' '.join(names):<24} {ours:>8.2f} {loop:>8.2f} {loop / ours:>6.1f}x   {gap:.1e}")


def _loop(y: np.ndarray, p: np.ndarray, subjects: np.ndarray, names: list[str], resamples: int) -> dict[str, list]:
    rng = np.random.default_rng(0)
    order = np.argsort(subjects, kind="stable")
    _, starts = np.unique(subjects[order], return_index=True)
    rows_of = np.split(order, starts[1:])
    found: dict[str, list] = {name: [] for name in names}
    for _ in range(resamples):
        rows = np.concatenate([rows_of[subject] for subject in rng.integers(len(rows_of), size=len(rows_of))])
        for name in names:
            found[name].append(REFERENCE[name](y[rows], p[rows]))
    return found


if __name__ == "__main__":
    main()
