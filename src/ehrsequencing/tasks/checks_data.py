"""Checks of the data behind the labels: dates, and whether the splits are drawn alike."""

from __future__ import annotations

import datetime

import numpy as np
from scipy import sparse
from scipy.special import ndtri
from scipy.stats import rankdata

from ehrsequencing.data.schema import DAYS_PER_YEAR, MICROSECONDS_PER_DAY, SPLITS, STATIC_TIME
from ehrsequencing.tasks.audit_data import AuditData, Finding, SplitLabels, counted, presence, sample, some

EARLIEST = datetime.date(1900, 1, 1)
SHIFTED_SHARE = 0.5
"""Where this share of subjects have events in the future, the dates were shifted on purpose."""
RESULTS_DAYS = 90
"""Results come in after death, cultures for weeks; no event of a life is that late."""
LONE_SHARE, SILENCE_DAYS, EARLY_SILENCE_DAYS = 0.001, 365, 5 * 365
PLACEHOLDERS = (datetime.date(1900, 1, 1), datetime.date(1970, 1, 1))
"""Days that programs write for no date."""
AROUND_DAYS = 60
RATE_FACTOR = 1.25
SHIFT_AUROC, SHIFT_AUROC_ERROR = 0.55, 0.65
SHIFT_SMD, SHIFT_SMD_ERROR = 0.3, 0.6
TIME_DISTANCE = 0.25
"""Largest difference between two distribution functions of prediction times that is not called a drift in time."""
_ALPHA = 0.001
_LEAST_SUBJECTS = 20
_MOST_ROWS = 4_000_000
_DAY = MICROSECONDS_PER_DAY


def dates(data: AuditData) -> list[Finding] | str:
    """Events before 1900, before birth, after death, after the dataset's end or in the future."""
    bounds = [_bounds(labels) for labels in data.splits]
    owner, first, second, last, birth, death, end = (np.concatenate(parts) for parts in zip(*bounds, strict=True))
    found = []
    if not len(owner):
        return "no dated event"
    tomorrow = _microseconds(datetime.datetime.now(datetime.UTC).date()) + 2 * _DAY
    future = last >= tomorrow
    shifted = future.mean() >= SHIFTED_SHARE
    stated = end[end != STATIC_TIME]
    beyond = last >= stated.max() + _DAY if len(stated) else np.zeros(len(owner), dtype=bool)
    faults = [
        (first < _microseconds(EARLIEST), "error", "before 1900", f"dates from {EARLIEST} on"),
        ((birth != STATIC_TIME) & (first < birth), "error", "before birth", "dates from birth on"),
        (beyond, "error", "after the end of the dataset", "dates up to the last end of observation"),
    ]
    if shifted:
        got = f"{counted(int(future.sum()), 'subject')} of {len(owner):,}"
        what = "dates are shifted into the future, so that no event can be found to lie there"
        found.append(Finding("dates", "warning", what, got, "dates as they were", some(owner[future])))
    else:
        faults.append((future & ~beyond, "error", "in the future", "dates up to today"))
        early, late = _lone(data)
        if not len(stated):
            faults.append((late <= last, "warning", f"after {SILENCE_DAYS} days without any event of anybody", "none"))
        before = (first <= early) & (first >= _microseconds(EARLIEST))
        # What happens on the day of birth has every reason to come first.
        before &= (birth == STATIC_TIME) | (first >= birth + _DAY)
        where = f"before {EARLY_SILENCE_DAYS} days without any event of anybody"
        faults.append((before, "warning", where, "none"))
        for day in PLACEHOLDERS:
            held = _held_by_placeholder(first, second, _microseconds(day)) & ~before
            faults.append((held, "warning", f"at midnight of {day}, and no others for a year", "a date, or none"))
    for wrong, severity, where, expected in faults:
        if wrong.any():
            got = f"events of {counted(int(wrong.sum()), 'subject')} of {len(owner):,}"
            found.append(Finding("dates", severity, f"events lie {where}", got, expected, some(owner[wrong])))
    return found + _after_death(data, owner, last, death)


