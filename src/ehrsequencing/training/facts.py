"""What a run notes of its data before it trains: unknown codes, how the splits differ, whom its base has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.store import SplitStore, TokenStore
from ehrsequencing.data.vocabulary import UNK
from ehrsequencing.errors import StoreError
from ehrsequencing.io import read_json

_CHUNK = 4_000_000
_PARTS = 8
"""Random parts of train that show how far codes differ by chance."""
_MOST_SUBJECTS = 5_000
"""Subjects of a part: more make the noise smaller than anything that matters."""


def data_facts(store: TokenStore) -> dict[str, Any]:
    """Tokens per split and how far those of tuning and held-out lie from train's.

    Returns:
        tokens: per split `events` and `unknown`, those read as [UNK]. shift: per split other than train `psi`, the
        population stability index of its token counts against train's, and `null_mean`, `null_sd` of that index for
        random parts of train of as many subjects; left out where a split has no events.
    """
    size = len(store.vocabulary)
    counts = {name: token_counts(store.split(name), size) for name in SPLITS}
    facts: dict[str, Any] = {
        "tokens": {name: {"events": int(c.sum()), "unknown": int(c[UNK])} for name, c in counts.items()}
    }
    train = store.split("train")
    shifts = {}
    for name in SPLITS[1:]:
        subjects = min(len(store.split(name)), _MOST_SUBJECTS)
        if not counts[name].sum() or not counts["train"].sum() or 2 * subjects > len(train):
            continue
        other = counts[name]
        if subjects < len(store.split(name)):
            other = token_counts(store.split(name), size, _some(len(store.split(name)), subjects, 0))
        null = []
        for seed in range(_PARTS):
            part = token_counts(train, size, _some(len(train), subjects, seed))
            null.append(stability_index(counts["train"] - part, part))
        shifts[name] = {
            "psi": round(stability_index(counts["train"], other), 4),
            "null_mean": round(float(np.mean(null)), 4),
            "null_sd": round(float(np.std(null, ddof=1)), 4),
        }
    return facts | {"shift": shifts}


def _some(number: int, chosen: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(number, chosen, replace=False))


def token_counts(split: SplitStore, size: int, subjects: np.ndarray | None = None) -> np.ndarray:
    """Events per token, int64 [size], of all subjects of a split or of those at these positions."""
    found = np.zeros(size, dtype=np.int64)
    if subjects is None:
        for start in range(0, len(split.code), _CHUNK):
            found += np.bincount(split.code[start : start + _CHUNK], minlength=size)
        return found
    offsets = np.asarray(split.offsets)
    rows = [np.asarray(split.code[offsets[s] : offsets[s + 1]]) for s in subjects]
    return found + np.bincount(np.concatenate(rows), minlength=size) if rows else found


def stability_index(expected: np.ndarray, actual: np.ndarray) -> float:
    """Population stability index of two vectors of counts; half an event is added to each cell that either has.

    Source: Siddiqi 2006, Credit Risk Scorecards.

    >>> round(stability_index(np.array([50, 50]), np.array([500, 500])), 6)
    0.0
    """
    kept = (expected > 0) | (actual > 0)
    p, q = expected[kept] + 0.5, actual[kept] + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def base_overlap(store: TokenStore, from_run: Path) -> dict[str, int]:
    """Subjects of tuning and held-out that a base, or a run that it came from, was trained on, per split.

    {} where a store or a run of these is not there, unless those that are there have trained on some already.
    """
    judged = {name: np.asarray(store.split(name).subject_id) for name in SPLITS[1:]}
    seen = {name: np.zeros(len(subjects), dtype=bool) for name, subjects in judged.items()}
    complete, met = True, set[Path]()
    following: Path | None = from_run
    while following is not None and following.resolve() not in met:
        met.add(following.resolve())
        metadata = following / "metadata.json"
        content = read_json(metadata) if metadata.is_file() else {}
        if content.get("store_fingerprint") != store.fingerprint:
            trained = _trained_on(content)
            if trained is None:
                complete = False
            else:
                for name, subjects in judged.items():
                    seen[name] |= trained.index_of(subjects) >= 0
        following = Path(base) if (base := content.get("from_run")) else None
    if not complete and not any(found.any() for found in seen.values()):
        return {}
    return {name: int(found.sum()) for name, found in seen.items()}


def _trained_on(metadata: dict[str, Any]) -> SplitStore | None:
    """Train of the store of a run, None where that is gone or another one lies in its place."""
    try:
        store = TokenStore.open(str(metadata.get("store", "")))
    except StoreError:
        return None
    return store.split("train") if store.fingerprint == metadata.get("store_fingerprint") else None
