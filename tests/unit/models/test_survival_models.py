"""Survival heads: what they read, what they save, what they learn and what they refuse."""

import itertools

import pytest
import torch
from small_models import VOCABULARY, make_config, make_inputs

from ehrsequencing.errors import CheckpointError, ConfigError, ShapeError
from ehrsequencing.models.behrt import BEHRTForMLM, BEHRTForSurvival
from ehrsequencing.models.configuration import VisitLSTMConfig
from ehrsequencing.models.lora import apply_lora_to_behrt, load_lora_weights, merge_lora, save_lora_weights
from ehrsequencing.models.survival import DEFAULT_EDGES, VisitLSTMForSurvival
from ehrsequencing.objectives.survival import marginal_logits, piecewise_nll, place

EDGES = (0.0, 30.0, 90.0, 365.0)
LABELS = torch.tensor([[12.0, 1.0], [45.0, 0.0], [200.0, 2.0], [900.0, 1.0]])


def lstm_config(**overrides) -> VisitLSTMConfig:
    return VisitLSTMConfig(
        VOCABULARY, **{"embedding_dim": 16, "hidden_dim": 32, "max_length": 24, "max_visits": 24, **overrides}
    )


def make(kind: str = "behrt", **options):
    torch.manual_seed(0)
    options = {"edges_days": EDGES, "causes": 2, **options}
    if kind == "lstm":
        return VisitLSTMForSurvival(lstm_config(dropout=0.0), **options)
    return BEHRTForSurvival(make_config(dropout=0.0), **options)