def _after_death(data: AuditData, owner: np.ndarray, last: np.ndarray, death: np.ndarray) -> list[Finding]:
    found, dead = [], death != STATIC_TIME
    after = dead & (last >= death + _DAY)
    if after.any():
        got = f"events of {counted(int(after.sum()), 'subject')} of {int(dead.sum()):,} dead"
        late = bool((last[after] >= death[after] + RESULTS_DAYS * _DAY).any())
        days = int((last[after] - death[after]).max() // _DAY)
        what = f"events lie after death, up to {counted(days, 'day')}"
        expected = f"none after the day of death, or results within {RESULTS_DAYS} days"
        found.append(Finding("dates", "error" if late else "warning", what, got, expected, some(owner[after])))
    asked = []
    for labels in data.splits:
        died = labels.split.death_time[labels.index]
        asked.append(labels.example[(died != STATIC_TIME) & (labels.until >= died + _DAY)])
    rows = np.concatenate(asked)
    if len(rows):
        found.append(
            Finding(
                "dates", "error", "prediction times lie a day or more after death", counted(len(rows), "label"),
                "predictions for the living", some(data.subject_id[rows]),
            )
        )  # fmt: skip
    return found


def _bounds(labels: SplitLabels) -> tuple[np.ndarray, ...]:
    """Subject, first, next later and last dated event, birth, death and end of observation of who has a dated event."""
    split = labels.split
    every = np.arange(len(split))
    static = np.add.reduceat(split.time == STATIC_TIME, split.offsets[:-1]) if len(split.time) else every * 0
    static = np.where(split.lengths > 0, static, 0) if len(split.time) else static
    has = split.lengths > static
    rows = split.offsets[:-1] + static
    ends = split.observation_end if split.observation_end is not None else np.full(len(split), STATIC_TIME)
    first, last = split.time[rows[has]], split.time[split.offsets[1:][has] - 1]
    later = np.flatnonzero(np.r_[False, split.time[1:] != split.time[:-1]])
    later = np.append(later, 0)[np.searchsorted(later, rows[has], side="right")]
    second = np.where((later > rows[has]) & (later < split.offsets[1:][has]), split.time[later], first)
    return split.subject_id[has], first, second, last, split.birth_time[has], split.death_time[has], ends[has]


def _lone(data: AuditData) -> tuple[int, int]:
    """Where the first events end that come before a long silence, and the last begin that follow one: a few in all.

    The ends of int64 where there are none.
    """
    time = np.sort(np.concatenate([labels.split.time[labels.split.time > STATIC_TIME] for labels in data.splits]))
    few = int(LONE_SHARE * len(time)) + 1
    head, tail = time[: few + 1], time[-few:]
    before = np.flatnonzero(np.diff(head) >= EARLY_SILENCE_DAYS * _DAY)
    after = np.flatnonzero(np.diff(tail) >= SILENCE_DAYS * _DAY)
    ends = np.iinfo(np.int64)
    return int(head[before[-1]]) if len(before) else ends.min, int(tail[after[0] + 1]) if len(after) else ends.max


def _held_by_placeholder(first: np.ndarray, second: np.ndarray, midnight: int) -> np.ndarray:
    """Whose record begins at a placeholder and goes on a year later; nobody where that may be by chance, bool.

    Records that count their time from the placeholder go on soon, and old ones begin on the days around it too.
    """
    begins = first == midnight
    held = begins & (second - first >= SILENCE_DAYS * _DAY)
    around = (np.abs(first - midnight) <= AROUND_DAYS * _DAY) & ~begins
    return held & (2 * held.sum() >= begins.sum()) & (held.sum() > around.sum())


def _microseconds(day: datetime.date) -> int:
    return (day - datetime.date(1970, 1, 1)).days * _DAY


def shift(data: AuditData) -> list[Finding] | str:
    """Whether train can be told from tuning or held-out by what a model is fed, or by how many are positive."""
    train = _one_per_subject(data.splits[0])
    if len(train) < _LEAST_SUBJECTS:
        return "train has too few subjects"
    base = _features(data, data.splits[0], train)
    found: list[Finding] = []
    skipped = []
    for labels in data.splits[1:]:
        chosen = _one_per_subject(labels)
        if len(chosen) < _LEAST_SUBJECTS:
            skipped.append(labels.name)
            continue
        other = _features(data, labels, chosen)
        finding = _compare(data, labels, train, chosen, base, other)
        if finding is not None:
            found.append(finding)
        found += _rates(data, labels)
    return found if found or len(skipped) < len(SPLITS) - 1 else "tuning and held-out have too few subjects"


def _rates(data: AuditData, labels: SplitLabels) -> list[Finding]:
    """Shares of positives that differ by more than chance between subjects."""
    if not data.categories:
        return []
    positive = data.positive.max(axis=0).toarray().ravel() > 0
    shares, variances = [], []
    every = positive[np.concatenate([data.splits[0].example, labels.example])].mean()
    for side in (data.splits[0], labels):
        share, (_, owner) = positive[side.example].mean(), np.unique(side.index, return_inverse=True)
        residual = np.bincount(owner, positive[side.example] - share)
        shares.append(float(share))
        variances.append(max((residual**2).sum() / len(side) ** 2, every * (1 - every) / len(residual)))
    low, high = min(shares), max(shares)
    if high < RATE_FACTOR * low or high - low <= -ndtri(_ALPHA / 2) * np.sqrt(sum(variances)):
        return []
    return [
        Finding(
            "shift", "warning", f"train and {labels.name} have different shares of positives",
            f"{shares[0]:.1%} of {counted(len(data.splits[0]), 'label')} in train, {shares[1]:.1%} of "
            f"{len(labels):,} in {labels.name}",
            f"shares within chance, or within a factor of {RATE_FACTOR}",
        )
    ]  # fmt: skip


def _one_per_subject(labels: SplitLabels) -> np.ndarray:
    """The first example of each subject, or of a part of them: examples of one subject are no independent evidence."""
    first = np.unique(labels.index, return_index=True)[1]
    return first[sample(labels.windows.lengths[first], _MOST_ROWS)]


_NUMBERS = ("age", "days of history", "days since the last event", "number of visits", "number of events")


def _features(
    data: AuditData, labels: SplitLabels, chosen: np.ndarray
) -> tuple[sparse.csr_array, np.ndarray, tuple[str, ...]]:
    """Tokens present [n, features], numbers [n, 5] and the names of the features."""
    split = labels.split
    found = presence(labels, chosen, data.store.vocabulary, last_visit=False)
    dated, start, stop = (side[chosen] for side in labels.history)
    until = labels.until[chosen]
    has = stop > dated
    last = np.maximum(stop - 1, 0)
    age = (until - split.birth_time[labels.index[chosen]]) / (_DAY * DAYS_PER_YEAR)
    age = np.where(split.birth_time[labels.index[chosen]] == STATIC_TIME, -1.0, age)
    first = split.time[np.minimum(dated, max(len(split.time) - 1, 0))]
    numbers = np.stack(
        [
            age,
            np.where(has, (until - first) / _DAY, -1.0),
            np.where(has, (until - split.time[last]) / _DAY, -1.0),
            np.where(has, split.visit[last] + 1, 0),
            stop - start,
        ],
        axis=1,
    )
    return found.matrix, numbers.astype(np.float64), found.names


def _compare(
    data: AuditData,
    labels: SplitLabels,
    train: np.ndarray,
    chosen: np.ndarray,
    base: tuple[sparse.csr_array, np.ndarray, tuple[str, ...]],
    other: tuple[sparse.csr_array, np.ndarray, tuple[str, ...]],
) -> Finding | None:
    numbers = np.concatenate([base[1], other[1]])
    sides = np.r_[np.zeros(len(train), dtype=bool), np.ones(len(chosen), dtype=bool)]
    edges = [np.unique(np.quantile(column, np.linspace(0, 1, 9)[1:-1])) for column in numbers.T]
    bins = [
        (np.searchsorted(edge, column, side="left")[:, None] == np.arange(len(edge) + 1)).astype(np.float32)
        for edge, column in zip(edges, numbers.T, strict=True)
    ]
    matrix = sparse.hstack(
        [sparse.vstack([base[0], other[0]]), *(sparse.csr_array(block) for block in bins)], format="csr"
    )
    auroc, error = told_apart(matrix, sides)
    strange = _differing(base, other)
    until = (data.splits[0].until[train], labels.until[chosen])
    distance = _distance(*until)
    drift = distance >= TIME_DISTANCE + _distance_error(len(train), len(chosen))
    worst = max((abs(smd) for _, smd in strange), default=0.0)
    told = auroc - 3 * error
    if not drift and worst < SHIFT_SMD and told < SHIFT_AUROC:
        return None
    severe = (worst >= SHIFT_SMD_ERROR or told >= SHIFT_AUROC_ERROR) and not drift
    what = f"train and {labels.name} are drawn differently"
    if drift:
        what += f": {labels.name} lies {'later' if np.median(until[1]) > np.median(until[0]) else 'earlier'} in time"
    named = ", ".join(f"{name} ({smd:+.2f} standard deviations)" for name, smd in strange[:3])
    middle = [str(np.datetime64(int(np.median(side)), "us").astype("datetime64[D]")) for side in until]
    parts = [
        f"prediction times with median {middle[1]} against {middle[0]} in train" if drift else "",
        f"AUROC {auroc:.2f} of telling a subject's split from the input",
        f"foremost {named}" if named else "",
        f"{len(chosen):,} against {counted(len(train), 'subject')}",
    ]
    expected = "a drift that is meant, as in temporal validation" if drift else "splits drawn at random (AUROC 0.5)"
    return Finding(
        "shift", "error" if severe else "warning", what, ", ".join(part for part in parts if part), expected,
        some(labels.split.subject_id[labels.index[chosen]]),
    )  # fmt: skip


def told_apart(matrix: sparse.csr_array, side: np.ndarray) -> tuple[float, float]:
    """Cross-fitted AUROC of a naive Bayes classifier between two samples, and its standard error under no difference.

    Args:
        matrix: Zeros and ones [n, features].
        side: Bool [n], which sample; rows alternate between the halves.

    Source: classifier two-sample tests, Lopez-Paz & Oquab 2017, arXiv:1610.06545; the error is Mann-Whitney's.
    """
    half = np.arange(len(side)) % 2
    areas, weights = [], []
    for fold in (0, 1):
        fit = half == fold
        logits = []
        for which in (True, False):
            rows = np.flatnonzero(fit & (side == which))
            share = (matrix[rows].sum(axis=0) + 0.5) / (len(rows) + 1)
            logits.append(np.log(share) - np.log1p(-np.minimum(share, 1 - 1e-9)))
        score = matrix[np.flatnonzero(~fit)] @ (logits[0] - logits[1])
        judged = side[~fit]
        n1, n0 = int(judged.sum()), int((~judged).sum())
        ranks = rankdata(score)[judged].sum()
        areas.append((ranks - n1 * (n1 + 1) / 2) / (n1 * n0))
        weights.append((n1 + n0 + 1) / (12 * n1 * n0))
    return float(np.mean(areas)), float(np.sqrt(np.sum(weights)) / 2)


def _differing(
    base: tuple[sparse.csr_array, np.ndarray, tuple[str, ...]],
    other: tuple[sparse.csr_array, np.ndarray, tuple[str, ...]],
) -> list[tuple[str, float]]:
    """Features whose standardised difference is large and not chance (Bonferroni), the largest first."""
    n0, n1 = base[0].shape[0], other[0].shape[0]
    p0, p1 = base[0].sum(axis=0) / n0, other[0].sum(axis=0) / n1
    rank = np.apply_along_axis(rankdata, 0, np.concatenate([base[1], other[1]]))
    means = np.r_[p1 - p0, rank[n0:].mean(axis=0) - rank[:n0].mean(axis=0)]
    v0 = np.r_[p0 * (1 - p0), rank[:n0].var(axis=0)]
    v1 = np.r_[p1 * (1 - p1), rank[n0:].var(axis=0)]
    pooled = np.r_[(n0 * p0 + n1 * p1) / (n0 + n1), np.zeros(rank.shape[1])]
    null = np.where(pooled > 0, pooled * (1 - pooled), (n0 * v0 + n1 * v1) / (n0 + n1))
    # Rare features: the normal tail is wrong where fewer than five are expected on one side.
    common = np.r_[pooled[: len(p0)] * min(n0, n1) >= 5, np.ones(rank.shape[1], dtype=bool)]
    smd = means / np.sqrt(np.maximum((v0 + v1) / 2, 1e-12))
    z = np.abs(means) / np.sqrt(np.maximum(null * (1 / n0 + 1 / n1), 1e-12))
    wanted = np.flatnonzero(common & (np.abs(smd) >= SHIFT_SMD) & (z >= -ndtri(_ALPHA / 2 / len(means))))
    names = (*base[2], *_NUMBERS)
    return [(names[place], float(smd[place])) for place in wanted[np.argsort(-np.abs(smd[wanted]), kind="stable")]]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov and Smirnov's distance of two samples."""
    both = np.sort(np.concatenate([a, b]))
    shares = [np.searchsorted(np.sort(side), both, side="right") / len(side) for side in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def _distance_error(a: int, b: int) -> float:
    """The distance that chance exceeds once in a thousand times (asymptotically)."""
    return float(np.sqrt(-np.log(_ALPHA / 2) / 2 * (a + b) / (a * b)))
