"""What the checks of the audit look at: labels and the windows that a model would be fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from ehrsequencing.data.labels import NO_CATEGORY
from ehrsequencing.data.schema import SPLITS, STATIC_TIME
from ehrsequencing.data.sequences import Windows, history_bounds, truncated
from ehrsequencing.data.store import SplitStore, TokenStore
from ehrsequencing.data.vocabulary import Vocabulary
from ehrsequencing.errors import LabelError

MAX_FED = 511
"""Rows of the longest window beside CLS (`model.max_length` is at most 512); a shorter window is a part of it."""
MOST_CATEGORIES = 200
"""The commonest are looked at one by one."""
_ROWS_AT_ONCE = 4_000_000
_KINDS = {"binary": "boolean_value", "multilabel": "categorical_value", "survival": "integer_value"}


@dataclass(frozen=True)
class Finding:
    """One fault, or one thing a reader must know.

    Attributes:
        check: Name of the check.
        severity: "error" fails the audit unless the check is accepted; "warning" is stated.
        what, got, expected: As in an error message; `got` carries the counts.
        subjects: Some subjects as examples.
    """

    check: str
    severity: str
    what: str
    got: str
    expected: str
    subjects: tuple[int, ...] = ()

    def __str__(self) -> str:
        named = f", such as subject {', '.join(map(str, self.subjects))}" if self.subjects else ""
        return f"{self.what}; got {self.got}{named}; expected {self.expected}"


def some(subjects: np.ndarray) -> tuple[int, ...]:
    """The first three of the distinct subjects."""
    return tuple(np.unique(subjects)[:3].tolist())


def counted(number: int, word: str) -> str:
    """`counted(1200, "row")` is "1,200 rows"."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def worst_first(findings: list[Finding], most: int = 3) -> list[Finding]:
    """Errors before warnings; the first few, and how many more there are."""
    ordered = sorted(findings, key=lambda finding: finding.severity)
    kept = ordered[:most]
    if more := len(ordered) - len(kept):
        last = kept[-1]
        kept[-1] = Finding(
            last.check, last.severity, last.what, f"{last.got}; {more} more like it", last.expected, last.subjects
        )
    return kept


