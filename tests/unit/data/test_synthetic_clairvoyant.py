from itertools import combinations

import numpy as np
import pytest

from ehrsequencing.data import synthetic_emission
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import KINDS
from ehrsequencing.data.synthetic import synthesise, trajectories
from ehrsequencing.data.synthetic_clairvoyant import clairvoyant_bound, complete_panels, identify
from ehrsequencing.data.synthetic_emission import Groups, Recorder, emit_again, group_key, split_key, value_bins
from ehrsequencing.data.synthetic_events import emit
from ehrsequencing.data.synthetic_model import load_model
from ehrsequencing.data.synthetic_visits import plan_visits
from ehrsequencing.errors import ConfigError, DataError

MODEL = load_model()


def enumerate_sets(chance, prior, codes, hidden):
    """P(hidden codes) from every set of codes that shows the same at the same places."""
    result = np.zeros((int(hidden.sum()), chance.shape[1]))
    shown = {(place, code) for place, code in enumerate(codes.tolist()) if not hidden[place]}
    for given in combinations(range(chance.shape[1]), len(codes)):
        if not shown <= set(enumerate(given)):
            continue
        inside = np.isin(np.arange(chance.shape[1]), given)
        weight = (prior * np.where(inside, chance, 1 - chance).prod(1)).sum()
        for row, place in enumerate(np.flatnonzero(hidden)):
            result[row, given[place]] += weight
    return result / result.sum(1, keepdims=True)


@pytest.mark.parametrize("hidden", [
    [False, True, False, True, True, False], [True, True, True, False, False, True], [True] * 6,
    [False, False, True, False, False, False],
])  # fmt: skip
def test_identification_equals_enumeration(hidden):
    random = np.random.default_rng(len(hidden) + sum(hidden))
    chance = random.uniform(0.02, 0.98, (2, 12))
    codes = np.array([1, 3, 4, 7, 8, 10])
    told = identify(chance, np.array([0.7, 0.3]), codes, np.array(hidden))
    np.testing.assert_allclose(
        told, enumerate_sets(chance, np.array([0.7, 0.3]), codes, np.array(hidden)), rtol=1e-9, atol=1e-15
    )
    np.testing.assert_allclose(told.sum(1), 1)


def test_extremes_stay_numbers():
    """Certain, impossible and many at once: no overflow, and what is certain is told."""
    chance = np.full((1, 600), 1e-9)
    chance[0, 100:140] = 1 - 1e-6
    told = identify(chance, np.ones(1), np.arange(100, 140), np.ones(40, dtype=bool))
    assert np.isfinite(told).all() and (told.argmax(1) == np.arange(100, 140)).all()
    assert told.max(1).min() > 0.999
    told = identify(np.full((1, 600), 1e-9), np.ones(1), np.arange(100, 140), np.ones(40, dtype=bool))
    assert told.sum(1) == pytest.approx(1)


def test_panels_come_whole_or_not_at_all():
    chance = np.full((1, 9), 0.2)
    panels = [np.array([2, 4, 6])]
    codes = np.array([0, 2, 4, 6, 8])
    beside = complete_panels(chance, codes, np.array([False, True, False, True, False]), panels)
    assert (beside[0, [2, 4, 6]] > 0.999).all() and (beside[0, [0, 1, 3, 5, 7, 8]] == 0.2).all()
    behind = complete_panels(chance, codes, np.array([False, True, True, True, False]), panels)
    assert (behind == 0.2).all(), "three hidden codes may be the panel"
    other = np.array([0, 3, 5, 8])
    assert (complete_panels(chance, other, np.array([False, True, True, False]), panels)[0, [2, 4, 6]] < 1e-6).all()
    apart = complete_panels(chance, np.array([0, 1, 3, 5, 7]), np.array([False, True, False, True, False]), panels)
    assert (apart[0, [2, 4, 6]] < 1e-6).all(), "one place is too narrow"


@pytest.fixture(scope="module")
def record():
    paths = trajectories(MODEL, 5, np.arange(40))
    visits = plan_visits(MODEL, paths)
    return Recorder(MODEL, paths, visits), emit(MODEL, paths, visits)


def test_the_same_keys_emit_the_same_patterns_panels_and_values(record):
    """What is conditioned on is right: under the record's own keys every pattern code and value comes out as it was."""
    real, events = record
    visits = real.visits
    everything = np.unique(group_key(events.visit, events.minute - visits.start[events.visit]))
    again = synthetic_emission._Again(real, np.arange(len(visits)), visits.keys, everything)
    again.run()
    counts = np.bincount(np.concatenate(again.cells), minlength=3 * len(everything) * again.width)
    counts = counts.reshape(3, len(everything), again.width).sum(0)
    group = np.searchsorted(everything, group_key(events.visit, events.minute - visits.start[events.visit]))
    patterns = np.unique(
        np.concatenate([MODEL.book.roles[f"pattern/{name}"][0] for name in ("spell", "drug", "reaction")])
    )
    expected = np.zeros((len(everything), len(MODEL.book.codes)))
    np.add.at(expected, (group, events.code), 1)
    assert expected[:, patterns].sum() > 500
    assert (counts[:, patterns] == expected[:, patterns]).all()
    spread = counts[:, : len(MODEL.book.codes)] + counts[:, len(MODEL.book.codes) :] @ synthetic_emission._weights(
        MODEL
    )
    assert (spread[expected > 0] > 0).all(), "nothing of the record is impossible"
    labs = [MODEL.book.index(lab.code) for lab in MODEL.labs]
    assert (spread[:, labs] == expected[:, labs]).all()
    assert counts.sum() > 0.95 * expected.sum() - expected[:, labs].sum()
    again.ring = again.cycle_places(np.arange(len(visits)))
    for number, index in enumerate(labs):
        for repeat in (0, 1):
            late = (events.minute > visits.start[events.visit]) == bool(repeat)
            rows = np.flatnonzero((events.code == index) & late)
            value = again.values(number, events.visit[rows], repeat).astype(np.float32)
            assert (value == events.value[rows]).all(), MODEL.labs[number].code


