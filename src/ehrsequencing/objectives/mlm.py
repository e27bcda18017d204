"""Masked language modelling: masks, loss, statistics, and the floors a model has to beat.

Masks are drawn by a counter-based generator: each is a function of (seed, epoch, subject, position), so the batch a
subject happens to be in, or the worker that builds it, changes nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ehrsequencing.errors import ConfigError, ShapeError

IGNORE_INDEX = -100
"""Label of positions that carry no loss."""
COPY_WEIGHT = 0.7
"""Share of `copy_floor`'s mixture that copies the subject's own codes; the rest is the unigram. Of 0.3 to 0.95 the
strongest (lowest loss) on the train subjects of realistic synthetic records, and on their tuning subjects too."""
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1

_SELECT, _ACTION, _REPLACEMENT = 0, 1, 2


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: int64 has only the arithmetic one, which drags the sign in."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's step and finaliser on int64 tensors, whose products wrap as unsigned ones would.

    Source: Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators, doi:10.1145/2714064.2660195.
    """
    state = state + _GAMMA
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return state ^ _shift_right(state, 31)


def hashed_uniform(seed: int, epoch: int, subject_ids: Tensor, positions: Tensor, stream: int) -> Tensor:
    """Uniform numbers that depend on their arguments alone.

    Args:
        seed: Of the run.
        epoch: Any integer; -1 by convention for masks that never change.
        subject_ids: Long [batch].
        positions: Long [batch, length].
        stream: Which of several independent numbers for the same position.

    Returns:
        Float32 [batch, length] in [0, 1), multiples of 2**-24.
    """
    key = torch.zeros(1, dtype=torch.int64, device=subject_ids.device)
    for part in (seed, epoch, stream):
        key = _mix(key ^ _signed(part % (1 << 64)))
    state = _mix(_mix(key ^ subject_ids.to(torch.int64))[:, None] ^ positions.to(torch.int64))
    return _shift_right(state, 40).to(torch.float32) * 2.0**-24


