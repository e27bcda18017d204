"""Masks are a function of subject and epoch; floors are what they say."""

import math

import pytest
import torch
import torch.nn.functional as F

from ehrsequencing.errors import ConfigError, ShapeError
from ehrsequencing.objectives.mlm import (
    IGNORE_INDEX,
    copy_floor,
    hashed_uniform,
    mask_tokens,
    mlm_loss,
    mlm_statistics,
    uniform_floor,
    unigram_floor,
    unigram_probabilities,
)

VOCABULARY, MASK, SPECIAL = 305, 4, 5


def draw_masks(codes, subject_ids, *, epoch=0, seed=0, maskable=None, **options):
    maskable = codes >= SPECIAL if maskable is None else maskable
    return mask_tokens(
        codes, maskable, subject_ids, vocab_size=VOCABULARY, mask_id=MASK, num_special=SPECIAL, seed=seed, epoch=epoch,
        **options,
    )  # fmt: skip


def some_codes(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SPECIAL, VOCABULARY, (batch, length), generator=generator)


def test_hashed_uniform_is_splitmix64():
    """First outputs of SplitMix64 from state 0, as its authors' C program prints them."""
    from ehrsequencing.objectives import mlm

    state, published = 0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for expected in published:
        assert mlm._mix(torch.tensor(mlm._signed(state))).item() == mlm._signed(expected)
        state = (state + 0x9E3779B97F4A7C15) % (1 << 64)


def test_hashed_uniform_is_uniform_and_uncorrelated():
    subjects, positions = torch.arange(2000), torch.arange(100).expand(2000, -1)
    first = hashed_uniform(0, 0, subjects, positions, 0)
    assert first.min() >= 0 and first.max() < 1
    counts = torch.histc(first, bins=20, min=0, max=1)
    expected = first.numel() / 20
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 45  # 19 degrees of freedom: p = 0.0007
    for other in (
        hashed_uniform(0, 0, subjects, positions, 1),
        hashed_uniform(0, 1, subjects, positions, 0),
        hashed_uniform(1, 0, subjects, positions, 0),
        hashed_uniform(0, 0, subjects + 1, positions, 0),
        hashed_uniform(0, 0, subjects, positions + 1, 0),
    ):
        correlation = torch.corrcoef(torch.stack((first.flatten(), other.flatten())))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(first.numel())


def test_shares_are_15_percent_and_80_10_10():
    codes = some_codes(2000, 200)
    inputs, labels = draw_masks(codes, torch.arange(2000))
    chosen = labels != IGNORE_INDEX
    count = chosen.sum().item()

    def close(observed, expected, of):
        return abs(observed - expected) < 4 * math.sqrt(expected * (1 - expected) / of)

    assert close(count / codes.numel(), 0.15, codes.numel())
    assert close((inputs[chosen] == MASK).float().mean().item(), 0.8, count)
    # Of the tenth that is redrawn, 1 in 300 hits the original again.
    assert close((inputs[chosen] == codes[chosen]).float().mean().item(), 0.1 + 0.1 / 300, count)
    replaced = inputs[chosen & (inputs != MASK) & (inputs != codes)]
    assert replaced.min() >= SPECIAL and replaced.max() < VOCABULARY
    assert len(replaced.unique()) == VOCABULARY - SPECIAL
    assert torch.equal(labels[chosen], codes[chosen])
    assert torch.equal(inputs[~chosen], codes[~chosen])


def test_masks_do_not_depend_on_the_batch():
    codes, subjects = some_codes(40, 30), torch.randperm(1000)[:40]
    inputs, labels = draw_masks(codes, subjects, epoch=-1)
    order = torch.randperm(40)
    shuffled_inputs, shuffled_labels = draw_masks(codes[order], subjects[order], epoch=-1)
    assert torch.equal(shuffled_inputs, inputs[order]) and torch.equal(shuffled_labels, labels[order])
    padded = F.pad(codes, (0, 12), value=0)
    padded_inputs, padded_labels = draw_masks(padded, subjects, epoch=-1)
    assert torch.equal(padded_inputs[:, :30], inputs) and torch.equal(padded_labels[:, :30], labels)
    assert (padded_inputs[:, 30:] == 0).all() and (padded_labels[:, 30:] == IGNORE_INDEX).all()


