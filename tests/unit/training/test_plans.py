"""Masked language modelling: nothing but the context may tell what is hidden."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ehrsequencing.data.batching import Batch
from ehrsequencing.data.vocabulary import MASK, NUM_SPECIAL, SPECIAL_TOKENS, Vocabulary
from ehrsequencing.errors import DataError
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTForMLM, ModelOutput
from ehrsequencing.training.plans import FIXED_EPOCH, ClassificationPlan, MLMPlan, MultiLabelPlan, rates

KINDS_OF = np.array([0] * NUM_SPECIAL + [index % 4 for index in range(20)], dtype=np.uint8)


def vocabulary() -> Vocabulary:
    codes = [f"X//{index}" for index in range(20)]
    return Vocabulary(
        [*SPECIAL_TOKENS, *codes], [None] * NUM_SPECIAL + codes, KINDS_OF.tolist(), [0] * NUM_SPECIAL + [10] * 20
    )


class Source:
    """A batch source of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.one = batch
        self.examples = SimpleNamespace(target=None if batch.targets is None else batch.targets.numpy())

    def fixed(self):
        yield self.one


def batch(rows: int = 64, length: int = 30) -> Batch:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(NUM_SPECIAL, NUM_SPECIAL + 20, (rows, length), generator=generator)
    codes[:, 0] = 2
    mask = torch.arange(length) < torch.randint(2, length + 1, (rows, 1), generator=generator)
    codes = torch.where(mask, codes, 0)
    kinds = torch.where(codes >= NUM_SPECIAL, torch.as_tensor(KINDS_OF.astype(np.int64))[codes] + 1, 0)
    return Batch(
        codes=codes, ages=torch.full_like(codes, 50), visit_ids=torch.zeros_like(codes), mask=mask, kinds=kinds,
        times=torch.zeros(codes.shape), values=torch.rand(codes.shape), gaps=torch.zeros(codes.shape),
        age_years=torch.full(codes.shape, 50.0), calendar=torch.zeros(codes.shape), subject_ids=torch.arange(rows),
        example_ids=torch.arange(rows), targets=(torch.arange(rows) % 2).float(),
    )  # fmt: skip


def plan(made: Batch, **options) -> MLMPlan:
    config = BEHRTConfig.small(25, num_kinds=8, use_values=True, hidden_dim=16, embedding_dim=8, ffn_dim=16)
    return MLMPlan(config, Source(made), Source(made), vocabulary(), rate=0.3, seed=1, **options)


def test_kinds_and_values_of_hidden_codes_are_hidden():
    made = batch()
    inputs, labels = plan(made).masked(made, 0)
    hidden = inputs["codes"] == MASK
    assert hidden.sum() > 100
    assert (inputs["kinds"][hidden] == 0).all()
    assert inputs["values"][hidden].isnan().all()
    replaced = (inputs["codes"] != made.codes) & ~hidden
    assert replaced.any()
    assert torch.equal(
        inputs["kinds"][replaced], torch.as_tensor(KINDS_OF.astype(np.int64))[inputs["codes"][replaced]] + 1
    )
    same = inputs["codes"] == made.codes
    assert torch.equal(inputs["kinds"][same], made.kinds[same])
    assert (labels[~made.mask] == -100).all()
    assert (labels[:, 0] == -100).all(), "CLS is never predicted"


def test_train_masks_change_with_the_epoch_and_tuning_masks_do_not():
    made = batch()
    first, second, fixed, again = (plan(made).masked(made, epoch)[1] for epoch in (0, 1, FIXED_EPOCH, FIXED_EPOCH))
    assert not torch.equal(first, second)
    assert torch.equal(fixed, again)


def test_subject_statistics_add_up_to_validation():
    made = batch()
    torch.manual_seed(0)
    tested = plan(made)
    model = BEHRTForMLM(tested.config).eval()
    whole = tested.validate(model, torch.device("cpu"))
    rows = tested.subject_statistics(model, torch.device("cpu"))
    assert len(rows["count"]) == len(made)
    assert rows["loss_sum"].sum() / rows["count"].sum() == pytest.approx(whole["loss"], rel=1e-5)
    assert rows["correct"].sum() / rows["count"].sum() == pytest.approx(whole["accuracy"])
    assert rows["top10"].sum() / rows["count"].sum() == pytest.approx(whole["top10"])


