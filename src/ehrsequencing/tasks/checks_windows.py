"""Checks of the windows that a model is fed: later events, and windows that differ between classes."""

from __future__ import annotations

import numpy as np

from ehrsequencing.data.schema import KINDS, MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.data.store import SplitStore
from ehrsequencing.tasks.audit_data import MOST_CATEGORIES, AuditData, Finding, counted, some, wilson, worst_first
from ehrsequencing.tasks.stays import STAY_CODES

CERTAIN, STRONG = 0.8, 0.6
"""Youden's J (sensitivity + specificity - 1) of one number or token alone from which it is a leak, or stated."""
LOWER_SHARE = 0.6
"""The lower end of its interval must reach this share of the threshold."""
ATOM_DIFFERENCE = 0.5
LAST_SHARE = 0.95
"""Where so many negatives are asked at the last event of their record, they were chosen by what did not follow."""
_LEAST_SUBJECTS = 10
_LEAST_LEADS = 20
_QUANTILES = 33
_CLINICAL = tuple(KINDS.index(kind) for kind in ("diagnosis", "drug", "procedure", "lab", "vital", "encounter"))


def future_input(data: AuditData) -> list[Finding] | str:
    """Every row that batching would feed is compared with the prediction time of its example."""
    late, undated, events, undated_events = [], [], 0, 0
    for labels in data.splits:
        for owner, row in labels.fed(np.arange(len(labels))):
            time = labels.split.time[row]
            after = time > labels.until[owner]
            static = (time == STATIC_TIME) & np.isin(labels.split.kind[row], _CLINICAL)
            events, undated_events = events + int(after.sum()), undated_events + int(static.sum())
            late.append(labels.example[owner[after]])
            undated.append(labels.example[owner[static]])
    found = []
    for rows, severity, number, what, expected in (
        (late, "error", events, "input events are later than the prediction time", "times up to the prediction time"),
        (
            undated, "warning", undated_events, "clinical events without a date are fed at every prediction time",
            "a date, or demographics only",
        ),
    ):  # fmt: skip
        examples = np.unique(np.concatenate(rows))
        if len(examples):
            subjects = data.subject_id[examples]
            got = f"{counted(number, 'event')} in {counted(len(examples), 'window')} of "
            got += counted(len(np.unique(subjects)), "subject")
            found.append(Finding("future-input", severity, what, got, expected, some(subjects)))
    return found


def windows(data: AuditData) -> list[Finding] | str:
    """Classes must not be told apart by how their windows were cut.

    An association is legitimate (the sick come more often); a window that gives the class away is a construction. So
    the thresholds ask for near-deterministic separation by one number, and for exact values that one class shares:
    prediction times set by one rule for all leave the same exact gaps in both classes.
    """
    if not data.categories:
        return "labels without classes"
    example = np.concatenate([labels.example for labels in data.examined])
    numbers = _window_numbers(data)
    half = np.unique(data.subject_id[example], return_inverse=True)[1] % 2
    found = []
    for category, who in _groups(data, example):
        named = f" of {category}" if category else ""
        for name, every in numbers.items():
            here = np.isfinite(every)
            values, positive, owner = every[here], who[here], example[here]
            subjects = np.array([len(np.unique(data.subject_id[owner[positive == side]])) for side in (True, False)])
            if subjects.min() < _LEAST_SUBJECTS:
                continue
            strength, lower = _told_by(values, positive, half[here], subjects)
            severity = _severity(strength, lower)
            if severity:
                middle = [np.median(values[positive == side]) for side in (True, False)]
                found.append(
                    Finding(
                        "windows", severity, f"the {name} alone tells positives{named} from the others",
                        f"J {strength:.2f} on other subjects (median {_number(middle[0])} of positives, "
                        f"{_number(middle[1])} of the others)",
                        f"below {CERTAIN if severity == 'error' else STRONG}: windows cut by one rule for all",
                        some(data.subject_id[owner[positive]]),
                    )
                )  # fmt: skip
            if name in _EXACT:
                found += _atoms(data, owner, values, positive, subjects, _EXACT[name], named)
    found += _leads(data) + _at_the_end(data)
    return worst_first(found)


_GAP = "days from the last event to the prediction time"
_STAY = "days from the admission to the prediction time"
_EXACT = {_GAP: "its last event", _STAY: "its admission"}
"""Numbers whose exact values are compared, and from what they count."""


