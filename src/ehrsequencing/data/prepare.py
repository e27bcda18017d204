"""From a MEDS dataset to a token store: fit on train, then encode shard by shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.calendar import dates_note
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.encode import Encoder
from ehrsequencing.data.events import collect
from ehrsequencing.data.recode import RecodedDataset
from ehrsequencing.data.rules import Rules, reused_rules
from ehrsequencing.data.schema import KINDS, SPLITS, STATIC_TIME
from ehrsequencing.data.store import MARK, ROLLED_FILE, SplitWriter, TokenStore, write_manifest
from ehrsequencing.data.survey import Survey, is_event, survey
from ehrsequencing.data.unknown import unknown_codes
from ehrsequencing.data.values import MAX_DISCRETE_BINS, VALUES_FILE, ValueStatistics
from ehrsequencing.data.visits import VisitRule
from ehrsequencing.data.vocabulary import NUM_SPECIAL, UNK, VOCABULARY_FILE, Vocabulary
from ehrsequencing.errors import ConfigError, DataError, StoreError
from ehrsequencing.io import atomic_directory, hash_bytes, versions, write_text

MIN_COUNT, VALUE_BINS = 5, 5
_MAX_VALUE_BINS = 100


def prepare(
    meds: str | Path,
    store: str | Path,
    *,
    min_count: int | None = None,
    value_bins: int | None = None,
    vocabulary_from: str | Path | None = None,
    extend_vocabulary: bool = False,
    visits: str | None = None,
    order_within_visit: str | None = None,
    long_histories: str | None = None,
    values: str | None = None,
    roll_up: Sequence[str] | None = None,
    units: str | Path | None = None,
    max_age_years: float = 125.0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TokenStore:
    """Write the token store of a dataset; the folder appears whole or not at all.

    Vocabulary and value statistics come from the train split alone. A dataset with a fixed code book gets the whole
    book as its vocabulary (numeric codes: `value_bins` tokens and the bare one).
    `MEDS_BIRTH` and `MEDS_DEATH` become times of the subject and no tokens. Reads every shard twice and holds one at
    a time. The same dataset and options give the same bytes.

    Args:
        meds: MEDS dataset.
        store: Folder to write.
        min_count: Codes and bins that are rarer in train have no token of their own; `MIN_COUNT` by default.
        value_bins: Quantile bins of a code with many distinct values; `VALUE_BINS` by default.
        vocabulary_from: Store or model folder whose vocabulary and value statistics to use instead of fitting;
            unknown codes become UNK, and the manifest states their share.
        extend_vocabulary: Append what this train split has besides; the old ids and statistics stay.
        visits: Which events are a visit: `visit_id`, `day`, `gap:24h`, `visit_id+gap:24h`; `visit_id+day` by default.
        order_within_visit: "time" (the default; kind, code and value at one time), or "canonical": a model reads a
            visit by kind, code and value whatever the times.
        long_histories: Of histories longer than a model keep the most recent "events" (the default), or whole "visits".
        values: Tokens of numbers: "bins" (the default), or "none": the bare code.
        roll_up: Broader codes, such as `icd10=3`, `rxnorm=ingredient`, `parents=1`; none by default.
        units: "spelling" (one spelling per unit), "standard" (also the conversions of `units.csv`), or a CSV file with
            conversions that go before those; by default units stay as they are.
        max_age_years: Events at greater ages are refused.
        overwrite: Replace an existing store.
        progress: Called with shards done and in all; each is read twice.

    Raises:
        ConfigError: an option out of range or without effect (`extend_vocabulary` without `vocabulary_from`, a fit's
            option where nothing is fitted, a roll-up or unit table that changes nothing), rules other than those of
            `vocabulary_from`, or a store that is, holds or lies in its dataset or lies in another one.
        DataError: no MEDS dataset, infinite values, implausible ages, events that the rule of visits has no place for,
            or no code that has a token.
        SplitError: a subject in two splits.
        StoreError: `vocabulary_from` holds no vocabulary.
        RunError: `store` exists, and `overwrite` is False or it is no token store.
    """
    meds, store = Path(meds), Path(store)
    given = {name for name, value in (("min_count", min_count), ("value_bins", value_bins)) if value is not None}
    min_count = MIN_COUNT if min_count is None else min_count
    value_bins = VALUE_BINS if value_bins is None else value_bins
    _check_options(meds, store, min_count, value_bins, max_age_years, vocabulary_from, extend_vocabulary)
    if given and vocabulary_from is not None and not extend_vocabulary:
        raise ConfigError(
            f"{' and '.join(sorted(given))} would have no effect: vocabulary and bins are those of {vocabulary_from}",
            remedy="leave the option out, or leave out vocabulary_from",
        )
    reused = _load_fit(Path(vocabulary_from)) if vocabulary_from is not None else None
    own = Rules() if vocabulary_from is None else Rules.of(Path(vocabulary_from))
    rules = own.chosen(
        visits=visits, order_within_visit=order_within_visit, long_histories=long_histories, values=values,
        roll_up=roll_up, units=units,
    )  # fmt: skip
    if vocabulary_from is not None:
        rules = reused_rules(own, rules, Path(vocabulary_from))
    if "value_bins" in given and rules.values == "none":
        raise ConfigError("value_bins would have no effect: numbers have no tokens", remedy="leave value_bins out")
    with atomic_directory(store, overwrite=overwrite, mark=MARK) as folder:
        dataset = RecodedDataset(MedsDataset.open(meds), rules, must_change=vocabulary_from is None)
        if "min_count" in given and dataset.fixed_code_book:
            raise ConfigError(
                f"min_count would have no effect: the vocabulary of {meds} is its fixed code book",
                got=min_count, remedy="leave min_count out",
            )  # fmt: skip
        tick = _Tick(progress, 2 * sum(len(dataset.shards(split)) for split in SPLITS))
        found = survey(dataset, tick)
        book = dataset.codes().filter(is_event())
        vocabulary, statistics = _fit(
            found, book, dataset.fixed_code_book, min_count, value_bins, rules.values == "bins", reused,
            extend_vocabulary,
        )  # fmt: skip
        encoder = Encoder(
            book, vocabulary, statistics, visits=VisitRule.parse(rules.visits), max_age_years=max_age_years
        )
        ends = dataset.observation_end()
        counts, token_counts = {}, np.zeros(len(vocabulary), dtype=np.int64)
        for split in SPLITS:
            counts[split], tokens = _write_split(
                dataset, split, found, encoder, folder / split, tick, len(vocabulary), ends
            )
            if split == "train":
                token_counts = tokens
        _refuse_unknown_world(counts["train"], meds, reused is not None)
        vocabulary.with_counts(token_counts).save(folder / VOCABULARY_FILE)
        statistics.save(folder / VALUES_FILE)
        rules.save(folder)
        if dataset.rolled_codes:
            write_text(folder / ROLLED_FILE, json.dumps(dataset.rolled_codes, indent=0, ensure_ascii=False) + "\n")
        options = {
            "min_count": min_count,
            "value_bins": value_bins,
            "max_age_years": max_age_years,
            "vocabulary_from": None if reused is None else reused[0].hash,
            "extend_vocabulary": extend_vocabulary,
        }
        origin = "reused" if reused else "the dataset's fixed code book" if dataset.fixed_code_book else "fitted"
        write_manifest(
            folder,
            {
                "dataset_fingerprint": dataset.fingerprint,
                "fingerprint": hash_bytes(
                    dataset.fingerprint.encode(), repr(sorted(options.items())).encode(),
                    vocabulary.hash.encode(), statistics.hash.encode(),
                    *([] if rules == Rules() else [json.dumps(rules.to_json()).encode()]),
                ),
                "source": dataset.manifest.get("source"),
                "dates_note": dates_note(dataset.manifest),
                "options": options,
                "rules": rules.to_json(),
                **dataset.account,
                "fitted_on": "train",
                "vocabulary": {
                    "hash": vocabulary.hash,
                    "tokens": len(vocabulary),
                    "codes": len(vocabulary.base_codes),
                    "origin": f"{origin}, extended" if extend_vocabulary else origin,
                    "tokens_added": len(vocabulary) - len(reused[0]) if reused else 0,
                },
                "values": {"hash": statistics.hash, "codes_and_units": len(statistics)},
                "observation_end": ends is not None,
                "counts": counts,
                **({"unknown": unknown_codes(dataset, vocabulary)} if reused is not None else {}),
                "versions": versions(),
            },
        )  # fmt: skip
    return TokenStore.open(store)


class _Tick:
    """Counts shards towards a progress callback."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _check_options(
    meds: Path,
    store: Path,
    min_count: int,
    value_bins: int,
    max_age_years: float,
    vocabulary_from: str | Path | None,
    extend_vocabulary: bool,
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
    refuse_in_data(store, meds)


