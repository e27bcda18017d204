"""Token stores: memory-mapped columns of tokens per split, opened in milliseconds at any size."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.data.rules import Rules
from ehrsequencing.data.schema import DAYS_PER_YEAR, MICROSECONDS_PER_DAY, SPLITS, STATIC_TIME
from ehrsequencing.data.values import VALUES_FILE, ValueStatistics
from ehrsequencing.data.vocabulary import VOCABULARY_FILE, Vocabulary
from ehrsequencing.errors import SplitError, StoreError
from ehrsequencing.io import Mark, read_json, write_json

FORMAT, FORMAT_VERSION = "ehrsequencing token store", 2
MANIFEST_FILE = "manifest.json"
MARK = Mark(MANIFEST_FILE, "format_version", "a token store")
EVENT_COLUMNS = {"code": "<i4", "visit": "<i4", "time": "<i8", "value": "<f4", "statistic": "<i4", "kind": "|u1"}
NARROW_COLUMNS = {"code": "<u2", "visit": "<i2", "statistic": "<i2"}
"""Types that take the place of those above where every number of a store fits, with room for adding 1."""
SUBJECT_COLUMNS = {"subject_id": "<i8", "birth_time": "<i8", "death_time": "<i8", "offsets": "<i8"}
ROLLED_FILE = "rolled_codes.json"
OBSERVATION_COLUMN = "observation_end"
"""Column of subjects in stores whose dataset states the end of observation; stores without it stay readable."""
_REMEDY = "run `ehrseq prepare` again"
_HEADER_BYTES = 128


class SplitStore:
    """One split of a token store. Made by `TokenStore.split`; pickles as its path, so workers share its pages.

    Rows of subject i are `offsets[i]:offsets[i + 1]`, static rows first, then by time.

    Attributes:
        name: The split.
        subject_id: int64 [N], ascending.
        birth_time, death_time: int64 [N], microseconds since 1970; `STATIC_TIME` where unknown.
        observation_end: The same for the end of observation; None where the store does not hold it.
        offsets: int64 [N + 1].
        code: uint16 or int32 [rows], token ids.
        visit: int16 or int32 [rows], numbered from 0 in time order; -1 for static rows.
        time: int64 [rows], microseconds since 1970; `STATIC_TIME` for static rows.
        value: float32 [rows], the number of the event; NaN without one.
        statistic: int16 or int32 [rows], row of the store's `ValueStatistics` for code and unit; -1 without one.
        kind: uint8 [rows], index into `KINDS`.
        rules: The store's rules, two of which say how its rows are read: `order_within_visit`, `long_histories`.
    """

    subject_id: np.ndarray
    birth_time: np.ndarray
    death_time: np.ndarray
    observation_end: np.ndarray | None
    offsets: np.ndarray
    code: np.ndarray
    visit: np.ndarray
    time: np.ndarray
    value: np.ndarray
    statistic: np.ndarray
    kind: np.ndarray
    rules: Rules

    def __init__(self, path: Path, name: str) -> None:
        """Map the columns of `path`/`name`; StoreError when one is missing or damaged."""
        self._path, self.name = path, name
        self.rules = Rules.of(path)
        for column, dtype in {**SUBJECT_COLUMNS, **EVENT_COLUMNS}.items():
            types = (dtype, NARROW_COLUMNS.get(column, dtype))
            setattr(self, column, _map_column(path / name / f"{column}.npy", types))
        observed = path / name / f"{OBSERVATION_COLUMN}.npy"
        self.observation_end = _map_column(observed, ("<i8",)) if observed.exists() else None
        rows = int(self.offsets[-1]) if len(self.offsets) else -1
        for column in EVENT_COLUMNS:
            if len(getattr(self, column)) != rows:
                raise StoreError(
                    f"{path / name / column}.npy does not fit offsets.npy",
                    got=f"{len(getattr(self, column))} rows", expected=rows, remedy=_REMEDY,
                )  # fmt: skip

    def __reduce__(self) -> tuple[type[SplitStore], tuple[Path, str]]:
        return SplitStore, (self._path, self.name)

    def __len__(self) -> int:
        return len(self.subject_id)

    @property
    def lengths(self) -> np.ndarray:
        """Rows of each subject, int64 [N]."""
        return np.diff(self.offsets)

    @cached_property
    def age(self) -> np.ndarray:
        """Years at each row, float32 [rows]; NaN where unknown. Not stored: made on first use, for the whole split."""
        return age_years(self.time, np.repeat(self.birth_time, self.lengths))

    def index_of(self, subject_ids: np.ndarray) -> np.ndarray:
        """Position of each subject in this split, int64 [n]; -1 where it is not here."""
        subject_ids = np.asarray(subject_ids, dtype=np.int64)
        if not len(self):
            return np.full(len(subject_ids), -1, dtype=np.int64)
        found = np.minimum(np.searchsorted(self.subject_id, subject_ids), len(self) - 1)
        return np.where(self.subject_id[found] == subject_ids, found, -1)


class TokenStore:
    """A token store on disk. Made by `open`.

    Attributes:
        path: Its folder.
        manifest: What made it: options, counts, hashes, versions.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._splits: dict[str, SplitStore] = {}

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """Open a store; reads the manifest, file sizes and the checksum of the vocabulary, no events.

        Raises:
            StoreError: not a store, of another version, a file missing or truncated, or the vocabulary changed.
        """
        path = Path(path)
        if not (path / MANIFEST_FILE).exists():
            raise StoreError(
                f"{path} is not a token store",
                got=f"no {MANIFEST_FILE}" if path.exists() else "no such folder",
                remedy="make one with `ehrseq prepare MEDS STORE`",
            )
        manifest = read_json(path / MANIFEST_FILE, StoreError, _REMEDY)
        found = (manifest.get("format"), manifest.get("format_version")) if isinstance(manifest, dict) else manifest
        if found != (FORMAT, FORMAT_VERSION):
            raise StoreError(f"{path} has another format", got=found, expected=(FORMAT, FORMAT_VERSION), remedy=_REMEDY)
        for name, expected in manifest["files"].items():
            size = (path / name).stat().st_size if (path / name).exists() else None
            if size != expected:
                what = "is missing" if size is None else "is truncated" if size < expected else "has grown"
                got = None if size is None else f"{size} bytes"
                raise StoreError(f"{path / name} {what}", got=got, expected=f"{expected} bytes", remedy=_REMEDY)
        store = cls(path, manifest)
        if _checksum(path / VOCABULARY_FILE) != manifest.get("checksums", {}).get(VOCABULARY_FILE):
            # Says what is wrong; the same tokens written otherwise are not.
            len(store.vocabulary)
        return store

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Token names and counts, parsed on first use; StoreError when they are not those of the manifest."""
        vocabulary = Vocabulary.load(self.path / VOCABULARY_FILE)
        if vocabulary.hash != self.manifest["vocabulary"]["hash"]:
            raise StoreError(
                f"{self.path / VOCABULARY_FILE} belongs to another store",
                got=vocabulary.hash, expected=self.manifest["vocabulary"]["hash"], remedy=_REMEDY,
            )  # fmt: skip
        return vocabulary

    def verify(self) -> TokenStore:
        """Read every file once and compare it with the checksum of the manifest; returns the store.

        A damaged column of the right size would train in silence, so every training and evaluation asks for this;
        it reads a gigabyte a second.

        Raises:
            StoreError: a file is not the one that was written.
        """
        for name, expected in self.manifest.get("checksums", {}).items():
            if _checksum(self.path / name) != expected:
                raise StoreError(f"{self.path / name} is damaged", got="another checksum", remedy=_REMEDY)
        return self

    @cached_property
    def values(self) -> ValueStatistics:
        """Value statistics, fitted on train; StoreError when they are not those of the manifest."""
        values = ValueStatistics.load(self.path / VALUES_FILE)
        if values.hash != self.manifest["values"]["hash"]:
            raise StoreError(
                f"{self.path / VALUES_FILE} belongs to another store",
                got=values.hash, expected=self.manifest["values"]["hash"], remedy=_REMEDY,
            )  # fmt: skip
        return values

    @cached_property
    def rolled_codes(self) -> dict[str, str]:
        """Codes of the dataset that were rolled up, or that others were rolled up to, with what stands for them.

        {} where none was.
        """
        file = self.path / ROLLED_FILE
        return dict(read_json(file, StoreError, _REMEDY)) if file.exists() else {}

    @property
    def fingerprint(self) -> str:
        """Hash of the dataset, the options and the vocabulary and value statistics they led to."""
        return str(self.manifest["fingerprint"])

    def split(self, name: str) -> SplitStore:
        """One of `SPLITS`; SplitError for another name."""
        if name not in SPLITS:
            raise SplitError("unknown split", got=name, expected=" or ".join(SPLITS))
        if name not in self._splits:
            self._splits[name] = SplitStore(self.path, name)
        return self._splits[name]


def age_years(time: np.ndarray, birth_time: np.ndarray) -> np.ndarray:
    """Years from birth to a time, float32; NaN where either is `STATIC_TIME`."""
    age = ((time - birth_time) / (DAYS_PER_YEAR * MICROSECONDS_PER_DAY)).astype(np.float32)
    age[(time == STATIC_TIME) | (birth_time == STATIC_TIME)] = np.nan
    return age


def narrowest(tokens: int, visits: int, statistics: int) -> dict[str, str]:
    """Types of the columns of events in a store with so many tokens, visits of one subject, and statistics."""
    fits = {"code": tokens <= 2**16, "visit": visits < 2**15, "statistic": statistics < 2**15}
    return {column: NARROW_COLUMNS[column] if fits.get(column) else dtype for column, dtype in EVENT_COLUMNS.items()}


class SplitWriter:
    """Writes the columns of one split, part by part, in any order and from any number of processes.

    Plain writes rather than a memory map: a full disk is then an error and not a killed process.
    """

    def __init__(self, folder: Path, dtypes: Mapping[str, str] = EVENT_COLUMNS) -> None:
        """Args: the split's folder, and the type of each column of events, as `narrowest` gives them."""
        self.folder, self.dtypes = folder, dict(dtypes)

    def write_subjects(self, subject_ids: np.ndarray, lengths: np.ndarray, **times: np.ndarray) -> None:
        """Write the columns of subjects, int64 [N] each, and lay out those of events where they are not yet.

        Args:
            subject_ids: Ascending.
            lengths: Rows of each.
            times: `birth_time`, `death_time` and, where the dataset states it, `observation_end`; microseconds.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        for column, array in {"subject_id": subject_ids, "offsets": offsets, **times}.items():
            with (self.folder / f"{column}.npy").open("wb") as stream:
                stream.write(_npy_header("<i8", len(array)))
                stream.write(np.ascontiguousarray(array, dtype="<i8").data)
        for column, dtype in self.dtypes.items():
            file, header = self.folder / f"{column}.npy", _npy_header(dtype, int(offsets[-1]))
            size = len(header) + int(offsets[-1]) * np.dtype(dtype).itemsize
            if not file.exists() or file.stat().st_size != size:
                with file.open("wb") as stream:
                    stream.write(header)
                    stream.truncate(size)

    def write_rows(self, first: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write rows from row `first` on; one array per name of `EVENT_COLUMNS`, all of the same length."""
        for column, dtype in self.dtypes.items():
            with (self.folder / f"{column}.npy").open("rb+") as stream:
                stream.seek(_HEADER_BYTES + first * np.dtype(dtype).itemsize)
                stream.write(np.ascontiguousarray(columns[column], dtype=dtype).data)

    def read_rows(self, first: int, stop: int) -> dict[str, np.ndarray]:
        """Rows `[first, stop)` as they lie on disk; fewer where a file is shorter."""
        return {
            column: np.fromfile(
                self.folder / f"{column}.npy", dtype, stop - first, offset=_HEADER_BYTES + first * dtype.itemsize
            )
            for column, dtype in ((column, np.dtype(name)) for column, name in self.dtypes.items())
        }


