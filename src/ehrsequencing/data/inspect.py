"""What is in a dataset or token store, and what is wrong with it, before anything is made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data import inspect_findings as faults
from ehrsequencing.data.calendar import dates_note
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.events import collect, normalise_events
from ehrsequencing.data.inspect_findings import SEVERITIES, Finding
from ehrsequencing.data.inspect_splits import splits
from ehrsequencing.data.inspect_store import pieces, store_facts, store_frames
from ehrsequencing.data.inspect_tallies import Totals, tally
from ehrsequencing.data.inspect_values import GRID, value_table, values
from ehrsequencing.data.schema import KINDS, SPLITS
from ehrsequencing.data.store import MANIFEST_FILE, TokenStore
from ehrsequencing.data.vocabulary import SPECIAL_TOKENS, UNK
from ehrsequencing.errors import DataError

NO_SYSTEM = "(no system)"
MANY_UNKNOWN = 0.05
"""Share of unknown events of a kind that is a warning."""
MOST_OF_GROUP = 5
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        document: Plain values for JSON and for pages; `docs/data-formats.md` names the entries.
        findings: Errors first, then warnings, then notes.
    """

    document: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """Findings of severity "error"."""
        return sum(finding.severity == "error" for finding in self.findings)


def inspect(
    path: str | Path,
    *,
    most: int = 50,
    today: datetime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Count what a MEDS dataset (of any tool) or a token store holds, and look for faults.

    Reads every shard once and holds one at a time, besides a row per subject, the codes, and a histogram of the values
    of each code and unit. Everything is exact but percentiles of values with more than 1,024 distinct ones, which are
    right to 1.6 % or better and marked as estimated.

    Args:
        path: Folder of the dataset or store.
        most: Codes and code-unit pairs that `document` lists, the most frequent first.
        today: Dates from the day after on lie in the future; now by default.
        progress: Called with shards done and in all.

    Raises:
        DataError: neither a dataset nor a store, an unreadable shard, no events, a wrong column.
        SplitError: a subject in two splits, or in none.
        StoreError: a store that is damaged.
    """
    path = Path(path)
    today = today or datetime.now(UTC).replace(tzinfo=None)
    if not path.is_dir():
        raise DataError(
            f"{path} is neither a MEDS dataset nor a token store", got="a file" if path.exists() else "no such folder",
            expected="a folder that `ehrseq import`, `synth` or `prepare` wrote, or another tool's MEDS dataset",
        )  # fmt: skip
    if (path / MANIFEST_FILE).exists():
        return _inspect_store(TokenStore.open(path), most, today, progress)
    return _inspect_dataset(MedsDataset.open(path), most, today, progress)


def _inspect_dataset(
    dataset: MedsDataset, most: int, today: datetime, progress: Callable[[int, int], None] | None
) -> Inspection:
    shards = list(dict.fromkeys(shard for split in SPLITS for shard in dataset.shards(split)))
    owners = dataset.subject_splits().lazy()

    def frames() -> Iterator[tuple[str, pl.DataFrame]]:
        for shard in shards:
            events = normalise_events(pl.scan_parquet(shard), str(shard))
            joined = events.join(owners, on="subject_id", how="left", maintain_order="left")
            yield shard.relative_to(dataset.path).as_posix(), collect(joined, str(shard))

    totals = _total(frames(), len(shards), today, progress)
    ends = dataset.observation_end()
    last = None if ends is None or ends.is_empty() else ends["observation_end"].max()
    head = {
        "artefact": "MEDS dataset",
        "path": str(dataset.path),
        "source": dataset.manifest.get("source"),
        "notes": [str(note) for note in dataset.manifest.get("notes", [])],
        "shards": len(shards),
    }
    book = dataset.codes().select("code", "kind", "description")
    return _conclude(head, totals, book, most, note=dates_note(dataset.manifest), last_observed=last)


def _inspect_store(
    store: TokenStore, most: int, today: datetime, progress: Callable[[int, int], None] | None
) -> Inspection:
    totals = _total(store_frames(store), pieces(store), today, progress)
    note = dates_note(store.manifest)
    head = {
        "artefact": "token store",
        "path": str(store.path),
        "source": store.manifest.get("source"),
        "notes": [note] if note else [],
        "tokens": store_facts(store),
    }
    vocabulary = store.vocabulary
    kinds = {
        vocabulary.base_codes[base]: KINDS[kind]
        for base, kind in zip(vocabulary.base_ids.tolist(), vocabulary.kinds.tolist(), strict=True)
        if base >= 0
    }
    book = pl.DataFrame(
        {"code": list(kinds), "kind": list(kinds.values())}, schema={"code": pl.String, "kind": pl.String}
    )
    book = book.with_columns(description=pl.lit(None, dtype=pl.String))
    return _conclude(head, totals, book, most, note=note, last_observed=None)


def _total(
    frames: Iterator[tuple[str, pl.DataFrame]],
    count: int,
    today: datetime,
    progress: Callable[[int, int], None] | None,
) -> Totals:
    totals = Totals()
    for done, (where, events) in enumerate(frames, start=1):
        totals.add(tally(events, where, today))
        if progress is not None:
            progress(done, count)
    return totals


def _conclude(
    head: dict[str, Any], totals: Totals, book: pl.DataFrame, most: int, *, note: str | None, last_observed: Any
) -> Inspection:
    """The document and the findings of the totals."""
    frames = totals.frames()
    # In a store the values of all codes that the vocabulary lacks would read as those of one code.
    pairs = value_table(frames["values"].filter(pl.col("code") != SPECIAL_TOKENS[UNK]))
    kinds = dict(book.select("code", "kind").iter_rows())
    tokens = head.get("tokens")
    findings = [
        *faults.dates(frames, note=note, last_observed=last_observed),
        *faults.lifetimes(frames),
        *faults.records(frames, files=tokens is None),
        *values(frames, pairs, kinds),
        *splits(frames),
        *([] if tokens is None else token_findings(tokens)),
    ]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    document = head | describe(frames, pairs, book, most)
    document["findings"] = [finding.document() for finding in findings]
    return Inspection(document, tuple(findings))


def token_findings(tokens: Mapping[str, Any]) -> list[Finding]:
    """Kinds that the vocabulary hardly knows, and histories longer than a model sees; `tokens` from `store_facts`."""
    found = []
    lost = [kind for kind in tokens["unknown"] if kind["unknown"] > MANY_UNKNOWN * kind["events"]]
    if lost:
        found.append(
            Finding(
                "unknown", "warning", "tokens of some kinds are often [UNK]", sum(kind["unknown"] for kind in lost),
                sum(kind["events"] for kind in lost), "tokens of these kinds",
                "prepare with a lower --min-count or with --extend, or roll codes up",
                details=tuple(f"{kind['kind']}: {100 * kind['unknown'] / kind['events']:.1f} %" for kind in lost),
            )
        )  # fmt: skip
    if tokens["longer"]:
        found.append(
            Finding(
                "length", "note", f"histories of more than {tokens['max_length']} tokens", tokens["longer"],
                tokens["subjects_with_tokens"], "subjects",
                "models see the latest tokens of these; drop codes that say little, or keep the loss in mind",
            )
        )  # fmt: skip
    return found


def describe(frames: Mapping[str, pl.DataFrame], pairs: pl.DataFrame, book: pl.DataFrame, most: int) -> dict[str, Any]:
    """Counts, spans and distributions as plain values.

    Args:
        frames: Totals of `inspect_tallies.tally`.
        pairs: From `value_table`.
        book: Columns `code`, `kind`, `description`.
        most: Codes and pairs to list.
    """
    subjects = frames["subjects"]
    codes = frames["codes"].group_by("code").agg(pl.col("events", "subjects", "numbers").sum())
    codes = codes.join(book, on="code", how="left").with_columns(
        pl.col("kind").fill_null("other"),
        system=pl.when(pl.col("code").str.contains("//", literal=True))
        .then(pl.col("code").str.split("//").list.first())
        .otherwise(pl.lit(NO_SYSTEM)),
    )
    codes = codes.sort(["events", "code"], descending=[True, False])
    sexes = subjects.group_by("sex").agg(count=pl.len()).sort(["count", "sex"], descending=[True, False])
    shown = pairs.head(most)
    return {
        "counts": {
            "subjects": len(subjects),
            "events": int(subjects["events"].sum()),
            "visits": int(subjects["visits"].sum()),
            "codes": len(codes),
            "static_rows": int(subjects["static"].sum()),
            "events_with_number": int(codes["numbers"].sum()),
            "births": int(subjects["birth"].count()),
            "deaths": int(subjects["death"].count()),
        },
        "splits": {
            split: {
                "subjects": len(own),
                **{column: int(own[column].sum()) for column in ("events", "visits", "static")},
                "deaths": int(own["death"].count()),
            }
            for split in SPLITS
            for own in [subjects.filter(split=split)]
        },
        "span": _span(subjects, frames["months"]),
        "sexes": {("not stated" if sex is None else sex): count for sex, count in sexes.iter_rows()},
        "kinds": _groups(codes, "kind"),
        "systems": _groups(codes, "system"),
        "codes": codes.head(most).select("code", "kind", "description", "events", "subjects").to_dicts(),
        "distributions": {
            "events_per_subject": spread(_counted(subjects["events"])),
            "visits_per_subject": spread(_counted(subjects["visits"])),
            "events_per_visit": spread(frames["visit_sizes"].rename({"size": "value"})),
            "age_years": spread(frames["ages"].rename({"age": "value"})),
        },
        "months": [[_month_name(month), count] for month, count in frames["months"].sort("month").iter_rows()],
        "ages": [list(row) for row in frames["ages"].sort("age").iter_rows()],
        "pairs": len(pairs),
        "values": [
            {
                **{name: row[name] for name in ("code", "unit", "n", "mean", "estimated")},
                "percentiles": [[percent, row[f"p{percent}"]] for percent in GRID],
            }
            for row in shown.iter_rows(named=True)
        ],
    }


def _groups(codes: pl.DataFrame, column: str) -> list[dict[str, Any]]:
    """Codes and events per kind or system, and the most frequent codes of each."""
    total = int(codes["events"].sum())
    groups = codes.group_by(column).agg(codes=pl.len(), events=pl.col("events").sum())
    found = []
    for name, number, events in groups.sort(["events", column], descending=[True, False]).iter_rows():
        entry = {column: name, "codes": number, "events": events, "share": events / total if total else 0.0}
        own = codes.filter(pl.col(column) == name).head(MOST_OF_GROUP)
        entry["most_frequent"] = own.select("code", "description", "events", "subjects").to_dicts()
        found.append(entry)
    return found


def _span(subjects: pl.DataFrame, months: pl.DataFrame) -> dict[str, Any]:
    """First and last day with an event, and the months between which 98 % of the events lie; text, or None."""
    ends = subjects.select(
        pl.col("first").min().dt.to_string("%Y-%m-%d"), pl.col("last").max().dt.to_string("%Y-%m-%d")
    )
    share = months.sort("month").with_columns(upto=pl.col("count").cum_sum() / pl.col("count").sum())
    middle = [share.filter(pl.col("upto") >= bound)["month"].head(1).to_list() for bound in (0.01, 0.99)]
    return {
        "first": ends.item(0, "first"),
        "last": ends.item(0, "last"),
        "middle_98_percent": [_month_name(found[0]) if found else None for found in middle],
    }


def _month_name(month: int) -> str:
    """`2020-01` of months counted from year 0."""
    return f"{month // 12:04d}-{month % 12 + 1:02d}"


def _counted(column: pl.Series) -> pl.DataFrame:
    return column.value_counts(name="count").rename({column.name: "value"})


def spread(counts: pl.DataFrame) -> dict[str, Any] | None:
    """Percentiles and a histogram in doubling steps of whole numbers; None where there are none.

    Args:
        counts: Columns `value` (integers) and `count`.

    >>> spread(pl.DataFrame({"value": [0, 1, 2, 3], "count": [1, 1, 1, 1]}))["bins"]
    [[0, 0, 1], [1, 1, 1], [2, 3, 2]]
    """
    counts = counts.sort("value")
    n = int(counts["count"].sum())
    if not n:
        return None
    value, upto = counts["value"].to_numpy(), np.cumsum(counts["count"].to_numpy())
    places = [max(int(np.ceil(n * percent / 100)), 1) for percent in PERCENTILES]
    whole = (value.astype(np.float64) * counts["count"].to_numpy()).sum()
    bins: list[list[int]] = []
    low, high = min(int(value[0]), 0), 0
    while low <= value[-1]:
        inside = (value >= low) & (value <= high)
        bins.append([low, high, int(counts["count"].to_numpy()[inside].sum())])
        low, high = high + 1, 2 * high + 1
    first = next(index for index, entry in enumerate(bins) if entry[2])
    return {
        "n": n,
        "mean": float(whole / n),
        "min": int(value[0]),
        "max": int(value[-1]),
        **{
            f"p{percent}": int(value[np.searchsorted(upto, place)])
            for percent, place in zip(PERCENTILES, places, strict=True)
        },
        "bins": bins[first:],
    }
