"""Shapes, padding, inputs, heads, and that a small model learns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import VOCABULARY, make_config, make_inputs, mlm_labels

from ehrsequencing.errors import AdapterError, ConfigError, ShapeError
from ehrsequencing.models.behrt import (
    BEHRT,
    BEHRTConfig,
    BEHRTForMLM,
    BEHRTForNextVisitPrediction,
    BEHRTForSequenceClassification,
)
from ehrsequencing.models.folder import state_hash
from ehrsequencing.models.lora import apply_lora_to_behrt

HEADS = (BEHRTForMLM, BEHRTForNextVisitPrediction, BEHRTForSequenceClassification)
POOLINGS = ("cls", "mean", "attention")


@pytest.mark.parametrize(
    ("size", "low", "high", "shape"),
    [("small", 0.4e6, 0.6e6, (64, 128, 2)), ("medium", 2e6, 3e6, (128, 256, 4)), ("large", 10e6, 20e6, (256, 512, 6))],
)
def test_sizes(size, low, high, shape):
    config = getattr(BEHRTConfig, size)(vocab_size=1000)
    assert (config.embedding_dim, config.hidden_dim, config.num_layers) == shape
    assert config.max_length == 512
    with torch.device("meta"):
        for head in (BEHRT, *HEADS):
            assert low <= head(config).count_parameters() <= high


def test_config_round_trip_and_errors():
    config = make_config(pooling="mean", position="sinusoidal")
    assert BEHRTConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="layers"):
        BEHRTConfig.from_dict({"vocab_size": 9, "layers": 2})
    for wrong in (
        {"num_heads": 5},
        {"dropout": 1.0},
        {"pooling": "max"},
        {"position": "random"},
        {"position": "rotary", "hidden_dim": 12, "num_heads": 4},
        {"num_layers": 0},
        {"mask_id": 0},
        {"mask_id": 7},
        {"position": "sinusoidal", "embedding_dim": 15},
    ):
        with pytest.raises(ConfigError):
            make_config(**wrong)
    with pytest.raises(ConfigError, match="vocab_size"):
        BEHRTConfig.small(vocab_size=5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_never_matters(head, pooling, norm):
    model = head(make_config(pooling=pooling, norm=norm)).eval()
    inputs = make_inputs(lengths=[12, 5, 1, 0])
    other = make_inputs(seed=1)
    changed = {name: torch.where(inputs["mask"], tensor, other[name]) for name, tensor in inputs.items()}
    changed["mask"] = inputs["mask"]
    logits = model(**inputs).logits
    assert not torch.isnan(logits).any()
    assert torch.equal(model(**changed).logits, logits)
    padded = {name: torch.nn.functional.pad(tensor, (0, 7)) for name, tensor in inputs.items()}
    longer = model(**padded).logits
    if head is BEHRTForMLM:
        longer = longer[:, :12]
    torch.testing.assert_close(longer, logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_empty_rows_give_finite_gradients(pooling):
    model = BEHRTForSequenceClassification(make_config(pooling=pooling))
    model(**make_inputs(lengths=[12, 3, 0, 0]), labels=torch.tensor([1.0, 0.0, 1.0, 0.0])).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_padding_positions_are_zero():
    inputs = make_inputs(lengths=[12, 5, 1, 0])
    hidden = BEHRT(make_config())(**inputs)
    assert hidden.shape == (4, 12, 32)
    assert torch.equal(hidden[~inputs["mask"]], torch.zeros(30, 32))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_rows_are_independent(head, pooling):
    model = head(make_config(pooling=pooling)).eval()
    inputs = make_inputs(lengths=[12, 5, 1, 7])
    order = torch.tensor([2, 0, 3, 1])
    logits = model(**inputs).logits
    shuffled = model(**{name: tensor[order] for name, tensor in inputs.items()}).logits
    torch.testing.assert_close(shuffled, logits[order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["codes", "ages", "visit_ids"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_every_input_matters(name, position):
    model = BEHRT(make_config(position=position)).eval()
    inputs = make_inputs()
    changed = dict(inputs)
    changed[name] = inputs[name].clone()
    changed[name][0, 3] = (inputs[name][0, 3] + 1) % 20
    before, after = model(**inputs), model(**changed)
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


def test_order_matters():
    model = BEHRTForSequenceClassification(make_config(pooling="mean")).eval()
    inputs = make_inputs()
    inputs["ages"], inputs["visit_ids"] = torch.full_like(inputs["ages"], 50), torch.zeros_like(inputs["ages"])
    flipped = {**inputs, "codes": inputs["codes"].flip(1)}
    assert not torch.allclose(model(**inputs).logits, model(**flipped).logits, atol=1e-5)


def test_optional_inputs():
    config = make_config(num_kinds=8, time_embedding=True, use_values=True)
    model = BEHRT(config).eval()
    inputs = make_inputs()
    extra = {
        "kinds": torch.randint(0, 9, (4, 12)),
        "times": torch.rand(4, 12) * 40_000,
        "values": torch.rand(4, 12).masked_fill(torch.rand(4, 12) < 0.5, torch.nan),
    }
    hidden = model(**inputs, **extra)
    assert torch.isfinite(hidden).all()
    for name, tensor in extra.items():
        changed = {**extra, name: (tensor + 1) % 9 if name == "kinds" else torch.nan_to_num(tensor, nan=0.3) * 0.5}
        assert not torch.allclose(model(**inputs, **changed), hidden)
        with pytest.raises(ConfigError, match=name):
            model(**inputs, **{key: value for key, value in extra.items() if key != name})
        with pytest.raises(ConfigError, match=name):
            BEHRT(make_config())(**inputs, **{name: tensor})


def test_a_missing_value_is_not_zero():
    model = BEHRT(make_config(use_values=True)).eval()
    inputs = make_inputs()
    nothing = torch.full((4, 12), torch.nan)
    zero = nothing.clone()
    zero[0, 3] = 0.0
    assert not torch.allclose(model(**inputs, values=nothing)[0], model(**inputs, values=zero)[0])


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [("codes", (1, 2), VOCABULARY), ("codes", (0, 0), -1), ("ages", (3, 11), 121), ("visit_ids", (0, 5), 24)],
)
def test_ids_out_of_range(name, index, value):
    inputs = make_inputs()
    inputs[name][index] = value
    with pytest.raises(ShapeError, match=name):
        BEHRT(make_config())(**inputs)


def test_ids_at_the_edges():
    inputs = make_inputs(length=24)
    inputs["ages"][0, :2] = torch.tensor([0, 120])
    inputs["visit_ids"][0, :2] = torch.tensor([0, 23])
    inputs["codes"][0, 1] = VOCABULARY - 1
    assert torch.isfinite(BEHRT(make_config())(**inputs)).all()


def test_wrong_shapes_are_named():
    model, inputs = BEHRT(make_config()), make_inputs()
    for name, wrong in (
        ("codes", torch.zeros(4, 25, dtype=torch.int64)),
        ("codes", torch.zeros(4, 0, dtype=torch.int64)),
        ("ages", torch.zeros(4, 11, dtype=torch.int64)),
        ("ages", torch.zeros(4, 12)),
        ("mask", torch.ones(4, 12)),
    ):
        with pytest.raises(ShapeError, match=name):
            model(**{**inputs, name: wrong})
    mlm = BEHRTForMLM(make_config())
    with pytest.raises(ShapeError, match="labels"):
        mlm(**inputs, labels=torch.zeros(4, 3, dtype=torch.int64))


def test_mlm_logits_at_masked_positions_are_those_of_all():
    model = BEHRTForMLM(make_config()).eval()
    inputs = make_inputs(lengths=[12, 5, 1, 8])
    labels = mlm_labels(inputs)
    everywhere, no_loss = model(**inputs)
    assert everywhere.shape == (4, 12, VOCABULARY) and no_loss is None
    logits, loss = model(**inputs, labels=labels)
    chosen = labels != -100
    torch.testing.assert_close(logits, everywhere[chosen], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(everywhere[chosen], labels[chosen]))


def test_mlm_without_any_mask_has_zero_loss():
    model, inputs = BEHRTForMLM(make_config()), make_inputs()
    logits, loss = model(**inputs, labels=torch.full((4, 12), -100))
    loss.backward()
    assert logits.shape == (0, VOCABULARY) and loss.item() == 0


@pytest.mark.parametrize("head", [BEHRTForMLM, BEHRTForNextVisitPrediction])
def test_embedding_and_decoder_are_one_tensor(head):
    inputs = make_inputs()
    tied, untied = head(make_config()), head(make_config(tie_weights=False))
    embedding = tied.behrt.embeddings.code.weight
    assert tied.decoder_weight.data_ptr() == embedding.data_ptr()
    assert untied.decoder_weight.data_ptr() != untied.behrt.embeddings.code.weight.data_ptr()
    assert untied.count_parameters() - tied.count_parameters() == VOCABULARY * 16
    # A token absent from the input gets a gradient through the decoder, and only there.
    inputs["codes"][inputs["codes"] == 33] = 34
    for model in (tied, untied):
        model(**inputs).logits.logsumexp(-1).sum().backward()
        row = model.behrt.embeddings.code.weight.grad[33]
        assert bool(row.count_nonzero()) == (model is tied)
    assert untied.decoder_weight.grad[33].count_nonzero()


def test_next_visit_head():
    model, inputs = BEHRTForNextVisitPrediction(make_config()).eval(), make_inputs()
    labels = (torch.rand(4, VOCABULARY) < 0.1).float()
    logits, loss = model(**inputs, labels=labels)
    assert logits.shape == (4, VOCABULARY)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ShapeError, match="labels"):
        model(**inputs, labels=labels[:, :-1])


def test_classification_heads():
    inputs = make_inputs()
    logits, loss = BEHRTForSequenceClassification(make_config())(**inputs, labels=torch.tensor([1, 0, 1, 1]).bool())
    assert logits.shape == (4,) and loss.ndim == 0
    several = BEHRTForSequenceClassification(make_config(), num_labels=3).eval()
    logits, loss = several(**inputs, labels=torch.tensor([0, 2, 1, 1]))
    assert logits.shape == (4, 3)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1, 1])))
    multiple = BEHRTForSequenceClassification(make_config(), num_labels=3, problem_type="multi_label")
    assert multiple(**inputs, labels=torch.ones(4, 3)).loss.ndim == 0
    with pytest.raises(ShapeError, match="labels"):
        several(**inputs, labels=torch.ones(4, 3))
    for options in ({"num_labels": 2, "problem_type": "binary"}, {"problem_type": "single_label"}, {"num_labels": 0}):
        with pytest.raises(ConfigError, match="problem_type"):
            BEHRTForSequenceClassification(make_config(), **options)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5), pooling=st.sampled_from(POOLINGS))
def test_pooled_logits_are_those_of_each_row_alone(lengths, pooling):
    torch.manual_seed(1)
    model = BEHRTForSequenceClassification(make_config(pooling=pooling)).eval()
    inputs = make_inputs(len(lengths), 9, lengths=lengths)
    together = model(**inputs).logits
    assert torch.isfinite(together).all()
    for row, length in enumerate(lengths):
        alone = {name: tensor[row : row + 1, : max(length, 1)] for name, tensor in inputs.items()}
        torch.testing.assert_close(model(**alone).logits[0], together[row], atol=1e-5, rtol=1e-4)


def test_two_runs_are_equal_bit_for_bit():
    hashes = []
    for _ in range(2):
        torch.manual_seed(5)
        model = BEHRTForMLM(make_config())
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(4):
            inputs = make_inputs(lengths=[12, 5, 3, 8], seed=step)
            optimiser.zero_grad()
            model(**inputs, labels=mlm_labels(inputs)).loss.backward()
            optimiser.step()
        hashes.append(state_hash(model))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("size", ["small", "medium"])
def test_a_model_memorises_eight_sequences(size):
    """The default initialisation learns at once: within 60 steps, dropout on."""
    model = BEHRTForMLM(getattr(BEHRTConfig, size)(VOCABULARY, num_layers=2))
    inputs = make_inputs(batch=8)
    labels = mlm_labels(inputs)
    masked = {**inputs, "codes": torch.where(labels != -100, 4, inputs["codes"])}
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        model(**masked, labels=labels).loss.backward()
        optimiser.step()
    predicted = model.eval()(**masked, labels=labels).logits.argmax(-1)
    assert (predicted == labels[labels != -100]).float().mean() > 0.95


@pytest.mark.parametrize("tie_weights", [True, False])
def test_extending_the_vocabulary(tie_weights):
    model = BEHRTForMLM(make_config(tie_weights=tie_weights)).eval()
    inputs = make_inputs()
    before = model(**inputs).logits
    codes = model.behrt.embeddings.code.weight.detach().clone()
    model.extend_vocabulary(VOCABULARY + 10, vocabulary_hash="new")
    assert model.config.vocab_size == model.behrt.config.vocab_size == VOCABULARY + 10
    assert model.vocabulary_hash == "new"
    assert (model.decoder_weight.data_ptr() == model.behrt.embeddings.code.weight.data_ptr()) == tie_weights
    after = model(**inputs).logits
    assert torch.equal(after[..., :VOCABULARY], before)
    new = model.behrt.embeddings.code.weight[VOCABULARY:]
    assert torch.equal(model.behrt.embeddings.code.weight[:VOCABULARY], codes)
    assert len(new.unique(dim=0)) == 10
    assert (new - codes[5:].mean(0)).abs().max() < 0.5 * codes[5:].std(0).max()
    inputs["codes"][0, 3] = VOCABULARY + 9
    model(**inputs, labels=mlm_labels(inputs)).loss.backward()
    with pytest.raises(ConfigError, match="vocabulary"):
        model.extend_vocabulary(VOCABULARY)
    model.mark_pretrained()
    with pytest.raises(AdapterError):
        apply_lora_to_behrt(model, rank=2).extend_vocabulary(VOCABULARY + 20)


def test_dropout_is_off_in_evaluation_and_on_in_training():
    inputs = make_inputs()
    for option in ({"dropout": 0.5}, {"dropout": 0.0, "attention_dropout": 0.5}):
        model = BEHRT(make_config(**option))
        assert not torch.equal(model(**inputs), model(**inputs))
        model.eval()
        assert torch.equal(model(**inputs), model(**inputs))


def test_codes_lead_the_embedding_sum_at_initialisation():
    """Context (age, visit, position, kind, time, value) starts well below the codes; a large share drowns them."""
    torch.manual_seed(0)
    config = BEHRTConfig.small(500, num_kinds=8, time_embedding=True, use_values=True)
    embedding = BEHRT(config).embeddings
    shape = (64, 100)
    context = {
        "age": embedding.age(torch.randint(0, 120, shape)),
        "visit": embedding.visit(torch.randint(0, 50, shape)),
        "position": embedding.position(100),  # type: ignore[misc]
        "kind": embedding.kind(torch.randint(0, 9, shape)),
        "time": embedding.time(torch.rand(shape) * 3000),
        "value": embedding.value(torch.rand(shape)),
    }
    codes = embedding.code(torch.randint(5, 500, shape)).std()
    for name, part in context.items():
        assert part.std() < 0.4 * codes, name
        assert part.std() > 0.01 * codes, name


def test_rotary_attention_depends_on_distances_alone():
    """Shifting a sequence along the positions changes no attention score, and order still matters."""
    from ehrsequencing.models.attention import RotaryPositions

    rotary = RotaryPositions(16, 64)
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(at: int, other: int) -> float:
        where = torch.zeros(1, 1, 64, 16)
        where[..., at, :] = query
        turned_query = rotary(where)[..., at, :]
        where = torch.zeros(1, 1, 64, 16)
        where[..., other, :] = key
        return float((turned_query * rotary(where)[..., other, :]).sum())

    assert score(3, 8) == pytest.approx(score(40, 45), abs=1e-4)
    assert score(3, 8) != pytest.approx(score(8, 3), abs=1e-3)


def test_rotary_model_sees_order_and_has_no_position_table():
    torch.manual_seed(0)
    model = BEHRT(BEHRTConfig.small(100, position="rotary")).eval()
    assert not any("position" in name for name, _ in model.named_parameters())
    codes = torch.randint(5, 100, (1, 12))
    same = torch.zeros_like(codes)
    mask = torch.ones_like(codes, dtype=torch.bool)
    forward, backward = model(codes, same, same, mask), model(codes.flip(1), same, same, mask).flip(1)
    assert (forward - backward).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({}, [0.0, float("nan"), 1.0, 1.0], "got nan and 0 more out of range; expected 0 to 1"),
        ({}, [0.0, 2.0, 3.0, 1.0], "got 2.0 and 1 more out of range; expected 0 to 1"),
        ({}, [0, -1, 0, 1], "got -1 and 0 more out of range; expected 0 to 1"),
        ({"num_labels": 3}, [0, 1, 2, 3], "got 3 and 0 more out of range; expected 0 to 2"),
        ({"num_labels": 3}, [0, 1, 2, -100], "got -100"),
        ({"num_labels": 2, "problem_type": "multi_label"}, [[0.0, 1.0]] * 3 + [[0.0, float("inf")]], "got inf"),
    ],
)
def test_labels_out_of_range_are_named(options, labels, message):
    model = BEHRTForSequenceClassification(make_config(), **options)
    with pytest.raises(ShapeError, match=f"labels has the wrong shape or range; {message}"):
        model(**make_inputs(), labels=torch.tensor(labels))


def test_labels_beyond_the_vocabulary_are_named():
    inputs = make_inputs()
    for wrong in (VOCABULARY, -1):
        labels = mlm_labels(inputs)
        labels[1, 1] = wrong
        with pytest.raises(ShapeError, match=f"labels .*got {wrong} and 0 more .*expected 0 to 59, or -100"):
            BEHRTForMLM(make_config())(**inputs, labels=labels)
    with pytest.raises(ShapeError, match=r"float32 \(4, 12\); expected int64"):
        BEHRTForMLM(make_config())(**inputs, labels=mlm_labels(inputs).float())
    with pytest.raises(ShapeError, match=r"labels .*got 7\.0"):
        BEHRTForNextVisitPrediction(make_config())(**inputs, labels=torch.full((4, VOCABULARY), 7.0))


def test_soft_labels_within_bounds_are_fine():
    loss = BEHRTForSequenceClassification(make_config())(
        **make_inputs(), labels=torch.tensor([0.0, 0.3, 0.9, 1.0])
    ).loss
    assert torch.isfinite(loss)