def _load_fit(folder: Path) -> tuple[Vocabulary, ValueStatistics]:
    if not (folder / VOCABULARY_FILE).exists():
        raise StoreError(
            f"{folder} holds no vocabulary",
            got=f"no {VOCABULARY_FILE}" if folder.exists() else "no such folder",
            expected="a token store, or the model folder of a run",
        )
    return Vocabulary.load(folder / VOCABULARY_FILE), ValueStatistics.load(folder / VALUES_FILE)


def _fit(
    found: Survey,
    book: pl.DataFrame,
    fixed_code_book: bool,
    min_count: int,
    value_bins: int,
    binned: bool,
    reused: tuple[Vocabulary, ValueStatistics] | None,
    extend: bool,
) -> tuple[Vocabulary, ValueStatistics]:
    """Vocabulary and value statistics of the train split, or the reused ones, or these extended."""
    if reused is not None and not extend:
        return reused
    values = found.statistics(
        value_bins=value_bins,
        min_count=min_count,
        max_discrete_bins=value_bins if fixed_code_book else MAX_DISCRETE_BINS,
    )
    if reused is not None:
        values = reused[1].extend(values)
    kinds = {kind: index for index, kind in enumerate(KINDS)}
    if fixed_code_book:
        of_codes = book
        vocabulary = Vocabulary.from_code_book(
            of_codes["code"].to_list(),
            [kinds[kind] for kind in of_codes["kind"]],
            [binned and numeric for numeric in of_codes["numeric"]],
            value_bins,
        )
    else:
        of_codes = book.join(found.histogram.select("code"), on="code", how="semi").sort("code")
        codes = of_codes["code"].to_list()
        counts = found.token_counts(values, codes)
        vocabulary = Vocabulary.from_counts(
            codes, [kinds[kind] for kind in of_codes["kind"]],
            counts if binned else counts.sum(axis=1, keepdims=True), min_count=min_count,
        )  # fmt: skip
    if len(vocabulary) == NUM_SPECIAL:
        raise DataError(
            "no code of the train split has a token",
            got=f"{len(of_codes)} codes in train, none of them {min_count} times",
            remedy="lower min_count, or check that the train split has subjects",
        )
    return (vocabulary if reused is None else reused[0].extend(vocabulary)), values


