"""The sparse losses agree with the formulas written out over every pair and every code."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.errors import ShapeError
from ehrsequencing.objectives.cooccurrence import (
    context_nll,
    context_sizes,
    entries_of,
    log_complement,
    neighbour_nll,
    neighbour_recall,
    neighbours,
    shared_codes,
    visit_sets,
)

VOCABULARY = 9
histories = st.lists(
    st.lists(st.tuples(st.integers(0, VOCABULARY - 1), st.integers(0, 4)), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
)


def batch(rows):
    """Codes, visit ids and which tokens are real, of rows of (code, visit)."""
    width = max(map(len, rows))
    codes, ids = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, pairs in enumerate(rows):
        for place, (code, visit) in enumerate(pairs):
            codes[row, place], ids[row, place], real[row, place] = code, visit, True
    return codes, ids, real


def as_sets(rows):
    """{(row, visit): set of codes}, visits from 1 on."""
    found = {}
    for row, pairs in enumerate(rows):
        for code, visit in pairs:
            if visit:
                found.setdefault((row, visit), set()).add(code)
    return dict(sorted(found.items()))


def around_of(sets, key, window):
    return [(key[0], key[1] + step) for step in range(-window, window + 1) if step and (key[0], key[1] + step) in sets]


@settings(deadline=None, max_examples=25)
@given(histories, st.integers(0, 3))
def test_visits_and_neighbours_are_those_of_the_histories(rows, window):
    visits, sets = visit_sets(*batch(rows), vocab_size=VOCABULARY), as_sets(rows)
    assert list(zip(visits.row.tolist(), visits.visit.tolist(), strict=True)) == list(sets)
    _, codes = entries_of(visits, torch.arange(len(sets)))
    assert codes.tolist() == [code for held in sets.values() for code in sorted(held)]
    here, around = neighbours(visits, window)
    keys = list(sets)
    pairs = sorted((keys[a], keys[b]) for a, b in zip(here.tolist(), around.tolist(), strict=True))
    assert pairs == sorted((key, other) for key in sets for other in around_of(sets, key, window))
    shared = shared_codes(visits, here, around, vocab_size=VOCABULARY).tolist()
    assert shared == [len(sets[keys[a]] & sets[keys[b]]) for a, b in zip(here.tolist(), around.tolist(), strict=True)]


@settings(deadline=None, max_examples=25)
@given(histories, st.integers(0, 2), st.booleans())
def test_skip_gram_is_the_sum_over_all_ordered_pairs(rows, window, one_table):
    generator = torch.Generator().manual_seed(1)
    inner = torch.randn(VOCABULARY, 3, generator=generator, dtype=torch.float64)
    outer = inner if one_table else torch.randn(VOCABULARY, 3, generator=generator, dtype=torch.float64)
    visits, sets = visit_sets(*batch(rows), vocab_size=VOCABULARY), as_sets(rows)
    here, around = neighbours(visits, window)
    nats, pairs = context_nll(inner, outer, visits, here, around)
    log_probability = (inner @ outer.T).log_softmax(1)
    for place, (key, held) in enumerate(sets.items()):
        context = [(j, key) for j in held] + [(j, other) for other in around_of(sets, key, window) for j in sets[other]]
        asked = [(i, j) for i in held for j, where in context if not (where == key and i == j)]
        assert pairs[place] == len(asked)
        assert nats[place].item() == pytest.approx(-sum(log_probability[i, j].item() for i, j in asked), abs=1e-4)
    assert pairs.tolist() == (visits.size * context_sizes(visits, here, around)).tolist()


@settings(deadline=None, max_examples=25)
@given(histories, st.integers(1, 3))
def test_neighbours_cost_binary_cross_entropy_of_a_softmax(rows, window):
    visits, sets = visit_sets(*batch(rows), vocab_size=VOCABULARY), as_sets(rows)
    here, around = neighbours(visits, window)
    scores = torch.randn(len(sets), VOCABULARY, generator=torch.Generator().manual_seed(2))
    nats, chance = neighbour_nll(scores, visits, here, around), scores.double().softmax(1)
    recall = neighbour_recall(scores, visits, here, around, k=3)
    held = list(sets.values())
    for place, (a, b) in enumerate(zip(here.tolist(), around.tolist(), strict=True)):
        terms = [math.log(chance[a, k] if k in held[b] else 1 - chance[a, k]) for k in range(VOCABULARY)]
        assert nats[place].item() == pytest.approx(-sum(terms), rel=1e-4)
        best = set(scores[a].topk(3).indices.tolist())
        assert recall[place].item() == pytest.approx(len(best & held[b]) / len(held[b]))


def test_a_certain_code_leaves_a_finite_complement_and_gradient():
    scores = torch.tensor([[90.0, 0.0, -3.0]], requires_grad=True)
    complement = log_complement(scores.log_softmax(1))
    assert complement[0, 0].item() == pytest.approx(math.log(1 + math.exp(-3)) - 90, rel=1e-5)
    complement.sum().backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 0].item() == pytest.approx(-1, abs=1e-3)


def test_a_batch_without_a_code_costs_nothing():
    visits = visit_sets(*batch([[(3, 0)]]), vocab_size=VOCABULARY)
    here, around = neighbours(visits, 2)
    table = torch.randn(VOCABULARY, 2)
    nats, pairs = context_nll(table, table, visits, here, around)
    assert len(nats) == len(pairs) == len(here) == 0
    assert len(neighbour_nll(torch.zeros(0, VOCABULARY), visits, here, around)) == 0


def test_scores_of_other_visits_are_refused():
    visits = visit_sets(*batch([[(3, 1), (4, 2)]]), vocab_size=VOCABULARY)
    with pytest.raises(
        ShapeError, match=r"scores has the wrong shape or range; got \(3, 9\); expected \(2, vocab_size\)"
    ):
        neighbour_nll(torch.zeros(3, VOCABULARY), visits, *neighbours(visits, 1))
