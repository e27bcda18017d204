"""Visit-causal attention: nothing at a visit depends on a later one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import VOCABULARY, make_config

from ehrsequencing.errors import ConfigError
from ehrsequencing.models.behrt import BEHRT, BEHRTForNextVisitPrediction
from ehrsequencing.models.encoder import visit_means
from ehrsequencing.models.pretraining import BEHRTForJointPretraining, BEHRTForTimeToEvent

EXTRAS = {"gap_embedding": True, "calendar_embedding": True, "age": "continuous", "use_values": True, "num_kinds": 8}


def config(**options):
    return make_config(attention="visit_causal", position="rotary", **EXTRAS, **options)


def histories(seed: int, visits: int = 5, length: int = 16):
    """Rows of CLS, two static tokens and visits of random size, with every input."""
    generator = torch.Generator().manual_seed(seed)
    rows = 3
    ids = torch.sort(torch.randint(1, visits + 1, (rows, length - 3), generator=generator), dim=1).values
    ids = torch.cat((torch.zeros(rows, 3, dtype=torch.int64), ids), dim=1)

    def number(low, high):
        return torch.randint(low, high, (rows, length), generator=generator)

    codes = number(5, VOCABULARY)
    codes[:, 0] = 2
    return {
        "codes": codes, "ages": number(0, 121), "visit_ids": ids, "mask": torch.ones(rows, length, dtype=torch.bool),
        "kinds": number(0, 9), "values": torch.rand(rows, length, generator=generator),
        "gaps": number(0, 400).float(), "age_years": number(0, 90).float(), "calendar": number(0, 20).float(),
    }  # fmt: skip


@given(seed=st.integers(0, 500), visit=st.integers(0, 5), activation=st.sampled_from(["gelu", "swiglu"]))
@settings(deadline=None, max_examples=25)
def test_changing_later_visits_leaves_all_before_identical(seed, visit, activation):
    torch.manual_seed(seed)
    model = BEHRT(config(activation=activation)).eval()
    inputs, other = histories(seed), histories(seed + 1000)
    later = inputs["visit_ids"] > visit
    changed = {
        name: inputs[name] if name in ("visit_ids", "mask") else torch.where(later, other[name], inputs[name])
        for name in inputs
    }
    # CLS says how old the subject was at the end, which is why nobody may read it.
    for name in ("ages", "age_years", "calendar"):
        changed[name][:, 0] = other[name][:, 0]
    kept = ~later & (inputs["codes"] != 2)
    assert torch.equal(model(**changed)[kept], model(**inputs)[kept])
    gone = {**inputs, "mask": inputs["mask"] & ~later}
    torch.testing.assert_close(model(**gone)[kept], model(**inputs)[kept], atol=1e-5, rtol=1e-5)


def test_every_earlier_visit_is_read_and_cls_reads_all():
    model = BEHRT(config()).eval()
    inputs = histories(1)
    changed = {**inputs, "codes": inputs["codes"].clone()}
    changed["codes"][:, 3] = (changed["codes"][:, 3] - 4) % 50 + 5
    moved = (model(**changed) - model(**inputs)).abs().amax(-1) > 0
    assert moved[:, 0].all()
    assert moved[:, 3:].all()
    assert not moved[:, 1:3].any()


def test_rows_without_events_stay_finite():
    inputs = histories(2)
    inputs["mask"][0] = False
    inputs["mask"][1, 1:] = False
    assert torch.isfinite(BEHRT(config()).eval()(**inputs)).all()


@pytest.mark.parametrize("head", [BEHRTForNextVisitPrediction, BEHRTForJointPretraining])
def test_all_visits_at_once_equal_one_prefix_each(head):
    torch.manual_seed(0)
    model = head(config()).eval()
    options = {"next_visit": True} if head is BEHRTForJointPretraining else {}
    inputs = histories(3)
    asked = torch.tensor([[r, v] for r in range(3) for v in inputs["visit_ids"][r].unique().tolist() if v > 0])
    together = model(**inputs, visits=asked, **options).logits
    for index, (r, v) in enumerate(asked.tolist()):
        row = {name: tensor[r : r + 1] for name, tensor in inputs.items()}
        row["mask"] = row["mask"] & (row["visit_ids"] <= v)
        alone = model(**row, visits=torch.tensor([[0, v]]), **options).logits
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", [BEHRTForNextVisitPrediction, BEHRTForJointPretraining])
def test_visits_of_a_bidirectional_model_are_refused(head):
    inputs = {name: histories(0)[name] for name in ("codes", "ages", "visit_ids", "mask")}
    with pytest.raises(ConfigError, match="predicts from its visits.*visit_causal"):
        head(make_config())(**inputs, visits=torch.tensor([[0, 1]]))


def test_days_before_the_end_are_no_input_of_visit_causal_attention():
    with pytest.raises(ConfigError, match="gap_embedding"):
        make_config(attention="visit_causal", time_embedding=True)


def test_visit_means_are_means():
    hidden, ids = torch.rand(2, 6, 4), torch.tensor([[0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 3]])
    chosen = torch.tensor([[True] * 5 + [False], [False] + [True] * 5])
    own = visit_means(hidden, ids, chosen, torch.tensor([[0, 2], [1, 1], [1, 2]]))
    torch.testing.assert_close(own[0], hidden[0, 3:5].mean(0))
    torch.testing.assert_close(own[1], hidden[1, 2:5].mean(0))
    assert own[2].tolist() == [0, 0, 0, 0]


def test_what_was_seen_moves_the_score_of_that_code_alone():
    torch.manual_seed(0)
    model = BEHRTForNextVisitPrediction(config()).eval()
    inputs, asked = histories(5), torch.tensor([[0, 1], [2, 4]])
    before = model(**inputs, visits=asked).logits
    with torch.no_grad():
        model.seen.table[1:] += torch.tensor([10.0, 20.0, 30.0])[:, None]
    moved = model(**inputs, visits=asked).logits - before
    for index, (row, visit) in enumerate(asked.tolist()):
        for code in range(5, VOCABULARY):
            held = inputs["visit_ids"][row][(inputs["codes"][row] == code) & (inputs["visit_ids"][row] <= visit)]
            assert moved[index, code].item() == pytest.approx(10 * min(len(held.unique()), 3), abs=1e-3)


def test_time_to_event_heads_start_at_the_rates_they_are_given():
    model = BEHRTForTimeToEvent(config(), codes=3, pieces=2, rank=4).eval()
    rates = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    model.begin(torch.tensor([5, 6, 7]), torch.tensor([0.0, 30.0]), rates)
    logits = model(**histories(4), visits=torch.tensor([[0, 1], [2, 3]])).logits
    assert logits.shape == (2, 3, 2)
    assert model.boundaries.tolist() == [0, 30]
    torch.nn.init.zeros_(model.pieces.weight)
    torch.testing.assert_close(model(**histories(4), visits=torch.tensor([[1, 2]])).logits[0], rates.T)
