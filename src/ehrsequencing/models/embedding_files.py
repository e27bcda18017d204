"""Vectors of codes as strangers write them: word2vec, GloVe, numpy, PyTorch, parquet and CSV; read and written.

word2vec is read here rather than by gensim: a few lines say which row is wrong and how, where gensim reads a damaged
file without a word (docs/embeddings.md).
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ehrsequencing.errors import DataError
from ehrsequencing.io import atomic_path, hash_bytes, hash_file

MOST_DIMENSIONS = 16_384
_SHOWN = 60
_TEXT = "word2vec or GloVe text"
Found = tuple[Sequence[str], np.ndarray]


@dataclass(frozen=True)
class EmbeddingTable:
    """Vectors of codes.

    Attributes:
        codes: Names as the file has them, each once.
        vectors: Float32 [codes, dimension], finite.
        source: Where they come from, for messages.
        hash: Of the file's bytes.

    Raises:
        DataError: empty, a code twice, a vector that is not finite, or codes and vectors that differ in number.
    """

    codes: tuple[str, ...]
    vectors: np.ndarray
    source: str
    hash: str

    def __post_init__(self) -> None:
        shape = self.vectors.shape
        if self.vectors.ndim != 2 or not shape[0] or not shape[1]:
            raise DataError(f"{self.source} holds no vectors", got=f"an array {shape}", expected="[codes, dimension]")
        if len(self.codes) != shape[0]:
            raise DataError(
                f"{self.source}: codes and vectors differ in number", got=len(self.codes), expected=shape[0]
            )
        if shape[1] > MOST_DIMENSIONS:
            raise DataError(
                f"{self.source}: dimension of the vectors", got=shape[1], expected=f"at most {MOST_DIMENSIONS}"
            )
        if len(set(self.codes)) < len(self.codes):
            twice, _ = Counter(self.codes).most_common(1)[0]
            raise DataError(f"{self.source} names a code twice", got=_short(twice), remedy="keep one vector per code")
        bad = ~np.isfinite(self.vectors).all(1)
        if bad.any():
            raise DataError(
                f"{self.source} holds vectors that are not finite",
                got=f"{int(bad.sum())}, first of {_short(self.codes[int(bad.argmax())])}",
                expected="numbers that float32 can hold, without NaN",
                remedy="leave these codes out of the file",
            )

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[1])


def read_embeddings(path: str | Path, *, codes: str | Path | None = None) -> EmbeddingTable:
    """Read vectors of codes; the name's ending says how.

    `.npz` (an array of names, an array of vectors), `.npy` (vectors, with one code a line in `codes`), `.pt` and
    `.pth` (a dictionary from code to vector, or one with a list of codes and a matrix), `.parquet` (a column of codes;
    one of lists, or one per dimension), `.csv` and `.tsv` (the same with a header; codes first), `.bin` (word2vec
    binary), anything else word2vec text (a first line with count and dimension) or GloVe text (without).

    Args:
        path: The file.
        codes: Text file with a code a line, for `.npy`; by default the file's name with `.txt` in place of `.npy`.

    Raises:
        DataError: missing, damaged, of another layout, or not a table of finite vectors with distinct names.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise DataError(
            f"{path} is {'a folder' if path.is_dir() else 'missing'}",
            expected="a file of vectors",
            remedy="check --embeddings; a sentence transformer's folder needs embeddings.descriptions",
        )
    if not path.stat().st_size:
        raise DataError(f"{path} is empty", expected="vectors of codes")
    suffix = path.suffix.lower()
    if codes is not None and suffix != ".npy":
        raise DataError(
            "a file of codes belongs to vectors in .npy", got=path.name, remedy="leave embeddings.codes out"
        )
    if suffix == ".npy":
        return _with_codes_file(path, Path(codes) if codes is not None else path.with_suffix(".txt"))
    names, vectors = _READERS.get(suffix, _read_text)(path)
    return EmbeddingTable(tuple(names), _float32(vectors, path), str(path), hash_file(path))


