"""How sure the AUROC is that a fine-tuning has on tuning: of one label by a formula, of several as it was measured."""

from __future__ import annotations

import math
from statistics import NormalDist

from ehrsequencing.diagnostics.evidence import Evidence
from ehrsequencing.diagnostics.findings import Missing
from ehrsequencing.evaluation.sample_size import auroc_standard_error

Z = NormalDist().inv_cdf(0.975)
USUAL_AUROC = 0.75
"""What is taken for the AUROC of a run that has none yet."""
SUREST_AUROC = 0.9
"""At an AUROC of 1 or 0 a formula says there is no error; of a few rows it knows better here."""


def beside_chance(run: Evidence) -> tuple[float, float, str]:
    """The AUROC, how far chance alone moves it from 0.5 (95 %), and what it is of.

    Raises:
        Missing: the run does not say enough.
    """
    if run.metadata.get("categories"):
        auroc, error = _macro(run)
        return auroc, Z * error, f"mean tuning AUROC {auroc:.3f} of {_judged(run)} categories"
    positives, negatives = _counts(run)
    found = run.at_best("val_auroc")
    if found is None:
        raise Missing("no epoch is judged yet")
    half = Z * auroc_standard_error(0.5, positives, negatives)
    return found, half, f"tuning AUROC {found:.3f} on {positives} positives and {negatives} negatives"


def precision(run: Evidence) -> tuple[float, str]:
    """Half the 95 % interval of the tuning AUROC, and what of.

    Raises:
        Missing: the run does not say enough.
    """
    if run.metadata.get("categories"):
        auroc, error = _macro(run)
        categories = _judged(run)
        examples, positives = (int(run.metadata[name]["tuning"]) for name in ("examples", "positives"))
        each = min(max(round(positives / categories), 1), examples - 1)
        # Where nothing is misplaced the error that was measured is 0; no less than that of categories that go apart.
        least = auroc_standard_error(_within(auroc), each, examples - each) / math.sqrt(categories)
        what = f"{each} positives in {examples} rows, the mean of {categories} categories, an AUROC of {auroc:.2f}"
        return Z * max(error, least), f"with {what}"
    positives, negatives = _counts(run)
    found = run.at_best("val_auroc")
    auroc = USUAL_AUROC if found is None else found
    half = Z * auroc_standard_error(_within(auroc), positives, negatives)
    return half, f"with {positives} positives and {negatives} negatives an AUROC of {auroc:.2f}"


def _within(auroc: float) -> float:
    return min(max(auroc, 1 - SUREST_AUROC), SUREST_AUROC)


def _counts(run: Evidence) -> tuple[int, int]:
    """Positives and negatives of tuning."""
    counts = run.label_counts("tuning")
    if counts is None or not 0 < counts[0] < counts[1]:
        raise Missing("the run does not say how many tuning labels are positive")
    return counts[0], counts[1] - counts[0]


def _macro(run: Evidence) -> tuple[float, float]:
    """Mean AUROC of the categories at the best epoch, and its standard error over subjects."""
    auroc, error = run.at_best("val_auroc_macro"), run.at_best("val_auroc_macro_error")
    if auroc is None:
        raise Missing("no epoch is judged yet")
    if error is None:
        raise Missing("the run recorded no error of its mean AUROC; `ehrseq evaluate` gives intervals")
    return auroc, error


def _judged(run: Evidence) -> int:
    """Categories behind a mean: those that tuning has with and without positives, once the summary says it."""
    entries = [entry for own in run.summary.get("metrics", {}).values() for entry in own.values()]
    return next((int(e["categories"]) for e in entries if e.get("categories")), int(run.metadata["categories"]))
