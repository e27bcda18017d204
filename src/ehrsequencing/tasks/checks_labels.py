"""Checks of labels: follow-up, classes, splits and prevalent cases."""

from __future__ import annotations

import numpy as np

from ehrsequencing.data.schema import MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.data.store import SplitStore
from ehrsequencing.tasks.audit_data import AuditData, Finding, SplitLabels, counted, some

FOLLOW_UP_ELSEWHERE = "source"
"""`follow_up` of a label manifest: whoever published the labels followed the subjects beyond the events at hand."""
WINDOW = "(prediction time, prediction time +"
"""How `window` of a label manifest begins where it ends a number of days after the prediction time."""
_ROUNDING_US = 5 * 60 * 1_000_000
"""Durations are float32 days: a century is right to three minutes."""
_TWIN_EVENTS = 20


def follow_up(data: AuditData) -> list[Finding] | str:
    """A window that ends after everything known of the subject says nothing about its outcome, unless censored.

    Where negatives are left out because observation ended, positives that stay are chosen by their outcome.
    """
    if data.manifest.get("follow_up") == FOLLOW_UP_ELSEWHERE:
        return "the labels' source followed the subjects beyond the events in the store"
    horizon = data.manifest.get("horizon_days")
    if isinstance(horizon, bool) or not isinstance(horizon, int | float):
        horizon = None
    if data.kind != "survival" and horizon is None:
        return "the labels' manifest states no horizon_days"
    if data.kind == "other":
        return "labels without classes"
    window = data.manifest.get("window")
    if data.kind != "survival" and window and not str(window).startswith(WINDOW):
        return f"the window is {window}"
    unseen = [_unseen(data, labels, horizon or 0) for labels in data.splits]
    examples = counted(sum(map(len, data.splits)), "label")
    found, bad = [], np.concatenate([labels.example[out] for labels, out in zip(data.splits, unseen, strict=True)])
    if data.kind == "binary":
        positive = data.positive[[0]].toarray()[0] > 0
        bad = bad[~positive[bad]]
        seen = [labels.example[out & labels.end_stated] for labels, out in zip(data.splits, unseen, strict=True)]
        chosen = np.concatenate(seen)
        chosen = chosen[positive[chosen]]
        if len(chosen):
            found.append(
                Finding(
                    "follow-up", "warning", "positive labels' windows run past the stated end of observation",
                    f"{len(chosen):,} of {examples}, of {len(np.unique(data.subject_id[chosen])):,} subjects",
                    "rows left out there whatever their label, as negatives are", some(data.subject_id[chosen]),
                )
            )  # fmt: skip
    if not len(bad):
        return found
    known = "observation_end" in data.store.manifest
    what = (
        "durations run past the end of follow-up"
        if data.kind == "survival"
        else "negative labels' windows run past the end of follow-up"
    )
    if not known:
        what += ", as far as a store without the end of observation can tell (prepare it again)"
    found.append(
        Finding(
            "follow-up", "error" if known else "warning", what,
            f"{len(bad):,} of {examples}, of {len(np.unique(data.subject_id[bad])):,} subjects",
            "the window observed to its end (last event, end of observation or death), or the row censored",
            some(data.subject_id[bad]),
        )
    )  # fmt: skip
    return found


def _unseen(data: AuditData, labels: SplitLabels, horizon_days: float) -> np.ndarray:
    """Whether the window of a split's example, or its duration, ends after all that is known of the subject; bool."""
    end, death = labels.follow_up, labels.split.death_time[labels.index]
    slack = MICROSECONDS_PER_DAY if data.manifest.get("date_only") else 0
    if data.duration_days is not None:
        lasts = labels.until + (data.duration_days[labels.example] * MICROSECONDS_PER_DAY).astype(np.int64)
        return lasts > end + max(slack, _ROUNDING_US)
    lasts = labels.until + np.int64(horizon_days * MICROSECONDS_PER_DAY)
    died = (death != STATIC_TIME) & (death <= lasts)
    return (lasts > end) & ~died


