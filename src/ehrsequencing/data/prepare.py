"""From a MEDS dataset to a token store: scan shard by shard, fit on train, then encode block by block."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ehrsequencing import __version__
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.calendar import dates_note
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.encode import BLOCK_ROWS, EncodeTask, Subjects, encode, is_encoded, save_fit
from ehrsequencing.data.parallel import Map, task_map
from ehrsequencing.data.rows import TRAIN
from ehrsequencing.data.schema import KINDS, SPLITS, STATIC_TIME
from ehrsequencing.data.shards import Piece
from ehrsequencing.data.store import FORMAT_VERSION, MARK, SplitWriter, TokenStore, narrowest, write_manifest
from ehrsequencing.data.survey import (
    Pairs,
    Scanned,
    ScanTask,
    fit,
    fit_tasks,
    is_event,
    joined_statistics,
    load_mark,
    load_scan,
    scan,
)
from ehrsequencing.data.unknown import unknown_codes
from ehrsequencing.data.values import MAX_DISCRETE_BINS, VALUES_FILE, ValueStatistics
from ehrsequencing.data.vocabulary import NUM_SPECIAL, UNK, VOCABULARY_FILE, Vocabulary
from ehrsequencing.data.workspace import workspace
from ehrsequencing.errors import ConfigError, DataError, StoreError
from ehrsequencing.io import hash_bytes, publish_directory, replaceable, versions, write_json

MIN_COUNT, VALUE_BINS = 5, 5
MAX_DEFAULT_WORKERS = 8
_MAX_VALUE_BINS = 100
_PIECE_ROWS = 2_000_000
_BYTES_PER_WORKER = 8_000_000
"""Below two of these, starting processes takes longer than the work."""


def prepare(
    meds: str | Path,
    store: str | Path,
    *,
    min_count: int | None = None,
    value_bins: int | None = None,
    vocabulary_from: str | Path | None = None,
    extend_vocabulary: bool = False,
    max_age_years: float = 125.0,
    overwrite: bool = False,
    workers: int | None = None,
    engine: str = "local",
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] = lambda message: None,
) -> TokenStore:
    """Write the token store of a dataset; the folder appears whole or not at all.

    Vocabulary and value statistics come from the train split alone. A dataset with a fixed code book gets the whole
    book as its vocabulary (numeric codes: `value_bins` tokens and the bare one).
    `MEDS_BIRTH` and `MEDS_DEATH` become times of the subject and no tokens. Every shard is read once; each process
    holds one piece of at most 2 million rows at a time (a shard that is not ordered by subject is one piece). The same
    dataset and options give the same bytes, whatever the engine and the number of workers. Called again after it was
    killed, it continues behind the pieces that were done.

    Args:
        meds: MEDS dataset.
        store: Folder to write.
        min_count: Codes and bins that are rarer in train have no token of their own; `MIN_COUNT` by default.
        value_bins: Quantile bins of a code with many distinct values; `VALUE_BINS` by default.
        vocabulary_from: Store or model folder whose vocabulary and value statistics to use instead of fitting;
            unknown codes become UNK, and the manifest states their share.
        extend_vocabulary: Append what this train split has besides; the old ids and statistics stay.
        max_age_years: Events at greater ages are refused.
        overwrite: Replace an existing store.
        workers: Tasks at a time; None takes a process per core, at most 8, and fewer for small datasets. Processes are
            spawned: a script that calls this needs the guard `if __name__ == "__main__"`.
        engine: "local", or "ray", which runs the same map over a Ray cluster that shares the folders.
        progress: Called with parts done and in all: pieces of shards to scan, then blocks of the store to write.
        notice: Told what of an earlier, killed call is continued or discarded, and why.

    Raises:
        ConfigError: an option out of range or without effect (`extend_vocabulary` without `vocabulary_from`, a fit's
            option where nothing is fitted), an engine that is not installed, or a store that is, holds or lies in its
            dataset or lies in another one.
        DataError: no MEDS dataset, infinite values, implausible ages, or no code that has a token.
        SplitError: a subject in two splits.
        StoreError: `vocabulary_from` holds no vocabulary.
        RunError: `store` exists, and `overwrite` is False or it is no token store; or another process is writing it.
    """
    meds, store = Path(meds), Path(store)
    given = {name for name, value in (("min_count", min_count), ("value_bins", value_bins)) if value is not None}
    min_count = MIN_COUNT if min_count is None else min_count
    value_bins = VALUE_BINS if value_bins is None else value_bins
    _check_options(meds, store, min_count, value_bins, max_age_years, vocabulary_from, extend_vocabulary, workers)
    if given and vocabulary_from is not None and not extend_vocabulary:
        raise ConfigError(
            f"{' and '.join(sorted(given))} would have no effect: vocabulary and bins are those of {vocabulary_from}",
            remedy="leave the option out, or leave out vocabulary_from",
        )
    reused = _load_fit(Path(vocabulary_from)) if vocabulary_from is not None else None
    store = replaceable(store, overwrite=overwrite, mark=MARK)
    with task_map(engine, workers or _default_workers(meds)) as run:
        dataset = MedsDataset.open(meds)
        if "min_count" in given and dataset.fixed_code_book:
            raise ConfigError(
                f"min_count would have no effect: the vocabulary of {meds} is its fixed code book",
                got=min_count, remedy="leave min_count out",
            )  # fmt: skip
        options = {
            "min_count": min_count,
            "value_bins": value_bins,
            "max_age_years": max_age_years,
            "vocabulary_from": None if reused is None else reused[0].hash,
            "extend_vocabulary": extend_vocabulary,
        }
        key = {
            "dataset": dataset.fingerprint, **options, "statistics_from": None if reused is None else reused[1].hash,
            "fixed_code_book": dataset.fixed_code_book, "version": [__version__, FORMAT_VERSION],
        }  # fmt: skip
        with workspace(store, key, notice) as work:
            job = _Job(dataset, work, run, progress)
            pieces = job.scanned(max_age_years)
            found = job.pairs(pieces)
            vocabulary, values = job.fitted(
                pieces, found, min_count, value_bins, reused, vocabulary_from, extend_vocabulary
            )
            counts, token_counts = job.encoded(pieces, found, vocabulary, values)
            _refuse_unknown_world(counts["train"], meds, reused is not None)
            folder = work / "store"
            vocabulary.with_counts(token_counts).save(folder / VOCABULARY_FILE)
            values.save(folder / VALUES_FILE)
            origin = "reused" if reused else "the dataset's fixed code book" if dataset.fixed_code_book else "fitted"
            write_manifest(
                folder,
                {
                    "dataset_fingerprint": dataset.fingerprint,
                    "fingerprint": hash_bytes(
                        dataset.fingerprint.encode(), repr(sorted(options.items())).encode(),
                        vocabulary.hash.encode(), values.hash.encode(),
                    ),
                    "source": dataset.manifest.get("source"),
                    "dates_note": dates_note(dataset.manifest),
                    "options": options,
                    "fitted_on": "train",
                    "vocabulary": {
                        "hash": vocabulary.hash,
                        "tokens": len(vocabulary),
                        "codes": len(vocabulary.base_codes),
                        "origin": f"{origin}, extended" if extend_vocabulary else origin,
                        "tokens_added": len(vocabulary) - len(reused[0]) if reused else 0,
                    },
                    "values": {"hash": values.hash, "codes_and_units": len(values)},
                    "observation_end": job.ends is not None,
                    "counts": counts,
                    **({"unknown": unknown_codes(job.events(found), vocabulary)} if reused is not None else {}),
                    "versions": versions(),
                },
                run,
            )  # fmt: skip
            publish_directory(folder, store, overwrite=overwrite, mark=MARK)
    return TokenStore.open(store)


class _Job:
    """The steps of one preparation. Each is a map over tasks that leave their results in the folder of work."""

    def __init__(self, dataset: MedsDataset, work: Path, run: Map, progress: Callable[[int, int], None] | None) -> None:
        self.dataset, self.work, self._run, self._progress = dataset, work.absolute(), run, progress
        self.ends = dataset.observation_end()
        self._pieces = _pieces(dataset)
        # A block per million rows, as far as it can be told before the events are read.
        rows = dict.fromkeys(range(-1, len(SPLITS)), 0)
        for piece in self._pieces:
            rows[piece.split] += piece.stop - piece.start
        self._done, self._total = 0, len(self._pieces) + sum(-(-many // BLOCK_ROWS) for many in rows.values())

    def _tick(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done))

    def scanned(self, max_age_years: float) -> list[Scanned]:
        """The first pass over every piece."""
        folder = self.work / "scanned"
        folder.mkdir(exist_ok=True)
        kinds = self.work / "kinds.json"
        stated = self.dataset.codes_with([])
        write_json(kinds, dict(zip(stated["code"], map(KINDS.index, stated["kind"]), strict=True)))
        paths = [folder / f"{index}" for index in range(len(self._pieces))]
        found = {path: load_scan(path, check=True) for path in paths}
        missing = []
        for path, piece in zip(paths, self._pieces, strict=True):
            if found[path] is None:
                missing.append(ScanTask(piece, kinds, max_age_years, path))
            else:
                self._tick()
        for _ in self._run(scan, missing):
            self._tick()
        loaded = [found[path] or load_scan(path) for path in paths]
        return [piece for piece in loaded if piece is not None]

    def pairs(self, pieces: list[Scanned]) -> Pairs:
        """Codes and units of all pieces."""
        self._book = self.dataset.codes_with(set().union(*(piece.codes for piece in pieces))).filter(is_event())
        kinds = map(KINDS.index, self._book["kind"])
        self._kinds = dict(zip(self._book["code"], kinds, strict=True))
        return Pairs.of(pieces, self._kinds)

    def events(self, pairs: Pairs) -> pl.DataFrame:
        """Columns `code`, `kind` and `events` of every code that occurs, all splits together."""
        table = pl.DataFrame({"code": pairs.codes, "events": pairs.events.sum(axis=0)})
        table = table.group_by("code").agg(pl.col("events").sum()).filter(pl.col("events") > 0)
        return table.join(self._book.select("code", "kind"), on="code", how="left")

    def fitted(
        self,
        pieces: list[Scanned],
        pairs: Pairs,
        min_count: int,
        value_bins: int,
        reused: tuple[Vocabulary, ValueStatistics] | None,
        reused_from: str | Path | None,
        extend: bool,
    ) -> tuple[Vocabulary, ValueStatistics]:
        """Vocabulary and value statistics of the train split, or the reused ones, or these extended."""
        if reused is not None and not extend:
            return reused
        fixed = self.dataset.fixed_code_book
        tasks = fit_tasks(
            pieces, pairs, 2, None if reused_from is None else Path(reused_from).absolute() / VALUES_FILE,
            value_bins=value_bins, min_count=min_count, max_discrete_bins=value_bins if fixed else MAX_DISCRETE_BINS,
        )  # fmt: skip
        parts = list(self._run(fit, tasks))
        values = joined_statistics([statistics for statistics, _, _ in parts])
        if reused is not None:
            values = reused[1].extend(values)
        if fixed:
            codes = self._book["code"].to_list()
            numeric = self._book["numeric"].to_list()
            vocabulary = Vocabulary.from_code_book(codes, [self._kinds[code] for code in codes], numeric, value_bins)
        else:
            in_train = pairs.events[TRAIN]
            codes = sorted({code for code, events in zip(pairs.codes, in_train.tolist(), strict=True) if events})
            row = {code: index for index, code in enumerate(codes)}
            table = np.zeros((len(codes), 1 + values.bins), dtype=np.int64)
            for index in np.flatnonzero(in_train).tolist():
                table[row[pairs.codes[index]], 0] += in_train[index]
            for task, (_, present, in_bins) in zip(tasks, parts, strict=True):
                for index, bins in zip(present.tolist(), in_bins, strict=True):
                    # Numbers are among the events counted above.
                    of_code = table[row[task.names[index][0]]]
                    of_code[: len(bins)] += bins
                    of_code[0] -= bins.sum()
            vocabulary = Vocabulary.from_counts(
                codes, [self._kinds[code] for code in codes], table, min_count=min_count
            )
        if len(vocabulary) == NUM_SPECIAL:
            raise DataError(
                "no code of the train split has a token",
                got=f"{len(codes)} codes in train, none of them {min_count} times",
                remedy="lower min_count, or check that the train split has subjects",
            )
        return (vocabulary if reused is None else reused[0].extend(vocabulary)), values

    def encoded(
        self, pieces: list[Scanned], pairs: Pairs, vocabulary: Vocabulary, values: ValueStatistics
    ) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
        """The second pass; counts of each split for the manifest, and events of train per token."""
        tables, folder = self.work / "fit.npz", self.work / "encoded"
        folder.mkdir(exist_ok=True)
        (self.work / "store").mkdir(exist_ok=True)
        save_fit(tables, pairs, [self._kinds[code] for code in pairs.codes], vocabulary, values)
        splits = {name: Subjects.of(pieces, index) for index, name in enumerate(SPLITS)}
        dtypes = narrowest(len(vocabulary), max(split.most_visits for split in splits.values()), len(values))
        paths = [piece.path for piece in pieces]
        tasks: dict[str, list[EncodeTask]] = {}
        for name, split in splits.items():
            times = {"birth_time": split.birth_time, "death_time": split.death_time}
            if self.ends is not None:
                times["observation_end"] = _observation_end(split.subject_id, self.ends)
            SplitWriter(self.work / "store" / name, dtypes).write_subjects(split.subject_id, split.rows, **times)
            first = np.cumsum(split.rows) - split.rows
            tasks[name] = [
                EncodeTask(
                    paths, split.piece[start:stop], split.start[start:stop], split.rows[start:stop],
                    int(first[start]), self.work / "store" / name, dtypes, tables, folder / f"{name}-{index}.npz",
                )
                for index, (start, stop) in enumerate(split.blocks())
            ]  # fmt: skip
        every = [task for some in tasks.values() for task in some]
        self._total = len(self._pieces) + len(every)
        missing = [task for task in every if not is_encoded(task)]
        for _ in range(len(every) - len(missing)):
            self._tick()
        for _ in self._run(encode, missing):
            self._tick()
        counts, per_token = {}, {}
        for name, split in splits.items():
            counts[name], per_token[name] = _counts(split, tasks[name], len(vocabulary))
        return counts, per_token["train"]


def _pieces(dataset: MedsDataset) -> list[Piece]:
    """What to read one after the other, in the order of the shards; large shards in parts where subjects allow it."""
    pieces = []
    for file, subjects in dataset.shard_subjects():
        own = subjects["split"].unique()
        mixed = len(own) > 1
        split = -1 if mixed else SPLITS.index(own[0])
        known = None
        if mixed:
            numbers = subjects["split"].replace_strict({name: index for index, name in enumerate(SPLITS)})
            known = (subjects["subject_id"].to_numpy(), numbers.to_numpy().astype(np.uint8))
        many = pq.read_metadata(file).num_rows
        cuts = _cuts(file, many)
        pieces += [
            Piece(file.absolute(), start, stop, split, known)
            for start, stop in zip([0, *cuts], [*cuts, many], strict=True)
        ]
    return pieces


def _cuts(file: Path, many: int) -> list[int]:
    """Rows at which a large shard can be cut, no subject on both sides."""
    if many <= 1.5 * _PIECE_ROWS:
        return []
    subject = pq.read_table(file, columns=["subject_id"]).column(0).to_numpy()
    if not (subject[1:] >= subject[:-1]).all():
        return []
    first = np.flatnonzero(subject[1:] != subject[:-1]) + 1
    wanted = np.searchsorted(first, np.arange(_PIECE_ROWS, many - _PIECE_ROWS // 2, _PIECE_ROWS))
    return np.unique(first[wanted[wanted < len(first)]]).tolist()


def _counts(split: Subjects, tasks: Sequence[EncodeTask], tokens: int) -> tuple[dict[str, Any], np.ndarray]:
    """Counts of a split for the manifest, and events per token."""
    per_token = np.zeros(tokens, dtype=np.int64)
    totals = dict.fromkeys(("static", "numbers", "without_statistics"), 0)
    for task in tasks:
        mark = load_mark(task.output) or {}
        per_token[mark["tokens"]] += mark["per_token"]
        for name in totals:
            totals[name] += int(mark[name])
    events, unknown = int(per_token.sum()), int(per_token[UNK])
    return {
        "subjects": len(split.subject_id),
        "events": events,
        "visits": split.visits,
        "static_events": totals["static"],
        "subjects_without_events": int((split.rows == 0).sum()),
        "subjects_without_birth": int((split.birth_time == STATIC_TIME).sum()),
        "deaths": int((split.death_time != STATIC_TIME).sum()),
        "unk_events": unknown,
        "unk_share": unknown / events if events else 0.0,
        "numeric_events": totals["numbers"],
        "numeric_events_without_statistics": totals["without_statistics"],
    }, per_token


def _default_workers(meds: Path) -> int:
    size = sum(file.stat().st_size for file in islice((meds / "data").rglob("*.parquet"), 10_000))
    return max(1, min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS, size // _BYTES_PER_WORKER))


def _check_options(
    meds: Path,
    store: Path,
    min_count: int,
    value_bins: int,
    max_age_years: float,
    vocabulary_from: str | Path | None,
    extend_vocabulary: bool,
    workers: int | None,
) -> None:
    if min_count < 1:
        raise ConfigError("min_count must be positive", got=min_count, expected="1 or more")
    if not 2 <= value_bins <= _MAX_VALUE_BINS:
        raise ConfigError("value_bins is out of range", got=value_bins, expected=f"2 to {_MAX_VALUE_BINS}")
    if not 0 < max_age_years < float("inf"):
        raise ConfigError("max_age_years must be positive", got=max_age_years, expected="more than 0, and finite")
    if extend_vocabulary and vocabulary_from is None:
        raise ConfigError(
            "extend_vocabulary has nothing to extend", got="no vocabulary_from", expected="a store or model folder"
        )
    if workers is not None and workers < 1:
        raise ConfigError("workers is out of range", got=workers, expected="1 or more")
    refuse_in_data(store, meds)


def _load_fit(folder: Path) -> tuple[Vocabulary, ValueStatistics]:
    if not (folder / VOCABULARY_FILE).exists():
        raise StoreError(
            f"{folder} holds no vocabulary",
            got=f"no {VOCABULARY_FILE}" if folder.exists() else "no such folder",
            expected="a token store, or the model folder of a run",
        )
    return Vocabulary.load(folder / VOCABULARY_FILE), ValueStatistics.load(folder / VALUES_FILE)


def _observation_end(subject_ids: np.ndarray, ends: pl.DataFrame) -> np.ndarray:
    """End of observation of each subject, int64 microseconds; `STATIC_TIME` where the dataset does not say."""
    joined = pl.DataFrame({"subject_id": subject_ids}).join(ends, on="subject_id", how="left", maintain_order="left")
    return joined["observation_end"].to_physical().fill_null(STATIC_TIME).to_numpy()


def _refuse_unknown_world(train: dict[str, Any], meds: Path, reused: bool) -> None:
    if reused and train["events"] and train["unk_events"] == train["events"]:
        raise DataError(
            f"{meds} shares no code with vocabulary_from",
            got=f"{train['events']} events in train, all unknown",
            remedy="pass extend_vocabulary, or use a vocabulary of the same coding systems",
        )