@dataclass(frozen=True)
class SplitLabels:
    """The examples of one split.

    Attributes:
        name, split: The split.
        example: int64 [n], positions in `AuditData`.
        index: int64 [n], positions of the subjects in the split.
        until: int64 [n], prediction times in microseconds.
        windows: What a model is fed.
    """

    name: str
    split: SplitStore
    example: np.ndarray
    index: np.ndarray
    until: np.ndarray
    windows: Windows

    def __len__(self) -> int:
        return len(self.index)

    def fed(self, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Position in `chosen` and row in the split of everything fed, some millions at a time."""
        ends = np.cumsum(self.windows.lengths[chosen])
        start = 0
        while start < len(chosen):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _ROWS_AT_ONCE, side="right")))
            owner, _, row = self.windows.rows(chosen[start:stop])
            yield owner + start, row
            start = stop

    @cached_property
    def history(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First dated row, and start and stop of the whole history until the prediction time, before truncation."""
        _, dated = history_bounds(self.split, self.index, np.full(len(self), STATIC_TIME, dtype=np.int64))
        start, stop = history_bounds(self.split, self.index, self.until)
        return dated, start, stop

    @cached_property
    def follow_up(self) -> np.ndarray:
        """Last dated event, death or end of observation of each example's subject, int64 microseconds."""
        split = self.split
        end = np.maximum(split.death_time, STATIC_TIME)
        filled = split.lengths > 0
        end[filled] = np.maximum(end[filled], split.time[split.offsets[1:][filled] - 1])
        if split.observation_end is not None:
            end = np.maximum(end, split.observation_end)
        return end[self.index]

    @cached_property
    def end_stated(self) -> np.ndarray:
        """Whether follow-up ends at a stated end of observation, and not with an event after it; bool."""
        stated = self.split.observation_end
        if stated is None:
            return np.zeros(len(self), dtype=bool)
        return (stated[self.index] > STATIC_TIME) & (stated[self.index] >= self.follow_up)


@dataclass(frozen=True)
class AuditData:
    """Labels beside the store. N examples are the distinct (subject, prediction time).

    Attributes:
        store: The token store.
        manifest: The labels' manifest.
        kind: "binary", "multilabel", "survival", or "other" (numbers without classes).
        subject_id: int64 [N].
        categories: Names of the classes that an example may be positive for.
        positive: Float32 [categories, N], 1 where positive.
        duration_days: Float64 [N] of a survival task, else None.
        splits: The examples by split, in the order of `SPLITS`; a subject in two splits is in both.
    """

    store: TokenStore
    manifest: dict[str, Any]
    kind: str
    subject_id: np.ndarray
    categories: tuple[str, ...]
    positive: sparse.csr_array
    duration_days: np.ndarray | None
    splits: tuple[SplitLabels, ...] = field(repr=False)

    @classmethod
    def read(cls, store: TokenStore, labels: pl.DataFrame, manifest: dict[str, Any]) -> AuditData:
        """Put labels (columns of `LABEL_SCHEMA`, sorted by subject and time) beside the store.

        Raises:
            LabelError: the labels have no values of the kind that the manifest states, or no subject in the store.
        """
        kind = _kind(labels, manifest)
        subject = labels["subject_id"].to_numpy()
        until = labels["prediction_time"].cast(pl.Datetime("us")).to_physical().to_numpy()
        first = np.flatnonzero(np.r_[True, (subject[1:] != subject[:-1]) | (until[1:] != until[:-1])])
        example = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(subject)]))
        categories, row, category = _positives(labels, kind)
        positive = sparse.csr_array(
            (np.ones(len(row), dtype=np.float32), (category, example[row])), shape=(len(categories), len(first))
        )
        duration = labels["float_value"].cast(pl.Float64).to_numpy() if kind == "survival" else None
        subject, until = subject[first], until[first].astype(np.int64)
        splits = []
        for name in SPLITS:
            split = store.split(name)
            index = split.index_of(subject)
            here = np.flatnonzero(index >= 0)
            windows = truncated(split, index[here], until[here], MAX_FED)
            splits.append(SplitLabels(name, split, here, index[here], until[here], windows))
        if not any(map(len, splits)):
            raise LabelError(
                f"no labelled subject is in {store.path}", got=counted(len(subject), "example"),
                remedy="build the labels from the dataset the store was prepared from",
            )  # fmt: skip
        return cls(store, manifest, kind, subject, categories, positive, duration, tuple(splits))

    @property
    def fitted(self) -> tuple[SplitLabels, ...]:
        """Train and tuning: what labels of held-out subjects need not be read for."""
        return self.splits[:2]

    @cached_property
    def outcome_time(self) -> np.ndarray | None:
        """First code of the task in each example's record, int64 microseconds; `STATIC_TIME` for one without a date.

        The largest int64 where there is none; None for tasks without codes, and where the store rolled them up
        together with others.
        """
        codes, matched = self.manifest.get("codes"), self.manifest.get("matched_codes")
        if not codes or not isinstance(codes, list) or self.kind not in ("binary", "survival"):
            return None
        vocabulary = self.store.vocabulary
        # `matched_codes` are whole codes; without them the patterns are prefixes.
        known, alone = (
            standing_for(self.store, set(matched).__contains__)
            if isinstance(matched, list)
            else codes_like(self.store, codes)
        )
        if not alone:
            return None
        wanted = np.append(known, False)[vocabulary.base_ids]
        never = np.iinfo(np.int64).max
        found = np.full(len(self.subject_id), never, dtype=np.int64)
        for labels in self.splits:
            split = labels.split
            rows = np.flatnonzero(wanted[split.code])
            owner = np.searchsorted(split.offsets, rows, side="right") - 1
            first = np.full(len(split), never, dtype=np.int64)
            np.minimum.at(first, owner, split.time[rows])
            found[labels.example] = np.minimum(found[labels.example], first[labels.index])
        return found


def _kind(labels: pl.DataFrame, manifest: dict[str, Any]) -> str:
    filled = [column for column in _KINDS.values() if labels[column].null_count() < len(labels)]
    stated = manifest.get("kind")
    if stated in _KINDS:
        needed = {_KINDS[stated], *(["float_value"] if stated == "survival" else [])}
        if incomplete := sorted(column for column in needed if labels[column].null_count()):
            raise LabelError(
                f"labels of a {stated} task lack values", got=f"nulls in {', '.join(incomplete)}",
                expected="a value in every row", remedy="correct the labels, or `kind` in their manifest",
            )  # fmt: skip
        return str(stated)
    if filled == ["integer_value"] and labels["float_value"].null_count():
        return "other"
    kinds = [kind for kind, column in _KINDS.items() if filled == [column] and not labels[column].null_count()]
    return kinds[0] if kinds else "other"


