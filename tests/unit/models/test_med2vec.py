"""Med2Vec and skip-gram: the paper's equations, demographics, folders, refusals."""

import pytest
import torch
from tests.unit.models.small_models import make_config

from ehrsequencing.errors import CheckpointError, ConfigError, ShapeError
from ehrsequencing.models.behrt import BEHRTForMLM
from ehrsequencing.models.med2vec import CodeVectorConfig, Med2Vec, SkipGram

SEX, RACE = 5, 6
SIZES = {"vocab_size": 20, "code_dim": 4, "visit_dim": 3, "demographic_ids": (SEX, RACE)}


def history() -> dict[str, torch.Tensor]:
    """CLS, an undated sex, visits 1 (with a race and a code twice) and 2, padding; a row with an unknown age."""
    codes = torch.tensor([[2, SEX, 10, 11, 10, RACE, 12, 0], [2, 13, 14, 1, 0, 0, 0, 0]])
    visit_ids = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 0], [0, 1, 1, 1, 0, 0, 0, 0]])
    ages = torch.tensor([[50, 50, 49, 49, 49, 49, 50, 0], [120, 120, 120, 120, 0, 0, 0, 0]])
    return {"codes": codes, "ages": ages, "visit_ids": visit_ids, "mask": codes > 0}


def test_visits_hold_codes_once_and_no_special_or_demographic_token():
    visits = Med2Vec(CodeVectorConfig(**SIZES)).visits_of(*(history()[name] for name in ("codes", "visit_ids", "mask")))
    assert visits.row.tolist() == [0, 0, 1]
    assert visits.code.tolist() == [10, 11, 12, 13, 14]
    assert visits.size.tolist() == [2, 1, 2]


