"""A stranger's vectors as a model's own: matched to the vocabulary, brought to its width, put into its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from ehrsequencing.data.dataset import CODES_FILE
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.vocabulary import NUM_SPECIAL, VOCABULARY_FILE, Vocabulary
from ehrsequencing.errors import ConfigError, DataError
from ehrsequencing.io import read_json
from ehrsequencing.models.behrt import BEHRT
from ehrsequencing.models.code_names import ancestors, normalised
from ehrsequencing.models.embedding_files import EmbeddingTable, read_embeddings, write_embeddings
from ehrsequencing.models.embeddings import code_std
from ehrsequencing.models.folder import CONFIG_FILE, PretrainedModel, plain_name
from ehrsequencing.models.med2vec import Med2Vec, SkipGram
from ehrsequencing.models.text_embeddings import describe_codes
from ehrsequencing.options import EmbeddingOptions

_STARTS = {"normal": "draws of the same mean and spread", "mean": "the mean of those found"}
LEVELS = ("exact", "normalised", "parent", "rolled", "none")
_EXAMPLES = 3
_STREAM = 7919
"""Beside the run's seed: the draws below are no continuation of those of the weights."""


@dataclass(frozen=True)
class Match:
    """Which vector each token gets.

    Attributes:
        vectors: Float32 [tokens, dimension]; 0 where `level` is "none" or the token is special.
        level: How each token was found, one of `LEVELS`; "special" for special tokens.
        ambiguous: Names of the file that are alike once normalised and differ in vector; none of them is used so.
    """

    vectors: np.ndarray
    level: np.ndarray
    ambiguous: int

    @property
    def found(self) -> np.ndarray:
        """Bool [tokens]."""
        return ~np.isin(self.level, ("none", "special"))


def match_vectors(table: EmbeddingTable, vocabulary: Vocabulary, rolled: Mapping[str, str] | None = None) -> Match:
    """Find a vector for each token: by its name; its normalised name; a parent of its code; what was rolled up to it.

    A binned value (`LOINC//4548-4//Q3`) has its bare code as the nearest parent. A code that stands for others, which a
    roll-up replaced by it, gets the mean of theirs.

    Args:
        table: The vectors.
        vocabulary: The store's.
        rolled: Code to the broader one that stands for it, as `TokenStore.rolled_codes`.

    Raises:
        DataError: not a single token is found.
    """
    exact = {code: row for row, code in enumerate(table.codes)}
    alike: dict[tuple[str, str], int] = {}
    ambiguous: set[tuple[str, str]] = set()
    for place, code in enumerate(table.codes):
        key = normalised(code)
        if key in alike and not np.array_equal(table.vectors[alike[key]], table.vectors[place]):
            ambiguous.add(key)
        alike.setdefault(key, place)
    for key in ambiguous:
        del alike[key]
    below: dict[str, list[int]] = {}
    for code, broader in (rolled or {}).items():
        if code != broader and (known := exact.get(code, _lookup(alike, code))) is not None:
            below.setdefault(broader, []).append(known)
    vectors = np.zeros((len(vocabulary), table.dimension), dtype=np.float32)
    level = np.full(len(vocabulary), "none", dtype="<U10")
    level[:NUM_SPECIAL] = "special"
    for token in range(NUM_SPECIAL, len(vocabulary)):
        name, base = vocabulary.tokens[token], vocabulary.base_codes[vocabulary.base_ids[token]]
        row = exact.get(name)
        how = "exact"
        if row is None and name == base:
            row, how = _lookup(alike, name), "normalised"
        if row is None:
            how = "parent"
            nearest = [base] if name != base else []
            candidates = (exact.get(code, _lookup(alike, code)) for code in (*nearest, *ancestors(base)))
            row = next((found for found in candidates if found is not None), None)
        if row is not None:
            vectors[token], level[token] = table.vectors[row], how
        elif base in below:
            vectors[token], level[token] = table.vectors[below[base]].mean(0), "rolled"
    match = Match(vectors, level, len(ambiguous))
    if not match.found.any():
        raise DataError(
            f"{table.source}: no code of it is in the vocabulary",
            got=", ".join(table.codes[:_EXAMPLES]),
            expected=f"codes such as {', '.join(vocabulary.tokens[NUM_SPECIAL : NUM_SPECIAL + _EXAMPLES])}",
            remedy="write the file's codes as SYSTEM//code",
        )
    return match


def _lookup(alike: Mapping[tuple[str, str], int], code: str) -> int | None:
    """Row of a code by its normalised name, or by that without a system where the file names none."""
    system, own = normalised(code)
    return alike.get((system, own), alike.get(("", own)))


