"""MEDS datasets on disk: writing ours, opening anyone's."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from meds import CodeMetadataSchema, DataSchema, DatasetMetadataSchema, SubjectSplitSchema, __version__

from ehrsequencing.data.events import collect, complete_codes, normalise_events, normalise_time
from ehrsequencing.data.labels import write_labels
from ehrsequencing.data.schema import CODE_SCHEMA, EVENT_SCHEMA, SPLITS
from ehrsequencing.data.splits import split_of
from ehrsequencing.errors import DataError, SplitError
from ehrsequencing.io import (
    Mark,
    atomic_directory,
    hash_bytes,
    hash_file,
    read_json,
    request_hash,
    resumable_directory,
    versions,
    write_bytes,
    write_json,
)

MANIFEST_KEY = "ehrsequencing"
CODES_FILE, SPLITS_FILE = Path("metadata/codes.parquet"), Path("metadata/subject_splits.parquet")
DATASET_FILE, OBSERVATION_FILE = Path("metadata/dataset.json"), Path("metadata/observation.parquet")
MARK = Mark(DATASET_FILE, MANIFEST_KEY, "a MEDS dataset of this program")
_TEXT = (pl.String, pl.Categorical, pl.Enum)
MAX_NAMED = 5
"""Subjects, codes or values named in an error before it only counts them."""


def name_some(values: Any) -> str:
    """The first few values, for an error message."""
    values = list(values)
    return ", ".join(map(str, values[:MAX_NAMED])) + (", ..." if len(values) > MAX_NAMED else "")


class MedsWriter:
    """Writes a MEDS dataset; the folder appears whole when the `with` block ends after `finish`, or not at all.

    With a `request`, what a killed process wrote is found in `folder` by the next one (`io.resumable_directory`).
    Holds no state but its temporary folder, so worker processes may call `write_events` on a copy.

    Raises:
        RunError: `path` exists and is not empty, and `overwrite` is False or it holds no dataset that we wrote.
        DataError: the block ends without `finish`.
    """

    def __init__(self, path: str | Path, overwrite: bool = False, request: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self.request = request
        self.folder = self.path

    def __enter__(self) -> MedsWriter:
        with ExitStack() as stack:
            if self.request is None:
                folder = atomic_directory(self.path, overwrite=self.overwrite, mark=MARK)
            else:
                folder = resumable_directory(self.path, self.request, overwrite=self.overwrite, mark=MARK)
            self.folder = stack.enter_context(folder)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if problem is None and not (self.folder / DATASET_FILE).exists():
            unfinished = DataError(f"writing {self.path} ended without `finish`", remedy="call MedsWriter.finish")
            self._exit.__exit__(DataError, unfinished, None)
            raise unfinished
        self._exit.__exit__(kind, problem, trace)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "overwrite": self.overwrite, "folder": self.folder}

    def write_events(self, split: str, shard: int, frame: pl.DataFrame) -> None:
        """Write one shard, sorted by subject and time with static rows first.

        Args:
            split: One of `SPLITS`.
            shard: Number of the shard within the split; all rows of a subject go into one shard.
            frame: Columns of `EVENT_SCHEMA`; the optional ones may be absent.

        Raises:
            SplitError: unknown split.
            DataError: a required column is missing or null, or a type cannot be cast without loss.
        """
        if split not in SPLITS:
            raise SplitError("unknown split", got=split, expected=" or ".join(SPLITS))
        if extra := [column for column in frame.columns if column not in EVENT_SCHEMA]:
            raise DataError("events have unknown columns", got=", ".join(extra), expected=", ".join(EVENT_SCHEMA))
        where = f"data/{split}/{shard}.parquet"
        events = normalise_events(frame.lazy(), where).collect()
        for column in ("subject_id", "code"):
            if nulls := events[column].null_count():
                raise DataError(f"{where} has rows without {column}", got=f"{nulls} of {len(events)}", expected="none")
        events = events.sort("subject_id", "time", nulls_last=False, maintain_order=True)
        table = DataSchema.align(events.to_arrow())
        DataSchema.validate(table)
        path = self.folder / where
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")

    def write_labels(self, name: str, frame: pl.DataFrame, manifest: dict[str, Any]) -> None:
        """Write `labels/NAME.parquet` and its manifest, after `finish`; see `labels.write_labels`.

        The manifest also gets "dataset", the source and fingerprint by which a store of another dataset is told.

        Raises:
            DataError: `finish` was not called yet, so the dataset has no fingerprint.
        """
        if not (self.folder / DATASET_FILE).exists():
            raise DataError(f"labels {name} of an unfinished dataset", remedy="call MedsWriter.finish before")
        dataset = MedsDataset.open(self.folder)
        origin = {"source": dataset.manifest["source"], "fingerprint": dataset.fingerprint}
        write_labels(self.folder / "labels" / f"{name}.parquet", frame, {**manifest, "dataset": origin})

    def write_file(self, relative: str, content: bytes) -> None:
        """Write any other file of the dataset, for example latent states for an oracle."""
        write_bytes(self.folder / relative, content)

    def finish(
        self,
        codes: pl.DataFrame,
        *,
        source: str,
        options: dict[str, Any],
        notes: list[str],
        fixed_code_book: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Write the metadata: codes, splits and the manifest (key "ehrsequencing" of `dataset.json`).

        Args:
            codes: Columns of `CODE_SCHEMA` (`parent_codes` may be added); every code in the data must be there.
            source: Name of the source.
            options: What the import or synthesis was asked for.
            notes: What a reader must know, one sentence each.
            fixed_code_book: The vocabulary is all of `codes`, whatever occurs in train.
            extra: Further entries of the manifest.

        Raises:
            DataError: no events, a code without an entry, or a subject in two shards.
            SplitError: a subject in two splits.
        """
        splits = _shard_subjects(self.folder)
        shards = sorted({path for path, _ in splits})
        if not shards:
            raise DataError(f"{self.path} would have no events", expected="at least one subject")
        by_subject = pl.concat([frame.with_columns(split=pl.lit(path.parent.name)) for path, frame in splits])
        refuse_shared_subjects(by_subject)
        used = pl.concat([pl.scan_parquet(path).select(pl.col("code").unique()) for path in shards]).unique().collect()
        if unknown := sorted(set(used["code"]) - set(codes["code"])):
            raise DataError("codes in the data are missing from the code table", got=name_some(unknown), expected="all")
        (self.folder / "metadata").mkdir(exist_ok=True)
        book = complete_codes(codes, pl.DataFrame(schema={"code": pl.String, "numeric": pl.Boolean}))
        if "parent_codes" in codes.columns:
            book = book.join(codes.select("code", "parent_codes"), on="code", how="left")
        book = book.sort("code")
        pq.write_table(CodeMetadataSchema.align(book.to_arrow()), self.folder / CODES_FILE)
        table = by_subject.select("subject_id", "split").sort("subject_id")
        pq.write_table(SubjectSplitSchema.align(table.to_arrow()), self.folder / SPLITS_FILE)
        manifest = {
            "source": source,
            "options": options,
            "notes": notes,
            "fixed_code_book": fixed_code_book,
            "counts": {
                "subjects": len(table),
                "events": sum(pq.read_metadata(path).num_rows for path in shards),
                "codes": len(book),
                "shards": len(shards),
                "subjects_by_split": {split: int((table["split"] == split).sum()) for split in SPLITS},
            },
            "fingerprint": MedsDataset(
                self.folder, {}, {path: frame.with_columns(split=pl.lit(path.parent.name)) for path, frame in splits}
            ).fingerprint,
            "versions": versions(),
            **({} if self.request is None else {"request": request_hash(self.request)}),
            **(extra or {}),
        }
        description = {
            "dataset_name": source,
            "etl_name": "ehrsequencing",
            "etl_version": versions()["ehrsequencing"],
            "meds_version": __version__,
            "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        }
        document = {**description, MANIFEST_KEY: manifest}
        DatasetMetadataSchema.validate(document)
        write_json(self.folder / DATASET_FILE, document)


class MedsDataset:
    """A MEDS dataset on disk, ours or another tool's. Made by `open`.

    Attributes:
        path: The dataset's folder.
        manifest: What `MedsWriter.finish` wrote; {} for datasets of other tools.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], shards: dict[Path, pl.DataFrame]) -> None:
        self.path = path
        self.manifest = manifest
        self._shards = shards

    @classmethod
    def open(cls, path: str | Path) -> MedsDataset:
        """Open a dataset and check its columns, types and splits; reads identifiers only.

        Splits: `metadata/subject_splits.parquet` where there is one, else folders `data/{train,tuning,held_out}`,
        else `split_of`.

        Raises:
            DataError: not a MEDS dataset, an unreadable shard, a missing column, a wrong type, a subject in two shards.
            SplitError: a subject in two splits, or in none.
        """
        path = Path(path)
        files = sorted((path / "data").rglob("*.parquet"))
        if not files:
            raise DataError(
                f"{path} is not a MEDS dataset", got="no data/**/*.parquet" if path.exists() else "no such folder",
                expected="a folder with data/", remedy="make one with `ehrseq import` or `ehrseq synth`",
            )  # fmt: skip
        shards = _assign_splits(path, _shard_subjects(path))
        if not shards:
            raise DataError(f"{path} has no events", got=f"{len(files)} empty shards", expected="at least one subject")
        description = read_json(path / DATASET_FILE, DataError) if (path / DATASET_FILE).exists() else {}
        return cls(path, manifest_in(description, path / DATASET_FILE), shards)

    def is_whole(self) -> bool:
        """Whether the events and files that the manifest of a dataset of ours states are all there."""
        files: list[Path | str] = [
            CODES_FILE,
            SPLITS_FILE,
            *(f"labels/{name}.parquet" for name in self.manifest.get("labels", [])),
        ]
        rows = sum(pq.read_metadata(shard).num_rows for shard in self._shards)
        return rows == self.manifest["counts"]["events"] and all((self.path / file).exists() for file in files)

    @property
    def fixed_code_book(self) -> bool:
        """Whether the vocabulary is the whole code table, whatever occurs in train."""
        return bool(self.manifest.get("fixed_code_book", False))

    def shards(self, split: str) -> list[Path]:
        """Shards with subjects of the split. A shard of another tool may mix splits; `frames` filters."""
        if split not in SPLITS:
            raise SplitError("unknown split", got=split, expected=" or ".join(SPLITS))
        return [path for path, subjects in self._shards.items() if (subjects["split"] == split).any()]

    def shard_subjects(self) -> list[tuple[Path, pl.DataFrame]]:
        """Every shard with its subjects: columns `subject_id`, ascending, and `split`."""
        return list(self._shards.items())

    def frames(self, split: str) -> Iterator[pl.LazyFrame]:
        """One lazy frame per shard with the split's events, columns of `EVENT_SCHEMA`."""
        for path in self.shards(split):
            subjects = self._shards[path]
            events = normalise_events(pl.scan_parquet(path), str(path))
            if (subjects["split"] != split).any():
                wanted = subjects.filter(split=split).select("subject_id").lazy()
                events = events.join(wanted, on="subject_id", how="semi", maintain_order="left")
            yield events

    def scan(self, split: str) -> pl.LazyFrame:
        """The split's events, columns of `EVENT_SCHEMA`."""
        frames = list(self.frames(split))
        return pl.concat(frames) if frames else pl.LazyFrame(schema=EVENT_SCHEMA)

    def subject_splits(self) -> pl.DataFrame:
        """Columns `subject_id`, `split` of every subject with an event, by subject."""
        return pl.concat(self._shards.values()).sort("subject_id")

    def codes(self) -> pl.DataFrame:
        """The code table, columns of `CODE_SCHEMA`, by code.

        What `metadata/codes.parquet` leaves open is filled in: kinds by the code's system, `numeric` by whether
        train has a number for the code.
        """
        return self._codes

    @cached_property
    def _codes(self) -> pl.DataFrame:
        schema = {"code": pl.String, "numeric": pl.Boolean}
        if self.manifest:
            return self.codes_with(pl.DataFrame(schema=schema))
        seen = pl.concat(
            self.scan(split).group_by("code").agg(
                numeric=pl.col("numeric_value").is_not_null().any() & pl.lit(split == "train")
            )
            for split in SPLITS
        )  # fmt: skip
        return self.codes_with(collect(seen.group_by("code").agg(pl.col("numeric").any()), str(self.path)))

    def codes_with(self, seen: pl.DataFrame) -> pl.DataFrame:
        """`codes` for who has read the events: columns `code`, `numeric` (train has a number) of the codes seen."""
        if self.manifest:
            seen = seen.with_columns(numeric=pl.lit(False))
        return complete_codes(self._stated_codes, seen).sort("code")

    @property
    def _stated_codes(self) -> pl.DataFrame:
        return read_codes(self.path / CODES_FILE)

    def observation_end(self) -> pl.DataFrame | None:
        """Columns `subject_id`, `observation_end` (Datetime us) of `metadata/observation.parquet`; None without one.

        The end of follow-up where the source knows it: nothing that happens to the subject until then is unseen.

        Raises:
            DataError: a column is missing or of the wrong type, or a subject is repeated.
        """
        file = self.path / OBSERVATION_FILE
        if not file.exists():
            return None
        table = read_table(file)
        for column in ("subject_id", "observation_end"):
            if column not in table.columns:
                raise DataError(f"{file} lacks {column}", got=", ".join(table.columns))
        end = normalise_time(table, "observation_end", str(file)).cast({"subject_id": pl.Int64})
        if end["subject_id"].is_duplicated().any():
            raise DataError(f"{file} repeats a subject", expected="one row per subject")
        return end.select("subject_id", "observation_end")

    @cached_property
    def fingerprint(self) -> str:
        """Hex hash of the content: every shard, the code table and the splits; not of when or where it was written."""
        parts = [hash_file(path).encode() for path in self._shards]
        code_table = self.path / CODES_FILE
        parts.append(hash_file(code_table).encode() if code_table.exists() else b"")
        splits = self.subject_splits()
        parts.append(splits["subject_id"].to_numpy().astype("<i8").tobytes())
        parts.append("\n".join(splits["split"]).encode())
        return hash_bytes(*parts)


def read_table(file: Path) -> pl.DataFrame:
    """A parquet file of the metadata, as it is; DataError where it is none."""
    try:
        return pl.read_parquet(file)
    except (pl.exceptions.ComputeError, OSError) as problem:
        raise DataError(f"{file} is not readable parquet", got=str(problem).splitlines()[0]) from None


def read_codes(file: Path) -> pl.DataFrame:
    """The code table of any tool, as it is; no rows where there is no such file.

    Raises:
        DataError: it is no parquet file, lacks `code`, or holds something else than text and truth in our columns.
    """
    table = read_table(file) if file.exists() else pl.DataFrame(schema={"code": pl.String})
    if "code" not in table.columns:
        raise DataError(f"{file} lacks code", got=f"columns {', '.join(table.columns)}", expected="code")
    for column, wanted in CODE_SCHEMA.items():
        got = table.schema.get(column, pl.Null())
        fits = got == pl.Boolean or got.is_numeric() if wanted == pl.Boolean else got in _TEXT
        if not fits and got != pl.Null:
            expected = "true or false" if wanted == pl.Boolean else "text"
            raise DataError(f"column {column} of {file} has the wrong type", got=got, expected=expected)
    return table


def manifest_in(description: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Our manifest in the content of `dataset.json`; {} for datasets of other tools.

    Raises:
        DataError: what stands under our key is none.
    """
    manifest = description.get(MANIFEST_KEY, {})
    notes = manifest.get("notes", []) if isinstance(manifest, dict) else None
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise DataError(
            f"{file} has no manifest of this program under {MANIFEST_KEY}",
            got=f"{type(manifest).__name__} {str(manifest)[:60]}", expected="an object, its notes a list of text",
            remedy=f"remove the entry {MANIFEST_KEY}, which is ours alone",
        )  # fmt: skip
    return manifest


def _shard_subjects(path: Path) -> list[tuple[Path, pl.DataFrame]]:
    """Every shard with its distinct subjects; checks columns, types and nulls on the way."""
    found = []
    for file in sorted((path / "data").rglob("*.parquet")):
        try:
            metadata = pq.read_metadata(file)
        except (pa.ArrowInvalid, OSError) as problem:
            raise DataError(f"{file} is not readable parquet", got=str(problem).splitlines()[0]) from None
        if metadata.num_rows == 0:
            continue
        events = normalise_events(pl.scan_parquet(file), str(file))
        subjects = collect(
            events.select(pl.col("subject_id").rle().struct.field("value").unique()), str(file)
        ).to_series()
        if subjects.null_count() or (_may_lack_codes(metadata) and _lacks_codes(events, file)):
            raise DataError(f"{file} has rows without subject_id or code", expected="none")
        found.append((file, subjects.alias("subject_id").sort().to_frame()))
    return found


def _may_lack_codes(metadata: pq.FileMetaData) -> bool:
    """Whether the footer leaves it open that a row has no code."""
    place = metadata.schema.names.index("code") if "code" in metadata.schema.names else -1
    columns = [metadata.row_group(group).column(place) for group in range(metadata.num_row_groups) if place >= 0]
    counted = [column.statistics for column in columns if column.is_stats_set and column.path_in_schema == "code"]
    return len(counted) < metadata.num_row_groups or any(
        not known.has_null_count or known.null_count for known in counted
    )


def _lacks_codes(events: pl.LazyFrame, file: Path) -> bool:
    return bool(collect(events.select(pl.col("code").is_null().any()), str(file)).item())


def refuse_shared_subjects(subjects: pl.DataFrame) -> None:
    """SplitError or DataError where a subject is there twice.

    Args:
        subjects: Columns `subject_id`, `split`; one row per subject and shard.
    """
    repeated = subjects.group_by("subject_id").agg(pl.len(), pl.col("split").unique()).filter(pl.col("len") > 1)
    if repeated.is_empty():
        return
    both = repeated.filter(pl.col("split").list.len() > 1).sort("subject_id")
    if len(both):
        raise SplitError(
            f"{len(both)} subjects are in two splits",
            got=f"subject {name_some(both['subject_id'])} in {' and '.join(sorted(both['split'][0]))}",
            expected="each subject in one split", remedy="split by subject, not by visit",
        )  # fmt: skip
    raise DataError(
        f"{len(repeated)} subjects are in two shards", got=f"subject {name_some(repeated['subject_id'].sort())}",
        expected="all events of a subject in one file, as MEDS asks",
    )  # fmt: skip


def _assign_splits(path: Path, found: list[tuple[Path, pl.DataFrame]]) -> dict[Path, pl.DataFrame]:
    """Per shard the frame subject_id, split."""
    known = _stated_splits(path / SPLITS_FILE) if (path / SPLITS_FILE).exists() else None
    shards = {}
    for file, subjects in found:
        folder = file.relative_to(path / "data").parts[0]
        if known is not None:
            shards[file] = subjects.join(known, on="subject_id", how="left", maintain_order="left")
            elsewhere = shards[file].filter(pl.col("split") != folder) if folder in SPLITS else shards[file].clear()
            if len(elsewhere):
                raise SplitError(
                    f"{len(elsewhere)} subjects of {file} have another split in {SPLITS_FILE}",
                    got=f"subject {elsewhere.item(0, 0)} in {folder} and {elsewhere.item(0, 1)}",
                    expected="each subject in one split",
                )
        elif folder in SPLITS:
            shards[file] = subjects.with_columns(split=pl.lit(folder))
        else:
            shards[file] = subjects.with_columns(
                split=pl.Series(split_of(subjects["subject_id"].to_numpy()), dtype=pl.String)
            )
    if shards:
        everyone = pl.concat(shards.values())
        if known is not None and (missing := everyone.filter(pl.col("split").is_null())).height:
            raise SplitError(
                f"{len(missing)} subjects have no split in {path / SPLITS_FILE}",
                got=f"subject {name_some(missing['subject_id'])}", expected="every subject",
                remedy="add them, or remove the file to have subjects split by hash",
            )  # fmt: skip
        refuse_shared_subjects(everyone)
    return shards


def _stated_splits(file: Path) -> pl.DataFrame:
    table = read_table(file)
    if missing := [column for column in ("subject_id", "split") if column not in table.columns]:
        raise SplitError(f"{file} lacks {', '.join(missing)}", got=", ".join(table.columns))
    table = table.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String)).unique()
    if unknown := sorted(set(table["split"]) - set(SPLITS), key=str):
        raise SplitError(
            f"{file} has splits of other names",
            got=name_some(unknown),
            expected=", ".join(SPLITS),
            remedy="rename them",
        )
    refuse_shared_subjects(table)
    return table