def test_floors_of_independent_codes_are_the_uniform_loss():
    made = batch()
    floors = plan(made).floors()
    assert floors["uniform"]["loss"] == pytest.approx(np.log(20))
    assert floors["unigram"]["loss"] == pytest.approx(np.log(20), rel=1e-3)


class Copyist(torch.nn.Module):
    """What is best on codes that nothing predicts: one in two of the chosen codes that show a code is unchanged."""

    def forward(self, codes, ages, visit_ids, mask, *, labels, **inputs):
        shown = codes[labels != -100]
        probability = torch.full((len(shown), 25), 1 / 20)
        probability[:, :NUM_SPECIAL] = 1e-9
        copied = torch.nn.functional.one_hot(shown, 25) * 0.5 + probability * 0.5
        return ModelOutput(torch.where((shown == MASK)[:, None], probability, copied).log(), None)


def test_copying_what_is_shown_earns_nothing():
    made = batch(rows=400)
    tested = plan(made)
    found = tested.validate(Copyist(), torch.device("cpu"))
    assert found["loss"] == pytest.approx(np.log(20), rel=1e-4)
    assert found["loss"] == pytest.approx(tested.floors()["uniform"]["loss"], rel=1e-4)
    assert found["accuracy"] < 0.08
    inputs, labels = tested.masked(made, 0)
    _, train = tested.step(BEHRTForMLM(tested.config), made, 0, 0)
    assert train["count"] == ((inputs["codes"] == MASK) & (labels != -100)).sum()


def test_a_tuning_split_without_a_hidden_code_is_refused():
    made = batch()
    made.codes[:] = 2
    with pytest.raises(DataError, match="no code of the tuning subjects is hidden"):
        plan(made).floors()


def test_classification_validates_with_torchmetrics():
    from ehrsequencing.models.behrt import BEHRTForSequenceClassification

    made = batch()
    config = BEHRTConfig.small(25, hidden_dim=16, embedding_dim=8, ffn_dim=16)
    tested = ClassificationPlan(config, Source(made), Source(made))
    torch.manual_seed(0)
    model = BEHRTForSequenceClassification(config).eval()
    found = tested.validate(model, torch.device("cpu"))
    loss, sums = tested.step(model, made, 0, 0)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert rates(sums)["accuracy"] == pytest.approx(found["accuracy"])
    assert 0 <= found["auroc"] <= 1


def test_multi_label_validation_counts_categories_with_both_classes():
    from sklearn.metrics import average_precision_score, roc_auc_score

    from ehrsequencing.models.behrt import BEHRTForSequenceClassification

    generator = torch.Generator().manual_seed(1)
    targets = (torch.rand(64, 5, generator=generator) < 0.3).float()
    targets[:, 1], targets[:, 3] = 0, 1
    made = dataclasses.replace(batch(), targets=targets)
    config = BEHRTConfig.small(25, hidden_dim=16, embedding_dim=8, ffn_dim=16)
    tested = MultiLabelPlan(config, Source(made), Source(made))
    torch.manual_seed(0)
    model = BEHRTForSequenceClassification(config, num_labels=5, problem_type="multi_label").eval()
    found = tested.validate(model, torch.device("cpu"))
    loss, sums = tested.step(model, made, 0, 0)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert rates(sums)["loss"] == pytest.approx(found["loss"], rel=1e-5)
    score = model(**made.inputs(config.input_names)).logits.detach()
    judged = [0, 2, 4]
    truth, score = targets[:, judged].numpy(), score[:, judged].numpy()
    assert tested.judged == 3
    for name, metric in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        assert found[f"{name}_macro"] == pytest.approx(metric(truth, score, average="macro"), rel=1e-5)
        assert found[f"{name}_micro"] == pytest.approx(metric(truth, score, average="micro"), rel=1e-5)
