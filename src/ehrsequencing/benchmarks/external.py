"""External validation: a model of one dataset, judged on all subjects of another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.data.joined import JoinedSplit
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.schema import KINDS, SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import SplitStore, TokenStore
from ehrsequencing.data.vocabulary import UNK
from ehrsequencing.errors import LabelError, RunError, SplitError, StoreError, VocabularyMismatchError
from ehrsequencing.io import read_json
from ehrsequencing.tasks.audit import audit
from ehrsequencing.training.examples import check_origin

LEARNED = ("train", "tuning")


class _View(TokenStore):
    """The training store with other subjects in place of its held-out ones."""

    def __init__(self, training: TokenStore, held_out: SplitStore) -> None:
        super().__init__(training.path, training.manifest)
        self._splits["held_out"] = held_out


@dataclass(frozen=True)
class External:
    """Another dataset to judge on, checked against what the models learned from.

    Attributes:
        store: Its token store, of the same vocabulary and value statistics.
        joined: Its labelled subjects, of all splits.
        examples: Its labelled histories.
        split_of: Split in its own store, str [examples].
        manifest: Of its labels.
        unknown: What the vocabulary does not know of it, as in `report_data.json`.
        audit: Of its labels, as in `report_data.json`.
        notes: What a reader must know.
    """

    store: TokenStore
    joined: JoinedSplit
    examples: Examples
    split_of: np.ndarray
    manifest: dict[str, Any]
    unknown: dict[str, Any]
    audit: list[dict[str, Any]]
    notes: list[str]

    def in_place_of_held_out(
        self, training: TokenStore, examples: dict[str, Examples]
    ) -> tuple[TokenStore, dict[str, Examples]]:
        """The training store and its examples, the held-out ones replaced by the other dataset's."""
        return _View(training, self.joined), {**examples, "held_out": self.examples}


def is_external(metadata: dict[str, Any], store: TokenStore, training_store: Path | None) -> bool:
    """Whether a store is of another dataset than the one that a run was trained on."""
    if metadata.get("store_fingerprint") == store.fingerprint:
        return False
    # Another preparation of the run's own dataset is no external validation but a mistake, told elsewhere.
    training = _training_store(metadata, training_store)
    return training.manifest["dataset_fingerprint"] != store.manifest["dataset_fingerprint"]


def open_external(
    runs: Sequence[Path],
    store_path: str | Path,
    labels_path: str | Path,
    *,
    training_store: Path | None = None,
    accept: Collection[str] = (),
) -> External:
    """Check another dataset against the runs that shall be judged on it, and gather its labelled subjects.

    A subject that any run, or the run that it started from, had in train or tuning is refused: the same identifier
    is the same person where both datasets name the same source or one names none, and, between sources, where the
    times of all events agree.

    Args:
        runs: Fine-tuning runs, all on one training store.
        store_path: The other store, prepared with the runs' vocabulary.
        labels_path: Binary labels of the other dataset.
        training_store: Where the training store lies now; the path in the run's metadata by default.
        accept: Names of checks of the audit whose errors are accepted.

    Raises:
        StoreError: the training store is not there, or is another one.
        VocabularyMismatchError: another vocabulary or other value statistics.
        SplitError: a labelled subject trained or tuned a model.
        LabelError: labels of another dataset or of unknown subjects, or one class.
        AuditError: the audit of these labels found an error that `accept` does not name.
    """
    other = TokenStore.open(store_path)
    metadata = read_json(_member(runs[0]) / "metadata.json", remedy="name a folder that `ehrseq finetune` wrote")
    training = _training_store(metadata, training_store)
    remedy = f"prepare it with `ehrseq prepare MEDS STORE --vocabulary {training.path}`"
    if other.vocabulary.hash != training.vocabulary.hash:
        raise VocabularyMismatchError(
            f"{other.path} has another vocabulary than {training.path}",
            got=other.vocabulary.hash[:16], expected=training.vocabulary.hash[:16], remedy=remedy,
        )  # fmt: skip
    if other.values.hash != training.values.hash:
        raise VocabularyMismatchError(
            f"{other.path} has other value statistics than {training.path}",
            got=other.values.hash[:16], expected=training.values.hash[:16], remedy=remedy,
        )  # fmt: skip
    labels, manifest = read_labels(labels_path)
    check_origin(other, manifest, str(labels_path))
    if labels["boolean_value"].null_count():
        raise LabelError(f"{labels_path}: an external validation needs a binary task", expected="boolean_value")
    subjects = labels["subject_id"].to_numpy()
    joined = JoinedSplit(other, SPLITS, subjects)
    if absent := int((joined.index_of(subjects) < 0).sum()):
        raise LabelError(
            f"{labels_path}: {absent} labels are of subjects that {other.path} does not hold",
            remedy="build the labels from the dataset the store was prepared from",
        )
    examples = Examples.from_labels(joined, labels)
    positives = int(np.asarray(examples.target).sum())
    if positives in (0, len(examples)):
        raise LabelError(
            f"{labels_path} has one class only",
            got=f"{positives} positives of {len(examples)}",
            expected="both classes",
        )
    notes = [
        f"External validation: trained on {training.manifest.get('source') or training.path.name}, judged on all "
        f"labelled subjects of {other.manifest.get('source') or other.path.name}, whatever their split there; "
        "thresholds, stopping and recalibration come from the tuning split of the training dataset."
    ]
    for store, told in _lineage(runs, training, notes):
        if note := _refuse_learned(joined, other, store, told):
            notes.append(note)
    if (trained_for := metadata.get("task")) != (judged := manifest.get("task", Path(labels_path).stem)):
        notes.append(f"The models were trained for the task {trained_for} and are judged on {judged}.")
    audited = audit(other, labels, manifest, accept=accept, judged_only=True)
    audited.raise_errors()
    unknown = _unknown(other, joined)
    share = 100 * unknown["unknown_events"] / max(unknown["events"], 1)
    notes.append(f"{share:.1f} % of {unknown['events']:,} events of the subjects judged have no token: read as [UNK].")
    return External(
        other, joined, examples, _split_of(other, examples), manifest, unknown, audited.rows(),
        notes + audited.notes(),
    )  # fmt: skip