def mask_tokens(
    codes: Tensor,
    maskable: Tensor,
    subject_ids: Tensor,
    *,
    vocab_size: int,
    mask_id: int,
    num_special: int,
    seed: int,
    epoch: int,
    rate: float = 0.15,
    positions: Tensor | None = None,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict and hide them.

    Of the chosen 80 % become the mask token, 10 % another token drawn from all codes, 10 % stay. A subject with any
    maskable token gets at least one token (or group) chosen, so that no example is without a loss.

    Args:
        codes: Long [batch, length].
        maskable: Bool [batch, length].
        subject_ids: Long [batch].
        vocab_size: Number of token ids.
        mask_id: Id of the mask token.
        num_special: Ids below it are never drawn as replacement.
        seed: Of the run.
        epoch: Masks are redrawn with it; -1 for the fixed masks of tuning.
        rate: Expected share of maskable tokens that are chosen.
        positions: Long [batch, length], what identifies a token within its subject; by default its column.
        groups: Long [batch, length], what is chosen together; by default each token by itself.

    Returns:
        inputs Long [batch, length], and labels Long [batch, length]: the original token where chosen, else -100.

    Raises:
        ConfigError: `rate` is outside (0, 1].
        ShapeError: shapes differ.

    Source: Devlin et al. 2019, BERT, arXiv:1810.04805, section 3.1.
    """
    if not 0 < rate <= 1:
        raise ConfigError("rate of masked tokens", got=rate, expected="above 0 and at most 1")
    if maskable.shape != codes.shape or maskable.dtype != torch.bool:
        raise ShapeError("maskable", f"{maskable.dtype} {tuple(maskable.shape)}", f"bool {tuple(codes.shape)}")
    if subject_ids.shape != codes.shape[:1]:
        raise ShapeError("subject_ids", tuple(subject_ids.shape), tuple(codes.shape[:1]))
    if positions is None:
        positions = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
    together = positions if groups is None else groups
    draw = hashed_uniform(seed, epoch, subject_ids, together, _SELECT).masked_fill(~maskable, 2.0)
    chosen = (draw < rate) | ((draw == draw.amin(dim=1, keepdim=True)) & maskable)
    labels = torch.where(chosen, codes, IGNORE_INDEX)
    action = hashed_uniform(seed, epoch, subject_ids, positions, _ACTION)
    replacement = hashed_uniform(seed, epoch, subject_ids, positions, _REPLACEMENT)
    # The clamp catches products that round up to the bound.
    drawn = (num_special + (replacement * (vocab_size - num_special)).long()).clamp(max=vocab_size - 1)
    inputs = torch.where(chosen & (action < MASKED_SHARE), mask_id, codes)
    inputs = torch.where(chosen & (action >= MASKED_SHARE) & (action < MASKED_SHARE + RANDOM_SHARE), drawn, inputs)
    return inputs, labels


def _aligned(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, vocab_size] and labels [n] of labelled positions, from either form of logits that a model returns."""
    kept = labels != IGNORE_INDEX
    if logits.shape[:-1] == labels.shape:
        return logits[kept], labels[kept]
    targets = labels[kept]
    if logits.shape[:-1] != targets.shape:
        expected = f"{tuple(logits.shape[:-1])}, or that many labelled positions"
        raise ShapeError("labels", f"{tuple(labels.shape)} with {len(targets)} labelled", expected)
    return logits, targets


def mlm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over labelled positions, in nats; 0 where there is none.

    Args:
        logits: Float [..., vocab_size], of all positions or, in row-major order, of the labelled ones alone.
        labels: Long [...]; positions of -100 are ignored.

    Raises:
        ShapeError: logits and labels are of different numbers of positions.
    """
    logits, targets = _aligned(logits, labels)
    # The sum over the count, not the built-in mean: that is NaN where nothing is labelled.
    return F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(targets), 1)


def mlm_statistics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Sums to be added over batches: loss_sum (nats), correct, top10, count.

    Args:
        logits: As for `mlm_loss`.
        labels: As for `mlm_loss`.

    Raises:
        ShapeError: logits and labels are of different numbers of positions.
    """
    logits, targets = _aligned(logits.detach(), labels)
    hits = logits.topk(min(10, logits.shape[-1]), dim=-1).indices == targets[:, None]
    return {
        "loss_sum": float(F.cross_entropy(logits.float(), targets, reduction="sum")),
        "correct": float(hits[:, 0].sum()),
        "top10": float(hits.sum()),
        "count": float(len(targets)),
    }


def uniform_floor(targets: Tensor, used: Tensor) -> dict[str, float]:
    """Statistics of guessing evenly among the codes in use; correct and top10 are their expectations.

    Args:
        targets: Long [n], the masked codes; only their number matters.
        used: Bool [vocab_size], True for codes that occur in train.

    Raises:
        ConfigError: no code is in use.
    """
    size, count = int(used.sum()), len(targets)
    if size == 0:
        raise ConfigError("codes in use", got=0, expected="at least 1")
    return {
        "loss_sum": count * math.log(size),
        "correct": count / size,
        "top10": count * min(1.0, 10 / size),
        "count": float(count),
    }


def unigram_probabilities(train_counts: Tensor, num_special: int = 5) -> Tensor:
    """Share of each code in train, one added to each count so that an unseen code is unlikely, not impossible.

    Args:
        train_counts: Long [vocab_size].
        num_special: Ids below it have probability 0.

    Returns:
        Float64 [vocab_size].
    """
    smoothed = train_counts.to(torch.float64) + 1
    smoothed[:num_special] = 0
    return smoothed / smoothed.sum()


def unigram_floor(targets: Tensor, train_counts: Tensor, *, num_special: int = 5) -> dict[str, float]:
    """Statistics of predicting every code with its share in train, the most frequent one first.

    Args:
        targets: Long [n], the masked codes.
        train_counts: Long [vocab_size].
        num_special: Ids below it are never predicted.
    """
    probabilities = unigram_probabilities(train_counts, num_special)
    best = probabilities.topk(min(10, len(probabilities))).indices
    return _floor_statistics(probabilities[targets].log(), best.expand(len(targets), -1), targets)


def copy_floor(
    codes: Tensor,
    labels: Tensor,
    mask: Tensor,
    train_counts: Tensor,
    *,
    weight: float = COPY_WEIGHT,
    num_special: int = 5,
) -> dict[str, float]:
    """Statistics of predicting the subject's own other codes by their frequency, mixed with the unigram.

    The best guess is the subject's most frequent visible code; ties, and subjects without a visible code, fall back
    on the unigram.

    Args:
        codes: Long [batch, length], as the model sees them: labelled positions are never read.
        labels: Long [batch, length], -100 where not masked.
        mask: Bool [batch, length], True at real tokens.
        train_counts: Long [vocab_size].
        weight: Share of the copy in the mixture.
        num_special: Ids below it are neither copied nor predicted.
    """
    unigram = unigram_probabilities(train_counts, num_special)
    size = len(unigram)
    visible = mask & (labels == IGNORE_INDEX) & (codes >= num_special)
    row = torch.arange(len(codes), device=codes.device)[:, None].expand_as(codes)
    own = torch.bincount((row * size + codes)[visible], minlength=len(codes) * size)
    own = own.view(len(codes), size).to(torch.float64)
    total = own.sum(dim=1, keepdim=True)
    share = torch.where(total > 0, weight, 0.0)
    mixture = share * own / total.clamp(min=1) + (1 - share) * unigram
    # Frequencies are whole numbers and shares below 1, so the unigram only breaks ties.
    best = (own + unigram).topk(min(10, size), dim=1).indices
    masked = labels != IGNORE_INDEX
    return _floor_statistics(mixture[row[masked], labels[masked]].log(), best[row[masked]], labels[masked])


def _floor_statistics(log_likelihood: Tensor, best: Tensor, targets: Tensor) -> dict[str, float]:
    hits = best == targets[:, None]
    return {
        "loss_sum": float(-log_likelihood.sum()),
        "correct": float(hits[:, 0].sum()),
        "top10": float(hits.sum()),
        "count": float(len(targets)),
    }
