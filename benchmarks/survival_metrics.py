"""How fast survival metrics are: ours beside lifelines, scikit-survival and torchsurv, and how far apart the values.

    python benchmarks/survival_metrics.py [--sizes 1000,10000,100000,1000000] [--limit 60] [--resamples 200]

Durations are whole days and risks have two decimals, so both have ties. A competitor that would need more than the
limit, judged by the size before, is left out. Times are CPU seconds of one call, after a small one, which other work on
the machine changes least; set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np

from ehrsequencing.evaluation.survival import antolini_concordance, concordance_index, uno_concordance
from ehrsequencing.evaluation.survival_bootstrap import evaluate_survival
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction
from ehrsequencing.evaluation.survival_scores import brier_score, cumulative_auc

HORIZONS = np.array([182.5, 365.5, 730.5])
DAYS = np.arange(1.0, 41) * 50
LARGEST_OF_EACH_PAIR = 100_000
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def cohort(n: int) -> Data:
    """Durations and events with about 40 % censored, risks, and survival at the horizons."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=n)
    event, censored = rng.exponential(1000 / np.exp(true)), rng.exponential(2000, size=n)
    risk = (true + rng.normal(size=n)).round(2)
    survival = np.exp(-np.exp(risk)[:, None] / 2000 * HORIZONS)
    return np.ceil(np.minimum(event, censored)), event <= censored, risk, survival


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("--resamples", type=int, default=200)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sizes = [int(size) for size in options.sizes.split(",")]
    print("| metric | n | ours, CPU s | lifelines | scikit-survival | torchsurv | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for metric, ours, others in METRICS:
        needed: dict[str, tuple[int, float]] = {}
        for one in (ours, *others.values()):
            one(cohort(200))
        for n in sizes:
            if metric == "Antolini's C" and n > LARGEST_OF_EACH_PAIR:
                continue
            data = cohort(n)
            seconds, value = timed(ours, data)
            cells, gaps = [], []
            for name in ("lifelines", "scikit-survival", "torchsurv"):
                if name not in others:
                    cells.append("")
                    continue
                before = needed.get(name)
                # Twice the size costs these twice to four times the seconds.
                expected = before[1] * (n / before[0]) ** (1 if name == "lifelines" else 1.5) if before else 0.0
                if expected > options.limit:
                    cells.append(f"over {options.limit:g} s expected")
                    continue
                took, theirs = timed(others[name], data)
                needed[name] = (n, took)
                gaps.append(f"{float(np.abs(np.asarray(theirs) - value).max()):.0e}")
                cells.append(f"{took:.3f} ({took / seconds:.1f}x)")
            print(f"| {metric} | {n:,} | {seconds:.3f} | {' | '.join(cells)} | {', '.join(gaps)} |", flush=True)
    intervals(options.resamples)


def intervals(resamples: int) -> None:
    print(f"\nCPU seconds of {resamples} resamples over subjects:\n\n| metric | 10,000 | 100,000 |\n|---|---|---|")
    for name in ("c_harrell", "c_uno", "auc@365", "brier@365", "c_antolini"):
        cells = []
        for n in (10_000, 100_000):
            durations, event, risk, _ = cohort(n)
            if name == "c_antolini" and n > 10_000:
                cells.append("")
                continue
            prediction = SurvivalPrediction.of_one_cause(DAYS, np.exp(-np.exp(risk)[:, None] / 2000 * DAYS), risk)
            seconds, _ = timed(
                lambda d, n=n, p=prediction, name=name: evaluate_survival(
                    d[0], d[1].astype(int), [p], np.arange(n), 1000, metrics=[name], resamples=resamples
                ),
                (durations, event, risk, risk),
            )
            cells.append(f"{seconds:.1f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def timed(metric: Callable[[Data], object], data: Data) -> tuple[float, object]:
    start = time.process_time()
    value = metric(data)
    return time.process_time() - start, value


def _tau(data: Data) -> float:
    return float(HORIZONS[-1])


def _ours_antolini(data: Data) -> float:
    durations, event, risk, _ = data
    curves = np.exp(-np.exp(risk)[:, None] / 2000 * DAYS)
    return antolini_concordance(durations, event, SurvivalPrediction.of_one_cause(DAYS, curves))


def _lifelines(data: Data) -> float:
    from lifelines.utils import concordance_index as theirs

    return theirs(data[0], -data[2], data[1])


def _outcome(data: Data) -> np.ndarray:
    from sksurv.util import Surv

    return Surv.from_arrays(data[1], data[0])


def _sksurv_harrell(data: Data) -> float:
    from sksurv.metrics import concordance_index_censored

    return concordance_index_censored(data[1], data[0], data[2])[0]


def _sksurv_uno(data: Data) -> float:
    from sksurv.metrics import concordance_index_ipcw

    return concordance_index_ipcw(_outcome(data), _outcome(data), data[2], tau=_tau(data))[0]


def _sksurv_auc(data: Data) -> np.ndarray:
    from sksurv.metrics import cumulative_dynamic_auc

    return cumulative_dynamic_auc(_outcome(data), _outcome(data), data[2], HORIZONS)[0]


def _sksurv_brier(data: Data) -> np.ndarray:
    from sksurv.metrics import brier_score as theirs

    return theirs(_outcome(data), _outcome(data), data[3], HORIZONS)[1]


def _tensors(data: Data) -> tuple:
    import torch

    return torch.tensor(data[2]), torch.tensor(data[1]), torch.tensor(data[0]), torch.tensor(HORIZONS)


def _weights(event: object, durations: object, horizons: object) -> dict:
    from torchsurv.stats.ipcw import get_ipcw

    return {
        "new_time": horizons, "weight": get_ipcw(event, durations),
        "weight_new_time": get_ipcw(event, durations, horizons),
    }  # fmt: skip


def _torchsurv_harrell(data: Data) -> float:
    from torchsurv.metrics.cindex import ConcordanceIndex

    risk, event, durations, _ = _tensors(data)
    return ConcordanceIndex()(risk, event, durations).item()


def _torchsurv_uno(data: Data) -> float:
    import torch
    from torchsurv.metrics.cindex import ConcordanceIndex
    from torchsurv.stats.ipcw import get_ipcw

    risk, event, durations, _ = _tensors(data)
    weight = get_ipcw(event, durations).double()
    return ConcordanceIndex()(risk, event, durations, weight=weight, tmax=torch.tensor(_tau(data))).item()


def _torchsurv_auc(data: Data) -> np.ndarray:
    from torchsurv.metrics.auc import Auc

    risk, event, durations, horizons = _tensors(data)
    return Auc()(risk, event, durations, **_weights(event, durations, horizons)).numpy()


def _torchsurv_brier(data: Data) -> np.ndarray:
    import torch
    from torchsurv.metrics.brier_score import BrierScore

    _, event, durations, horizons = _tensors(data)
    return BrierScore()(torch.tensor(data[3]), event, durations, **_weights(event, durations, horizons)).numpy()


METRICS: list[tuple[str, Callable[[Data], object], dict[str, Callable[[Data], object]]]] = [
    (
        "Harrell's C",
        lambda d: concordance_index(d[0], d[1], d[2]),
        {"lifelines": _lifelines, "scikit-survival": _sksurv_harrell, "torchsurv": _torchsurv_harrell},
    ),
    (
        "Uno's C",
        lambda d: uno_concordance(d[0], d[1], d[2], tau=_tau(d)),
        {"scikit-survival": _sksurv_uno, "torchsurv": _torchsurv_uno},
    ),
    (
        "AUC at 3 horizons",
        lambda d: cumulative_auc(d[0], d[1], d[2], HORIZONS)[0],
        {"scikit-survival": _sksurv_auc, "torchsurv": _torchsurv_auc},
    ),
    (
        "Brier at 3 horizons",
        lambda d: brier_score(d[0], d[1], 1 - d[3], HORIZONS),
        {"scikit-survival": _sksurv_brier, "torchsurv": _torchsurv_brier},
    ),
    ("Antolini's C", _ours_antolini, {}),
]

if __name__ == "__main__":
    main()