def _window_numbers(data: AuditData) -> dict[str, np.ndarray]:
    """One number per example examined, before any truncation to a model's length."""
    parts: dict[str, list[np.ndarray]] = {}
    for labels in data.examined:
        split = labels.split
        dated, start, stop = labels.history
        has = stop > dated
        last = split.time[np.maximum(stop - 1, 0)]
        first = split.time[np.minimum(dated, max(len(split.time) - 1, 0))]
        days = {
            "days of history": np.where(has, labels.until - first, -MICROSECONDS_PER_DAY) / MICROSECONDS_PER_DAY,
            _GAP: np.where(has, labels.until - last, -MICROSECONDS_PER_DAY) / MICROSECONDS_PER_DAY,
            _STAY: _since_admission(data, split, dated, stop, labels.until) / MICROSECONDS_PER_DAY,
            "number of visits": np.where(has, split.visit[np.maximum(stop - 1, 0)] + 1, 0),
            "number of events": stop - start,
            "date of the prediction": labels.until / MICROSECONDS_PER_DAY,
        }
        for name, values in days.items():
            parts.setdefault(name, []).append(values.astype(np.float64))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _since_admission(
    data: AuditData, split: SplitStore, dated: np.ndarray, stop: np.ndarray, until: np.ndarray
) -> np.ndarray:
    """Microseconds from the admission, float64, of those who are in a stay; NaN for others.

    Where the store has no code of an admission, from the beginning of the last event's visit, unless that is now.
    """
    admitted, discharged = (
        _coded(data, [code for family in STAY_CODES for code in getattr(family, side)])[split.code]
        for side in ("admission", "discharge")
    )
    rows = np.arange(len(split.code))
    if admitted.any():
        begin = np.r_[-1, np.maximum.accumulate(np.where(admitted, rows, -1))][stop]
        end = np.r_[-1, np.maximum.accumulate(np.where(discharged, rows, -1))][stop]
        inside = (begin >= dated) & (begin > end)
    else:
        owner = np.repeat(np.arange(len(split)), split.lengths)
        visit = owner * (np.int64(1) << 32) + split.visit
        known, first = np.unique(visit, return_index=True)
        begin = first[np.searchsorted(known, visit[np.maximum(stop - 1, 0)])] if len(rows) else stop - 1
        inside = stop > dated
    since = np.where(inside, until - split.time[begin], 0) if len(rows) else np.zeros(len(stop))
    return np.where(inside & (admitted.any() | (since > 0)), since, np.nan)


def _coded(data: AuditData, codes: list[str]) -> np.ndarray:
    """Bool [tokens]: the code, or what follows it after `//`, is one of these."""
    names = data.store.vocabulary.base_codes
    known = [name in codes or name.startswith(tuple(f"{code}//" for code in codes)) for name in names]
    return np.append(np.array(known, dtype=bool), False)[data.store.vocabulary.base_ids]


def _groups(data: AuditData, example: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Who is positive, bool [n], by category.

    Categories that share their examples share their windows, so there only examples with any of them are set against
    those with none.
    """
    table = data.positive[:, example]
    everybody = table.max(axis=0).toarray().ravel() > 0
    if len(data.categories) == 1:
        return [("" if data.kind == "binary" else data.categories[0], everybody)]
    if table.sum(axis=0).max() > 1:
        return [("any category", everybody)]
    order = np.argsort(-table.sum(axis=1), kind="stable")[:MOST_CATEGORIES]
    return [(data.categories[row], table[[row]].toarray()[0] > 0) for row in order]


def _told_by(values: np.ndarray, positive: np.ndarray, half: np.ndarray, subjects: np.ndarray) -> tuple[float, float]:
    """Youden's J of a rule learned on half of the subjects and judged on the others, and its lower end.

    The rule calls positive the quantile bins in which positives are over-represented, so it finds a separation of any
    shape; frequent exact values are bins of their own.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _QUANTILES), method="nearest"))
    bins = np.searchsorted(edges, values, side="left") + np.searchsorted(edges, values, side="right")
    width = 2 * len(edges) + 1
    table = np.bincount((half * 2 + positive) * width + bins, minlength=4 * width).reshape(2, 2, width).astype(float)
    size = np.maximum(table.sum(axis=2, keepdims=True), 1)
    calls = table[:, 1] / size[:, 1] > table[:, 0] / size[:, 0]
    judged = (table * calls[::-1][:, None]).sum(axis=(0, 2))
    trials = table.sum(axis=(0, 2))
    low, high = wilson(judged, trials, subjects[::-1])
    shares = judged / np.maximum(trials, 1)
    return float(shares[1] - shares[0]), float(low[1] - high[0])