def write_embeddings(path: str | Path, codes: Sequence[str], vectors: np.ndarray) -> None:
    """Write vectors as others read them: `.npz` (arrays `codes`, `vectors`), `.bin` word2vec binary, else its text.

    Blanks in codes, which end a name in word2vec's formats, become underscores there.

    Raises:
        DataError: as of `EmbeddingTable`, or two codes differ by blanks and underscores alone.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        table = EmbeddingTable(tuple(codes), np.asarray(vectors, np.float32), str(path), "")
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, codes=np.array(table.codes), vectors=table.vectors)
        return
    names = tuple("_".join(code.split()) for code in codes)
    table = EmbeddingTable(names, np.asarray(vectors, np.float32), str(path), "")
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(f"{len(names)} {table.dimension}\n".encode())
        for name, vector in zip(names, table.vectors, strict=True):
            if path.suffix.lower() == ".bin":
                stream.write(name.encode() + b" " + vector.astype("<f4").tobytes() + b"\n")
            else:
                # The shortest digits that give back the same float32.
                stream.write(f"{name} {' '.join(map(str, vector))}\n".encode())


def _read_text(path: Path) -> Found:
    names: list[str] = []
    rows: list[np.ndarray] = []
    stated: tuple[int, int] | None = None
    width = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                fields = line.decode("utf-8").split()
            except UnicodeDecodeError as problem:
                raise DataError(
                    f"{path}, line {number}: not UTF-8", got=f"byte {line[problem.start]:#04x}",
                    remedy="name word2vec's binary format .bin, or write the file as UTF-8",
                ) from None  # fmt: skip
            if number == 1 and len(fields) == 2 and all(part.isdecimal() for part in fields):
                stated = (int(fields[0]), int(fields[1]))
                width = _checked_width(stated[1], path)
                continue
            if not fields:
                continue
            width = width or _checked_width(_numbers_at_end(fields), path)
            if len(fields) <= width:
                raise _row_error(path, number, f"{len(fields)} fields", f"a code and {width} numbers")
            try:
                with np.errstate(over="ignore"):
                    rows.append(np.array([float(part) for part in fields[-width:]]).astype(np.float32))
            except ValueError:
                raise _row_error(path, number, _short(" ".join(fields)), f"a code and {width} numbers") from None
            names.append(" ".join(fields[:-width]))
            if stated is None and len(fields) > width + 1 and _is_number(fields[-width - 1]):
                raise _row_error(path, number, f"{_numbers_at_end(fields)} numbers", f"{width}, as in the first line")
    if stated is not None and stated[0] != len(names):
        raise DataError(
            f"{path}: the first line states another number of vectors", got=len(names), expected=stated[0],
            remedy="the file was cut short, or correct its first line",
        )  # fmt: skip
    if not names:
        raise DataError(f"{path} holds no vectors", expected=_TEXT)
    return names, np.stack(rows)


def _numbers_at_end(fields: Sequence[str]) -> int:
    """How many of the fields, from the last one back, are numbers; the first is always part of the code."""
    count = 0
    while count < len(fields) - 1 and _is_number(fields[-1 - count]):
        count += 1
    return count


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _checked_width(width: int, path: Path) -> int:
    if not 1 <= width <= MOST_DIMENSIONS:
        raise DataError(f"{path}: dimension of the vectors", got=width, expected=f"1 to {MOST_DIMENSIONS}")
    return width


def _row_error(path: Path, number: int, got: str, expected: str) -> DataError:
    return DataError(f"{path}, line {number} is no row of {_TEXT}", got=got, expected=expected)


def _read_binary(path: Path) -> Found:
    content = path.read_bytes()
    head, _, rest = content.partition(b"\n")
    parts = head.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or len(head) > 40:
        raise DataError(f"{path} is no word2vec binary", got=repr(head[:_SHOWN]), expected="count and dimension")
    count, width = int(parts[0]), _checked_width(int(parts[1]), path)
    names, rows, place = [], [], 0
    for index in range(count):
        end = rest.find(b" ", place)
        stop = end + 1 + 4 * width
        if end < 0 or stop > len(rest):
            raise DataError(
                f"{path} ends within a vector", got=f"{index} whole vectors", expected=f"{count} of {width} numbers",
                remedy="copy the file again",
            )  # fmt: skip
        try:
            names.append(rest[place:end].lstrip(b"\n").decode("utf-8"))
        except UnicodeDecodeError:
            raise DataError(
                f"{path}: the name of vector {index + 1} is not UTF-8", got=repr(rest[place:end][:_SHOWN])
            ) from None
        rows.append(np.frombuffer(rest, "<f4", width, end + 1))
        place = stop
    if rest[place:].strip(b"\n"):
        raise DataError(
            f"{path} goes on behind its last vector", got=f"{len(rest) - place} bytes", expected=f"{count} vectors"
        )
    if not names:
        raise DataError(f"{path} holds no vectors", expected="word2vec binary")
    return names, np.stack(rows)


def _read_npz(path: Path) -> Found:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as problem:
        raise _unreadable(path, problem) from None
    return _names_and_matrix(path, arrays)


def _with_codes_file(path: Path, codes: Path) -> EmbeddingTable:
    try:
        vectors = np.load(path, allow_pickle=False)
        names = codes.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{codes} is missing", expected="the codes of the vectors, one a line", remedy="name it in embeddings.codes"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{codes} is not UTF-8", remedy="write it as UTF-8") from None
    except (ValueError, OSError, EOFError) as problem:
        raise _unreadable(path, problem) from None
    both = hash_bytes(hash_file(path).encode(), hash_file(codes).encode())
    return EmbeddingTable(tuple(names), _float32(vectors, path), str(path), both)


def _read_torch(path: Path) -> Found:
    import torch

    try:
        with warnings.catch_warnings():
            # Of a raw pickle PyTorch warns before it refuses.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(
            f"{path} holds more than tensors, lists and names", got="a pickle that could run code",
            remedy="save {'codes': [...], 'vectors': tensor} with torch.save, or use .npz",
        ) from None  # fmt: skip
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as problem:
        raise _unreadable(path, problem) from None
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} holds no dictionary", got=type(content).__name__, expected="code -> vector")
    vectors = list(content.values())
    if all(isinstance(name, str) for name in content) and all(
        isinstance(item, torch.Tensor) and item.shape == vectors[0].shape and item.ndim == 1 for item in vectors
    ):
        return list(content), torch.stack(vectors).detach().double().numpy()
    arrays = {
        str(name): item.detach().to_dense().double().numpy()
        if isinstance(item, torch.Tensor)
        else np.array(item, dtype=str)
        for name, item in content.items()
        if isinstance(item, torch.Tensor) or (isinstance(item, list | tuple) and all(isinstance(x, str) for x in item))
    }
    return _names_and_matrix(path, arrays)


def _names_and_matrix(path: Path, arrays: dict[str, np.ndarray]) -> Found:
    names = [array for array in arrays.values() if array.dtype.kind == "U" and array.ndim == 1]
    vectors = [array for array in arrays.values() if array.dtype.kind in "fiu" and array.ndim == 2]
    if len(names) != 1 or len(vectors) != 1:
        shown = ", ".join(f"{name} {array.dtype.str} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise DataError(
            f"{path} does not say which vectors belong to which codes", got=shown,
            expected="one array of names and one matrix", remedy="save arrays `codes` and `vectors`",
        )  # fmt: skip
    return names[0].tolist(), vectors[0]


def _read_parquet(path: Path) -> Found:
    try:
        return _from_frame(path, pl.read_parquet(path))
    except (pl.exceptions.PolarsError, OSError) as problem:
        raise _unreadable(path, problem) from None


def _read_csv(path: Path) -> Found:
    try:
        frame = pl.read_csv(path, separator="\t" if path.suffix.lower() == ".tsv" else ",", infer_schema=False)
        # Codes such as 250.00 look like numbers, so that everything is read as text and only vectors are converted.
        numbers = [pl.col(name).cast(pl.Float64) for name in frame.columns[1:]]
        return _from_frame(path, frame.select(pl.col(frame.columns[0]), *numbers))
    except (pl.exceptions.PolarsError, OSError) as problem:
        raise _unreadable(path, problem) from None


def _from_frame(path: Path, frame: pl.DataFrame) -> Found:
    names = [name for name, kind in frame.schema.items() if kind in (pl.String, pl.Categorical, pl.Enum)]
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List | pl.Array)]
    numbers = [name for name, kind in frame.schema.items() if kind.is_numeric()]
    if len(names) != 1 or len(lists) > 1 or not (lists or numbers) or not len(frame):
        raise DataError(
            f"{path} is no table of vectors", got=f"{len(frame)} rows of {', '.join(frame.columns)[:_SHOWN]}",
            expected="a column of codes, and one of lists or one per dimension",
        )  # fmt: skip
    if lists:
        column = frame[lists[0]]
        inner = column.dtype.inner if isinstance(column.dtype, pl.List | pl.Array) else None
        if inner is None or not inner.is_numeric() or column.null_count():
            raise DataError(
                f"{path}: column {lists[0]} holds no vectors", got=f"{column.dtype}, {column.null_count()} null",
                expected="a list of numbers in every row",
            )  # fmt: skip
        if isinstance(column.dtype, pl.List) and (lengths := column.list.len()).n_unique() > 1:
            shown = " to ".join(map(str, sorted(lengths.to_list())[:: len(lengths) - 1]))
            raise DataError(f"{path}: vectors differ in length", got=f"{shown} numbers")
        vectors = np.array(column.to_list(), dtype=np.float64)
    else:
        # A null is no number: it turns into NaN, which is refused by name.
        vectors = frame.select(pl.col(numbers).cast(pl.Float64)).to_numpy()
    if frame[names[0]].null_count():
        raise DataError(f"{path} holds rows without a code", got=frame[names[0]].null_count())
    return frame[names[0]].cast(pl.String).to_list(), vectors


def _float32(vectors: np.ndarray, path: Path) -> np.ndarray:
    if vectors.dtype.kind not in "fiu":
        raise DataError(f"{path} holds no numbers", got=vectors.dtype.str, expected="floats")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(vectors, dtype=np.float32)


def _unreadable(path: Path, problem: Exception) -> DataError:
    what = str(problem).splitlines()[0][:120] if str(problem) else type(problem).__name__
    return DataError(
        f"{path} is not readable", got=what, remedy="copy the file again, or name its format by its ending"
    )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_READERS: dict[str, Callable[[Path], Found]] = {
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".bin": _read_binary,
}