def write_manifest(folder: Path, content: dict[str, Any], run: Callable[..., Iterable[tuple[int, int]]] = map) -> None:
    """Finish a store: flush every file but scratch to disk, then write the manifest with their sizes and checksums.

    Args:
        folder: The store.
        content: What else the manifest says.
        run: The map to use over the files.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != MANIFEST_FILE and not name.startswith(".")]
    files = [folder / name for name in names]
    found = dict(zip(names, run(_settled, files), strict=True))
    head = {"format": FORMAT, "format_version": FORMAT_VERSION}
    sizes, checksums = ({name: pair[side] for name, pair in found.items()} for side in (0, 1))
    write_json(folder / MANIFEST_FILE, {**head, **content, "files": sizes, "checksums": checksums})


def _settled(file: Path) -> tuple[int, int]:
    """Flush a file to disk; its size and checksum."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return file.stat().st_size, _checksum(file)


def _checksum(file: Path) -> int:
    """CRC-32 of a file, against accidents and not against malice."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _npy_header(dtype: str, rows: int) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": (rows,)})
    header = stream.getvalue()
    if len(header) != _HEADER_BYTES:
        raise StoreError("numpy wrote a header of another size", got=len(header), expected=_HEADER_BYTES)
    return header


def _map_column(file: Path, dtypes: tuple[str, ...]) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(f"{file} is missing", remedy=_REMEDY) from None
    except (ValueError, OSError, EOFError) as problem:
        raise StoreError(f"{file} is damaged", got=problem, remedy=_REMEDY) from None
    if array.dtype.str not in dtypes or array.ndim != 1:
        raise StoreError(
            f"{file} has another layout",
            got=f"{array.dtype.str} {array.shape}",
            expected=" or ".join(dict.fromkeys(dtypes)),
            remedy=_REMEDY,
        )
    # A plain view of the same pages: indexing np.memmap itself is several times slower.
    return np.asarray(array)