def _severity(strength: float, lower: float) -> str | None:
    if strength >= CERTAIN and lower >= LOWER_SHARE * CERTAIN:
        return "error"
    return "warning" if strength >= STRONG and lower >= LOWER_SHARE * STRONG else None


def _atoms(
    data: AuditData,
    example: np.ndarray,
    gap: np.ndarray,
    positive: np.ndarray,
    subjects: np.ndarray,
    since: str,
    named: str,
) -> list[Finding]:
    """An exact gap that one class shares and the other does not."""
    value, place = np.unique(gap, return_inverse=True)
    counts = np.stack([np.bincount(place[positive == side], minlength=len(value)) for side in (True, False)])
    trials = counts.sum(axis=1, keepdims=True)
    shares = counts / trials
    atom = int(np.argmax(np.abs(shares[0] - shares[1])))
    difference = abs(float(shares[0, atom] - shares[1, atom]))
    low, high = wilson(counts[:, atom], trials[:, 0], subjects)
    if difference < ATOM_DIFFERENCE or max(low[0] - high[1], low[1] - high[0]) < LOWER_SHARE * ATOM_DIFFERENCE:
        return []
    one = positive if shares[0, atom] > shares[1, atom] else ~positive
    of, others = shares[:, atom]
    return [
        Finding(
            "windows", "error", f"one class shares an exact gap between {since} and the prediction time{named}",
            f"{_number(value[atom])} days in {of:.0%} of positives and {others:.0%} of the others",
            f"shares that differ by less than {ATOM_DIFFERENCE:.0%}: prediction times set without knowing the outcome",
            some(data.subject_id[example[one & (place == atom)]]),
        )
    ]  # fmt: skip


def _leads(data: AuditData) -> list[Finding]:
    """Prediction times counted back from the outcome: the same lead, to the microsecond, at times without an event."""
    leads, owners = [], []
    for labels in data.examined:
        positive = data.positive[:, labels.example].max(axis=0).toarray().ravel() > 0
        dated, _, stop = labels.history
        between = (stop > dated) & (labels.split.time[np.maximum(stop - 1, 0)] < labels.until)
        if data.duration_days is not None:
            lead = np.round(data.duration_days[labels.example] * MICROSECONDS_PER_DAY).astype(np.int64)
        elif data.outcome_time is not None:
            lead = data.outcome_time[labels.example] - labels.until
        else:
            return []
        kept = positive & between & (lead > 0) & (lead < np.iinfo(np.int64).max // 2)
        leads.append(lead[kept])
        owners.append(labels.example[kept])
    lead, owner = np.concatenate(leads), np.concatenate(owners)
    if len(np.unique(data.subject_id[owner])) < _LEAST_LEADS:
        return []
    value, counts = np.unique(lead, return_counts=True)
    atom = int(np.argmax(counts))
    if counts[atom] < ATOM_DIFFERENCE * len(lead):
        return []
    return [
        Finding(
            "windows", "error", "prediction times of positives are counted back from the outcome",
            f"{counts[atom]:,} of {len(lead):,} exactly {_number(value[atom] / MICROSECONDS_PER_DAY)} days before it",
            "prediction times set without knowing the outcome", some(data.subject_id[owner[lead == value[atom]]]),
        )
    ]  # fmt: skip


def _at_the_end(data: AuditData) -> list[Finding]:
    """Controls asked where their record ends, and cases before: the absence of all events chose the time."""
    if data.kind != "binary":
        return []
    last, positive, subjects = [], [], []
    for labels in data.examined:
        last.append(labels.history[2] == labels.split.offsets[1:][labels.index])
        positive.append(data.positive[[0]].toarray()[0][labels.example] > 0)
        subjects.append(data.subject_id[labels.example])
    at_last, case, owner = map(np.concatenate, (last, positive, subjects))
    if min(len(np.unique(owner[case])), len(np.unique(owner[~case]))) < _LEAST_SUBJECTS:
        return []
    of, others = at_last[case].mean(), at_last[~case].mean()
    if others < LAST_SHARE or others - of < ATOM_DIFFERENCE:
        return []
    return [
        Finding(
            "windows", "warning", "negatives are asked at the last event of their record",
            f"{others:.0%} of negatives and {of:.0%} of positives",
            "prediction times set without knowing what follows, and follow-up after them", some(owner[~case & at_last]),
        )
    ]  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,.6g}"