def visit_inputs(lengths=(12, 9, 7, 4)):
    """Histories in order of visits, two tokens each, behind CLS."""
    inputs = make_inputs(4, 12, lengths=list(lengths))
    inputs["visit_ids"] = ((torch.arange(12) + 1) // 2).expand(4, -1).clone()
    return inputs


@pytest.mark.parametrize("kind", ["behrt", "lstm"])
@pytest.mark.parametrize("loss", ["discrete", "piecewise", "cox"])
def test_shapes_losses_and_gradients_of_every_loss(kind, loss):
    model = make(kind, loss=loss)
    logits, value = model(**make_inputs(), labels=LABELS)
    assert logits.shape == ((4, 2) if loss == "cox" else (4, 2, 3))
    assert model(**make_inputs()).loss is None
    value.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.hazards.parameters())
    assert model.hazards.weight.grad.abs().sum() > 0
    if loss == "cox":
        with pytest.raises(ConfigError, match="no curves without a baseline.*fit_baseline on train first"):
            model.curves(logits)
        model.fit_baseline(logits.detach(), LABELS)
    found = model.curves(logits.detach().double())
    torch.testing.assert_close(
        found.survival + found.incidence.sum(1), torch.ones(4, 4, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_the_frozen_import_and_its_default_grid():
    model = BEHRTForSurvival(make_config())
    assert model.edges.tolist() == list(DEFAULT_EDGES)
    assert model(**make_inputs()).logits.shape == (4, 1, 8)


@pytest.mark.parametrize("kind", ["behrt", "lstm"])
def test_padding_changes_nothing(kind):
    model = make(kind).eval()
    short = make_inputs(1, 7)
    padded = {name: torch.nn.functional.pad(tensor, (0, 5)) for name, tensor in short.items()}
    padded["codes"][:, 7:], padded["ages"][:, 7:], padded["visit_ids"][:, 7:] = 17, 3, 23
    torch.testing.assert_close(model(**short).logits, model(**padded).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["behrt", "lstm"])
def test_it_starts_at_the_hazards_of_everyone(kind):
    model = make(kind).eval()
    placed = place(LABELS[:, 0], LABELS[:, 1].long(), model.edges)
    marginal = marginal_logits(placed, 2, 3)
    model.begin(marginal)
    logits = model(**make_inputs()).logits
    assert (logits - marginal).abs().max() < 0.5, "the hazards of train with little of the model's own on top"
    torch.testing.assert_close(model.hazards.bias, marginal.flatten().float())


@pytest.mark.parametrize(("kind", "loss"), list(itertools.product(["behrt", "lstm"], ["discrete", "piecewise", "cox"])))
def test_a_tiny_model_overfits(kind, loss):
    model = make(kind, loss=loss)
    inputs = make_inputs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    first = last = model(**inputs, labels=LABELS).loss.item()
    for _ in range(120):
        optimizer.zero_grad()
        value = model(**inputs, labels=LABELS).loss
        value.backward()
        optimizer.step()
        last = value.item()
    assert last < first - 0.4
    if loss == "cox":
        logits = model(**inputs).logits
        assert logits[0, 0] > logits[1:, 0].max(), "who had the event first has the highest hazard"
        return
    incidence = model.curves(model(**inputs).logits).incidence
    assert incidence[0, 0, 1] > 0.8
    assert incidence[2, 1, 3] > 0.8


@pytest.mark.parametrize("pooling", ["mean", "attention", "last"])
def test_hazards_of_visits_depend_on_no_later_visit(pooling):
    config = make_config(dropout=0.0, attention="visit_causal", gap_embedding=True)
    torch.manual_seed(1)
    model = BEHRTForSurvival(config, edges_days=EDGES, reading="visits", visit_pooling=pooling).eval()
    inputs = visit_inputs() | {"gaps": torch.rand(4, 12) * 50}
    before = model(**inputs).logits
    assert before.shape == (4, 6, 1, 3)
    for visit in range(1, 6):
        changed = {name: tensor.clone() for name, tensor in inputs.items()}
        later = (inputs["visit_ids"] > visit) & inputs["mask"]
        changed["codes"][later] = (changed["codes"][later] - 5 + 7) % (VOCABULARY - 5) + 5
        changed["ages"][later] = 3
        changed["gaps"][later] += 9.0
        after = model(**changed).logits
        assert torch.equal(before[:, :visit], after[:, :visit])
        assert not torch.equal(before[:1, visit:], after[:1, visit:])
        cut = {name: tensor[:, : 2 * visit + 1] for name, tensor in inputs.items()}
        torch.testing.assert_close(model(**cut).logits[0], before[0, :visit], rtol=1e-5, atol=1e-6)
    assert (before[3, 2:] == 0).all(), "rows without the visit"


def test_visit_poolings_read_their_visit():
    config = make_config(dropout=0.0, attention="visit_causal")
    inputs = visit_inputs()
    found = {}
    for pooling in ("mean", "attention", "last"):
        torch.manual_seed(1)
        model = BEHRTForSurvival(config, edges_days=EDGES, reading="visits", visit_pooling=pooling).eval()
        if pooling == "attention":
            torch.nn.init.zeros_(model.score.weight)
        found[pooling] = model(**inputs).logits
        if pooling == "last":
            hidden = model.behrt(**inputs)
            torch.testing.assert_close(found["last"][0, 1], model.answer(hidden[0, 4]), rtol=1e-5, atol=1e-6)
    hidden_means = found["mean"]
    assert not torch.allclose(hidden_means, found["last"])
    assert torch.isfinite(found["attention"]).all()


def test_the_loss_of_visits_counts_from_the_prediction_time_on():
    config = make_config(dropout=0.0, attention="visit_causal")
    torch.manual_seed(1)
    model = BEHRTForSurvival(config, edges_days=EDGES, causes=2, reading="visits").eval()
    inputs = visit_inputs((5, 3, 3, 3))
    elapsed = torch.zeros(4, 12)
    elapsed[:, 1:3] = 20.0
    logits, loss = model(**inputs, labels=LABELS, elapsed=elapsed)
    # Only the first row has two visits; of the others the last one ends at the prediction time.
    elapsed[1:] = 0.0
    logits, loss = model(**inputs, labels=LABELS, elapsed=elapsed)
    rows = [
        piecewise_nll(logits[row : row + 1, 0], LABELS[row : row + 1, 0], LABELS[row : row + 1, 1].long(), model.edges)
        for row in (1, 2, 3)
    ]
    late = LABELS[:1].clone()
    late[:, 0] += 20.0
    whole = piecewise_nll(logits[:1, 0], late[:, 0], late[:, 1].long(), model.edges)
    until = piecewise_nll(logits[:1, 0], torch.tensor([20.0]), torch.tensor([0]), model.edges)
    last = piecewise_nll(logits[:1, 1], LABELS[:1, 0], LABELS[:1, 1].long(), model.edges)
    torch.testing.assert_close(loss, ((whole - until + last) / 2 + sum(rows)) / 4, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="labels of a model that reads visits need elapsed"):
        model(**inputs, labels=LABELS)
    far = model(**inputs, labels=LABELS * torch.tensor([1e-4, 1.0]), elapsed=elapsed + 30_000).loss
    assert far.item() == 0, "a grid that ends before the prediction time asks nothing"


def test_histories_without_a_visit_ask_nothing_of_visits():
    config = make_config(dropout=0.0, attention="visit_causal")
    model = BEHRTForSurvival(config, edges_days=EDGES, causes=2, reading="visits")
    inputs = visit_inputs() | {"visit_ids": torch.zeros(4, 12, dtype=torch.int64)}
    logits, loss = model(**inputs, labels=LABELS, elapsed=torch.zeros(4, 12))
    loss.backward()
    assert loss.item() == 0
    assert logits.shape == (4, 0, 2, 3)


@pytest.mark.parametrize("kind", ["behrt", "lstm"])
@pytest.mark.parametrize("loss", ["discrete", "cox"])
def test_saved_and_loaded_it_is_the_same(kind, loss, tmp_path):
    model = make(kind, loss=loss).eval()
    if loss == "cox":
        model.fit_baseline(model(**make_inputs()).logits.detach(), LABELS)
    model.save_pretrained(tmp_path / "model", vocabulary_hash="abc")
    again = type(model).from_pretrained(tmp_path / "model", vocabulary_hash="abc").eval()
    assert again.head_options() == model.head_options()
    assert torch.equal(again.edges, model.edges)
    logits = model(**make_inputs()).logits
    assert torch.equal(again(**make_inputs()).logits, logits)
    assert torch.equal(again.curves(logits).survival, model.curves(logits).survival)
    with pytest.raises(CheckpointError, match="hazards"):
        type(model).from_pretrained(tmp_path / "model", causes=3, loss="discrete")


def test_a_pretrained_encoder_is_adapted_with_lora_and_restored(tmp_path):
    torch.manual_seed(0)
    BEHRTForMLM(make_config(dropout=0.0)).save_pretrained(tmp_path / "base")

    def base():
        torch.manual_seed(2)
        return BEHRTForSurvival.from_pretrained(tmp_path / "base", edges_days=EDGES, causes=2)

    model = base()
    assert {name for name in model.pretrained_parameters if not name.startswith("behrt.")} == set()
    apply_lora_to_behrt(model, rank=4, train_embeddings=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"hazards.weight", "hazards.bias"} <= trained
    before = model.eval()(**make_inputs()).logits
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        model(**make_inputs(), labels=LABELS).loss.backward()
        optimizer.step()
    after = model(**make_inputs()).logits
    assert not torch.allclose(before, after)
    save_lora_weights(model, tmp_path / "adapter")
    again = load_lora_weights(base(), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(**make_inputs()).logits, after)
    torch.testing.assert_close(merge_lora(model)(**make_inputs()).logits, after, rtol=1e-4, atol=1e-5)


def test_the_head_of_next_visits_stands_beside_the_hazards():
    inputs = visit_inputs()
    for attention in ("bidirectional", "visit_causal"):
        torch.manual_seed(0)
        model = BEHRTForSurvival(make_config(attention=attention), edges_days=EDGES, next_visit=True).eval()
        assert model(**inputs, next_visit=True).logits.shape == (4, VOCABULARY)
        assert model(**inputs).logits.shape == (4, 1, 3)
    visits = torch.tensor([[0, 1], [0, 2], [1, 1]])
    assert model(**inputs, visits=visits, next_visit=True).logits.shape == (3, VOCABULARY)
    with pytest.raises(ConfigError, match="without a head of next visits.*next_visit=True"):
        make()(**inputs, next_visit=True)


def test_what_makes_no_model_is_refused():
    with pytest.raises(ConfigError, match="attention of a model that predicts from its visits; got bidirectional"):
        make(reading="visits")
    causal = make_config(attention="visit_causal")
    with pytest.raises(ConfigError, match="the reading of visits; got loss discrete, ranking 0"):
        BEHRTForSurvival(causal, reading="visits", loss="discrete")
    with pytest.raises(ConfigError, match="reading and visit_pooling; got every and mean; expected landmark or visits"):
        make(reading="every")
    with pytest.raises(ConfigError, match="loss of a survival model; got square; expected one of discrete"):
        make(loss="square")
    with pytest.raises(ConfigError, match="causes of a survival model; got 0"):
        make(causes=0)
    with pytest.raises(ConfigError, match="ranking and sigma; got"):
        make(ranking=-1.0)
    with pytest.raises(ConfigError, match="the ranking term is of a grid; got loss cox"):
        make(ranking=1.0, loss="cox")
    for edges in ((0.0,), (1.0, 2.0), (0.0, 5.0, 5.0), (0.0, float("nan")), (0.0, 1.0, 1.0 + 1e-12)):
        with pytest.raises(ShapeError, match="edges of the grid"):
            make(edges_days=edges)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.ones(4), r"labels has the wrong.*\[batch, 2\]: days and cause"),
        (torch.tensor([[5.0, 3.0]] * 4), "causes in the labels.*got 3; expected 0 to 2"),
        (torch.tensor([[5.0, 0.5]] * 4), "causes in the labels.*got 0.5"),
        (torch.tensor([[5.0, float("nan")]] * 4), "causes in the labels.*got nan"),
        (torch.tensor([[0.0, 1.0]] * 4), "durations.*got 0 days; expected finite, above 0"),
        (torch.tensor([[float("inf"), 1.0]] * 4), "durations.*got inf days"),
        (torch.tensor([[float("nan"), 1.0]] * 4), "durations.*got nan days"),
        (torch.tensor([[-7.0, 0.0]] * 4), "durations.*got -7 days"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    with pytest.raises(ShapeError, match=message):
        make()(**make_inputs(), labels=labels)


def test_the_ranking_term_is_part_of_the_loss():
    plain, ranked = make(), make(ranking=0.5)
    inputs = make_inputs()
    logits = plain(**inputs).logits
    assert torch.equal(logits, ranked(**inputs).logits)
    expected = plain.likelihood(logits, LABELS) + 0.5 * ranked.ranking_term(logits, LABELS)
    torch.testing.assert_close(ranked(**inputs, labels=LABELS).loss, expected)
