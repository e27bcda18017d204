"""What a pretrained head of next visits says of the categories of a multi-label task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import CheckpointError, RunError
from ehrsequencing.io import read_json
from ehrsequencing.models.behrt import BEHRTForNextVisitPrediction, ModelOutput
from ehrsequencing.models.pretraining import BEHRTForJointPretraining

HEADS = {kind.__name__: kind for kind in (BEHRTForNextVisitPrediction, BEHRTForJointPretraining)}


class NextVisitCategories(nn.Module):
    """A model of next visits as a multi-label classifier: a category comes where any of its tokens does.

    Args:
        model: With a head of next visits.
        tokens: Bool [vocab_size, categories], which token is a case of which category.
    """

    problem_type = "multi_label"

    def __init__(self, model: BEHRTForNextVisitPrediction | BEHRTForJointPretraining, tokens: Tensor) -> None:
        super().__init__()
        self.model, self.config, self.num_labels = model, model.config, tokens.shape[1]
        self._options: dict[str, Any] = {"next_visit": True} if isinstance(model, BEHRTForJointPretraining) else {}
        self._tokens = tokens.to(torch.float64)

    def forward(self, codes: Tensor, ages: Tensor, visit_ids: Tensor, mask: Tensor, **optional: Any) -> ModelOutput:
        """logits Float64 [batch, categories] after each row's last visit, of 1 - product of (1 - p of each token)."""
        logits = self.model(codes, ages, visit_ids, mask, **optional, **self._options).logits
        absent = nn.functional.logsigmoid(-logits.double()) @ self._tokens
        probability = -torch.expm1(absent)
        return ModelOutput(torch.logit(probability, eps=1e-12), None)


def has_next_visit_head(run: Path) -> bool:
    """Whether a run's model can say what the next visit holds."""
    return read_json(run / "model" / "config.json", CheckpointError).get("architecture") in HEADS


def load_next_visit(run: Path, store: TokenStore, categories: Sequence[str], pairs: Sequence[tuple[int, int]]) -> Any:
    """The head of a pretrained run on these categories, in eval mode.

    Args:
        categories: Of the labels.
        pairs: As `baselines.copying.columns_of_codes` gives them: base code of the store, and category.

    Raises:
        RunError: the labels have no categories, or none that is a code of the store.
        VocabularyMismatchError: the run was trained with another vocabulary than the store's.
    """
    if not categories or not pairs:
        raise RunError(
            f"{run} predicts the codes of the next visit",
            got="labels without categories" if not categories else "categories that are no codes of the store",
            expected="labels of the task next_visit_codes",
            remedy="build them with `ehrseq task build MEDS --task next_visit_codes`",
        )
    kind = HEADS[read_json(run / "model" / "config.json", CheckpointError)["architecture"]]
    model = kind.from_pretrained(run / "model", vocabulary_hash=store.vocabulary.hash).eval()
    base = torch.as_tensor(store.vocabulary.base_ids.astype("int64"))
    tokens = torch.zeros(len(base), len(categories), dtype=torch.bool)
    for code, column in pairs:
        tokens[base == code, column] = True
    return NextVisitCategories(model, tokens).eval()
