import numpy as np
import polars as pl
import pytest

from ehrsequencing.data import synthetic_particles
from ehrsequencing.data.synthetic import block_frame, entry_days
from ehrsequencing.data.synthetic_filter import STATE_OF, Chain, Signals, chain_of, filter_chain, read_signals
from ehrsequencing.data.synthetic_model import load_model
from ehrsequencing.data.synthetic_particles import filter_particles, follow, resample
from ehrsequencing.errors import ConfigError, DataError

STEPS, PLACES, SUBJECTS = 6, 3, 150
CHAIN = Chain(np.array([0.7, 0.3]), np.array([[0.8, 0.2], [0.35, 0.65]]), np.array([0.05, 0.4]))


@pytest.fixture(scope="module")
def tiny():
    """Signals at random, and rows at both phases; the exact answers beside them."""
    random = np.random.default_rng(0)
    moved = random.random((STEPS, 2, SUBJECTS)) < 0.6
    likelihood = np.where(moved[..., None, None], random.random((STEPS, 2, SUBJECTS, 2, PLACES)), random.random(
        (STEPS, 2, SUBJECTS, 2, 1)))  # fmt: skip
    signals = Signals(moved, likelihood, random.random((STEPS, SUBJECTS)) < 0.2, 0.85)
    rows = np.repeat(np.arange(SUBJECTS), 2), np.tile([5, 4], SUBJECTS), np.tile([False, True], SUBJECTS)
    return signals, rows, np.concatenate(filter_chain(CHAIN, signals, *rows), axis=1)


def test_particles_converge_to_the_exact_filter(tiny):
    """Root mean square errors fall with the square root of the particles: 4 times over 16 times as many."""
    signals, rows, exact = tiny
    error = {}
    for particles in (512, 8_192):
        found = filter_particles(CHAIN, signals, *rows, particles=particles)
        error[particles] = np.sqrt(((found.mean - exact) ** 2).mean(0))
    assert (error[8_192] < 0.01).all()
    ratio = error[512] / error[8_192]
    assert (ratio > 2.8).all() and (ratio < 5.7).all(), ratio


def test_the_stated_error_covers_the_exact_value(tiny):
    """With 8 islands a 95 % interval is 2.36 standard errors wide on each side."""
    signals, rows, exact = tiny
    found = filter_particles(CHAIN, signals, *rows, particles=2_048)
    missed = np.abs(found.mean - exact) / found.error
    assert 0.90 < (missed < 2.36).mean() < 0.99
    assert missed.max() < 7
    assert abs((found.mean - exact).mean(0)).max() < 0.003, "no bias beside the error"


def test_effective_sample_size(tiny):
    signals, rows, _ = tiny
    quiet = Signals(np.zeros_like(signals.moved), np.ones_like(signals.likelihood), signals.attack & False, 0.85)
    late = np.ones_like(rows[2])
    sure = Chain(CHAIN.start, CHAIN.moves, np.zeros(2))
    assert filter_particles(sure, quiet, rows[0], rows[1], late, particles=64).effective == pytest.approx(64)
    told = filter_particles(CHAIN, signals, *rows, particles=64).effective
    assert (told > 0).all() and (told <= 64 + 1e-9).all() and told.mean() < 55


def test_blocks_and_seeds(tiny, monkeypatch):
    signals, rows, exact = tiny
    whole = filter_particles(CHAIN, signals, *rows, particles=512)
    assert (filter_particles(CHAIN, signals, *rows, particles=512).islands == whole.islands).all()
    other = filter_particles(CHAIN, signals, *rows, particles=512, seed=1)
    assert (other.mean != whole.mean).any()
    monkeypatch.setattr(synthetic_particles, "COLUMNS", 512 * 7)
    cut = filter_particles(CHAIN, signals, *rows, particles=512)
    assert np.abs(cut.mean - exact).mean() < 1.3 * np.abs(whole.mean - exact).mean()
    nobody = np.zeros(0, dtype=np.int64)
    assert len(filter_particles(CHAIN, signals, nobody, nobody, nobody).effective) == 0