def one_class(data: AuditData) -> list[Finding] | str:
    """Every split needs both classes."""
    if data.kind == "other":
        return "labels without classes"
    found = []
    counts = np.stack([data.positive[:, labels.example].sum(axis=1) for labels in data.splits], axis=1)
    for labels in data.splits:
        if not len(labels):
            found.append(
                Finding("one-class", "error", f"split {labels.name} has no labels", "0 labels", "both classes")
            )
            continue
        positives = int(data.positive[:, labels.example].max(axis=0).sum()) if data.categories else 0
        negatives = len(labels) - positives
        missing = min(positives, negatives) if data.kind == "binary" else positives
        if missing == 0:
            got = f"{counted(positives, 'positive')} of {counted(len(labels), 'label')}"
            expected = "positives and negatives" if data.kind == "binary" else "at least one positive"
            subjects = some(data.subject_id[labels.example])
            found.append(Finding("one-class", "error", f"split {labels.name} has one class", got, expected, subjects))
    never = np.flatnonzero((counts[:, 0] == 0) & (counts.sum(axis=1) > 0))
    if data.kind != "binary" and len(never) and counts[:, 0].any():
        named = ", ".join(data.categories[category] for category in never[:3])
        found.append(
            Finding(
                "one-class", "warning", "categories have no positive in train",
                f"{len(never):,} of {len(data.categories):,}, such as {named}", "positives to learn from",
            )
        )  # fmt: skip
    return found


def split_overlap(data: AuditData) -> list[Finding] | str:
    """A subject belongs to one split, under whatever number."""
    found = []
    pairs = [(a, b) for place, a in enumerate(data.splits) for b in data.splits[place + 1 :]]
    for a, b in pairs:
        shared = np.intersect1d(a.split.subject_id, b.split.subject_id)
        if len(shared):
            found.append(
                Finding(
                    "split-overlap", "error", f"subjects are in {a.name} and in {b.name}",
                    counted(len(shared), "subject"), "each subject in one split", some(shared),
                )
            )  # fmt: skip
    prints = {labels.name: _fingerprints(labels.split) for labels in data.splits}
    for a, b in pairs:
        _, ours, theirs = np.intersect1d(prints[a.name][1], prints[b.name][1], return_indices=True)
        one, other = prints[a.name][0][ours], prints[b.name][0][theirs]
        twins = one != other
        if twins.any():
            found.append(
                Finding(
                    "split-overlap", "warning", f"subjects of {b.name} have the very record of one of {a.name}",
                    f"{counted(int(twins.sum()), 'subject')} (first: {other[twins][0]} is like {one[twins][0]})",
                    f"no two records of {_TWIN_EVENTS} or more dated events alike in codes, times and values",
                    some(other[twins]),
                )
            )  # fmt: skip
    return found


def _fingerprints(split: SplitStore) -> tuple[np.ndarray, np.ndarray]:
    """Subjects with `_TWIN_EVENTS` dated events or more, and a 64-bit hash of their dated events."""
    dated = split.time > STATIC_TIME
    value = np.nan_to_num(split.value, nan=-1.0).astype(np.float32).view(np.uint32).astype(np.uint64)
    mixed = _mix(split.time.view(np.uint64) ^ _mix((split.code.astype(np.uint64) << np.uint64(32)) | value))
    # Sums of mixed words, so that the order within an instant does not matter.
    totals = np.concatenate([[np.uint64(0)], np.cumsum(np.where(dated, mixed, np.uint64(0)), dtype=np.uint64)])
    events = np.concatenate([[0], np.cumsum(dated)])
    long = events[split.offsets[1:]] - events[split.offsets[:-1]] >= _TWIN_EVENTS
    return split.subject_id[long], (totals[split.offsets[1:]] - totals[split.offsets[:-1]])[long]


def _mix(words: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def prevalent(data: AuditData) -> list[Finding] | str:
    """A first occurrence cannot be predicted for those who have had it."""
    first = data.outcome_time
    if first is None or data.kind not in ("binary", "survival"):
        return "no task of a first code that the store can tell (`codes` in the labels' manifest)"
    before = [labels.example[first[labels.example] <= labels.until] for labels in data.splits]
    bad = np.concatenate(before)
    if not len(bad):
        return []
    positive = int(data.positive[:, bad].max(axis=0).sum())
    codes = ", ".join(map(str, data.manifest["codes"]))
    return [
        Finding(
            "prevalent", "error", f"subjects have a code of the task ({codes}) at or before the prediction time",
            f"{counted(len(bad), 'label')} of {len(np.unique(data.subject_id[bad])):,} subjects, {positive:,} of them "
            "positive",
            "prevalent cases left out of a task of onset", some(data.subject_id[bad]),
        )
    ]  # fmt: skip
