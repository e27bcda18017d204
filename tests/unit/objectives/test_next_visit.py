"""Next-visit prediction: which visits ask, what they ask, what the floors know."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.errors import ConfigError, ShapeError
from ehrsequencing.objectives.next_visit import (
    CopyRates,
    balancing_weights,
    next_codes,
    next_visit_loss,
    next_visit_statistics,
    seen_visits,
    transitions,
)

SIZES = {"vocab_size": 9, "num_special": 5}


def history(*visits: list[int], length: int = 12):
    """One row: CLS, then the codes of each visit."""
    codes, ids = [2], [0]
    for number, visit in enumerate(visits, start=1):
        codes += visit
        ids += [number] * len(visit)
    mask = torch.arange(length) < len(codes)
    padded = [torch.tensor(row + [0] * (length - len(row)))[None] for row in (codes, ids)]
    return padded[0], padded[1], mask[None]


def rows(*many):
    return tuple(torch.cat(part) for part in zip(*many, strict=True))


def test_a_visit_asks_for_the_codes_of_the_next_one():
    batch = rows(history([5, 6], [7, 7, 1], [5]), history([8]), history())
    visits, empty = transitions(*batch, num_special=5)
    assert visits.tolist() == [[0, 1], [0, 2]]
    assert empty == 0
    target = next_codes(*batch, visits, **SIZES)
    assert target.nonzero().tolist() == [[0, 7], [1, 5]]


def test_a_next_visit_without_a_code_is_not_asked_for():
    visits, empty = transitions(*history([5], [1, 3], [6]), num_special=5)
    assert visits.tolist() == [[0, 2]]
    assert empty == 1


def test_seen_counts_visits_not_tokens():
    batch = history([5, 5, 6], [5], [8])
    seen = seen_visits(*batch, torch.tensor([[0, 1], [0, 2]]), **SIZES)
    assert seen[:, 5].tolist() == [1, 2]
    assert seen[:, 6].tolist() == [1, 1]
    assert seen[:, 8].tolist() == [0, 0]


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_targets_and_counts_equal_sets(seed):
    generator = torch.Generator().manual_seed(seed)
    histories = []
    for _ in range(4):
        sizes = torch.randint(1, 4, (int(torch.randint(0, 6, (1,), generator=generator)),), generator=generator)
        histories.append([[int(code) for code in torch.randint(1, 9, (int(n),), generator=generator)] for n in sizes])
    batch = rows(*(history(*visits, length=20) for visits in histories))
    visits, empty = transitions(*batch, num_special=5)
    sets = [[{code for code in visit if code >= 5} for visit in one] for one in histories]
    expected = [[r, v + 1] for r, one in enumerate(sets) for v in range(len(one) - 1) if one[v + 1]]
    assert visits.tolist() == expected
    assert empty == sum(not one[v + 1] for one in sets for v in range(len(one) - 1))
    target, seen = next_codes(*batch, visits, **SIZES), seen_visits(*batch, visits, **SIZES)
    for index, (r, v) in enumerate(expected):
        assert set(target[index].nonzero()[:, 0].tolist()) == sets[r][v]
        counts = [sum(code in visit for visit in sets[r][:v]) for code in range(9)]
        assert seen[index].tolist() == counts


def test_loss_is_cross_entropy_per_code_that_came():
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    target = torch.tensor([[1.0, 1.0, 0.0]])
    own = [math.log1p(math.exp(-0.0)), math.log1p(math.exp(-2.0)), math.log1p(math.exp(-1.0))]
    assert next_visit_loss(logits, target).item() == pytest.approx(sum(own) / 2)
    weighted = next_visit_loss(logits, target, positive_weight=torch.tensor([3.0, 1.0, 5.0])).item()
    assert weighted == pytest.approx((3 * own[0] + own[1] + own[2]) / 2)
    focal = next_visit_loss(logits, target, gamma=2.0).item()
    assert focal == pytest.approx(sum(term * (1 - math.exp(-term)) ** 2 for term in own) / 2, rel=1e-5)
    assert next_visit_loss(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0


def test_wrong_shapes_and_options_are_refused():
    with pytest.raises(ShapeError, match="target"):
        next_visit_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="balance of positives and negatives"):
        balancing_weights(torch.tensor([0.1]), 1.5)


def test_balance_evens_out_positives():
    rate = torch.tensor([0.5, 0.1, 0.01])
    torch.testing.assert_close(balancing_weights(rate, 1.0), torch.tensor([1.0, 9.0, 99.0]))
    assert balancing_weights(rate, 0.0).tolist() == [1, 1, 1]


def test_recall_counts_what_came_among_the_best():
    probability = torch.tensor([[0.9, 0.8, 0.1, 0.7]])
    target = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert next_visit_statistics(probability, target, k=2)["recall_sum"].tolist() == [0.5]
    assert next_visit_statistics(probability, target, k=10)["recall_sum"].tolist() == [1.0]


def test_copy_rates_know_what_was_seen():
    rates = CopyRates(2)
    # Code 0 comes again whenever it was seen and never otherwise; code 1 comes half the time whatever was.
    for seen in (0.0, 1.0, 2.0, 7.0):
        count = 400
        rates.add(
            torch.tensor([[seen, 0.0]]).expand(count, -1),
            torch.stack((torch.full((count,), float(seen > 0)), (torch.arange(count) % 2).float()), dim=1),
        )
    again = rates.after(torch.tensor([[0.0, 0.0], [3.0, 0.0], [7.0, 0.0]]))
    assert again[0, 0] < 0.05
    assert (again[1:, 0] > 0.95).all()
    assert again[0, 1].item() == pytest.approx(0.5, abs=0.01)
    assert rates.prevalence.tolist() == pytest.approx([0.75, 0.5], abs=1e-3)
    assert rates.rows.sum(0).tolist() == [1600, 1600]