def test_positions_identify_tokens():
    codes, subjects = some_codes(8, 40), torch.arange(8)
    positions = torch.arange(40).expand(8, -1)
    _, labels = draw_masks(codes, subjects, positions=positions)
    _, suffix = draw_masks(codes[:, 10:], subjects, positions=positions[:, 10:])
    assert torch.equal(suffix, labels[:, 10:])


def test_masks_are_redrawn_each_epoch_and_with_each_seed():
    codes, subjects = some_codes(50, 40), torch.arange(50)
    first = draw_masks(codes, subjects, epoch=0)[1] != IGNORE_INDEX
    for other in (draw_masks(codes, subjects, epoch=1)[1], draw_masks(codes, subjects, seed=1)[1]):
        overlap = (first & (other != IGNORE_INDEX)).sum() / first.sum()
        assert overlap < 0.25


@pytest.mark.parametrize("subject", [0, 1, 2**62, -5])
def test_a_single_maskable_token_is_masked(subject):
    codes = torch.tensor([[2, 17, 0, 0], [2, 0, 0, 0]])
    inputs, labels = draw_masks(codes, torch.tensor([subject, subject]))
    assert labels.tolist() == [[IGNORE_INDEX, 17, IGNORE_INDEX, IGNORE_INDEX], [IGNORE_INDEX] * 4]
    assert torch.equal(inputs[1], codes[1])


def test_only_maskable_tokens_are_chosen():
    codes = some_codes(30, 20)
    maskable = torch.zeros_like(codes, dtype=torch.bool)
    maskable[:, ::2] = True
    _, labels = draw_masks(codes, torch.arange(30), maskable=maskable, rate=1.0)
    assert torch.equal(labels != IGNORE_INDEX, maskable)


def test_bad_arguments_are_named():
    codes = some_codes(2, 3)
    with pytest.raises(ConfigError, match="rate"):
        draw_masks(codes, torch.arange(2), rate=0.0)
    with pytest.raises(ShapeError, match="maskable"):
        draw_masks(codes, torch.arange(2), maskable=torch.ones(2, 3))
    with pytest.raises(ShapeError, match="subject_ids"):
        draw_masks(codes, torch.arange(3))
    with pytest.raises(ShapeError, match="labels"):
        mlm_loss(torch.zeros(2, 3, 7), torch.zeros(2, 2, dtype=torch.int64))


def test_loss_is_cross_entropy_over_labelled_positions():
    logits, labels = torch.randn(4, 6, 11), torch.randint(0, 11, (4, 6))
    labels[:, ::2] = IGNORE_INDEX
    torch.testing.assert_close(
        mlm_loss(logits, labels), F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
    )
    kept = labels != IGNORE_INDEX
    for labelled in (labels, labels[kept]):
        assert torch.equal(mlm_loss(logits[kept], labelled), mlm_loss(logits, labels))
    with pytest.raises(ShapeError, match="labels"):
        mlm_loss(logits[kept][1:], labels)


