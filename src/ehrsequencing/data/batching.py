"""Batches by length under a token budget: a pure function of store, seed, epoch and index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from ehrsequencing.data.schema import DAYS_PER_YEAR, MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.data.sequences import Examples, leave_room, truncated
from ehrsequencing.data.store import SplitStore, age_years
from ehrsequencing.data.values import ValueStatistics
from ehrsequencing.data.vocabulary import CLS, PAD, SEP
from ehrsequencing.errors import ConfigError

MAX_AGE = 119
UNKNOWN_AGE = 120
_START_OF_2000 = 946_684_800_000_000
_PLANS_KEPT = 4
_LENGTH_JITTER = 0.02
"""Lengths are blurred by this share before sorting, so that neighbours in length change from epoch to epoch."""


@dataclass(frozen=True)
class Batch:
    """B examples of up to L tokens. Column 0 is CLS; padding is at the end.

    Attributes:
        codes: Long [B, L], token ids; PAD in padding.
        ages: Long [B, L], whole years 0..119, 120 unknown; CLS has the age at the last event.
        visit_ids: Long [B, L]; 0 for CLS and static rows, the visits kept are 1, 2, ...
        mask: Bool [B, L], True at real tokens, CLS included.
        kinds: Long [B, L], index into `KINDS` plus 1; 0 for CLS and padding.
        times: Float [B, L], days before the prediction time, 0 or more; 0 for CLS, static rows and padding.
        values: Float [B, L], share of train values at most this one, in [0, 1]; NaN without a value.
        gaps: Float [B, L], days to the first kept event of a token's visit from the event before it, also
            where the event before was cut off; 0 for CLS, static rows, padding and the first visit of a subject.
        age_years: Float [B, L], as `ages`, but exact; NaN unknown.
        calendar: Float [B, L], years since the start of 2000; NaN for static rows; CLS has that of the last event.
        subject_ids, example_ids: Long [B]; the example is its position in `Examples`.
        targets: Float [B]; Float [B, categories] of a multi-label task, [B, 2] (days, cause) of survival; or None.
    """

    codes: torch.Tensor
    ages: torch.Tensor
    visit_ids: torch.Tensor
    mask: torch.Tensor
    kinds: torch.Tensor
    times: torch.Tensor
    values: torch.Tensor
    gaps: torch.Tensor
    age_years: torch.Tensor
    calendar: torch.Tensor
    subject_ids: torch.Tensor
    example_ids: torch.Tensor
    targets: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.codes)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: None if item is None else item.to(device) for name, item in tensors.items()}
        return Batch(**moved)

    def rows(self, index: torch.Tensor) -> Batch:
        """Some of its rows, Long [n], in this order."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        picked: dict[str, Any] = {name: None if item is None else item[index] for name, item in tensors.items()}
        return Batch(**picked)

    def inputs(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named tensors, as keyword arguments of a model's `forward`."""
        return {name: getattr(self, name) for name in names}


def plan_batches(
    lengths: np.ndarray,
    token_budget: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    max_examples: int | None = None,
) -> list[np.ndarray]:
    """Which examples go together: similar lengths, padded tokens within the budget, every example exactly once.

    Args:
        lengths: int64 [n], tokens per example.
        token_budget: Tokens at most in a padded batch.
        seed, epoch: Decide the order where `shuffle` is set; nothing else does.
        shuffle: Blur lengths a little and shuffle the batches; else ascending lengths, ties in order of position.
        max_examples: Examples at most in a batch.

    Returns:
        Positions, int64, per batch.

    Raises:
        ConfigError: the longest example does not fit the budget.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        return []
    if lengths.max() > token_budget:
        raise ConfigError(
            "token_budget is smaller than the longest history", got=token_budget, expected=f"at least {lengths.max()}",
            remedy="raise token_budget or lower max_length",
        )  # fmt: skip
    if max_examples is not None and max_examples < 1:
        raise ConfigError("max_examples must be positive", got=max_examples, expected="1 or more")
    random = np.random.default_rng([seed, epoch])
    blur = 1 + _LENGTH_JITTER * (2 * random.random(len(lengths)) - 1) if shuffle else 1.0
    order = np.argsort(lengths * blur, kind="stable")
    ordered = lengths[order]
    batches, start = [], 0
    while start < len(order):
        most = int(token_budget // ordered[start]) if ordered[start] else len(order)
        window = ordered[start : start + min(most, max_examples or most)]
        padded = np.maximum.accumulate(window) * np.arange(1, len(window) + 1)
        count = int(np.searchsorted(padded, token_budget, side="right"))
        batches.append(order[start : start + count])
        start += count
    if shuffle:
        batches = [batches[index] for index in np.argsort(random.random(len(batches)), kind="stable")]
    return batches


class BatchSource:
    """Builds the batches of one split.

    Batch i of an epoch depends on the store, the examples and the arguments alone, so a run resumes anywhere without
    saved state.
    """

    def __init__(
        self,
        split: SplitStore,
        examples: Examples,
        values: ValueStatistics,
        *,
        max_length: int = 512,
        token_budget: int = 8192,
        seed: int = 0,
        max_examples: int = 256,
        separators: bool = False,
    ) -> None:
        """Args:
            split: Where the events are.
            examples: Which histories.
            values: The store's value statistics.
            max_length: Tokens at most per example, CLS included.
            token_budget: Tokens at most per padded batch.
            seed: Order of the batches.
            max_examples: Examples at most per batch.
            separators: End each visit with SEP, which has kind 0, no value, and otherwise what the event before it has.

        Raises:
            ConfigError: `max_length` below 2, or `token_budget` below the longest example.
        """
        if max_length < 2:
            raise ConfigError("max_length leaves no room beside CLS", got=max_length, expected="2 or more")
        self.split, self.examples, self.values = split, examples, values
        self.token_budget, self.seed, self.max_examples = token_budget, seed, max_examples
        self.separators = separators
        self._windows = truncated(split, examples.index, examples.until, max_length - 1)
        self.lengths = 1 + self._windows.lengths
        if separators:
            self._windows, ends = leave_room(split, examples.index, self._windows, max_length - 1)
            self.lengths = 1 + self._windows.lengths + ends
        """Tokens per example, CLS included; int64 [n]."""
        self._plans: dict[tuple[int, bool], list[np.ndarray]] = {}
        self._plan(0, True)

    def _plan(self, epoch: int, shuffle: bool) -> list[np.ndarray]:
        """The epoch's plan; the last few are kept, since every batch of an epoch asks for it again."""
        if (epoch, shuffle) not in self._plans:
            if len(self._plans) >= _PLANS_KEPT:
                del self._plans[next(iter(self._plans))]
            self._plans[epoch, shuffle] = plan_batches(
                self.lengths, self.token_budget,
                seed=self.seed, epoch=epoch, shuffle=shuffle, max_examples=self.max_examples,
            )  # fmt: skip
        return self._plans[epoch, shuffle]

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch; it varies a little between epochs."""
        return len(self._plan(epoch, True))

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch `index` of an epoch; ConfigError when there is none."""
        plan = self._plan(epoch, True)
        if not 0 <= index < len(plan):
            raise ConfigError(f"epoch {epoch} has no batch {index}", got=index, expected=f"0 to {len(plan) - 1}")
        return self.build(plan[index])

    def fixed(self) -> Iterator[Batch]:
        """Every example once, shortest first, the same in every run."""
        for chosen in self._plan(0, False):
            yield self.build(chosen)

    def padding_share(self, epoch: int) -> float:
        """Share of an epoch's tokens that is padding."""
        padded = sum(len(chosen) * int(self.lengths[chosen].max()) for chosen in self._plan(epoch, True))
        return 1.0 - int(self.lengths.sum()) / padded if padded else 0.0

    def _shares(self, row: np.ndarray) -> np.ndarray:
        """Share of train values at most that of each row, float [rows]; NaN without a value."""
        return self.values.cdf(self.split.statistic[row], self.split.value[row])

    def build(self, chosen: np.ndarray) -> Batch:
        """The batch of these examples, int64 [B] positions in `examples`, in this order."""
        split, windows, count = self.split, self._windows, len(chosen)
        static, lengths = windows.static[chosen], self.lengths[chosen] - 1
        width = 1 + int(lengths.max(initial=0))
        example, position, row = windows.rows(chosen)
        visit, gap = _visits(example, split.visit[row], split.time, row, windows.start[chosen])
        if split.rules.order_within_visit == "canonical":
            # Histories are cut by time, since a prediction time may fall into a visit; what is left is put in order.
            keys = (split.statistic, split.value, split.code, split.kind, split.visit)
            order = np.lexsort((*(column[row] for column in keys), example))
            row, visit, gap = row[order], visit[order], gap[order]
        code, kind, value = split.code[row], split.kind[row] + np.int64(1), self._shares(row)
        is_static = position < static[example]
        if self.separators:
            ends = np.append((visit[1:] != visit[:-1]) | (example[1:] != example[:-1]), True) & (visit > 0)
            copies = 1 + ends
            added = np.cumsum(copies)[ends] - 1
            columns = (example, row, visit, gap, code, kind, value, is_static)
            example, row, visit, gap, code, kind, value, is_static = (np.repeat(item, copies) for item in columns)
            code[added], kind[added], value[added] = SEP, 0, np.nan
            first = np.cumsum(lengths) - lengths
            position = np.arange(len(example)) - first[example]
        cell = example * width + 1 + position

        def grid(flat: np.ndarray, fill: float, dtype: type) -> np.ndarray:
            full: np.ndarray = np.full(count * width, fill, dtype=dtype)
            full[cell] = flat
            return full.reshape(count, width)

        birth = split.birth_time[self.examples.index[chosen]]
        years = age_years(split.time[row], birth[example])
        until = self.examples.until[chosen]
        days = (until[example] - np.where(is_static, until[example], split.time[row])) / MICROSECONDS_PER_DAY

        codes = grid(code, PAD, np.int64)
        ages = grid(_whole_years(years), 0, np.int64)
        exact, calendar = grid(years, np.nan, np.float32), grid(_calendar(split.time[row]), np.nan, np.float32)
        ages[:, 0] = UNKNOWN_AGE
        mask = grid(np.ones(len(row), dtype=bool), False, bool)
        codes[:, 0], mask[:, 0] = CLS, True
        dated = windows.stop[chosen] > windows.recent[chosen]
        last = split.time[windows.stop[chosen[dated]] - 1]
        exact[dated, 0], calendar[dated, 0] = age_years(last, birth[dated]), _calendar(last)
        ages[dated, 0] = _whole_years(age_years(last, birth[dated]))
        target = self.examples.target
        return Batch(
            codes=torch.from_numpy(codes),
            ages=torch.from_numpy(ages),
            visit_ids=torch.from_numpy(grid(visit, 0, np.int64)),
            mask=torch.from_numpy(mask),
            kinds=torch.from_numpy(grid(kind, 0, np.int64)),
            times=torch.from_numpy(grid(days, 0, np.float32)),
            values=torch.from_numpy(grid(value, np.nan, np.float32)),
            gaps=torch.from_numpy(grid(gap, 0, np.float32)),
            age_years=torch.from_numpy(exact),
            calendar=torch.from_numpy(calendar),
            subject_ids=torch.from_numpy(self.examples.subject_id[chosen]),
            example_ids=torch.from_numpy(chosen.astype(np.int64)),
            targets=None if target is None else torch.from_numpy(target[chosen].astype(np.float32)),
        )


def _whole_years(age: np.ndarray) -> np.ndarray:
    """Ages as tokens, int64: whole years up to `MAX_AGE`, `UNKNOWN_AGE` where NaN."""
    return np.where(np.isnan(age), UNKNOWN_AGE, np.clip(np.nan_to_num(age), 0, MAX_AGE)).astype(np.int64)


def _calendar(time: np.ndarray) -> np.ndarray:
    """Years since the start of 2000, float64; NaN at `STATIC_TIME`.

    >>> _calendar(np.array([946_684_800_000_000, STATIC_TIME])).tolist()
    [0.0, nan]
    """
    return np.where(time == STATIC_TIME, np.nan, (time - _START_OF_2000) / MICROSECONDS_PER_DAY / DAYS_PER_YEAR)


def _visits(
    example: np.ndarray, visit: np.ndarray, time: np.ndarray, row: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each row's visit among those kept of its example, from 1, and days between it and the event before it.

    Args:
        example: int64 [rows].
        visit: int [rows], the store's numbers; -1 for static rows, whose rank and gap are 0.
        time: int64, of all rows of the split.
        row: int64 [rows], rows of the split, of an example in order of time.
        start: int64 [examples], first row of each one's subject.

    Returns:
        int64 [rows] and float64 [rows].

    >>> time = np.array([STATIC_TIME, 0, 86_400_000_000, 3 * 86_400_000_000, 0, 0])
    >>> rows, starts = np.array([0, 1, 3, 4, 5]), np.array([0, 4])
    >>> rank, gap = _visits(np.array([0, 0, 0, 1, 1]), np.array([-1, 0, 2, 0, 0]), time, rows, starts)
    >>> rank.tolist(), gap.tolist()
    ([0, 1, 2, 1, 1], [0.0, 0.0, 2.0, 0.0, 0.0])
    """
    ranks, gaps = np.zeros(len(visit), dtype=np.int64), np.zeros(len(visit))
    dated = np.flatnonzero(visit >= 0)
    if not len(dated):
        return ranks, gaps
    numbers = int(visit.max()) + 2
    key = example[dated] * numbers + visit[dated]
    if (key[1:] >= key[:-1]).all():
        # Where no visit overlaps another, their order is known without sorting.
        opens = np.append(True, key[1:] != key[:-1])
        first, inverse = np.flatnonzero(opens), np.cumsum(opens) - 1
        distinct = key[first]
    else:
        distinct, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    owner = distinct // numbers
    ranks[dated] = inverse - np.searchsorted(owner, np.arange(int(example.max()) + 1))[example[dated]] + 1
    # The event before may have been cut off; it was known all the same.
    begins = row[dated[first]]
    before = time[np.maximum(begins - 1, 0)]
    known = (begins > start[owner]) & (before != STATIC_TIME)
    # Subtracted where known alone: `STATIC_TIME` is so far away that the difference overflows.
    gap = np.zeros(len(begins))
    gap[known] = (time[begins[known]] - before[known]) / MICROSECONDS_PER_DAY
    gaps[dated] = gap[inverse]
    return ranks, gaps