def _write_split(
    dataset: MedsDataset,
    split: str,
    found: Survey,
    encoder: Encoder,
    folder: Path,
    tick: Callable[[], None],
    tokens: int,
    ends: pl.DataFrame | None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Encode a split; returns its counts for the manifest, and events per token."""
    lengths = found.lengths[split]
    subject_ids = lengths["subject_id"].to_numpy()
    birth = np.full(len(subject_ids), STATIC_TIME, dtype=np.int64)
    death = birth.copy()
    per_token = np.zeros(tokens, dtype=np.int64)
    visits = static = numbers = without_statistics = 0
    with SplitWriter(folder, subject_ids, lengths["rows"].to_numpy()) as writer:
        for path, frame in zip(dataset.shards(split), dataset.frames(split), strict=True):
            shard = encoder.encode(collect(frame, str(path)), str(path))
            position = np.searchsorted(subject_ids, shard.subject_id)
            writer.write_rows(position, shard.columns)
            birth[position], death[position] = shard.birth_time, shard.death_time
            columns = shard.columns
            per_token += np.bincount(columns["code"], minlength=tokens)
            number = ~np.isnan(columns["value"])
            numbers += int(number.sum())
            without_statistics += int((number & (columns["statistic"] < 0)).sum())
            static += int((columns["visit"] < 0).sum())
            visits += shard.visits
            tick()
        writer.write_times(birth, death, None if ends is None else _observation_end(lengths, ends))
    events = int(per_token.sum())
    unknown = int(per_token[UNK])
    return {
        "subjects": len(subject_ids),
        "events": events,
        "visits": visits,
        "static_events": static,
        "subjects_without_events": int((lengths["rows"] == 0).sum()),
        "subjects_without_birth": int((birth == STATIC_TIME).sum()),
        "deaths": int((death != STATIC_TIME).sum()),
        "unk_events": unknown,
        "unk_share": unknown / events if events else 0.0,
        "numeric_events": numbers,
        "numeric_events_without_statistics": without_statistics,
    }, per_token


def _observation_end(subjects: pl.DataFrame, ends: pl.DataFrame) -> np.ndarray:
    """End of observation of each subject, int64 microseconds; `STATIC_TIME` where the dataset does not say."""
    joined = subjects.join(ends, on="subject_id", how="left", maintain_order="left")
    return joined["observation_end"].to_physical().fill_null(STATIC_TIME).to_numpy()


def _refuse_unknown_world(train: dict[str, Any], meds: Path, reused: bool) -> None:
    if reused and train["events"] and train["unk_events"] == train["events"]:
        raise DataError(
            f"{meds} shares no code with vocabulary_from",
            got=f"{train['events']} events in train, all unknown",
            remedy="pass extend_vocabulary, or use a vocabulary of the same coding systems",
        )