def test_rates_of_a_visit_are_those_of_its_emissions(record):
    """Half of many emissions predicts the other half's codes, sum by sum."""
    real, _ = record
    visit = np.arange(0, len(real.visits), 7)
    groups = Groups(visit, np.zeros_like(visit))
    few, many = emit_again(real, groups, 64), emit_again(real, groups, 512)
    total = few.chance[0].sum(0), many.chance[0].sum(0)
    # Chances of clinic visits without a refill rest on 0.84 * 64 emissions.
    error = np.sqrt(total[1] / 50) + 0.3
    assert (np.abs(total[0] - total[1]) < 5 * error).all()
    clinic = ~real.visits.at_hospital[visit]
    assert ((many.refill > 0) == clinic).all()
    drugs = np.array([kind == "drug" for kind in MODEL.book.kinds])
    taken = many.chance[:, clinic][..., drugs].sum(-1)
    assert taken[1].mean() > 2 * taken[0].mean(), "a refill lists drugs"
    assert (group_key(*split_key(groups.key)) == groups.key).all()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clairvoyant")
    data = MedsDataset.open(synthesise(folder / "meds", subjects=150, seed=3, workers=1))
    return data, prepare(folder / "meds", folder / "store"), folder


@pytest.fixture(scope="module")
def told(world):
    data, store, _ = world
    split = store.split("train")
    rows = np.random.default_rng(0).permutation(int(split.offsets[60]))
    hidden = np.sort(rows[: len(rows) // 8])
    return hidden, clairvoyant_bound(data, store, "train", hidden, replicates=64)


def test_the_bound_is_calibrated_and_beats_the_floors(world, told):
    _, store, _ = world
    hidden, found = told
    split = store.split("train")
    assert len(hidden) > 1_000
    assert abs(found.correct.mean() - found.confidence.mean()) < 0.05
    for low, high in ((0, 0.4), (0.4, 0.8), (0.8, 1.01)):
        inside = (found.confidence >= low) & (found.confidence < high)
        assert abs(found.correct[inside].mean() - found.confidence[inside].mean()) < 0.09
    counts = store.vocabulary.counts + 1.0
    unigram = -np.log(counts / counts.sum())[split.code[hidden]]
    assert found.loss.mean() < 1.2 < 4 < unigram.mean()
    assert found.correct.mean() > 0.65 and found.top10.mean() > 0.9
    assert (found.subject == np.searchsorted(split.offsets, hidden, side="right") - 1).all()


def test_what_states_and_plans_decide_is_known(world, told):
    _, store, _ = world
    hidden, found = told
    tokens = np.array(store.vocabulary.tokens)[store.split("train").code[hidden]]
    kind = store.split("train").kind[hidden]
    assert found.loss[np.char.startswith(tokens, "VISIT//")].max() < 0.5
    sex = np.char.startswith(tokens, "GENDER//")
    race = np.char.startswith(tokens, "RACE//")
    assert sex.any() and found.loss[sex].max() < 0.01
    assert race.any() and found.loss[race].min() > 0.4, "race depends on nothing"
    assert found.loss[kind == KINDS.index("encounter")].mean() < 0.2


def test_values_are_told_whether_measured_or_not(record, world):
    """A lab that is not measured has the subject's own values, too, or its neighbour's would give that away."""
    real, events = record
    visit = np.flatnonzero(~real.visits.at_hospital)[::5]
    number = next(number for number, one in enumerate(MODEL.labs) if one.code == "LOINC//8480-6")
    values = world[1].values
    groups = Groups(visit, np.zeros_like(visit))
    bins = value_bins(real, groups, np.arange(len(visit)), np.full(len(visit), number), values, 64)
    assert bins.sum(1) == pytest.approx(1) and (bins[:, 0] == 0).all()
    lab = MODEL.labs[number]
    measured = np.flatnonzero((events.code == MODEL.book.index(lab.code)) & np.isin(events.visit, visit))
    row = values.rows([lab.code], [lab.unit])
    shown = values.bin(np.repeat(row, len(measured)), events.value[measured])
    told = bins[np.searchsorted(visit, events.visit[measured])]
    assert 10 < len(measured) < len(visit) / 2
    assert told[np.arange(len(shown)), shown].mean() > 0.4
    assert bins.max(1).mean() == pytest.approx(told.max(1).mean(), abs=0.1)


def test_what_the_clairvoyant_cannot_tell_is_refused(world):
    data, store, folder = world
    rows = np.arange(5)
    with pytest.raises(ConfigError, match="too few replicates; got 63; expected 64 or more"):
        clairvoyant_bound(data, store, "train", rows, replicates=63)
    with pytest.raises(DataError, match="the hidden rows are not rows of split train; got 0 rows"):
        clairvoyant_bound(data, store, "train", rows[:0])
    with pytest.raises(DataError, match="not rows of split train"):
        clairvoyant_bound(data, store, "train", np.array([10**9]))
    random = MedsDataset.open(synthesise(folder / "random", subjects=20, mode="random", workers=1))
    with pytest.raises(DataError, match="has no oracle"):
        clairvoyant_bound(random, prepare(folder / "random", folder / "random_store"), "train", rows)
    other = MedsDataset.open(synthesise(folder / "other", subjects=20, seed=9, workers=1))
    with pytest.raises(DataError, match="was not prepared from"):
        clairvoyant_bound(other, store, "train", rows)