def _member(run: Path) -> Path:
    """One training of a run."""
    return next(iter(sorted((run / "arms").glob("seed-*"))), run)


def _training_store(metadata: dict[str, Any], moved_to: Path | None) -> TokenStore:
    path = moved_to or Path(str(metadata.get("store")))
    if not path.is_dir():
        raise StoreError(
            "the store that the run was trained on is not there", got=str(path),
            remedy="name it with --training-store: its subjects are checked and the baselines are fitted on it",
        )  # fmt: skip
    store = TokenStore.open(path)
    if store.fingerprint != metadata.get("store_fingerprint"):
        raise StoreError(
            f"{path} is not the store that the run was trained on", got=store.fingerprint[:16],
            expected=str(metadata.get("store_fingerprint"))[:16], remedy="name it with --training-store",
        )  # fmt: skip
    return store


def _lineage(runs: Sequence[Path], training: TokenStore, notes: list[str]) -> list[tuple[TokenStore, str]]:
    """Every store that the runs, or what they started from, learned from."""
    found = {training.fingerprint: (training, "the run")}
    waiting = [_member(run) for run in runs]
    while waiting:
        run = waiting.pop()
        if not (run / "metadata.json").is_file():
            notes.append(f"Whether {run}, which a run started from, learned from these subjects could not be checked.")
            continue
        metadata = read_json(run / "metadata.json")
        fingerprint = metadata.get("store_fingerprint")
        if fingerprint not in found:
            path = Path(str(metadata.get("store")))
            store = TokenStore.open(path) if path.is_dir() else None
            if store is None or store.fingerprint != fingerprint:
                notes.append(f"Whether {run} learned from these subjects could not be checked: no store at {path}.")
            else:
                found[store.fingerprint] = (store, str(run))
        if metadata.get("from_run"):
            waiting.append(_member(Path(metadata["from_run"])))
    return list(found.values())


def _refuse_learned(joined: JoinedSplit, other: TokenStore, store: TokenStore, told: str) -> str | None:
    sources = (other.manifest.get("source"), store.manifest.get("source"))
    numbered_alike = None in sources or sources[0] == sources[1]
    apart = 0
    for split in LEARNED:
        learned = store.split(split)
        shared = np.intersect1d(joined.subject_id, learned.subject_id)
        here, there = joined.index_of(shared), learned.index_of(shared)
        same = np.full(len(shared), numbered_alike)
        if not numbered_alike:
            same = np.array(
                [_same_times(joined, a, learned, b) for a, b in zip(here.tolist(), there.tolist(), strict=True)],
                dtype=bool,
            )
        if same.any():
            raise SplitError(
                f"{int(same.sum())} subjects of {other.path} were in the {split} split of {told}",
                got=f"subject {int(shared[same][0])} for one", expected="subjects that no model learned from",
                remedy="leave them out of the labels",
            )  # fmt: skip
        apart += int((~same).sum())
    if not apart:
        return None
    return (
        f"{apart} identifiers occur in both datasets, whose sources differ ({sources[0]} and {sources[1]}); the times "
        "of their events differ, so they are taken for different people."
    )


def _same_times(a: SplitStore, i: int, b: SplitStore, j: int) -> bool:
    rows_a, rows_b = (split.time[split.offsets[k] : split.offsets[k + 1]] for split, k in ((a, i), (b, j)))
    return bool(a.birth_time[i] == b.birth_time[j] and np.array_equal(rows_a, rows_b))


def _split_of(store: TokenStore, examples: Examples) -> np.ndarray:
    names = np.empty(len(examples), dtype=object)
    for split in SPLITS:
        names[store.split(split).index_of(examples.subject_id) >= 0] = split
    return names


def _unknown(store: TokenStore, joined: JoinedSplit) -> dict[str, Any]:
    """Unknown events of the subjects judged, per kind, and the codes lost in the whole dataset where it says."""
    unknown = joined.code == UNK
    events, lost = (np.bincount(joined.kind[rows], minlength=len(KINDS)) for rows in (slice(None), unknown))
    stated = store.manifest.get("unknown") or {}
    kinds = []
    for index, kind in enumerate(KINDS):
        of_kind = stated.get("kinds", {}).get(kind, {})
        if events[index]:
            kinds.append(
                {
                    "kind": kind,
                    "events": int(events[index]),
                    "unknown_events": int(lost[index]),
                    "codes": of_kind.get("codes"),
                    "unknown_codes": of_kind.get("unknown_codes"),
                }
            )
    return {
        "events": int(events.sum()),
        "unknown_events": int(lost.sum()),
        "codes": stated.get("codes"),
        "unknown_codes": stated.get("unknown_codes"),
        "kinds": kinds,
        "most_frequent": stated.get("most_frequent", []),
    }


def require_labels(labels_path: str | Path | None, store: TokenStore) -> Path:
    """The labels of the other dataset.

    Raises:
        RunError: none were named.
    """
    if labels_path is None:
        raise RunError(
            f"{store.path} is of another dataset than the run, whose labels do not fit it",
            expected="ehrseq evaluate RUN OTHER_STORE OTHER_LABELS", remedy="name labels of that dataset",
        )  # fmt: skip
    return Path(labels_path)
