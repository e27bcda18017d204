"""LSTM over visits and RETAIN: only real tokens count, nothing is NaN, contributions add up, order is learned."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ehrsequencing.errors import CheckpointError, ConfigError, ShapeError, VocabularyMismatchError
from ehrsequencing.models.architectures import ARCHITECTURES, classifier_class
from ehrsequencing.models.classification import SequenceClassifier
from ehrsequencing.models.configuration import RETAINConfig, VisitLSTMConfig
from ehrsequencing.models.lstm import VisitLSTMForSequenceClassification
from ehrsequencing.models.retain import RETAINForSequenceClassification
from ehrsequencing.models.visits import gather_visits, run_packed

VOCABULARY = 40
EVERY_INPUT = {
    "num_kinds": 7, "time_embedding": True, "gap_embedding": True, "calendar_embedding": True, "use_values": True,
    "age": "continuous",
}  # fmt: skip
POOLED = [
    *((bidirectional, pooling) for bidirectional in (False, True) for pooling in VisitLSTMConfig.poolings),
    (None, "attention"),
]


def make_model(bidirectional: bool | None, pooling: str = "attention", **options) -> SequenceClassifier:
    """An LSTM of one or two directions, or RETAIN for None; small and in eval mode."""
    torch.manual_seed(options.pop("seed", 0))
    head = {name: options.pop(name) for name in ("num_labels", "problem_type") if name in options}
    widths = {"vocab_size": VOCABULARY, "embedding_dim": 8, "hidden_dim": 12, "pooling": pooling, **options}
    if bidirectional is None:
        return RETAINForSequenceClassification(RETAINConfig(**widths), **head).eval()
    return VisitLSTMForSequenceClassification(VisitLSTMConfig(bidirectional=bidirectional, **widths), **head).eval()


def batch_of(visits: list[list[int]], *, padding: int = 0, seed: int = 0, cls: bool = True) -> dict[str, Tensor]:
    """Rows of visits with these numbers of tokens (0: an empty visit), every input filled, padding at the end."""
    random = np.random.default_rng(seed)
    length = max(int(cls) + sum(row) for row in visits) + padding
    shape = (len(visits), max(1, length))
    codes, ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for row, sizes in enumerate(visits):
        numbers = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        stop = int(cls) + len(numbers)
        codes[row, int(cls) : stop] = random.integers(5, VOCABULARY, len(numbers))
        ids[row, int(cls) : stop], mask[row, :stop] = numbers, True
        codes[row, : int(cls)] = 2
    found = {
        "codes": codes, "ages": random.integers(0, 121, shape), "visit_ids": ids, "mask": mask,
        "kinds": random.integers(0, 8, shape), "times": random.exponential(300, shape).astype(np.float32),
        "gaps": random.exponential(30, shape).astype(np.float32),
        "calendar": np.where(random.random(shape) < 0.2, np.nan, random.random(shape) * 25).astype(np.float32),
        "values": np.where(random.random(shape) < 0.5, np.nan, random.random(shape)).astype(np.float32),
        "age_years": np.where(random.random(shape) < 0.2, np.nan, random.random(shape) * 90).astype(np.float32),
    }  # fmt: skip
    return {name: torch.from_numpy(np.asarray(value)) for name, value in found.items()}


def wanted(model: SequenceClassifier, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in model.config.input_names}


def row_of(inputs: dict[str, Tensor], row: int, *, cut: bool = True) -> dict[str, Tensor]:
    """One row as a batch of its own; with `cut` without its padding."""
    stop = max(1, int(inputs["mask"][row].sum())) if cut else inputs["mask"].shape[1]
    return {name: value[row : row + 1, :stop] for name, value in inputs.items()}


histories = st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=4)


@pytest.mark.parametrize(("bidirectional", "pooling"), POOLED)
@settings(deadline=None, max_examples=12)
@given(visits=histories, padding=st.integers(0, 5), cls=st.booleans(), seed=st.integers(0, 99))
def test_any_batch_gives_finite_logits_and_gradients_and_each_row_its_own(
    bidirectional, pooling, visits, padding, cls, seed
):
    """Empty visits, one visit, CLS alone, padding alone: finite, and equal to the row without company or padding."""
    model = make_model(bidirectional, pooling, **EVERY_INPUT)
    inputs = wanted(model, batch_of(visits, padding=padding, seed=seed, cls=cls))
    logits, loss = model(**inputs, labels=torch.arange(len(visits)) % 2)
    assert torch.isfinite(logits).all()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    for row in range(len(visits)):
        alone = model(**row_of(inputs, row)).logits
        torch.testing.assert_close(alone[0], logits[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("bidirectional", "pooling"), POOLED)
def test_padding_and_company_change_nothing(bidirectional, pooling):
    model = make_model(bidirectional, pooling, **EVERY_INPUT)
    visits = [[3, 1, 2], [1], [2, 2, 2, 2, 1], []]
    plain = wanted(model, batch_of(visits))
    logits = model(**plain).logits
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model(**{name: value[order] for name, value in plain.items()}).logits
    torch.testing.assert_close(shuffled, logits[order], rtol=0, atol=1e-6)
    # What stands at padding is noise of any legal kind.
    mask = plain["mask"]
    noise = wanted(model, batch_of([[12]] * 4, seed=5))
    shorter = mask.shape[1] - 13
    noise = {name: torch.nn.functional.pad(value, (0, shorter)) for name, value in noise.items()} if shorter > 0 else {
        name: value[:, : mask.shape[1]] for name, value in noise.items()
    }  # fmt: skip
    dirty = {name: torch.where(mask, value, noise[name]) for name, value in plain.items() if name != "mask"}
    dirty["visit_ids"] = dirty["visit_ids"] + (~mask) * 7
    torch.testing.assert_close(model(**dirty, mask=mask).logits, logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_states_are_those_of_each_row_unpacked(bidirectional):
    torch.manual_seed(0)
    layer = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=bidirectional)
    vectors, lengths = torch.randn(4, 7, 6), torch.tensor([7, 1, 4, 0])
    states = run_packed(layer, vectors, lengths)
    for row, length in enumerate(lengths.tolist()):
        if length:
            torch.testing.assert_close(states[row, :length], layer(vectors[row : row + 1, :length])[0][0])
        assert not states[row, length:].any()


def test_visits_are_means_of_their_tokens_in_order():
    embedded = torch.tensor([[[1.0], [2.0], [4.0], [8.0], [99.0]], [[3.0], [99.0], [99.0], [99.0], [99.0]]])
    visit_ids = torch.tensor([[0, 5, 2, 5, 1], [4, 0, 0, 0, 0]])
    mask = torch.tensor([[True] * 4 + [False], [True] + [False] * 4])
    visits = gather_visits(embedded, visit_ids, mask)
    assert visits.vectors.squeeze(-1).tolist() == [[1.0, 4.0, 5.0], [3.0, 0.0, 0.0]]
    assert visits.lengths.tolist() == [3, 1]
    assert visits.place.tolist() == [[0, 2, 1, 2, 0], [0, 0, 0, 0, 0]]
    assert visits.share.tolist() == [[1, 0.5, 1, 0.5, 0], [1, 0, 0, 0, 0]]
    assert visits.mask.tolist() == [[True] * 3, [True, False, False]]


def test_the_order_of_tokens_within_a_visit_changes_nothing_and_that_of_visits_does():
    inputs = batch_of([[3, 3]])
    names = ("codes", "ages", "visit_ids", "mask")
    for bidirectional in (False, True, None):
        model = make_model(bidirectional)
        plain = {name: inputs[name] for name in names}
        logits = model(**plain).logits
        within = {name: value[:, [0, 3, 1, 2, 4, 6, 5]] for name, value in plain.items()}
        torch.testing.assert_close(model(**within).logits, logits, rtol=0, atol=1e-6)
        visits = {name: value[:, [0, 4, 5, 6, 1, 2, 3]] for name, value in plain.items()}
        visits["visit_ids"] = plain["visit_ids"]
        assert (model(**visits).logits - logits).abs().item() > 1e-5


def test_last_visit_of_two_directions_is_where_each_ends():
    model = make_model(True, "last_visit")
    inputs = wanted(model, batch_of([[2, 1], [1]]))
    visits = gather_visits(
        model.embeddings(inputs["codes"], inputs["ages"], inputs["visit_ids"]), inputs["visit_ids"], inputs["mask"]
    )
    for row, length in enumerate((3, 2)):
        _, (last, _) = model.encoder.lstm(visits.vectors[row : row + 1, :length])
        ends = torch.cat((last[-2], last[-1]), dim=1)
        expected = model.classifier(ends).squeeze()
        torch.testing.assert_close(model(**inputs).logits[row], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True, None])
@pytest.mark.parametrize("training", [False, True])
def test_bf16_autocast_is_finite_and_near_full_precision(bidirectional, training):
    model = make_model(bidirectional, **EVERY_INPUT, dropout=0.0).train(training)
    inputs = wanted(model, batch_of([[3, 0, 2], [1], [], [4] * 5], padding=3))
    full = model(**inputs).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = model(**inputs, labels=torch.tensor([0, 1, 0, 1]))
    loss.backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    torch.testing.assert_close(logits.float(), full, rtol=0.05, atol=0.01)


@settings(deadline=None, max_examples=25)
@given(visits=histories, labels=st.sampled_from([1, 3]), cls=st.booleans(), seed=st.integers(0, 99))
def test_contributions_add_up_to_the_logits(visits, labels, cls, seed):
    problem = "binary" if labels == 1 else "multi_label"
    model = make_model(None, num_labels=labels, problem_type=problem, **EVERY_INPUT)
    with torch.no_grad():
        model.classifier.weight.mul_(50)
        model.classifier.bias.uniform_(-1, 1)
    inputs = wanted(model, batch_of(visits, padding=2, seed=seed, cls=cls))
    parts = model.contributions(**inputs)
    logits = model(**inputs).logits
    expected = parts.tokens.sum(1) + (parts.bias if labels > 1 else parts.bias[0])
    torch.testing.assert_close(expected, logits, rtol=1e-5, atol=1e-5)
    assert not parts.tokens[~inputs["mask"]].any() and not parts.visit_attention[~inputs["mask"]].any()


def test_contributions_are_the_papers_equation():
    """alpha W (beta * v) of each visit, computed visit by visit from the last one."""
    model = make_model(None)
    inputs = wanted(model, batch_of([[1, 1, 1]], cls=False))
    embedded = model.embeddings(inputs["codes"], inputs["ages"], inputs["visit_ids"])[0]
    g, h, scores, gates = None, None, [], []
    for step in (2, 1, 0):
        out, g = model.encoder.visit_rnn(embedded[step][None, None], g)
        scores.insert(0, model.encoder.visit_score(out).squeeze())
        out, h = model.encoder.variable_rnn(embedded[step][None, None], h)
        gates.insert(0, torch.tanh(model.encoder.variable_gate(out)).squeeze())
    alpha = torch.softmax(torch.stack(scores), 0)
    expected = [(alpha[i] * model.classifier.weight[0] @ (gates[i] * embedded[i])).item() for i in range(3)]
    parts = model.contributions(**inputs)
    assert parts.tokens[0].tolist() == pytest.approx(expected, abs=1e-7)
    assert parts.visit_attention[0].tolist() == pytest.approx(alpha.tolist(), abs=1e-6)


def order_toy(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """A before B against B before A, in visits of three codes of which two are noise; every code as often in both."""
    random = np.random.default_rng(seed)
    label = np.arange(count) % 2
    codes = random.integers(7, VOCABULARY, (count, 5, 3))
    first = random.integers(0, 4, count)
    second = np.array([random.integers(start + 1, 5) for start in first])
    codes[np.arange(count), first, 0] = 5 + label
    codes[np.arange(count), second, 0] = 6 - label
    flat = np.concatenate([np.full((count, 1), 2), codes.reshape(count, 15)], axis=1)
    visit_ids = np.concatenate([[0], np.repeat(np.arange(1, 6), 3)])
    inputs = {
        "codes": torch.from_numpy(flat), "ages": torch.full(flat.shape, 60),
        "visit_ids": torch.from_numpy(visit_ids).expand(count, -1), "mask": torch.ones(flat.shape, dtype=torch.bool),
    }  # fmt: skip
    return inputs, torch.from_numpy(label)


@pytest.mark.parametrize("name", ["lstm", "bilstm", "retain"])
def test_the_order_of_visits_is_learned_where_counts_of_codes_know_nothing(name):
    train, truth = order_toy(600, 0)
    test, answer = order_toy(300, 1)
    counts = [
        np.stack([np.bincount(row, minlength=VOCABULARY) for row in part["codes"].numpy()]) for part in (train, test)
    ]
    linear = LogisticRegression(max_iter=500).fit(counts[0], truth)
    assert 0.4 < roc_auc_score(answer, linear.predict_proba(counts[1])[:, 1]) < 0.6
    torch.manual_seed(0)
    kind = ARCHITECTURES[name]
    model = kind.model(
        kind.configuration("small", VOCABULARY, dropout=0.0).with_options(embedding_dim=32, hidden_dim=32)
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(12):
        for chosen in torch.randperm(600).split(100):
            _, loss = model(**{key: value[chosen] for key, value in train.items()}, labels=truth[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()
    with torch.no_grad():
        assert roc_auc_score(answer, model(**test).logits) > 0.95


@pytest.mark.parametrize("bidirectional", [False, True, None])
def test_a_folder_gives_the_model_back_bit_for_bit(bidirectional, tmp_path):
    model = make_model(bidirectional, num_labels=3, problem_type="multi_label", **EVERY_INPUT)
    model.save_pretrained(tmp_path / "model", vocabulary_hash="abc", extra_files={"values.json": b"{}"})
    again = type(model).from_pretrained(tmp_path / "model", vocabulary_hash="abc").eval()
    assert again.config == model.config and again.head_options() == model.head_options()
    inputs = wanted(model, batch_of([[2, 1], [3]]))
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    with pytest.raises(VocabularyMismatchError, match="another vocabulary"):
        type(model).from_pretrained(tmp_path / "model", vocabulary_hash="abd")
    other = RETAINForSequenceClassification if bidirectional is not None else VisitLSTMForSequenceClassification
    with pytest.raises(CheckpointError, match=f"another family; got {type(model).__name__}; expected one of the"):
        other.from_pretrained(tmp_path / "model")


def test_every_kind_of_label_has_its_loss():
    inputs = batch_of([[2], [1, 1]])
    for kind, labels, logits in (
        ({}, torch.tensor([0.0, 1.0]), (2,)),
        ({"num_labels": 4}, torch.tensor([3, 0]), (2, 4)),
        ({"num_labels": 3, "problem_type": "multi_label"}, torch.ones(2, 3), (2, 3)),
    ):
        for bidirectional in (False, None):
            model = make_model(bidirectional, **kind)
            found = model(**wanted(model, inputs), labels=labels)
            assert tuple(found.logits.shape) == logits and found.loss.item() > 0
            assert model(**wanted(model, inputs)).loss is None


def test_inputs_are_checked_as_those_of_a_behrt():
    model = make_model(False, num_kinds=7)
    inputs = batch_of([[2]])
    plain = wanted(model, inputs)
    for change, error, message in (
        ({"kinds": None}, ConfigError, "kinds of a LSTM model whose num_kinds is 7; got none; expected an input"),
        ({"times": inputs["times"]}, ConfigError, "times of a LSTM model whose time_embedding is False"),
        ({"codes": plain["codes"] + VOCABULARY}, ShapeError, "codes"),
        ({"labels": torch.tensor([0.5, 1.0])}, ShapeError, "labels"),
        ({"labels": torch.tensor([2.0])}, ShapeError, "labels"),
    ):
        with pytest.raises(error, match=message):
            model(**plain | change)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_sizes_have_about_the_parameters_of_a_behrt(size):
    options = {"num_kinds": 7, "time_embedding": True, "position": "rotary"}
    counts = {}
    for name, kind in ARCHITECTURES.items():
        config = kind.configuration(size, 1000, **options)
        assert kind.size_name(config) == size
        with torch.device("meta"):
            counts[name] = kind.model(config).count_parameters()
    for name, count in counts.items():
        assert 0.9 < count / counts["behrt"] < 1.1, (name, counts)


def test_architectures_are_found_by_the_class_that_a_folder_names():
    for kind in ARCHITECTURES.values():
        assert classifier_class(kind.model.__name__) is kind.model
    assert classifier_class("BEHRTForMLM") is None
    assert ARCHITECTURES["lstm"].size_name(VisitLSTMConfig(vocab_size=100, hidden_dim=32)) == "2x32"


def test_configurations_refuse_what_they_cannot_be():
    for make, message in (
        (
            lambda: VisitLSTMConfig(100, pooling="cls"),
            "pooling; got 'cls'; expected one of mean, attention, last_visit",
        ),
        (lambda: RETAINConfig(100, pooling="mean"), "pooling; got 'mean'; expected one of attention"),
        (lambda: RETAINConfig(100, num_layers=2), "num_layers of RETAIN; got 2; expected 1, as published"),
        (lambda: VisitLSTMConfig(100, hidden_dim=9, bidirectional=True), "hidden_dim; got 9; expected an even number"),
        (lambda: VisitLSTMConfig(100, separators=True), "separators of a model over visits; got True"),
        (lambda: RETAINConfig(100, hidden_dim=0), "hidden_dim of a RETAIN model; got 0; expected at least 1"),
        (lambda: RETAINConfig.from_dict({"vocab_size": 9, "heads": 1}), "unknown option of RETAINConfig; got heads"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
