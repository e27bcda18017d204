"""Where a MEDS dataset of any tool keeps its events and splits, and what its columns are called."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrsequencing.data.dataset import SPLITS_FILE, name_some, refuse_shared_subjects
from ehrsequencing.data.schema import BIRTH_CODE, SPLITS
from ehrsequencing.data.sources.cells import Cells, Kind
from ehrsequencing.data.sources.identifiers import with_identifier
from ehrsequencing.data.sources.tables import Advance, Piece, Table, Wanted, column_names
from ehrsequencing.data.splits import split_of
from ehrsequencing.errors import DataError, SplitError

OLD_SPLITS_FILE = Path("metadata/patient_splits.parquet")
COLUMNS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "subject_id": ("id", ("subject_id", "patient_id")),
    # Of any year, so that an implausible time is no missing one, which would mean an undated fact.
    "time": ("birth", ("time", "timestamp")),
    "code": ("text", ("code",)),
    "numeric_value": ("number", ("numeric_value", "numerical_value")),
    "visit_id": ("id", ("visit_id", "hadm_id", "visit_occurrence_id", "encounter_id")),
    "unit": ("text", ("unit", "units", "valueuom")),
    "text_value": ("text", ("text_value", "text")),
}
"""Our columns: what they hold, and the names that they have in datasets of others, the most usual first."""
REQUIRED = ("subject_id", "time", "code")
BLANK_TIME = "written time"
"""Of files whose times are text: the cell where it is blank, which is no null; else null."""
SPLIT_NAMES = {
    **{split: split for split in SPLITS},
    "training": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev", "tune"), "tuning"),
    **dict.fromkeys(("test", "testing", "held-out", "heldout"), "held_out"),
}
"""Names of splits; the standard recommends three and mentions that others call them so."""


@dataclass(frozen=True)
class Shard:
    """One file with events.

    Attributes:
        table: The file.
        split: The split that its folder names; None where it names none.
        columns: Our columns that it has, and what they are called there.
        left_out: Its other columns.
        kinds: What our columns hold there.
        text_time: Whether its times are text.
    """

    table: Table
    split: str | None
    columns: Mapping[str, str]
    left_out: tuple[str, ...]
    kinds: Mapping[str, Kind]
    text_time: bool

    def read(self, names: Iterable[str] = tuple(COLUMNS), advance: Advance | None = None) -> Iterator[Piece]:
        """Pieces with some of our columns, null where the file lacks an optional one.

        Raises:
            DataError: a required column is missing, or see `Table.read`.
        """
        theirs = {self.columns.get(name, name): name for name in names}
        blank = theirs.pop(BLANK_TIME, None)
        required = {column: self.kinds[name] for column, name in theirs.items() if name in REQUIRED}
        optional: Wanted = {column: self.kinds[name] for column, name in theirs.items() if name not in REQUIRED}
        if blank and self.text_time:
            optional = {**optional, blank: Cells("text", (self.columns["time"],), _blanks)}
        for piece in self.table.read(required, optional, advance):
            rows = piece.rows.rename(theirs)
            if blank and not self.text_time:
                rows = rows.with_columns(pl.lit(None, dtype=pl.String).alias(blank))
            if self.kinds["visit_id"] == "text" and "visit_id" in rows.columns:
                rows = _numbered_visits(rows)
            yield replace(piece, rows=rows)


@dataclass(frozen=True)
class Events(Table):
    """All files with events as one table, whose columns are ours whatever each file calls them."""

    shards: tuple[Shard, ...] = ()

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> Events:
        """The table of some files."""
        shards = tuple(shards)
        return cls("data", tuple(file for shard in shards for file in shard.table.files), shards=shards)

    def read(
        self, required: Wanted, optional: Wanted | None = None, advance: Advance | None = None
    ) -> Generator[Piece, None, None]:
        for shard in self.shards:
            yield from shard.read((*required, *(optional or ())), advance)


def find_layout(src: Path) -> tuple[Path, list[Shard]]:
    """The folder of a dataset and its files with rows: all below `data`, else those that lie in the folder itself.

    Args:
        src: The folder, or one file.

    Raises:
        DataError: no such file, no parquet file, no row, or a file is damaged.
    """
    if src.is_file():
        root, files, data = src.parent, [src] if src.suffix.lower() == ".parquet" else [], src.parent
    else:
        root, data = src, src / "data"
        found = data.rglob("*.parquet") if data.is_dir() else src.glob("*.parquet")
        files = sorted(file for file in found if file.is_file() and not _hidden(file.relative_to(src)))
        data = data if data.is_dir() else src
    if not files:
        raise DataError(
            f"{src} is no MEDS dataset", got="no *.parquet" if src.exists() else "no such file or folder",
            expected="a folder with data/, a folder with parquet files, or one parquet file",
        )  # fmt: skip
    shards = [shard for file in files if (shard := _shard(file, file.relative_to(data).parts)) is not None]
    if not shards:
        raise DataError(f"{src} has no events", got=f"{len(files)} empty files", expected="at least one subject")
    return root, shards


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _shard(file: Path, parts: tuple[str, ...]) -> Shard | None:
    """None for a file without rows."""
    names = column_names(file)
    try:
        rows, schema = pq.read_metadata(file).num_rows, pq.read_schema(file)
    except (pa.ArrowException, OSError) as problem:
        raise DataError(f"{file} is not readable parquet", got=str(problem).splitlines()[0]) from None
    if not rows:
        return None
    columns = {
        ours: next(name for name in spellings if name in names)
        for ours, (_, spellings) in COLUMNS.items()
        if set(spellings) & set(names)
    }
    kinds = {ours: kind for ours, (kind, _) in COLUMNS.items()}
    if "visit_id" in columns and _is_text(schema.field(names[columns["visit_id"]]).type):
        kinds["visit_id"] = "text"
    left_out = tuple(sorted(set(names) - set(columns.values())))
    split = SPLIT_NAMES.get(parts[0].lower()) if len(parts) > 1 else None
    text_time = "time" in columns and _is_text(schema.field(names[columns["time"]]).type)
    return Shard(Table("data", (file,)), split, columns, left_out, kinds, text_time)


def _is_text(found: pa.DataType) -> bool:
    values = found.value_type if pa.types.is_dictionary(found) else found
    return bool(pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values))


def _blanks(written: pl.Series) -> tuple[pl.Series, None]:
    text = written.cast(pl.String)
    return text.set((text.str.strip_chars() != "").fill_null(True), None), None


def _numbered_visits(rows: pl.DataFrame) -> pl.DataFrame:
    """Visits written as text: whole numbers are themselves, others get a number; `007` is no whole number."""
    whole = pl.col("visit_id").str.extract(r"^(0|-?[1-9][0-9]{0,17})(?:\.0*)?$").cast(pl.Int64)
    rows = with_identifier(rows, "visit_id", "numbered").with_columns(visit_id=pl.coalesce(whole, "numbered"))
    return rows.drop("numbered")


def read_subjects(root: Path, shards: list[Shard]) -> pl.DataFrame:
    """Columns `subject_id`, `birth` (the earliest, null where unknown), `split` of every subject with an event.

    Splits: `metadata/subject_splits.parquet` (`patient_splits.parquet` until 0.3.0) where there is one, else folders
    named after splits, else `split_of`.

    Raises:
        SplitError: a subject in two splits, or in none of those stated; a split of another name.
        DataError: see `Shard.read`.
    """
    births, places = [], []
    for shard in shards:
        for piece in shard.read(REQUIRED):
            rows = piece.rows.filter(pl.col("subject_id").is_not_null())
            birth = pl.col("time").filter(pl.col("code") == BIRTH_CODE).min()
            births.append(rows.group_by("subject_id").agg(birth=birth))
            places.append(births[-1].select("subject_id", split=pl.lit(shard.split, dtype=pl.String)))
        births = [pl.concat(births).group_by("subject_id").agg(pl.col("birth").min())] if births else []
        places = [pl.concat(places).unique()] if places else []
    subjects = births[0].sort("subject_id")
    if subjects.is_empty():
        raise DataError(f"{root} has no subject", got="no row with a subject_id", expected="at least one")
    stated = places[0].filter(pl.col("split").is_not_null())
    refuse_shared_subjects(stated)
    if (known := _stated_splits(root)) is not None:
        _refuse_other_splits(subjects, stated, known)
        stated = known
    joined = subjects.join(stated, on="subject_id", how="left", maintain_order="left")
    hashed = pl.Series(split_of(joined["subject_id"].to_numpy()), dtype=pl.String)
    return joined.with_columns(split=pl.coalesce("split", hashed))


def _stated_splits(root: Path) -> pl.DataFrame | None:
    file = next((root / name for name in (SPLITS_FILE, OLD_SPLITS_FILE) if (root / name).exists()), None)
    if file is None:
        return None
    names = column_names(file)
    subject = next((name for name in COLUMNS["subject_id"][1] if name in names), "subject_id")
    rows = Table("splits", (file,)).whole({subject: "id", "split": "text"}).rows
    split = pl.col("split").str.to_lowercase().replace_strict(SPLIT_NAMES, default=None, return_dtype=pl.String)
    table = rows.select(subject_id=subject, split=split, written="split").drop_nulls("subject_id")
    if len(other := table.filter(pl.col("split").is_null())):
        raise SplitError(
            f"{file} has splits of other names", got=name_some(other["written"].unique().sort()),
            expected=", ".join(SPLIT_NAMES), remedy="rename them",
        )  # fmt: skip
    table = table.select("subject_id", "split").unique()
    refuse_shared_subjects(table)
    return table


def _refuse_other_splits(subjects: pl.DataFrame, folders: pl.DataFrame, known: pl.DataFrame) -> None:
    """Folders must agree with the splits file, which must name every subject."""
    both = folders.join(known, on="subject_id", suffix="_stated").filter(pl.col("split") != pl.col("split_stated"))
    if len(both):
        subject, folder, split = both.sort("subject_id").row(0)
        raise SplitError(
            f"{len(both)} subjects have another split in {SPLITS_FILE} than their folder",
            got=f"subject {subject} in {folder} and {split}", expected="each subject in one split",
        )  # fmt: skip
    if len(missing := subjects.join(known, on="subject_id", how="anti")):
        raise SplitError(
            f"{len(missing)} subjects have no split in {SPLITS_FILE}",
            got=f"subject {name_some(missing['subject_id'])}", expected="every subject",
            remedy="add them, or remove the file to have subjects split by hash",
        )  # fmt: skip