def coverage(match: Match, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """How much of each code system was found and how, in tokens of the vocabulary and in events of train.

    Returns:
        A row per system (what stands before `//`), in order of events in train, and one of all: `system`, `tokens`,
        `events`, and per level of `LEVELS` its share of both: `exact`, `exact_events`, ...
    """
    systems = np.array([token.split("//", 1)[0] if "//" in token else "" for token in vocabulary.tokens])
    counts = np.asarray(vocabulary.counts, dtype=np.float64)
    real = np.arange(len(vocabulary)) >= NUM_SPECIAL
    groups = [("all", real)] + [(name, real & (systems == name)) for name in sorted(set(systems[real]))]
    rows = []
    for name, group in groups:
        row: dict[str, Any] = {"system": name, "tokens": int(group.sum()), "events": int(counts[group].sum())}
        for how in LEVELS:
            here = group & (match.level == how)
            row[how] = float(here.sum() / group.sum())
            row[f"{how}_events"] = float(counts[here].sum() / counts[group].sum()) if counts[group].sum() else 0.0
        rows.append(row)
    return [rows[0], *sorted(rows[1:], key=lambda row: -row["events"])]


@dataclass(frozen=True)
class Applied:
    """What was done, as the run's metadata keeps it."""

    source: str
    file_hash: str
    file_dimension: int
    dimension: int
    projection: str
    explained: float | None
    factor: float
    unmatched: str
    train: bool
    ambiguous: int
    coverage: list[dict[str, Any]] = field(default_factory=list)

    def note(self) -> str:
        """One sentence for a reader."""
        every = self.coverage[0]
        return (
            f"embeddings of {self.source}: {1 - every['none']:.1%} of {every['tokens']:,} tokens have a vector, "
            f"{1 - every['none_events']:.1%} of the events of train; "
            + (f"the others start from {_STARTS[self.unmatched]}; " if every["none"] else "")
            + f"dimension {self.file_dimension} -> {self.dimension} ({self.projection}); "
            + ("trained on" if self.train else "frozen")
        )

    def rows(self) -> dict[str, str]:
        """What was found of each code system, for the report."""
        return {
            f"code vectors, {row['system'] or 'no system'} ({row['tokens']:,} tokens)": ", ".join(
                f"{how} {row[how]:.0%} ({row[f'{how}_events']:.0%} of events)" for how in LEVELS if row[how]
            )
            for row in self.coverage
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def load_table(options: EmbeddingOptions) -> EmbeddingTable:
    """The vectors that a configuration names: of a file, or of descriptions read by a sentence transformer.

    Raises:
        DataError: see `read_embeddings` and `describe_codes`.
    """
    path = Path(str(options.file))
    if options.descriptions is None:
        return read_embeddings(path, codes=options.codes)
    book = Path(options.descriptions)
    book = book / CODES_FILE if book.is_dir() else book
    try:
        frame = pl.read_parquet(book, columns=["code", "description"])
    except (pl.exceptions.PolarsError, OSError) as problem:
        raise DataError(
            f"{book} does not describe codes", got=str(problem).splitlines()[0][:120],
            expected="a dataset, or its metadata/codes.parquet with columns code and description",
        ) from None  # fmt: skip
    return describe_codes(path, dict(frame.drop_nulls().iter_rows()))


def apply_embeddings(
    model: PretrainedModel, table: EmbeddingTable, store: TokenStore, options: EmbeddingOptions, *, seed: int
) -> Applied:
    """Put vectors of codes into a model's table of code embeddings, in place; a tied decoder follows.

    Special tokens keep what they have. Tokens without a vector get what `options.unmatched` says: draws with mean and
    standard deviation of the vectors found, by coordinate; their mean; or nothing, as an error.

    Raises:
        DataError: no token is found, or one is not and `unmatched` is "error".
        ConfigError: the file's dimension is not the model's and `dimension` is "refuse", or too few vectors for PCA.
    """
    embedding = code_embedding(model)
    width = embedding.weight.shape[1]
    vocabulary = store.vocabulary
    match = match_vectors(table, vocabulary, store.rolled_codes)
    lacking = np.flatnonzero(match.level == "none")
    if len(lacking) and options.unmatched == "error":
        shown = ", ".join(vocabulary.tokens[token] for token in lacking[:_EXAMPLES])
        raise DataError(
            f"{table.source} has no vector for {len(lacking)} of {len(vocabulary) - NUM_SPECIAL} tokens", got=shown,
            remedy="pass --set embeddings.unmatched=normal or mean",
        )  # fmt: skip
    generator = np.random.default_rng([seed, _STREAM])
    found = match.vectors[match.found].astype(np.float64)
    projected, projection, explained = _brought_to(found, width, options.dimension, table, generator)
    factor = 1.0
    if options.scale == "model":
        root_mean_square = float(np.sqrt((projected**2).mean()))
        if root_mean_square == 0:
            raise DataError(f"{table.source}: every vector found is 0", expected="vectors of some length")
        factor = code_std(width) / root_mean_square
    projected = projected * factor
    rows = np.empty((len(vocabulary), width))
    rows[match.found] = projected
    rows[lacking] = projected.mean(0)
    if options.unmatched == "normal":
        rows[lacking] += generator.standard_normal((len(lacking), width)) * projected.std(0)
    with torch.no_grad():
        embedding.weight[NUM_SPECIAL:] = torch.from_numpy(rows[NUM_SPECIAL:]).to(embedding.weight)
    return Applied(
        source=table.source,
        file_hash=table.hash,
        file_dimension=table.dimension,
        dimension=width,
        projection=projection,
        explained=explained,
        factor=factor,
        unmatched=options.unmatched,
        train=options.train,
        ambiguous=match.ambiguous,
        coverage=coverage(match, vocabulary),
    )


def _brought_to(
    found: np.ndarray, width: int, how: str, table: EmbeddingTable, generator: np.random.Generator
) -> tuple[np.ndarray, str, float | None]:
    """Vectors of the model's width, what was done, and the share of variance that PCA keeps."""
    have = found.shape[1]
    if have == width:
        return found, "as they are", None
    if how == "refuse":
        raise ConfigError(
            f"{table.source}: dimension of the vectors", got=have, expected=f"{width}, the model's",
            remedy="pass --set embeddings.dimension=pca (narrower) or random (an orthonormal map, either way)",
        )  # fmt: skip
    if how == "pca":
        if width > min(have, len(found) - 1):
            raise ConfigError(
                f"{table.source}: PCA to {width} dimensions", got=f"{len(found)} vectors of {have}",
                expected="more of both than the model's dimension", remedy="pass --set embeddings.dimension=random",
            )  # fmt: skip
        centred = found - found.mean(0)
        _, strength, axes = np.linalg.svd(centred, full_matrices=False)
        # The sign of an axis is arbitrary; its largest part points up, so that runs agree.
        axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
        total = float((strength**2).sum())
        return centred @ axes[:width].T, "pca", float((strength[:width] ** 2).sum()) / total if total else 0.0
    square, upper = np.linalg.qr(generator.standard_normal((max(have, width), min(have, width))))
    square = square * np.sign(np.diagonal(upper))
    return found @ (square.T if have < width else square), "random orthonormal", None


@dataclass(frozen=True)
class Placed:
    """A stranger's vectors in a model: what the run's identity and metadata say of them, and what freezes them."""

    applied: Applied
    parameter: str

    def freeze(self, model: PretrainedModel) -> None:
        """Leave the code embeddings trainable or not, as was asked; after all else that decides what trains."""
        named = {plain_name(name): parameter for name, parameter in model.named_parameters()}
        named[self.parameter].requires_grad_(self.applied.train)


def place_embeddings(
    model: PretrainedModel, store: TokenStore, options: EmbeddingOptions, *, seed: int, notes: list[str]
) -> Placed | None:
    """Apply the vectors that a configuration names and count them as pretrained; None where it names none."""
    if options.file is None:
        return None
    parameter = code_parameter(model)
    if parameter in model.pretrained_parameters:
        notes.append("the base's code embeddings are replaced: its encoder was trained with others")
    applied = apply_embeddings(model, load_table(options), store, options, seed=seed)
    model.mark_pretrained({parameter})
    notes.append(applied.note())
    return Placed(applied, parameter)


def code_embedding(model: nn.Module) -> nn.Embedding:
    """The table of code embeddings of a model.

    Raises:
        ConfigError: it has none.
    """
    return model.get_submodule(_code_path(model))  # type: ignore[return-value]


def code_parameter(model: nn.Module) -> str:
    """Name of the parameter that holds the code embeddings; ConfigError where a model has none."""
    return f"{_code_path(model)}.weight"


def _code_path(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("embeddings.code"):
            return name
    raise ConfigError(f"{type(model).__name__} has no table of code embeddings", remedy="leave out --embeddings")


def export_code_vectors(run: str | Path, path: str | Path) -> EmbeddingTable:
    """Write what a run learned of codes as a file for others; special tokens stay out.

    Args:
        run: Run of Med2Vec, skip-gram or BEHRT.
        path: `.npz`, `.bin` (word2vec binary) or anything else (word2vec text).

    Returns:
        The table as it is read back.

    Raises:
        RunError: there is no trained model.
    """
    folder = Path(run) / "model"
    kind = read_json(folder / CONFIG_FILE, remedy="name the folder that `ehrseq pretrain --out` finished")[
        "architecture"
    ]
    vocabulary = Vocabulary.load(folder / VOCABULARY_FILE)
    if kind in ("Med2Vec", "SkipGram"):
        of_codes = {"Med2Vec": Med2Vec, "SkipGram": SkipGram}[kind].from_pretrained(folder)
        vectors = of_codes.code_vectors()
    else:
        vectors = code_embedding(BEHRT.from_pretrained(folder)).weight
    write_embeddings(path, vocabulary.tokens[NUM_SPECIAL:], vectors.detach().numpy()[NUM_SPECIAL:])
    return read_embeddings(path)