def _positives(labels: pl.DataFrame, kind: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names of the categories, rows of the labels that are positive, and the category of each."""
    if kind == "binary":
        rows = np.flatnonzero(labels["boolean_value"].to_numpy())
        return ("positive",), rows, np.zeros(len(rows), dtype=np.int64)
    if kind == "survival":
        status = labels["integer_value"].to_numpy()
        rows = np.flatnonzero(status > 0)
        known, category = np.unique(status[rows], return_inverse=True)
        return tuple("event" if value == 1 else f"competing event {value}" for value in known), rows, category
    if kind == "multilabel":
        names = labels["categorical_value"].to_numpy()
        rows = np.flatnonzero(names != NO_CATEGORY)
        known, category = np.unique(names[rows].astype(str), return_inverse=True)
        return tuple(known.tolist()), rows, category
    return (), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)


def codes_like(store: TokenStore, prefixes: Sequence[Any]) -> tuple[np.ndarray, bool]:
    """`standing_for` the codes that begin with one of the prefixes."""
    return standing_for(store, lambda code: code.startswith(tuple(map(str, prefixes))))


def standing_for(store: TokenStore, wanted: Callable[[str], bool]) -> tuple[np.ndarray, bool]:
    """Bool [base codes]: the code, or one that was rolled up into it, is wanted; and whether those are all wanted."""
    rolled = store.rolled_codes
    targets = {broader for code, broader in rolled.items() if wanted(code)}
    mixed = {broader for code, broader in rolled.items() if not wanted(code)}
    known = np.array([wanted(code) or code in targets for code in store.vocabulary.base_codes], dtype=bool)
    return known, targets.isdisjoint(mixed)


@dataclass(frozen=True)
class Presence:
    """Which features occur in the window of which example.

    Features are tokens, codes with several tokens, and both again within the visit of the last event.

    Attributes:
        example: int64 [m], positions in `AuditData`, or of whatever was asked for.
        matrix: Float32 [m, features], 1 where present.
        names: Name of each feature.
        codes: int64 [features], index into the vocabulary's `base_codes`; -1 for special tokens.
    """

    example: np.ndarray
    matrix: sparse.csr_array
    names: tuple[str, ...]
    codes: np.ndarray


def presence(labels: SplitLabels, chosen: np.ndarray, vocabulary: Vocabulary, last_visit: bool = True) -> Presence:
    """Features of the windows of some examples of a split.

    Args:
        labels: The split's examples.
        chosen: int64 [m], positions among them.
        vocabulary: The store's.
        last_visit: Also the features within the visit of the last event.
    """
    tokens, split = len(vocabulary), labels.split
    several = np.bincount(vocabulary.base_ids[vocabulary.base_ids >= 0], minlength=len(vocabulary.base_codes)) > 1
    member = np.flatnonzero((vocabulary.base_ids >= 0) & several[vocabulary.base_ids])
    grouped = np.unique(vocabulary.base_ids[member])
    group = sparse.csr_array(
        (np.ones(len(member), np.float32), (member, np.searchsorted(grouped, vocabulary.base_ids[member]))),
        shape=(tokens, len(grouped)),
    )
    anywhere, recent = [], []
    last = split.visit[np.maximum(labels.windows.stop - 1, 0)] if len(split.visit) else np.zeros(0, np.int32)
    for owner, row in labels.fed(chosen):
        anywhere.append((owner, split.code[row]))
        latest = (split.visit[row] == last[chosen][owner]) & (split.time[row] > STATIC_TIME)
        recent.append((owner[latest], split.code[row[latest]]))
    parts = []
    for pairs in (anywhere, recent) if last_visit else (anywhere,):
        owner, code = (np.concatenate([pair[side] for pair in pairs] or [np.zeros(0, np.int64)]) for side in (0, 1))
        found = sparse.csr_array((np.ones(len(owner), np.float32), (owner, code)), shape=(len(chosen), tokens))
        for part in (found, found @ group):
            part.sum_duplicates()
            part.data[:] = 1
            parts.append(part)
    names = [*vocabulary.tokens, *(vocabulary.base_codes[code] for code in grouped)]
    if last_visit:
        names += [f"{name} in the last visit" for name in names]
    codes = np.concatenate([vocabulary.base_ids, grouped] * (2 if last_visit else 1)).astype(np.int64)
    return Presence(labels.example[chosen], sparse.hstack(parts, format="csr"), tuple(names), codes)


def sample(lengths: np.ndarray, most_rows: int, seed: int = 0) -> np.ndarray:
    """Positions of all examples, or of a random part (the same in every audit) with at most `most_rows` rows in all."""
    if lengths.sum() <= most_rows:
        return np.arange(len(lengths))
    order = np.random.default_rng(seed).permutation(len(lengths))
    return np.sort(order[: max(1, int(np.searchsorted(np.cumsum(lengths[order]), most_rows, side="right")))])


def wilson(
    hits: np.ndarray, trials: np.ndarray | int, subjects: np.ndarray | int, z: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of `hits / trials`, counting as many independent trials as there are subjects.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209.
    """
    n = np.maximum(subjects, 1)
    share = hits / np.maximum(trials, 1)
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return np.clip(center - half, 0, 1), np.clip(center + half, 0, 1)
