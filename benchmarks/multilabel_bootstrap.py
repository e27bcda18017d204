"""How fast multi-label intervals are: our resamples beside a loop that calls scikit-learn per category.

    python benchmarks/multilabel_bootstrap.py [--rows 10000] [--categories 300] [--resamples 1000] [--loop 2]

The loop runs a few resamples of macro AUROC and AUPRC alone, on the same draws, and is scaled up.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from ehrsequencing.evaluation.multilabel import choose_thresholds, evaluate_multilabel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--categories", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--loop", type=int, default=2)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    share = rng.beta(0.5, 20, size=arguments.categories)
    shape = (arguments.rows, arguments.categories)
    logit = np.log(share / (1 - share)) + rng.normal(size=shape)
    y = rng.random(shape) < 1 / (1 + np.exp(-logit))
    p = (1 / (1 + np.exp(-logit - rng.normal(size=shape)))).astype(np.float32)
    subjects = np.arange(arguments.rows)

    start = time.process_time()
    found = evaluate_multilabel(
        y, [p], subjects, thresholds=[choose_thresholds(y, p)], at=(10, 30), resamples=arguments.resamples
    )
    ours = time.process_time() - start
    draws, gap, start = np.random.default_rng(0), 0.0, time.process_time()
    for resample in range(arguments.loop):
        rows = draws.integers(arguments.rows, size=arguments.rows)
        judged = [c for c in range(arguments.categories) if 0 < y[rows, c].sum() < arguments.rows]
        for name, metric in (("auroc_macro", roc_auc_score), ("auprc_macro", average_precision_score)):
            value = np.mean([metric(y[rows, c], p[rows, c]) for c in judged])
            gap = max(gap, abs(value - found.samples[name][0, resample]))
    loop = (time.process_time() - start) * arguments.resamples / arguments.loop
    print(f"{arguments.rows:,} rows, {arguments.categories} categories, {int(y.sum()):,} positives")
    print(f"ours, 8 metrics: {ours:.1f} s    loop, 2 metrics: {loop:.0f} s    {loop / ours:.0f}x    gap {gap:.1e}")


if __name__ == "__main__":
    main()
