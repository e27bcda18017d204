"""Who a subject is at the prediction time, and metrics within each such group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehrsequencing.data.schema import DAYS_PER_YEAR, MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.data.sequences import Examples, history_bounds
from ehrsequencing.data.store import SplitStore
from ehrsequencing.data.vocabulary import Vocabulary
from ehrsequencing.errors import ConfigError, MetricError
from ehrsequencing.evaluation.bootstrap import RARE, Estimate, summarise_seeds

PREFIXES = {"sex": ("GENDER//", "SEX//"), "race": ("RACE//",), "ethnicity": ("ETHNICITY//",)}
"""Static codes behind the groupings that have a name."""
AGE_BANDS = (18, 45, 65, 80)
DEFAULT = ("sex", "age", "race", "ethnicity")
METRICS = ("auroc", "brier", "ece")
"""AUPRC and F1 are left out: they move with the share of positives, so that groups do not compare."""
MOST_GROUPS = 40
UNKNOWN = "unknown"

Names = NDArray[np.object_]


@dataclass(frozen=True)
class Subgroup:
    """Metrics of every model on the rows of one group.

    Attributes:
        by, name: The grouping and the group, for example "sex" and "Female".
        n, positives, subjects: Rows, positive rows, subjects.
        metrics: {model: {metric: Estimate}}; empty where the group is too small.
        too_small: Why it is not scored; None where it is.
    """

    by: str
    name: str
    n: int
    positives: int
    subjects: int
    metrics: dict[str, dict[str, Estimate]]
    too_small: str | None = None


def available(vocabulary: Vocabulary) -> list[str]:
    """The groupings of `DEFAULT` that a store has the codes of; age needs none."""
    return [by for by in DEFAULT if by == "age" or any(code.startswith(PREFIXES[by]) for code in vocabulary.base_codes)]


def check_grouping(by: str, vocabulary: Vocabulary) -> None:
    """Refuse a grouping that no code of the vocabulary can tell apart.

    Raises:
        ConfigError: it is none of sex, age, race, ethnicity, year, and no code begins with it.
    """
    if not by:
        raise ConfigError(
            "--by names an empty grouping", expected=f"{', '.join([*available(vocabulary), 'year'])}, none"
        )
    prefixes = PREFIXES.get(by, (by,))
    if by in ("age", "year") or any(code.startswith(prefixes) for code in vocabulary.base_codes):
        return
    raise ConfigError(
        f"--by {by}: no code of the vocabulary begins with {' or '.join(prefixes)}",
        expected=f"{', '.join([*available(vocabulary), 'year'])}, or the beginning of a code",
        remedy="CODE splits by whether the history has it, SYSTEM// by which one it has",
    )


def groups_of(by: str, split: SplitStore, examples: Examples, vocabulary: Vocabulary) -> Names:
    """The group of each example, str [examples], by what is known at its prediction time.

    - `age`: bands 0-17, 18-44, 45-64, 65-79, 80+;
    - `year`: calendar year of the prediction;
    - `sex`, `race`, `ethnicity`, or any beginning of codes that ends in `//`: the rest of the latest such code (of
      several at one time, the last in the store's order);
    - any other beginning of codes: "with" where the history has such a code, else "without".

    What is not known is `UNKNOWN`.

    Raises:
        ConfigError: see `check_grouping`.
    """
    check_grouping(by, vocabulary)
    if by == "age":
        return _age_bands(split, examples)
    if by == "year":
        years = examples.until.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64) + 1970
        return years.astype(str).astype(object)
    named = by in PREFIXES or by.endswith("//")
    prefixes = PREFIXES.get(by, (by,))
    # Per token, its place among the groups; -1 where it is none.
    group = np.full(len(vocabulary), -1, dtype=np.int64)
    names: list[str] = []
    for token, base in enumerate(vocabulary.base_ids.tolist()):
        code = vocabulary.base_codes[base] if base >= 0 else ""
        prefix = next((prefix for prefix in prefixes if base >= 0 and code.startswith(prefix)), None)
        if prefix is None:
            continue
        name = (code.removeprefix(prefix) or code) if named else "with"
        if name not in names:
            names.append(name)
        group[token] = names.index(name)
    found = np.full(len(examples), UNKNOWN if named else "without", dtype=object)
    start, stop = history_bounds(split, examples.index, examples.until)
    labels = np.array(names, dtype=object)
    for row, (first, last) in enumerate(zip(start.tolist(), stop.tolist(), strict=True)):
        of_rows = group[split.code[first:last]]
        hits = np.flatnonzero(of_rows >= 0)
        if len(hits):
            found[row] = labels[of_rows[hits[-1]]]
    return found


def _age_bands(split: SplitStore, examples: Examples) -> Names:
    birth = split.birth_time[examples.index]
    known = (birth != STATIC_TIME) & (examples.until != STATIC_TIME)
    age = np.where(known, examples.until - np.where(known, birth, 0), 0) / (MICROSECONDS_PER_DAY * DAYS_PER_YEAR)
    names = [f"{low}-{high - 1}" for low, high in zip((0, *AGE_BANDS), AGE_BANDS, strict=False)]
    bands = np.array([*names, f"{AGE_BANDS[-1]}+"], dtype=object)[np.digitize(age, AGE_BANDS)]
    bands[~known] = UNKNOWN
    return bands


def subgroup_metrics(
    groups: Mapping[str, ArrayLike],
    y_true: ArrayLike,
    models: Mapping[str, Sequence[ArrayLike]],
    subject_ids: ArrayLike,
    *,
    metrics: Sequence[str] = METRICS,
    smallest: int = RARE,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Subgroup]:
    """Metrics of each model within each group, in the order of the groupings, then by name.

    Args:
        groups: {grouping: name of the group of each row [n]}.
        y_true: Bool [n].
        models: {model: one float [n] per training seed}.
        subject_ids: [n].
        metrics: Names in `metrics.METRICS`.
        smallest: Subjects that each class of a group needs; a group with fewer is stated and not scored.

    Raises:
        ConfigError: a grouping of more than `MOST_GROUPS` groups.
        MetricError: see `bootstrap.evaluate`; lengths that differ.
    """
    y, ids = np.asarray(y_true).astype(np.bool_), np.asarray(subject_ids)
    found = []
    for by, of_rows in groups.items():
        named = np.asarray(of_rows, dtype=object)
        if named.shape != y.shape:
            raise MetricError(f"the grouping {by} must name every row", got=named.shape, expected=y.shape)
        distinct = sorted(set(named.tolist()), key=lambda name: (name == UNKNOWN, name))
        if len(distinct) > MOST_GROUPS:
            raise ConfigError(
                f"--by {by} makes too many groups", got=len(distinct), expected=f"at most {MOST_GROUPS}",
                remedy="name a longer beginning of the code",
            )  # fmt: skip
        for name in distinct:
            rows = named == name
            least = min(len(np.unique(ids[rows & (y == outcome)])) for outcome in (False, True))
            if least < smallest:
                scored: dict[str, dict[str, Estimate]] = {}
                why = f"{least} subjects of the rarer class, fewer than {smallest}"
            else:
                why = None
                scored = {
                    model: summarise_seeds(
                        y[rows], [np.asarray(p)[rows] for p in probabilities], ids[rows],
                        metrics=metrics, resamples=resamples, seed=seed,
                    )
                    for model, probabilities in models.items()
                }  # fmt: skip
            found.append(
                Subgroup(by, name, int(rows.sum()), int(y[rows].sum()), len(np.unique(ids[rows])), scored, why)
            )
    return found
