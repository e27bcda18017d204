"""Token ids: special tokens, codes, and codes with a binned value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ehrsequencing.data.schema import KINDS
from ehrsequencing.errors import DataError, StoreError
from ehrsequencing.io import hash_bytes, read_json, write_text

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NUM_SPECIAL = len(SPECIAL_TOKENS)
VOCABULARY_FILE = "vocabulary.json"
_KIND_IDS = {kind: index for index, kind in enumerate(KINDS)}
_OTHER = _KIND_IDS["other"]


def value_token(code: str, value_bin: int) -> str:
    """Name of the token of a code whose value falls in a 1-based bin; bin 0 is the code without a value.

    >>> value_token("LOINC//4548-4", 3), value_token("LOINC//4548-4", 0)
    ('LOINC//4548-4//Q3', 'LOINC//4548-4')
    """
    return f"{code}//Q{value_bin}" if value_bin else code


class Vocabulary:
    """An ordered set of tokens; the position of a token is its id, and ids never change.

    Attributes:
        tokens: Names [n]; the special tokens come first.
        counts: int64 [n]; events per token in the train split of the store it belongs to (UNK counts the unknown).
        kinds: uint8 [n]; index into `KINDS`.
        base_codes: The distinct codes behind the tokens, in order of first appearance.
        base_ids: int32 [n]; index into `base_codes`, -1 for special tokens.
    """

    def __init__(self, tokens: Sequence[str], codes: Sequence[str | None], kinds: Sequence[int], counts: Sequence[int]):
        """Args: per token its name, its base code (None for special tokens), its kind and its count in train.

        Raises:
            DataError: the special tokens are not first, or two tokens share a name.
        """
        self.tokens = tuple(tokens)
        if self.tokens[:NUM_SPECIAL] != SPECIAL_TOKENS:
            raise DataError("a vocabulary must begin with the special tokens", got=self.tokens[:NUM_SPECIAL])
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self._ids) < len(self.tokens):
            twice = next(token for index, token in enumerate(self.tokens) if self._ids[token] != index)
            raise DataError(
                "two tokens share a name", got=twice, expected="distinct names",
                remedy="rename the code: `//Q` and a number after a code stands for a binned value",
            )  # fmt: skip
        self.kinds = np.asarray(kinds, dtype=np.uint8)
        self.counts = np.asarray(counts, dtype=np.int64)
        base_ids: dict[str, int] = {}
        ids = [-1 if code is None else base_ids.setdefault(code, len(base_ids)) for code in codes]
        self.base_ids = np.asarray(ids, dtype=np.int32)
        self.base_codes = tuple(base_ids)

    @classmethod
    def from_counts(
        cls, codes: Sequence[str], kinds: Sequence[int], token_counts: np.ndarray, *, min_count: int
    ) -> Vocabulary:
        """Keep what is frequent enough.

        A code that occurs `min_count` times, with values or without, gets its bare token; each of its bins that does
        gets a token of its own, and rarer bins read as the bare code.

        Args:
            codes: Codes [c], in the order their tokens shall have.
            kinds: Index into `KINDS` per code [c].
            token_counts: int64 [c, 1 + bins]; column 0 counts events without a binned value.
            min_count: Events in train that a code or bin needs.
        """
        kept = token_counts.sum(axis=1) >= min_count
        has_token = token_counts >= min_count
        has_token[:, 0] = True
        return cls._from_table(codes, kinds, has_token & kept[:, None])

    @classmethod
    def from_code_book(
        cls, codes: Sequence[str], kinds: Sequence[int], numeric: Sequence[bool], value_bins: int
    ) -> Vocabulary:
        """Every code of a fixed code book; numeric codes get `value_bins` tokens besides the bare one."""
        has_token = np.zeros((len(codes), 1 + value_bins), dtype=bool)
        has_token[:, 0] = True
        has_token[np.asarray(numeric, dtype=bool)] = True
        return cls._from_table(codes, kinds, has_token)

    @classmethod
    def _from_table(cls, codes: Sequence[str], kinds: Sequence[int], has_token: np.ndarray) -> Vocabulary:
        pairs = np.argwhere(has_token).tolist()
        tokens = [*SPECIAL_TOKENS, *(value_token(codes[row], value_bin) for row, value_bin in pairs)]
        token_codes = [*[None] * NUM_SPECIAL, *(codes[row] for row, _ in pairs)]
        token_kinds = [*[_OTHER] * NUM_SPECIAL, *(kinds[row] for row, _ in pairs)]
        return cls(tokens, token_codes, token_kinds, [0] * len(tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    def id(self, token: str) -> int:
        """Id of a token; UNK when it is not in the vocabulary."""
        return self._ids.get(token, UNK)

    @property
    def used(self) -> np.ndarray:
        """Bool [n]: tokens other than the special ones that occur in train."""
        used = self.counts > 0
        used[:NUM_SPECIAL] = False
        return used

    @cached_property
    def hash(self) -> str:
        """Hash of names, codes and kinds in order. Counts stay out: they belong to the data, not to the ids."""
        names = "\n".join(self.tokens).encode()
        return hash_bytes(names, "\n".join(self.base_codes).encode(), self.base_ids.tobytes(), self.kinds.tobytes())

    def with_counts(self, counts: np.ndarray) -> Vocabulary:
        """The same tokens with the counts of another train split, int64 [n]."""
        return Vocabulary(self.tokens, self._token_codes(), self.kinds.tolist(), counts.tolist())

    def extend(self, other: Vocabulary) -> Vocabulary:
        """This vocabulary with the tokens of `other` that it lacks appended; its own ids stay, counts add up."""
        new = [index for index, token in enumerate(other.tokens) if token not in self._ids]
        other_codes = other._token_codes()
        counts = self.counts.copy()
        for token, count in zip(other.tokens, other.counts.tolist(), strict=True):
            if token in self._ids:
                counts[self._ids[token]] += count
        return Vocabulary(
            [*self.tokens, *(other.tokens[index] for index in new)],
            [*self._token_codes(), *(other_codes[index] for index in new)],
            [*self.kinds.tolist(), *other.kinds[new].tolist()],
            [*counts.tolist(), *other.counts[new].tolist()],
        )

    def lookup_table(self, codes: Sequence[str], bins: int) -> np.ndarray:
        """Token id per code and bin, int32 [codes, 1 + bins].

        A bin without a token reads as the bare code, a code without a token as UNK.
        """
        table = np.full((len(codes), 1 + bins), -1, dtype=np.int32)
        row_of = {code: row for row, code in enumerate(codes)}
        for index, (token, code) in enumerate(zip(self.tokens, self._token_codes(), strict=True)):
            row = -1 if code is None else row_of.get(code, -1)
            value_bin = 0 if token == code else int(token.rpartition("//Q")[2]) if row >= 0 else 0
            if row >= 0 and value_bin <= bins:
                table[row, value_bin] = index
        table[table[:, 0] < 0, 0] = UNK
        return np.where(table < 0, table[:, :1], table)

    def _token_codes(self) -> list[str | None]:
        return [None if index < 0 else self.base_codes[index] for index in self.base_ids.tolist()]

    def save(self, path: str | Path) -> None:
        """Write JSON, one token a line."""
        encode = json.JSONEncoder(ensure_ascii=False).encode
        columns = (self.tokens, self._token_codes(), self.kinds.tolist(), self.counts.tolist())
        rows = (encode([token, code, KINDS[kind], count]) for token, code, kind, count in zip(*columns, strict=True))
        lines = ",\n".join(rows)
        head = '"columns": ["token", "code", "kind", "count in train"]'
        write_text(path, f'{{"hash": "{self.hash}",\n{head},\n"tokens": [\n{lines}\n]}}\n')

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            StoreError: missing, not JSON, of another layout, or changed since it was written.
        """
        remedy = "run `ehrseq prepare` again"
        content = read_json(path, StoreError, remedy)
        try:
            tokens, codes, kinds, counts = zip(*content["tokens"], strict=True)
            vocabulary = cls(tokens, codes, [_KIND_IDS[kind] for kind in kinds], counts)
            stated = content["hash"]
        except (KeyError, TypeError, ValueError, OverflowError, DataError) as problem:
            raise StoreError(f"{path} is no vocabulary", got=repr(problem), remedy=remedy) from None
        if vocabulary.hash != stated:
            raise StoreError(f"{path} was changed", got=f"hash {vocabulary.hash}", expected=stated, remedy=remedy)
        return vocabulary
