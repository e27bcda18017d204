"""From a MEDS dataset to a token store: scan shard by shard, fit on train, then encode block by block."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ehrsequencing import __version__
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.calendar import dates_note
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.parallel import WorkerDiedError, task_map
from ehrsequencing.data.rules import Rules, reused_rules
from ehrsequencing.data.stages import Stages
from ehrsequencing.data.store import FORMAT_VERSION, MARK, ROLLED_FILE, TokenStore, write_manifest
from ehrsequencing.data.unknown import unknown_codes
from ehrsequencing.data.values import VALUES_FILE, ValueStatistics
from ehrsequencing.data.vocabulary import VOCABULARY_FILE, Vocabulary
from ehrsequencing.errors import ConfigError, DataError, StoreError
from ehrsequencing.io import hash_bytes, made_before, request_hash, resumable_directory, versions, write_text

logger = logging.getLogger(__name__)
MIN_COUNT, VALUE_BINS = 5, 5
MAX_DEFAULT_WORKERS = 8
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
    allow_unused: bool = False,
    max_age_years: float = 125.0,
    overwrite: bool = False,
    workers: int | None = None,
    engine: str = "local",
    progress: Callable[[int, int], None] | None = None,
) -> TokenStore:
    """Write the token store of a dataset; the folder appears whole or not at all.

    Vocabulary and value statistics come from the train split alone. A dataset with a fixed code book gets the whole
    book as its vocabulary (numeric codes: `value_bins` tokens and the bare one).
    `MEDS_BIRTH` and `MEDS_DEATH` become times of the subject and no tokens. Every shard is read once; each worker
    holds one piece of at most 3 million rows at a time (a shard that is not ordered by subject is one piece). The same
    dataset and options give the same bytes, whatever the engine and the number of workers. Called again after it was
    killed, it continues behind the pieces that were done; a store that the same dataset and options made is kept.

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
        allow_unused: A roll-up or unit table that changes nothing is no error: for one script over several sites.
        max_age_years: Events at greater ages are refused.
        overwrite: Replace an existing store.
        workers: Pieces at a time; None takes one per core, at most 8. Each holds about 150 MB per million rows.
        engine: "local", or "ray", which runs the same map over a Ray cluster that shares the folders.
        progress: Called with parts done and in all: pieces of shards to scan, then blocks of the store to write.

    Raises:
        ConfigError: an option out of range or without effect (`extend_vocabulary` without `vocabulary_from`, a fit's
            option where nothing is fitted, `allow_unused` without a roll-up or units, and without it one that changes
            nothing), rules other than those of
            `vocabulary_from`, an engine that is not installed, or a store that is, holds or lies in its dataset or
            lies in another one.
        DataError: no MEDS dataset, infinite values, implausible ages, events that the rule of visits has no place for,
            or no code that has a token.
        SplitError: a subject in two splits.
        StoreError: `vocabulary_from` holds no vocabulary.
        RunError: `store` exists, made of another dataset or options, and `overwrite` is False or it is no token
            store; or another process is writing it.
    """
    meds, store = Path(meds), Path(store)
    fit_folder = None if vocabulary_from is None else Path(vocabulary_from)
    given = {name for name, value in (("min_count", min_count), ("value_bins", value_bins)) if value is not None}
    min_count = MIN_COUNT if min_count is None else min_count
    value_bins = VALUE_BINS if value_bins is None else value_bins
    _check_options(meds, store, min_count, value_bins, max_age_years, vocabulary_from, extend_vocabulary, workers)
    if given and vocabulary_from is not None and not extend_vocabulary:
        raise ConfigError(
            f"{' and '.join(sorted(given))} would have no effect: vocabulary and bins are those of {vocabulary_from}",
            remedy="leave the option out, or leave out vocabulary_from",
        )
    reused = None if fit_folder is None else _load_fit(fit_folder)
    own = Rules() if fit_folder is None else Rules.of(fit_folder)
    rules = own.chosen(
        visits=visits, order_within_visit=order_within_visit, long_histories=long_histories, values=values,
        roll_up=roll_up, units=units,
    )  # fmt: skip
    if fit_folder is not None:
        rules = reused_rules(own, rules, fit_folder)
    if allow_unused and not rules.roll_up and rules.units is None:
        raise ConfigError("allow_unused would have no effect: no roll-up and no units", remedy="leave it out")
    if "value_bins" in given and rules.values == "none":
        raise ConfigError("value_bins would have no effect: numbers have no tokens", remedy="leave value_bins out")
    with task_map(engine, workers or min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS)) as run:
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
            "dataset": dataset.fingerprint, **options, "rules": rules.to_json(),
            "statistics_from": None if reused is None else reused[1].hash,
            "fixed_code_book": dataset.fixed_code_book, "version": [__version__, FORMAT_VERSION],
        }  # fmt: skip
        if not overwrite and (before := _made_before(store, key)) is not None:
            return before
        kept = (MemoryError, WorkerDiedError)
        with resumable_directory(store, key, overwrite=overwrite, mark=MARK, keep_on=kept) as folder:
            stages = Stages(dataset, folder, rules, run, progress, must_change=reused is None and not allow_unused)
            stages.scan(max_age_years)
            vocabulary, statistics = stages.fit(
                min_count,
                value_bins,
                reused,
                None if vocabulary_from is None else Path(vocabulary_from),
                extend_vocabulary,
            )
            counts, token_counts = stages.encode(vocabulary, statistics)
            _refuse_unknown_world(counts["train"], meds, reused is not None)
            vocabulary.with_counts(token_counts).save(folder / VOCABULARY_FILE)
            statistics.save(folder / VALUES_FILE)
            rules.save(folder)
            if stages.rolled_codes:
                rolled = json.dumps(stages.rolled_codes, indent=0, ensure_ascii=False)
                write_text(folder / ROLLED_FILE, f"{rolled}\n")
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
                    "request": request_hash(key),
                    "source": dataset.manifest.get("source"),
                    "dates_note": dates_note(dataset.manifest),
                    "options": options,
                    "rules": rules.to_json(),
                    **stages.account,
                    "fitted_on": "train",
                    "vocabulary": {
                        "hash": vocabulary.hash,
                        "tokens": len(vocabulary),
                        "codes": len(vocabulary.base_codes),
                        "origin": f"{origin}, extended" if extend_vocabulary else origin,
                        "tokens_added": len(vocabulary) - len(reused[0]) if reused else 0,
                    },
                    "values": {"hash": statistics.hash, "codes_and_units": len(statistics)},
                    "observation_end": stages.ends is not None,
                    "counts": counts,
                    **({"unknown": unknown_codes(stages.events(), vocabulary)} if reused is not None else {}),
                    "versions": versions(),
                },
                run,
            )  # fmt: skip
    return TokenStore.open(store)


def _made_before(store: Path, request: Mapping[str, Any]) -> TokenStore | None:
    """The store that an equal request wrote before; None where there is none, or a file of it is gone."""
    if made_before(store, request, MARK):
        with suppress(StoreError):
            opened = TokenStore.open(store)
            logger.warning("%s is there already, whole, made of the same dataset and options: kept as it is", store)
            return opened
    return None


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


def _refuse_unknown_world(train: dict[str, Any], meds: Path, reused: bool) -> None:
    if reused and train["events"] and train["unk_events"] == train["events"]:
        raise DataError(
            f"{meds} shares no code with vocabulary_from",
            got=f"{train['events']} events in train, all unknown",
            remedy="pass extend_vocabulary, or use a vocabulary of the same coding systems",
        )