@pytest.mark.parametrize("attack", sorted(STATE_OF))
def test_particles_follow_records(attack):
    """On records of four years, within the stated error of the exact filter."""
    model = load_model()
    frame, paths, _ = block_frame(model, 8, np.arange(30))
    events = frame.drop_nulls("time").with_columns(subject=pl.col("subject_id") - int(frame["subject_id"].min()))
    signals = read_signals(model, attack, events, entry_days(paths.static), 48)
    rows = np.repeat(np.arange(30), 2), np.tile([12, 47], 30), np.tile([False, True], 30)
    exact = np.concatenate(filter_chain(chain_of(model, attack), signals, *rows), axis=1)
    found = filter_particles(chain_of(model, attack), signals, *rows)
    assert exact[:, 1].std() > 0.1
    missed = np.abs(found.mean - exact)
    assert np.sqrt((missed**2).mean()) < 0.03
    assert (missed < 3 * found.error + 0.005).mean() > 0.95


def test_resampling_keeps_weights_and_drops_what_is_impossible():
    random = np.random.default_rng(3)
    weight = random.dirichlet(np.full(50, 0.2), size=200) * (random.random((200, 50)) < 0.7)
    weight /= weight.sum(1, keepdims=True)
    chosen = resample(weight, random.random(200))
    copies = np.stack([np.bincount(row, minlength=50) for row in chosen])
    assert (copies.sum(1) == 50).all() and (copies[weight == 0] == 0).all()
    assert np.abs(copies - 50 * weight).max() < 1 + 1e-9


class Drift:
    """A hidden random walk measured with noise: continuous, so that no table of states could follow it."""

    slots = 8

    def __init__(self, seen):
        self.seen = seen

    def begin(self, owner, particles, random):
        return (random.standard_normal((len(owner), particles)),)

    def advance(self, slot, guess, owner, random):
        place = guess[0] + 0.5 * random.standard_normal(guess[0].shape)
        return (place,), np.exp(-0.5 * ((self.seen[owner, slot, None] - place) / 0.8) ** 2)

    def answer(self, slot, guess):
        return (guess[0], guess[0] ** 2)


def test_a_process_without_a_table_of_states():
    """Means and second moments of the walk are those of the Kalman filter (Kalman 1960)."""
    random = np.random.default_rng(1)
    moves = np.concatenate([random.standard_normal((40, 1)), 0.5 * random.standard_normal((40, 8))], axis=1)
    seen = np.cumsum(moves, axis=1)[:, 1:] + 0.8 * random.standard_normal((40, 8))
    mean, variance = np.zeros(40), 1.0
    for slot in range(8):
        gain = (variance + 0.25) / (variance + 0.25 + 0.64)
        mean, variance = mean + gain * (seen[:, slot] - mean), (1 - gain) * (variance + 0.25)
    found = follow(Drift(seen), np.arange(40), np.full(40, 7), particles=4_096)
    exact = np.stack([mean, mean**2 + variance], axis=1)
    assert (np.abs(found.mean - exact) < 5 * found.error + 1e-3).all()
    assert found.error.max() < 0.3


def test_what_particles_cannot_do_is_refused(tiny):
    signals, rows, _ = tiny
    for particles, islands in ((16, 16), (10, 1), (10, 0)):
        with pytest.raises(ConfigError, match=f"too few particles; got {particles} in {islands} islands"):
            filter_particles(CHAIN, signals, *rows, particles=particles, islands=islands)
    never = Signals(signals.moved, signals.likelihood * 0, signals.attack, 0.85)
    with pytest.raises(DataError, match="no particle can have left the record; got 300 rows.*pass more particles"):
        filter_particles(CHAIN, never, *rows, particles=64)
