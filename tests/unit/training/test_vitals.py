"""What a training notes of itself on the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ehrsequencing.training.vitals import EVERY, Vitals


def run(vitals: Vitals, steps: range, limit: float = 1.0) -> None:
    for step in steps:
        vitals.add(steps=1, loss=float(step), seconds=0.5, waiting=0.1, examples=2, tokens=30, cells=40)
        vitals.note_norm(torch.tensor(0.25 * step), limit)


def test_a_row_sums_up_its_steps():
    vitals = Vitals()
    run(vitals, range(1, 9))
    vitals.close(epoch=0, part=3, step=8, learning_rate=1e-3, limit=1.0)
    (row,) = vitals.rows
    assert (row.epoch, row.part, row.step, row.steps, row.loss) == (0, 3, 8, 8, 4.5)
    assert (row.gradient_norm, row.gradient_norm_max, row.clipped) == (1.125, 2.0, 4)
    assert (row.tokens, row.cells, row.examples, row.seconds, row.waiting_seconds) == (240, 320, 16, 4.0, 0.8)
    assert vitals.sums == {}


def test_norms_that_are_not_finite_are_counted_apart():
    vitals = Vitals()
    run(vitals, range(1, 3))
    vitals.note_norm(torch.tensor(float("nan")), 1.0)
    vitals.note_norm(torch.tensor(float("inf")), 1.0)
    vitals.close(0, 0, 2, 1e-3, 1.0)
    assert (vitals.rows[0].non_finite, vitals.rows[0].gradient_norm_max) == (2, 0.5)


@pytest.mark.parametrize("cut", [1, 5, 100, 149])
def test_a_part_cut_by_a_checkpoint_is_whole_again(cut):
    """More steps than norms are kept waiting, so that a part is drained in between."""
    whole, first = Vitals(), Vitals()
    run(whole, range(150))
    run(first, range(cut))
    resumed = Vitals.restored(first.document(), first.state(1.0), step=cut)
    run(resumed, range(cut, 150))
    for vitals in (whole, resumed):
        vitals.close(0, 0, 150, 1e-3, 1.0)
    assert whole.rows == resumed.rows


def test_rows_beyond_the_checkpoint_are_dropped():
    vitals = Vitals()
    for part in range(3):
        run(vitals, range(1, 4))
        vitals.close(0, part, 3 * (part + 1), 1e-3, 1.0)
    assert [row.step for row in Vitals.restored(vitals.document(), {}, step=6).rows] == [3, 6]


def test_a_step_is_measured_beside_the_weights_it_moves():
    model = nn.Linear(4, 4)
    for step, expected in ((EVERY, 0.01), (8, 0.01), (7, None)):
        vitals = Vitals()
        with vitals.measured(model, step), torch.no_grad():
            model.weight.mul_(1.01)
        assert vitals.sums.get("update") == (pytest.approx(expected, rel=1e-4) if expected else None)


def test_a_model_that_blew_up_or_has_no_matrix_has_no_ratio():
    for model in (nn.Linear(4, 4), nn.LayerNorm(4)):
        vitals = Vitals()
        with vitals.measured(model, EVERY), torch.no_grad():
            model.weight.fill_(float("nan"))
        assert vitals.sums == {}


def test_parts_of_epochs_keep_a_long_run_short():
    assert [Vitals.parts(epochs) for epochs in (1, 10, 100, 1000)] == [20, 20, 2, 1]