def test_the_equations_of_the_paper():
    model = Med2Vec(CodeVectorConfig(**SIZES)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    inputs = history()
    output = model(**inputs)
    held, demographics = [[10, 11], [12], [13, 14]], [[SEX, RACE], [SEX], []]
    ages = [[0.49, 0.0], [0.50, 0.0], [0.0, 1.0]]
    weight, columns = model.embeddings.weight, {SEX: 0, RACE: 1}
    scores = []
    for codes, demographic, age in zip(held, demographics, ages, strict=True):
        u = torch.relu(weight[codes].sum(0) + model.code_bias)
        known = torch.cat((u, torch.tensor(age, dtype=torch.float64)))
        total = model.encoder["visit"](known)
        for token in demographic:
            total = total + model.encoder["demographics"].weight[columns[token]]
        scores.append(model.head(torch.relu(total)))
    scores = torch.stack(scores)
    visits = model.visits_of(inputs["codes"], inputs["visit_ids"], inputs["mask"])
    assert torch.allclose(output.scores, scores)
    positive = torch.relu(weight)
    pairs = (positive @ positive.T).log_softmax(1)
    code_nats = -(pairs[10, 11] + pairs[11, 10] + pairs[13, 14] + pairs[14, 13])
    chance = scores.softmax(1)
    visit_nats = torch.zeros((), dtype=torch.float64)
    for here, around in ((0, 1), (1, 0)):
        wanted = torch.zeros(20, dtype=torch.float64)
        wanted[held[around]] = 1
        visit_nats -= (wanted * chance[here].log() + (1 - wanted) * (1 - chance[here]).log()).sum()
    assert output.loss.item() == pytest.approx(((code_nats + visit_nats) / 3).item(), rel=1e-4)
    mean = Med2Vec(CodeVectorConfig(**SIZES, code_term="mean")).double()
    mean.load_state_dict(model.state_dict())
    assert mean(**inputs).loss.item() == pytest.approx((code_nats / 4 + visit_nats / 2).item(), rel=1e-4)
    assert visits.visit.tolist() == [1, 2, 1]


def test_code_vectors_are_non_negative_and_every_part_gets_a_gradient():
    model = Med2Vec(CodeVectorConfig(**SIZES))
    assert (model.code_vectors() >= 0).all()
    torch.nn.init.constant_(model.code_bias, 0.5)
    torch.nn.init.constant_(model.encoder["visit"].bias, 1.0)
    model(**history()).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("kind", [Med2Vec, SkipGram])
def test_padding_and_a_history_without_a_code_change_nothing(kind):
    torch.manual_seed(0)
    model, inputs = kind(CodeVectorConfig(**SIZES)), history()
    if kind is SkipGram:
        torch.nn.init.normal_(model.outer.weight)
    whole = model(**inputs).loss.item()
    wide = {name: torch.nn.functional.pad(given, (0, 3)) for name, given in inputs.items()}
    wide["codes"][:, -3:], wide["visit_ids"][:, -3:] = 15, 1
    empty = {name: torch.cat((given, given[:1])) for name, given in wide.items()}
    empty["mask"][-1] = False
    assert model(**empty).loss.item() == pytest.approx(whole, rel=1e-6)
    nothing = {name: given.clone() for name, given in inputs.items()}
    nothing["mask"][:] = False
    assert model(**nothing).loss.item() == 0


@pytest.mark.parametrize("kind", [Med2Vec, SkipGram])
def test_what_always_comes_together_is_learned(kind):
    """Codes 10 and 11 share a visit and 14 and 15 another; a visit with the first two is followed by one with 18."""
    torch.manual_seed(0)
    codes = torch.tensor([[10, 11, 18, 19], [14, 15, 16, 17]]).repeat(4, 1)
    visit_ids = torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2]]).repeat(4, 1)
    inputs = {"codes": codes, "ages": codes * 0 + 50, "visit_ids": visit_ids, "mask": codes > 0}
    model = kind(CodeVectorConfig(vocab_size=20, code_dim=8, visit_dim=8, window=1 if kind is Med2Vec else 0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        model(**inputs).loss.backward()
        optimiser.step()
    output = model(**inputs)
    nats = (output.code_nats.sum() / output.code_pairs.sum()).item()
    # A code of Med2Vec is as close to itself as to its companion, and to itself it is no context.
    assert nats < (1.0 if kind is Med2Vec else 0.1)
    if output.scores is not None:
        assert set(output.scores[0].topk(2).indices.tolist()) == {18, 19}
        assert set(output.scores[2].topk(2).indices.tolist()) == {16, 17}


def test_a_window_reaches_further():
    inputs = history()
    near, far = (SkipGram(CodeVectorConfig(**SIZES, window=window))(**inputs) for window in (0, 1))
    assert near.code_pairs.tolist() == [2, 0, 2]
    assert far.code_pairs.tolist() == [4, 2, 2]


@pytest.mark.parametrize("kind", [Med2Vec, SkipGram])
def test_a_folder_restores_the_model_and_other_families_refuse_it(kind, tmp_path):
    model = kind(CodeVectorConfig(**SIZES))
    model.save_pretrained(tmp_path / "model", vocabulary_hash="v")
    again = kind.from_pretrained(tmp_path / "model", vocabulary_hash="v")
    assert again.config == model.config
    assert torch.equal(again(**history()).loss, model(**history()).loss)
    with pytest.raises(CheckpointError, match="holds a model of another family; got " + kind.__name__):
        BEHRTForMLM.from_pretrained(tmp_path / "model")
    BEHRTForMLM(make_config()).save_pretrained(tmp_path / "behrt")
    with pytest.raises(CheckpointError, match="got BEHRTForMLM; expected one of the code vectors family"):
        kind.from_pretrained(tmp_path / "behrt")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"code_dim": 0}, "code_dim of a model of code vectors; got 0"),
        ({"window": -1}, "vocab_size, window; got"),
        ({"vocab_size": 5}, "vocab_size, window; got"),
        ({"code_term": "max"}, "code_term; got 'max'; expected one of sum, mean"),
        ({"demographic_ids": (3,)}, "demographic_ids; got"),
    ],
)
def test_a_configuration_out_of_range_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        CodeVectorConfig(**{**SIZES, **wrong})


def test_other_refusals():
    with pytest.raises(ConfigError, match="window of Med2Vec; got 0; expected at least 1"):
        Med2Vec(CodeVectorConfig(**SIZES, window=0))
    with pytest.raises(ConfigError, match="options of a model of code vectors; got layers"):
        CodeVectorConfig.from_dict({**SIZES, "layers": 2})
    inputs = history()
    with pytest.raises(ShapeError, match="ages has the wrong shape"):
        SkipGram(CodeVectorConfig(**SIZES))(**{**inputs, "ages": inputs["ages"][:, :3]})
