"""The check of tokens that give the label away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import sparse

from ehrsequencing.tasks.audit_data import (
    MOST_CATEGORIES,
    AuditData,
    Finding,
    codes_like,
    presence,
    sample,
    some,
    wilson,
    worst_first,
)

CERTAIN, STRONG = 0.8, 0.7
"""Youden's J (sensitivity + specificity - 1) of one token alone from which it is a leak, or stated."""
LOWER_SHARE = 0.6
"""The lower end of its interval must reach this share of the threshold."""
PURE, COVERED, STATED = 0.98, 0.5, 0.25
"""A token is a leak too where this share of its examples is positive and it is in this share of all positives, and
stated where it is in the last share."""
MANY, MANY_PURE = 0.05, 0.5
"""Of several categories this share must be told, each by a token of this purity: some codes follow others by
protocol."""
_LEAST_SUBJECTS = 10
_MOST_ROWS = 8_000_000


def token(data: AuditData) -> list[Finding] | str:
    """No single token may give the label away."""
    if not data.categories:
        return "labels without classes"
    parts = []
    lengths = [labels.windows.lengths for labels in data.fitted]
    budget = _MOST_ROWS / max(1, sum(int(rows.sum()) for rows in lengths))
    for labels, rows in zip(data.fitted, lengths, strict=True):
        parts.append(presence(labels, sample(rows, int(np.ceil(budget * rows.sum()))), data.store.vocabulary))
    matrix = sparse.vstack([part.matrix for part in parts], format="csr")
    example = np.concatenate([part.example for part in parts])
    frequent = np.flatnonzero(matrix.sum(axis=0) >= _LEAST_SUBJECTS)
    matrix, names, codes = matrix[:, frequent].tocsc(), parts[0].names, parts[0].codes[frequent]
    several = len(data.categories) > 1
    told: list[tuple[float, Finding]] = []
    tested = 0
    for category, known, positive, negative, hits, misses in _questions(data, example, matrix, codes):
        tested += 1
        found = _revealing(data, example, positive, negative, hits, misses)
        if found is None:
            continue
        column, severity, strength, covered = found
        if not known or (several and hits[column] < MANY_PURE * (hits[column] + misses[column])):
            severity = "warning"
        holds = matrix[:, [column]].toarray().ravel() > 0
        where = "" if data.kind == "binary" else f" ({category})"
        counts = (
            f"in {int(hits[column]):,} of {int(positive.sum()):,} positives and {int(misses[column]):,} of "
            f"{int(negative.sum()):,} others"
        )
        limit = (
            f"less than {PURE:.0%} positive among those with it, or less than {covered:.0%} of positives with it"
            if covered
            else f"J below {CERTAIN if severity == 'error' else STRONG} (here {abs(strength):.2f})"
        )
        what = f"one token tells the label{where}: {names[frequent[column]]}"
        named = some(data.subject_id[example[holds & (positive if strength > 0 else negative)]])
        told.append((abs(strength), Finding("token", severity, what, counts, limit, named)))
    findings = [finding for _, finding in sorted(told, key=lambda pair: -pair[0])]
    if sum(finding.severity == "error" for finding in findings) < MANY * tested:
        findings = [replace(finding, severity="warning") for finding in findings]
    return worst_first(findings)


Question = tuple[str, bool, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _questions(data: AuditData, example: np.ndarray, matrix: sparse.csc_array, codes: np.ndarray) -> Iterator[Question]:
    """Per category its name, whether its own codes are known, who is positive and negative, and whose windows hold
    each feature."""
    table = data.positive[:, example]
    order = np.argsort(-table.sum(axis=1), kind="stable")[:MOST_CATEGORIES]
    table = table[order]
    priors = sparse.csr_array(table.shape, dtype=np.float32)
    known = np.ones(len(order), dtype=bool)
    if data.kind == "multilabel":
        # Of those who have the code already the task asks its recurrence, which tokens may well tell: no leak.
        own = [_own_codes(data, data.categories[row]) for row in order]
        priors = sparse.csr_array(np.stack([matrix[:, np.flatnonzero(has[codes])].sum(axis=1) > 0 for has in own]))
        priors = priors.astype(np.float32)
        known = np.array([has.any() for has in own])
    asked = table - table.multiply(priors)
    hits = (asked @ matrix).toarray()
    present = matrix.sum(axis=0) - (priors @ matrix).toarray()
    for place, row in enumerate(order):
        positive = asked[[place]].toarray()[0] > 0
        negative = (table[[place]].toarray()[0] + priors[[place]].toarray()[0]) == 0
        yield data.categories[row], bool(known[place]), positive, negative, hits[place], present[place] - hits[place]


def _own_codes(data: AuditData, category: str) -> np.ndarray:
    """Bool [base codes + 1]: the codes that a category of a multi-label task stands for."""
    definitions = data.manifest.get("definitions")
    prefixes = definitions.get(category) if isinstance(definitions, dict) else None
    known, _ = codes_like(data.store, prefixes if isinstance(prefixes, list) and prefixes else [category])
    return np.append(known, False)


def _revealing(
    data: AuditData,
    example: np.ndarray,
    positive: np.ndarray,
    negative: np.ndarray,
    hits: np.ndarray,
    misses: np.ndarray,
) -> tuple[int, str, float, float | None] | None:
    """The most telling feature: its column, severity, J, and the share of positives where purity tells."""
    groups = [data.subject_id[example[group]] for group in (positive, negative)]
    n1, n0 = (len(np.unique(group)) for group in groups)
    if min(n1, n0) < _LEAST_SUBJECTS:
        return None
    t1, t0 = int(positive.sum()), int(negative.sum())
    strength = hits / t1 - misses / t0
    (low1, high1), (low0, high0) = wilson(hits, t1, n1), wilson(misses, t0, n0)
    lower = np.where(strength > 0, low1 - high0, low0 - high1)
    certain = (np.abs(strength) >= CERTAIN) & (lower >= LOWER_SHARE * CERTAIN)
    share = hits / np.maximum(hits + misses, 1)
    pure = (share >= PURE) & (hits >= COVERED * t1) & (t1 <= t0) & (lower >= LOWER_SHARE * COVERED)
    partly = (share >= PURE) & (hits >= STATED * t1) & (t1 <= t0) & (lower >= LOWER_SHARE * STATED)
    strong = (np.abs(strength) >= STRONG) & (lower >= LOWER_SHARE * STRONG)
    rules = ((certain, "error", None), (pure, "error", COVERED), (strong, "warning", None), (partly, "warning", STATED))
    for mask, severity, covered in rules:
        if mask.any():
            column = int(np.argmax(np.where(mask, np.abs(strength), -1)))
            return column, severity, float(strength[column]), covered
    return None