def test_loss_of_nothing_is_zero_with_a_gradient():
    logits = torch.randn(3, 5, requires_grad=True)
    loss = mlm_loss(logits, torch.full((3,), IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros(3, 5))


def test_statistics_add_up():
    logits, labels = torch.randn(50, 40), torch.randint(0, 40, (50,))
    labels[:7] = IGNORE_INDEX
    whole = mlm_statistics(logits, labels)
    halves = [mlm_statistics(logits[:25], labels[:25]), mlm_statistics(logits[25:], labels[25:])]
    for name, value in whole.items():
        assert value == pytest.approx(sum(half[name] for half in halves), rel=1e-6)
    kept = labels != IGNORE_INDEX
    rank = (logits[kept] > logits[kept].gather(1, labels[kept][:, None])).sum(1)
    assert whole["count"] == 43
    assert whole["correct"] == (rank == 0).sum() and whole["top10"] == (rank < 10).sum()
    assert mlm_statistics(logits[kept], labels) == whole
    assert whole["loss_sum"] == pytest.approx(43 * mlm_loss(logits, labels).item(), rel=1e-6)


def test_uniform_floor():
    used = torch.zeros(100, dtype=torch.bool)
    used[20:60] = True
    targets = torch.arange(20, 24)
    expected = {"loss_sum": 4 * math.log(40), "correct": 4 / 40, "top10": 1.0, "count": 4.0}
    assert uniform_floor(targets, used) == expected
    with pytest.raises(ConfigError, match="codes in use"):
        uniform_floor(targets, torch.zeros(100, dtype=torch.bool))


def test_unigram_floor():
    counts = torch.tensor([50, 50, 50, 50, 50, 7, 2, 0] + [0] * 20)
    probabilities = unigram_probabilities(counts)
    assert probabilities[:5].sum() == 0 and probabilities.sum().item() == pytest.approx(1)
    targets = torch.tensor([5, 5, 6, 7])
    floor = unigram_floor(targets, counts)
    total = 8 + 3 + 1 + 20
    assert floor["loss_sum"] == pytest.approx(-sum(math.log(n / total) for n in (8, 8, 3, 1)))
    assert floor["correct"] == 2 and floor["count"] == 4 and floor["top10"] >= 3
    assert torch.equal(counts[:5], torch.full((5,), 50))  # the caller's counts are not touched


def test_copy_floor_reads_only_visible_codes_of_the_subject():
    counts = torch.zeros(30, dtype=torch.int64)
    counts[29] = 1000
    #                     CLS           masked          pad
    codes = torch.tensor([[2, 7, 7, 8, 4, 4, 0], [2, 9, 4, 0, 0, 0, 0], [2, 4, 0, 0, 0, 0, 0]])
    labels = torch.full_like(codes, IGNORE_INDEX)
    labels[0, 4], labels[0, 5], labels[1, 2], labels[2, 1] = 7, 8, 20, 29
    mask = codes != 0
    floor = copy_floor(codes, labels, mask, counts, weight=0.9)
    unigram = unigram_probabilities(counts)
    likelihoods = (
        0.9 * 2 / 3 + 0.1 * unigram[7],
        0.9 * 1 / 3 + 0.1 * unigram[8],
        0.1 * unigram[20],
        unigram[29],
    )
    assert floor["loss_sum"] == pytest.approx(-sum(math.log(value) for value in likelihoods))
    assert floor["correct"] == 2  # 7 for the first subject, the unigram's best for the third
    assert floor["count"] == 4 and floor["top10"] >= 3
    peeking = codes.clone()
    peeking[labels != IGNORE_INDEX] = 11
    assert copy_floor(peeking, labels, mask, counts, weight=0.9) == floor


def test_copy_floor_beats_the_unigram_on_repetitive_histories():
    generator = torch.Generator().manual_seed(3)
    own = torch.randint(SPECIAL, VOCABULARY, (100, 6), generator=generator)
    codes = own.gather(1, torch.randint(0, 6, (100, 40), generator=generator))
    inputs, labels = draw_masks(codes, torch.arange(100), epoch=-1)
    counts = torch.bincount(codes.flatten(), minlength=VOCABULARY)
    mask = torch.ones_like(codes, dtype=torch.bool)
    copied = copy_floor(inputs, labels, mask, counts)
    unigram = unigram_floor(labels[labels != IGNORE_INDEX], counts)
    assert copied["count"] == unigram["count"]
    assert copied["loss_sum"] < unigram["loss_sum"] and copied["correct"] > 5 * unigram["correct"]
