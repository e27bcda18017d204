"""The steps from events to columns: scan the pieces of a dataset, fit on train, encode blocks of subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.encode import BLOCK_ROWS, EncodeTask, Subjects, encode, is_encoded, save_fit
from ehrsequencing.data.parallel import Map
from ehrsequencing.data.recode import count_numbers, recoding
from ehrsequencing.data.rows import TRAIN, Reading
from ehrsequencing.data.rules import Rules
from ehrsequencing.data.schema import KINDS, SPLITS, STATIC_TIME
from ehrsequencing.data.shards import Piece
from ehrsequencing.data.store import SplitWriter, narrowest
from ehrsequencing.data.survey import (
    Pairs,
    ScanTask,
    fit,
    fit_tasks,
    is_event,
    joined_statistics,
    load_mark,
    load_scan,
    scan,
)
from ehrsequencing.data.values import MAX_DISCRETE_BINS, VALUES_FILE, ValueStatistics
from ehrsequencing.data.visits import VisitRule
from ehrsequencing.data.vocabulary import NUM_SPECIAL, UNK, Vocabulary
from ehrsequencing.errors import DataError
from ehrsequencing.io import write_json

_PIECE_ROWS = 2_000_000


class Stages:
    """The steps of one preparation, in this order: `scan`, `fit`, `encode`.

    Each is a map over tasks that leave their results in the folder of work; what is there already is not done again.

    Attributes:
        ends: As `MedsDataset.observation_end`.
        account: What roll-up and units changed, for the manifest; once scanned.
        rolled_codes: `RolledUp.standing`; {} without a roll-up; once scanned.
    """

    def __init__(
        self,
        dataset: MedsDataset,
        work: Path,
        rules: Rules,
        run: Map,
        progress: Callable[[int, int], None] | None,
        *,
        must_change: bool,
    ) -> None:
        """Args:
        dataset: The dataset.
        work: A folder whose content, if there is any, belongs to the same dataset and rules.
        rules: The rules of the store.
        run: The map to use.
        progress: Called with parts done and in all.
        must_change: Refuse a roll-up or unit table that changes nothing.
        """
        self._dataset, self._work, self._rules, self._run = dataset, work.absolute(), rules, run
        self._progress, self._must_change = progress, must_change
        self.account: dict[str, Any] = {}
        self.rolled_codes: dict[str, str] = {}
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

    def scan(self, max_age_years: float) -> None:
        """The first pass over every piece.

        Raises:
            ConfigError: rules that change nothing.
            DataError: as `read_rows`, or a malformed code table.
        """
        folder = self._work / "scanned"
        folder.mkdir(exist_ok=True)
        book, recoding_file = self._recode()
        kinds = self._work / "kinds.json"
        write_json(kinds, dict(zip(book["code"], map(KINDS.index, book["kind"]), strict=True)))
        how = Reading(kinds, recoding_file, VisitRule.parse(self._rules.visits), max_age_years)
        paths = [folder / f"{index}" for index in range(len(self._pieces))]
        found = [load_scan(path, check=True) for path in paths]
        missing = [index for index, scanned in enumerate(found) if scanned is None]
        for _ in range(len(paths) - len(missing)):
            self._tick()
        for _ in self._run(scan, [ScanTask(self._pieces[index], how, paths[index]) for index in missing]):
            self._tick()
        self._scanned = [loaded for path in paths if (loaded := load_scan(path)) is not None]
        if recoding_file is None:
            seen = sorted(set().union(*(piece.codes for piece in self._scanned)))
            schema = {"code": pl.String, "numeric": pl.Boolean}
            book = self._dataset.codes_with(pl.DataFrame({"code": seen, "numeric": [False] * len(seen)}, schema=schema))
        self._book = book.filter(is_event())
        self._kinds = dict(zip(self._book["code"], map(KINDS.index, self._book["kind"]), strict=True))
        self._pairs = Pairs.of(self._scanned, self._kinds)

    def _recode(self) -> tuple[pl.DataFrame, Path | None]:
        """The code table as far as it is known before the scan, and the file of what changes in codes and units."""
        if not self._rules.roll_up and self._rules.units is None:
            return self._dataset.codes_with(pl.DataFrame(schema={"code": pl.String, "numeric": pl.Boolean})), None
        numbers = list(self._run(count_numbers, self._pieces))
        changed, book, self.account = recoding(self._dataset, numbers, self._rules, must_change=self._must_change)
        self.rolled_codes = changed.standing
        changed.save(self._work / "recoding.json")
        return book, self._work / "recoding.json"

    def events(self) -> pl.DataFrame:
        """Columns `code`, `kind` and `events` of every code that occurs, all splits together."""
        table = pl.DataFrame({"code": self._pairs.codes, "events": self._pairs.events.sum(axis=0)})
        table = table.group_by("code").agg(pl.col("events").sum()).filter(pl.col("events") > 0)
        return table.join(self._book.select("code", "kind"), on="code", how="left")

    def fit(
        self,
        min_count: int,
        value_bins: int,
        reused: tuple[Vocabulary, ValueStatistics] | None,
        reused_from: Path | None,
        extend: bool,
    ) -> tuple[Vocabulary, ValueStatistics]:
        """Vocabulary and value statistics of the train split, or the reused ones, or these extended.

        Raises:
            DataError: no code has a token.
        """
        if reused is not None and not extend:
            return reused
        pieces, pairs, fixed = self._scanned, self._pairs, self._dataset.fixed_code_book
        tasks = fit_tasks(
            pieces, pairs, 2, None if reused_from is None else reused_from.absolute() / VALUES_FILE,
            value_bins=value_bins, min_count=min_count, max_discrete_bins=value_bins if fixed else MAX_DISCRETE_BINS,
        )  # fmt: skip
        parts = list(self._run(fit, tasks))
        values = joined_statistics([statistics for statistics, _, _ in parts])
        if reused is not None:
            values = reused[1].extend(values)
        if fixed:
            codes = self._book["code"].to_list()
            numeric = [self._rules.values == "bins" and numeric for numeric in self._book["numeric"]]
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
            if self._rules.values == "none":
                table = table.sum(axis=1, keepdims=True)
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

    def encode(self, vocabulary: Vocabulary, values: ValueStatistics) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
        """The second pass; counts of each split for the manifest, and events of train per token."""
        pieces, pairs = self._scanned, self._pairs
        tables, folder = self._work / "fit.npz", self._work / "encoded"
        folder.mkdir(exist_ok=True)
        (self._work / "store").mkdir(exist_ok=True)
        save_fit(tables, pairs, [self._kinds[code] for code in pairs.codes], vocabulary, values)
        splits = {name: Subjects.of(pieces, index) for index, name in enumerate(SPLITS)}
        dtypes = narrowest(len(vocabulary), max(split.most_visits for split in splits.values()), len(values))
        paths = [piece.path for piece in pieces]
        tasks: dict[str, list[EncodeTask]] = {}
        for name, split in splits.items():
            times = {"birth_time": split.birth_time, "death_time": split.death_time}
            if self.ends is not None:
                times["observation_end"] = _observation_end(split.subject_id, self.ends)
            SplitWriter(self._work / "store" / name, dtypes).write_subjects(split.subject_id, split.rows, **times)
            first = np.cumsum(split.rows) - split.rows
            tasks[name] = [
                EncodeTask(
                    paths, split.piece[start:stop], split.start[start:stop], split.rows[start:stop],
                    int(first[start]), self._work / "store" / name, dtypes, tables, folder / f"{name}-{index}.npz",
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


def _observation_end(subject_ids: np.ndarray, ends: pl.DataFrame) -> np.ndarray:
    """End of observation of each subject, int64 microseconds; `STATIC_TIME` where the dataset does not say."""
    joined = pl.DataFrame({"subject_id": subject_ids}).join(ends, on="subject_id", how="left", maintain_order="left")
    return joined["observation_end"].to_physical().fill_null(STATIC_TIME).to_numpy()
